"""From a float block to a quantized one."""
