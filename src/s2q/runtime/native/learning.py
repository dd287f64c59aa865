"""Call the passes of learning over all values: float32 tensors in, float32 tensors out, rows shared out over the threads."""

import torch
from torch import Tensor

from s2q.runtime.native.library import load
from s2q.runtime.native.sharing import share

SIZE = 4
"""Bytes of a value."""
ROWS = 512
"""Rows whose gradients are summed together, whatever the number of threads."""


def round_groups(x: Tensor, clip: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Each row of x [R, L] rounded on a grid of its own, and back in floats.

    Args:
        clip: [R], factor on the range.
    """
    x, clip, out = x.contiguous(), clip.contiguous(), torch.empty(x.shape)
    function, length, size = load().s2q_round_groups, x.shape[1], SIZE * x.shape[1]
    own, factor, rounded = x.data_ptr(), clip.data_ptr(), out.data_ptr()

    def part(start: int, stop: int) -> None:
        at = start * size
        function(own + at, stop - start, length, factor + SIZE * start, bits, symmetric, rounded + at)

    share(part, len(x), x.numel())
    return out


def round_groups_back(gradient: Tensor, x: Tensor, clip: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Gradients of `round_groups`: to x [R, L] and to clip [R]."""
    gradient, x, clip = gradient.contiguous(), x.contiguous(), clip.contiguous()
    passed, to_clip = torch.empty(x.shape), torch.empty(clip.shape)
    function, length, size = load().s2q_round_groups_back, x.shape[1], SIZE * x.shape[1]
    above, own, factor = gradient.data_ptr(), x.data_ptr(), clip.data_ptr()
    below, sums = passed.data_ptr(), to_clip.data_ptr()

    def part(start: int, stop: int) -> None:
        at, given = start * size, (factor + SIZE * start, bits, symmetric)
        function(above + at, own + at, stop - start, length, *given, below + at, sums + SIZE * start)

    share(part, len(x), x.numel())
    return passed, to_clip


def mix_blocks(x: Tensor) -> Tensor:
    """Rows that are one block of a Hadamard matrix each, [R, block], mixed."""
    x, out = x.contiguous(), torch.empty(x.shape)
    function, block, size = load().s2q_mix_blocks, x.shape[1], SIZE * x.shape[1]
    own, mixed = x.data_ptr(), out.data_ptr()

    def part(start: int, stop: int) -> None:
        function(own + start * size, stop - start, block, mixed + start * size)

    share(part, len(x), x.numel())
    return out


def kronecker(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x (P1 ⊗ P2) of rows: x [R, n1 · n2], left P1 [n1, n1], right P2 [n2, n2]."""
    x, left, right, out = x.contiguous(), left.contiguous(), right.contiguous(), torch.empty(x.shape)
    function, size = load().s2q_kronecker, SIZE * x.shape[1]
    matrices = (len(left), len(right), left.data_ptr(), right.data_ptr())
    own, made = x.data_ptr(), out.data_ptr()

    def part(start: int, stop: int) -> int:
        return function(own + start * size, stop - start, *matrices, made + start * size)

    share(part, len(x), x.numel() * (len(left) + len(right)))
    return out


def kronecker_back(
    gradient: Tensor, x: Tensor, left: Tensor, right: Tensor, to_x: bool, to_matrices: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `kronecker`: to x, to left and to right, those that are asked for."""
    gradient, x, left, right = gradient.contiguous(), x.contiguous(), left.contiguous(), right.contiguous()
    found = torch.empty(x.shape) if to_x else None
    parts = -(-len(x) // ROWS)
    lefts, rights = (torch.empty(parts, *matrix.shape) if to_matrices else None for matrix in (left, right))
    function, size = load().s2q_kronecker_back, SIZE * x.shape[1]
    matrices = (len(left), len(right), left.data_ptr(), right.data_ptr())
    above, own = gradient.data_ptr(), x.data_ptr()

    def part(start: int, stop: int) -> int:
        failed = 0
        for index in range(start, stop):
            row = index * ROWS
            below = None if found is None else found.data_ptr() + row * size
            sums = (None if sums is None else sums[index].data_ptr() for sums in (lefts, rights))
            failed |= function(above + row * size, own + row * size, min(ROWS, len(x) - row), *matrices, below, *sums)
        return failed

    share(part, parts, 3 * x.numel() * (len(left) + len(right)))
    return found, *(None if sums is None else sums.sum(0) for sums in (lefts, rights))


def column_dots(one: Tensor, other: Tensor) -> Tensor:
    """Σ over rows of one · other: [M, K] twice → [K]. Threads take columns, so that their number does not change a sum."""
    one, other = one.contiguous(), other.contiguous()
    rows, columns = one.shape
    out = torch.empty(columns)
    function, given, sums = load().s2q_column_dots, (one.data_ptr(), other.data_ptr(), rows, columns), out.data_ptr()
    share(lambda start, stop: function(*given, start, stop, sums), columns, one.numel())
    return out
