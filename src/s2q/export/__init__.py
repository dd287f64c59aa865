"""An s2q checkpoint written for other programs: float weights, one file for ComfyUI, compressed-tensors."""
