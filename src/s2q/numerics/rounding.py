"""AdaRound (arXiv 2004.10568): whether each weight is rounded up or down is learned through a soft step between both."""

from torch import Tensor

# The sigmoid is stretched beyond [0, 1] and cut, so that it reaches both ends where its gradient is not zero.
LOW, HIGH = -0.1, 1.1


def soft_round_up(logit: Tensor) -> Tensor:
    """h(V), how far each weight is rounded up: clamp(sigmoid(V) · 1.2 − 0.1, 0, 1)."""
    return (logit.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def initial_logit(ratio: Tensor) -> Tensor:
    """V for which h(V) is the fraction of `ratio` = w / scale, so that learning starts at the float weight."""
    fraction = (ratio - ratio.floor() - LOW) / (HIGH - LOW)
    return (fraction / (1 - fraction)).log()


def rounding_penalty(logit: Tensor, beta: float) -> Tensor:
    """Σ 1 − |2 h(V) − 1|^β: 0 when every weight has decided. A high β leaves those far from an end free to move."""
    return (1 - (2 * soft_round_up(logit) - 1).abs().pow(beta)).sum()


def penalty_exponent(progress: float, start: float = 20.0, end: float = 2.0, warmup: float = 0.2) -> float | None:
    """β at a share of the steps: None during the warm-up, when nothing is penalised, then linear from start to end."""
    if progress < warmup:
        return None
    return end + (start - end) * max(0.0, 1 - (progress - warmup) / (1 - warmup))
