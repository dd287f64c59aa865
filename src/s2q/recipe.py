"""A quantization method as data: what is quantized how, on which samples, and what is learned.

Every published method is one value of `Recipe` (see `s2q.recipes`). Unknown keys and illegal combinations raise
with the path of the key, so that a typing error never becomes a silent second method.
"""

import re
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s2q.numerics.bits import MAX_BITS, MIN_BITS


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


Rotation = Literal["none", "kronecker", "hadamard", "hadamard_blocks"]


class TransformSpec(_Part):
    """An invertible map of a linear's input, undone in its weight: y = Q(x·T) · Q(T⁻¹·Wᵀ)."""

    channel_scale: bool = True
    """A diagonal scale of the channels first."""
    alpha: float | Literal["search"] = 0.3
    """Start of the scale: max|W|^(1−α) / max|x|^α per channel; "search" takes the α whose output error is least."""
    statistic: Literal["max", "early", "spearman"] = "max"
    """What max|x| is taken over: all samples; those of the first quarter of the steps; or each step apart, the steps
    weighted by softmax(−ρ), ρ being Spearman's correlation with max|W| (PTQ4DiT's Eq. for time-pooled salience)."""
    rotation: Rotation = "kronecker"
    """Then P1 ⊗ P2 with factors orthogonal · diagonal · orthogonal; or a Hadamard matrix with random signs, of the whole
    width, or blocks of one: additions only."""
    down_rotation: Rotation | None = None
    """The rotation of inputs wider than the output, such as that of an MLP's second linear, where it costs most; None is
    `rotation`."""
    block: int = Field(128, ge=1)
    """Most channels of a block of "hadamard_blocks", which is the largest power of two within it that divides the width."""
    learned: bool = True
    """Scale and Kronecker factors are trained, if the recipe trains at all; a Hadamard matrix never is."""

    def for_shape(self, outputs: int, columns: int) -> "TransformSpec":
        """The transform of a linear of this shape, its rotation chosen."""
        chosen = self.rotation if self.down_rotation is None or outputs >= columns else self.down_rotation
        return self.model_copy(update={"rotation": chosen, "down_rotation": None})

    @model_validator(mode="after")
    def _alpha_in_range(self) -> "TransformSpec":
        if self.alpha != "search" and not 0 <= self.alpha <= 1:
            raise ValueError(f'alpha must be 0..1 or "search", got {self.alpha}')
        return self


class LowRankSpec(_Part):
    """A product of two thin 16-bit matrices beside the quantized weight."""

    rank: int = Field(ge=1)
    """Of the product; never more than a weight's own sides."""
    input: Literal["float", "quantized"] = "float"
    """What it multiplies: the transformed input, or its quantized form."""
    start: Literal["svd", "zero"] = "svd"
    """The largest singular directions, which are taken out of the weight before it is rounded; or nothing (one factor
    random, the other zero), to be trained."""
    refits: int = Field(0, ge=0)
    """Most times that the directions are fitted again to what rounding left over."""


