"""How much of a tensor elementwise work takes at a time."""

from torch import Tensor

SOME_VALUES = 1 << 17


def height(x: Tensor, values: int | None = None) -> int:
    """Rows of x [M, K] to work on at a time: on a CPU as many as stay in its cache, elsewhere all; at least one.

    Args:
        values: how many stay there, SOME_VALUES if it is not said.
    """
    return max(1, (values or SOME_VALUES) // x.shape[1] if x.device.type == "cpu" else x.shape[0])
