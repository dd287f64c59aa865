"""Inference with packed weights. Knows numerics and checkpoint, nothing of calibration."""