class LinearScheme(_Part):
    """How one class of linears is quantized."""

    weight_bits: int = Field(ge=MIN_BITS, le=MAX_BITS)
    act_bits: int | None = Field(None, ge=4, le=MAX_BITS)
    """None keeps the input in floating point."""
    symmetric_weights: bool = True
    symmetric_acts: bool = True
    """Asymmetric grids run from min to max and have a zero point."""
    group_size: int | None = Field(None, ge=1)
    """Neighbouring input channels of the weight that have a step size of their own; None is all."""
    act_group_size: int | None = Field(None, ge=1)
    """The same of each token. Groups of both must be the same where both have them."""
    act_range: Literal["token", "static"] = "token"
    """The range of the input: each token's own at inference, or one for all, found in calibration."""
    transform: TransformSpec | None = None
    weight_clip: Literal["none", "learned", "mse"] = "none"
    """Factor on the range of each output channel: 1, trained, or the one with the least squared error of the weight."""
    act_clip: Literal["learned"] | float = 1.0
    """Factor on the range of the input."""
    low_rank: LowRankSpec | None = None
    rounding: Literal["nearest", "gptq", "adaround"] = "nearest"

    @model_validator(mode="after")
    def _consistent(self) -> "LinearScheme":
        if self.group_size and self.act_group_size and self.group_size != self.act_group_size:
            raise ValueError(f"group_size {self.group_size} and act_group_size {self.act_group_size} must be the same")
        if self.act_range == "static" and self.act_group_size:
            raise ValueError("act_range=static is one range for all: it goes with no act_group_size")
        if self.act_clip != "learned" and not 0 < self.act_clip <= 1:
            raise ValueError(f'act_clip must be above 0 and at most 1, or "learned", got {self.act_clip}')
        if self.rounding == "adaround" and self.transform is not None and self.transform.learned:
            raise ValueError("adaround learns on a fixed grid: it needs transform.learned=false")
        if self.rounding == "adaround" and (self.weight_clip == "learned" or self.low_rank is not None):
            raise ValueError("adaround learns on a fixed grid: it goes with neither learned weight_clip nor low_rank")
        return self

    @property
    def learns(self) -> bool:
        """Whether anything of it is trained."""
        transform = self.transform is not None and self.transform.learned
        transform = transform and (
            self.transform.channel_scale or "kronecker" in (self.transform.rotation, self.transform.down_rotation)
        )
        low_rank = self.low_rank is not None and self.low_rank.start == "zero"
        return transform or low_rank or "learned" in (self.weight_clip, self.act_clip) or self.rounding == "adaround"

    @property
    def starts_from_inputs(self) -> bool:
        """Whether scales, ranges or branches begin with statistics of the inputs."""
        scale = self.transform is not None and self.transform.channel_scale
        svd = self.low_rank is not None and self.low_rank.start == "svd"
        static = self.act_range == "static" and self.act_bits is not None
        return scale or svd or static

    @property
    def sees_inputs(self) -> bool:
        """Whether anything of it depends on the inputs, and so on calibration samples."""
        return self.starts_from_inputs or self.rounding != "nearest" or self.learns


class GptqSpec(_Part):
    """How GPTQ rounds, beyond its paper."""

    act_order: bool = False
    """It takes the columns with the largest inputs first, instead of one after another."""
    damp: float = Field(0.01, gt=0)
    """Share of the Hessian's mean diagonal that is added to it. More of it trusts the samples less."""
    step_search: bool = False
    """It tries several step sizes and keeps, for each output channel, the one with the least error of the output."""


class SamplerSpec(_Part):
    """Which (prompt, step) of the recorded trajectories become calibration samples."""

    kind: Literal["none", "salient", "random", "uniform"] = "none"
    count: int = Field(40, ge=1)
    prompts: int = Field(10, ge=1)
    """Trajectories recorded, the pool to choose from."""
    tokens: Literal["latents", "hidden_states"] = "latents"
    """What counts as the tokens of x_t in Eq. 6: patches of the latents, or the first block's input."""
    score: Literal["product", "diffusion", "quantization"] = "product"
    """What "salient" goes by: Eq. 8, or one of its factors alone."""
    stratified: bool = False
    """"salient" takes as many samples from each step as from any other, instead of the highest scores of all."""
    balanced: bool = False
    """With `stratified`: each pass over the steps takes as many from each prompt, too, by the greatest sum of scores."""
    pool: int | None = Field(None, ge=1)
    """Only the first so many of the recorded trajectories are chosen from; None is all."""

    @model_validator(mode="after")
    def _balanced_is_stratified(self) -> "SamplerSpec":
        if self.balanced and not (self.kind == "salient" and self.stratified):
            raise ValueError("balanced goes with kind=salient and stratified=true")
        return self


