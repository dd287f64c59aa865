"""What to do when memory runs out: the same work in smaller parts."""

from collections.abc import Callable

import torch

# What torch says on a CPU, where it has no exception of its own for this.
_SAID = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or in the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def in_chunks(total: int, size: int, work: Callable[[slice], None]) -> None:
    """Call `work` for neighbouring slices of `total` items, `size` at a time.

    A slice that runs out of memory is done again as two halves, and so are all after it; with enough memory nothing is
    different from calling `work` in a loop.

    Args:
        work: must leave nothing behind when it raises, so that it can be called again for less.

    Raises:
        MemoryError: (or torch's own) one item alone is too much.
    """
    start = 0
    while start < total:
        part = slice(start, min(start + size, total))
        try:
            work(part)
        except Exception as error:
            if not is_out_of_memory(error) or part.stop - start <= 1:
                raise
            size = (part.stop - start + 1) // 2
        else:
            start = part.stop
            continue
        # Here, not above: the exception holds the frames whose tensors are to be freed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
