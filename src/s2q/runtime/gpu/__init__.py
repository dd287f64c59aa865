"""The quantized linear in Triton: on NVIDIA GPUs, and on the CPU through Triton's interpreter for its tests."""
