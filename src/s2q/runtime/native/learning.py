"""Call the passes of learning over all values: float32 tensors in, float32 tensors out, rows shared out over the threads."""

import torch
from torch import Tensor

from s2q.runtime.native.library import load, row_address, share

ROWS = 512
"""Rows whose gradients are summed together."""


def round_groups(x: Tensor, clip: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Each row of x [R, L] rounded on a grid of its own, and back in floats.

    Args:
        clip: [R], factor on the range.
    """
    x, clip, out = x.contiguous(), clip.contiguous(), torch.empty(x.shape)
    function = load().s2q_round_groups

    def part(start: int, stop: int) -> None:
        own, factor, rounded = (row_address(tensor, start) for tensor in (x, clip, out))
        function(own, stop - start, x.shape[1], factor, bits, symmetric, rounded)

    share(part, len(x), x.numel())
    return out


def round_groups_back(gradient: Tensor, x: Tensor, clip: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Gradients of `round_groups`: to x [R, L] and to clip [R]."""
    gradient, x, clip = gradient.contiguous(), x.contiguous(), clip.contiguous()
    passed, to_clip = torch.empty(x.shape), torch.empty(clip.shape)
    function = load().s2q_round_groups_back

    def part(start: int, stop: int) -> None:
        above, own, factor, *found = (row_address(tensor, start) for tensor in (gradient, x, clip, passed, to_clip))
        function(above, own, stop - start, x.shape[1], factor, bits, symmetric, *found)

    share(part, len(x), x.numel())
    return passed, to_clip


def mix_blocks(x: Tensor) -> Tensor:
    """Rows that are one block of a Hadamard matrix each, [R, block], mixed."""
    x, out = x.contiguous(), torch.empty(x.shape)
    function = load().s2q_mix_blocks

    def part(start: int, stop: int) -> None:
        function(row_address(x, start), stop - start, x.shape[1], row_address(out, start))

    share(part, len(x), x.numel())
    return out


def kronecker(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x (P1 ⊗ P2) of rows: x [R, n1 · n2], left P1 [n1, n1], right P2 [n2, n2]."""
    x, left, right, out = x.contiguous(), left.contiguous(), right.contiguous(), torch.empty(x.shape)
    function, given = load().s2q_kronecker, (len(left), len(right), left.data_ptr(), right.data_ptr())

    def part(start: int, stop: int) -> int:
        return function(row_address(x, start), stop - start, *given, row_address(out, start))

    share(part, len(x), x.numel() * (len(left) + len(right)))
    return out


def kronecker_back(
    gradient: Tensor, x: Tensor, left: Tensor, right: Tensor, to_x: bool, to_matrices: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of `kronecker`: to x, to left and to right, those that are asked for."""
    gradient, x, left, right = (tensor.contiguous() for tensor in (gradient, x, left, right))
    found = torch.empty(x.shape) if to_x else None
    # Of some rows each, whatever the number of threads: so are the sums.
    parts = -(-len(x) // ROWS)
    lefts, rights = (torch.empty(parts, *matrix.shape) if to_matrices else None for matrix in (left, right))
    function, given = load().s2q_kronecker_back, (len(left), len(right), left.data_ptr(), right.data_ptr())

    def part(start: int, stop: int) -> int:
        failed = 0
        for index in range(start, stop):
            row, count = index * ROWS, min(ROWS, len(x) - index * ROWS)
            above, own = row_address(gradient, row), row_address(x, row)
            below = None if found is None else row_address(found, row)
            sums = (None if sums is None else row_address(sums, index) for sums in (lefts, rights))
            failed |= function(above, own, count, *given, below, *sums)
        return failed

    share(part, parts, 3 * x.numel() * (len(left) + len(right)))
    return found, *(None if sums is None else sums.sum(0) for sums in (lefts, rights))


def column_dots(one: Tensor, other: Tensor) -> Tensor:
    """Σ over rows of one · other: [M, K] twice → [K]. Threads take columns, so that their number does not change a sum."""
    one, other = one.contiguous(), other.contiguous()
    rows, columns = one.shape
    out = torch.empty(columns)
    function, given = load().s2q_column_dots, (one.data_ptr(), other.data_ptr(), rows, columns)
    share(lambda start, stop: function(*given, start, stop, out.data_ptr()), columns, one.numel())
    return out
