"""A quantization method as data: what is quantized how, on which samples, and what is learned.

Every published method is one value of `Recipe` (see `s2q.recipes`). Unknown keys and illegal combinations raise
with the path of the key, so that a typing error never becomes a silent second method.
"""

import re
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s2q.numerics.quantizer import MAX_BITS, MIN_BITS


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bits(NamedTuple):
    """Bits of weights and activations; ``act`` None is weight-only, activations stay in floating point."""

    weight: int
    act: int | None

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """Read `W4A6`, `W8A8`, `W4A16` (weight only).

        Raises:
            ValueError: another spelling, or bits that are not offered.
        """
        match = re.fullmatch(r"[Ww](\d+)[Aa](\d+)", text.strip())
        allowed = f"W2..W8 with A4..A8 or A16, for instance W4A6, W4A4, W8A8, W4A16; got {text!r}"
        if not match:
            raise ValueError(f"unknown bits: write {allowed}")
        weight, act = int(match[1]), int(match[2])
        if not MIN_BITS <= weight <= MAX_BITS or not (4 <= act <= MAX_BITS or act == 16):
            raise ValueError(f"bits out of range: allowed are {allowed}")
        return cls(weight, None if act == 16 else act)

    def __str__(self) -> str:
        return f"W{self.weight}A{self.act or 16}"


class TransformSpec(_Part):
    """An invertible map of a linear's input, undone in its weight: y = Q(x·T) · Q(T⁻¹·Wᵀ)."""

    channel_scale: bool = True
    """A diagonal scale of the channels first."""
    alpha: float = Field(0.3, ge=0, le=1)
    """Start of the scale: max|W|^(1−α) / max|x|^α per channel."""
    kronecker: bool = True
    """P1 ⊗ P2, each factor orthogonal · diagonal · orthogonal."""


class LinearScheme(_Part):
    """How one class of linears is quantized."""

    weight_bits: int = Field(ge=MIN_BITS, le=MAX_BITS)
    act_bits: int | None = Field(None, ge=4, le=MAX_BITS)
    """None keeps the input in floating point."""
    transform: TransformSpec | None = None
    learned_clip: bool = False
    """One factor on the range of each output channel, and one on that of the input's tokens."""
    rounding: Literal["nearest", "gptq"] = "nearest"


class SamplerSpec(_Part):
    """Which (prompt, step) of the recorded trajectories become calibration samples."""

    kind: Literal["none", "salient", "random", "uniform"] = "none"
    count: int = Field(40, ge=1)
    prompts: int = Field(10, ge=1)
    """Trajectories recorded, the pool to choose from."""
    tokens: Literal["latents", "hidden_states"] = "latents"
    """What counts as the tokens of x_t in Eq. 6: patches of the latents, or the first block's input."""


class ObjectiveSpec(_Part):
    """The loss of a block, Eq. 10: squared error of its outputs, each token weighted by λ of Eq. 11."""

    kind: Literal["none", "mse"] = "none"
    token_weights: bool = False
    lambda_min: float = Field(0.5, ge=0, le=1)
    lambda_max: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> "ObjectiveSpec":
        if self.lambda_min > self.lambda_max:
            raise ValueError(f"lambda_min {self.lambda_min} is above lambda_max {self.lambda_max}")
        return self


class OptimSpec(_Part):
    """AdamW with a cosine schedule over all steps of a block."""

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(1, ge=1)
    """Samples a step. One sample is both guidance branches of one (prompt, step)."""
    lr: float = Field(5e-3, gt=0)
    clip_lr: float = Field(5e-2, gt=0)
    propagate_error: bool = False
    """Feed each block what the quantized blocks before it make, instead of what the float ones make."""


class Recipe(_Part):
    """One quantization method."""

    name: str
    reference: str
    bits: str
    linear: LinearScheme
    modulation: LinearScheme
    """The adaLN linears, whose input is one vector a sample."""
    keep_float: tuple[str, ...] = ()
    """Globs of linears inside the blocks that stay in floating point."""
    sampler: SamplerSpec = SamplerSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    optim: OptimSpec = OptimSpec()
    version: int = 1

    @model_validator(mode="after")
    def _has_what_it_learns_from(self) -> "Recipe":
        if not self.needs_samples and (self.objective.kind != "none" or self.uses_gptq):
            raise ValueError(
                "sampler.kind is none, but GPTQ and learning need samples: choose salient, random or uniform"
            )
        return self

    @property
    def uses_gptq(self) -> bool:
        """Whether Hessians of the inputs are needed."""
        return "gptq" in (self.linear.rounding, self.modulation.rounding)

    @property
    def needs_samples(self) -> bool:
        """Whether calibration data is needed at all."""
        return self.sampler.kind != "none"
