"""Imported before all else: what libraries decide when they are first imported.

One thread: on tiny models a second costs more than it saves, and the order of floating-point sums depends on their number.
Without a GPU, Triton interprets its kernels.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
