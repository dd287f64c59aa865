"""Imported before all else: without a GPU, Triton interprets its kernels, which it decides when it is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