class ObjectiveSpec(_Part):
    """The loss of a block, Eq. 10: squared error of its outputs, each token weighted by λ of Eq. 11."""

    kind: Literal["none", "mse"] = "none"
    token_weights: bool = False
    lambda_min: float = Field(0.5, ge=0, le=1)
    lambda_max: float = Field(1.0, gt=0, le=1)
    temporal: float = Field(0.0, ge=0)
    """Weight γ of the distance between the frames' similarities (Q-VDiT's temporal distillation)."""
    guided: float = Field(0.0, ge=0)
    """Weight of the error of the guided combination of both branches, e_uncond + s (e_cond − e_uncond), beside theirs."""
    token_scope: Literal["all", "modality"] = "all"
    """The min–max of Eq. 11: over all tokens of a row, or over its text and its video tokens apart."""
    weighted_hessian: bool = False
    """GPTQ counts each token by its λ as well."""

    @model_validator(mode="after")
    def _weights_are_there(self) -> "ObjectiveSpec":
        if not self.token_weights and (self.weighted_hessian or self.token_scope != "all"):
            raise ValueError("weighted_hessian and token_scope are about token weights: set token_weights=true")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> "ObjectiveSpec":
        if self.lambda_min > self.lambda_max:
            raise ValueError(f"lambda_min {self.lambda_min} is above lambda_max {self.lambda_max}")
        return self


class OptimSpec(_Part):
    """AdamW with a cosine schedule over all steps of a block."""

    epochs: int = Field(15, ge=0)
    """0 learns nothing: transforms and clips stay as they start, or as an earlier run left them."""
    batch_size: int = Field(1, ge=1)
    """Samples a step. One sample is both guidance branches of one (prompt, step)."""
    lr: float = Field(5e-3, gt=0)
    clip_lr: float = Field(5e-2, gt=0)
    rounding_lr: float = Field(0.1, gt=0)
    """Of AdaRound's logits; high, for they have some hundred steps here and 20,000 in the papers."""
    rounding_penalty: float = Field(0.1, ge=0)
    """Weight of AdaRound's regulariser."""
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
    gptq: GptqSpec = GptqSpec()
    keep_float: tuple[str, ...] = ()
    """Globs of linears inside the blocks that stay in floating point."""
    sampler: SamplerSpec = SamplerSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    optim: OptimSpec = OptimSpec()
    version: int = 1

    @model_validator(mode="after")
    def _has_what_it_learns_from(self) -> "Recipe":
        schemes = {"linear": self.linear, "modulation": self.modulation}
        if not self.needs_samples and self.objective.kind != "none":
            raise ValueError("sampler.kind is none, but learning needs samples: choose salient, random or uniform")
        if not self.needs_samples and any(scheme.sees_inputs for scheme in schemes.values()):
            raise ValueError(
                "sampler.kind is none, but this scheme looks at inputs: choose salient, random or uniform, or drop "
                "what needs them (learned parts, channel scales, static ranges, GPTQ, AdaRound, low-rank parts)"
            )
        if not self.uses_gptq and self.gptq != GptqSpec():
            raise ValueError("gptq.damp, gptq.act_order and gptq.step_search change nothing without rounding=gptq")
        if self.objective.kind == "none" and any(s.rounding == "adaround" for s in schemes.values()):
            raise ValueError("adaround is learned: it needs objective.kind=mse")
        if self.objective.kind == "none" and self.objective.temporal:
            raise ValueError("objective.temporal is part of a loss: it needs objective.kind=mse")
        return self

    @property
    def uses_gptq(self) -> bool:
        """Whether weights are rounded by GPTQ."""
        return "gptq" in (self.linear.rounding, self.modulation.rounding)

    @property
    def trains(self) -> bool:
        """Whether anything is learned by gradients."""
        learns = self.linear.learns or self.modulation.learns
        return self.objective.kind != "none" and self.optim.epochs > 0 and learns

    @property
    def uses_token_weights(self) -> bool:
        """Whether λ of Eq. 11 is asked for, by the loss or by the Hessians."""
        return self.objective.token_weights and (self.trains or self.objective.weighted_hessian)

    @property
    def needs_samples(self) -> bool:
        """Whether calibration data is needed at all."""
        return self.sampler.kind != "none"
