"""What is done to an input that one or more linears share: transform and clipping (FlatQuant, arXiv 2410.09426)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2q.numerics.hadamard import hadamard_block, hadamard_factors, hadamard_pair
from s2q.numerics.kronecker import factor_pairs, kronecker_factors, random_orthogonal
from s2q.numerics.quantizer import group_count
from s2q.numerics.straight_through import fake_quantize
from s2q.quantization.passes import Grid, Mixing, prepare
from s2q.recipe import LinearScheme
from s2q.runtime.reference import ActFormat, InputTransform, input_grid

CLIP_LOGIT = 4.0
"""Start of every clipping logit, as in FlatQuant: sigmoid(4) = 0.982 of the range."""


def logit_of(share: Tensor) -> Tensor:
    """The logit whose sigmoid is `share`, which is kept inside (0, 1)."""
    return share.clamp(1e-4, 1 - 1e-4).logit()


def rotation_factors(scheme: LinearScheme, columns: int) -> tuple[int, int] | None:
    """n1, n2 of the scheme's rotation of inputs of `columns` channels; None if it has no factors."""
    rotation = "none" if scheme.transform is None else scheme.transform.rotation
    if rotation == "kronecker":
        return kronecker_factors(columns)
    return hadamard_factors(columns) if rotation == "hadamard" else None


class _Factor(nn.Module):
    """One factor of the Kronecker transform: U · diag(σ) · Vᵀ with U and V orthogonal; starts as a random rotation."""

    def __init__(self, size: int, generator: torch.Generator):
        super().__init__()
        # U and V in one tensor: their Cayley maps are one batch.
        self.register_buffer("base", torch.stack([random_orthogonal(size, generator) for _ in range(2)]))
        self.skew = nn.Parameter(torch.zeros(2, size, size))
        self.log_sigma = nn.Parameter(torch.zeros(size))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Skew [2, size, size], base of the same shape, log σ [size]."""
        return self.skew, self.base, self.log_sigma

    def start_from(self, matrix: Tensor) -> None:
        """Become `matrix`, up to the rounding of its singular value decomposition."""
        u, sigma, v = torch.linalg.svd(matrix.double())
        self.base.copy_(torch.stack([u, v.mT]))
        self.log_sigma.copy_(sigma.log())


def _pairs(factors: list[_Factor]) -> list[tuple[Tensor, Tensor]]:
    """P and P⁻ᵀ of factors of one size, as one batch."""
    tensors = (torch.stack(alike) for alike in zip(*map(_Factor.tensors, factors), strict=True))
    return list(zip(*factor_pairs(*tensors), strict=True))


class _FixedFactor(nn.Module):
    """An orthogonal matrix, which is its own inverse transpose."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix.float())

    def start_from(self, matrix: Tensor) -> None:
        self.matrix.copy_(matrix)


@dataclass
class _Made:
    """What a transform remembers between two calls of `forget`."""

    factors: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    source: Tensor | None = None
    """The input of which `values` and `rounded` are made."""
    values: Tensor | None = None
    rounded: Tensor | None = None


class SharedTransform(nn.Module):
    """Transform and quantization of one input, learnable, used by every linear that receives it.

    Args:
        columns: K.
        scheme: of the linears that share the input.
        scale: start of the channel scale, [K]; ignored if the scheme has none.
        generator: for the start of the rotations.
    """

    def __init__(self, columns: int, scheme: LinearScheme, scale: Tensor, generator: torch.Generator):
        super().__init__()
        self.acts = None
        if scheme.act_bits is not None:
            self.acts = ActFormat(scheme.act_bits, scheme.symmetric_acts, group_count(columns, scheme.act_group_size))
        spec = scheme.transform
        self.log_scale = self.left = self.right = self.clip_logit = None
        self.hadamard = 0
        self.register_buffer("signs", None)
        self.register_buffer("range", None)
        if spec is not None and spec.channel_scale:
            self.log_scale = nn.Parameter(scale.log())
        if spec is not None and spec.rotation == "kronecker":
            n1, n2 = kronecker_factors(columns)
            self.left, self.right = _Factor(n1, generator), _Factor(n2, generator)
        elif spec is not None and spec.rotation == "hadamard":
            self.left, self.right = (_FixedFactor(matrix) for matrix in hadamard_pair(columns))
        elif spec is not None and spec.rotation == "hadamard_blocks":
            self.hadamard = hadamard_block(columns, spec.block)
        if spec is not None and spec.rotation in ("hadamard", "hadamard_blocks"):
            self.signs = torch.randint(0, 2, (columns,), generator=generator) * 2.0 - 1.0
        if scheme.act_bits is not None and scheme.act_clip == "learned":
            self.clip_logit = nn.Parameter(torch.full((1,), CLIP_LOGIT))
        self.fixed_clip = scheme.act_clip if scheme.act_bits is not None and scheme.act_clip != "learned" else 1.0
        if spec is not None and not spec.learned:
            for parameter in self.transform_parameters():
                parameter.requires_grad_(False)
        self._made = _Made()

    @torch.no_grad()
    def start_from(self, stored: InputTransform) -> None:
        """Take over what a checkpoint of the same scheme stores, to go on from there."""
        if self.signs is not None:
            self.signs.copy_(stored.scale.sign())
        if self.log_scale is not None:
            self.log_scale.copy_(stored.scale.abs().log())
        if self.left is not None:
            self.left.start_from(stored.left)
            self.right.start_from(stored.right)
        if self.clip_logit is not None:
            self.clip_logit.copy_(logit_of(stored.clip))
        self.range = stored.range

    def transform_parameters(self) -> list[nn.Parameter]:
        """What the learning rate of scales and matrices applies to."""
        return [p for name, p in self.named_parameters() if name != "clip_logit"]

    def clip_parameters(self) -> list[nn.Parameter]:
        """What the learning rate of clipping applies to."""
        return [] if self.clip_logit is None else [self.clip_logit]

    def input_transform(self) -> InputTransform:
        """The transform as inference applies it, differentiable."""
        left = right = clip = None
        if self.left is not None:
            (left, _), (right, _) = self._matrices()
        if self.clip_logit is not None:
            clip = self.clip_logit.sigmoid()
        elif self.fixed_clip != 1.0:
            clip = torch.tensor([self.fixed_clip], device=self._device())
        return InputTransform(self._scale(), left, right, clip, self.range, self.hadamard)

    def _device(self) -> torch.device | None:
        return next((t.device for t in (*self.parameters(), *self.buffers())), None)

    def _scale(self) -> Tensor | None:
        if self.log_scale is None:
            return self.signs
        scale = self.log_scale.exp()
        return scale if self.signs is None else scale * self.signs

    def on_weight(self, weight: Tensor, grid: Grid | None = None, clip: Tensor | float = 1.0) -> Tensor:
        """The inverse transform of a weight's columns, [N, K] → [N, K], so that x̂ ŵᵀ = x wᵀ; rounded if there is a grid."""
        return prepare(weight, self._mixing(of_weight=True), grid, clip)

    def _on_input(self, x: Tensor, grid: Grid | None = None, clip: Tensor | float = 1.0) -> Tensor:
        return prepare(x.float(), self._mixing(of_weight=False), grid, clip)

    def _mixing(self, of_weight: bool) -> Mixing:
        left = right = None
        if self.left is not None:
            left, right = (pair[of_weight] for pair in self._matrices())
        return Mixing(self._scale(), of_weight, left, right, self.hadamard)

    def _matrices(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(P1, P1⁻ᵀ), (P2, P2⁻ᵀ), made once between two calls of `forget`: several linears need them."""
        if self._made.factors is None:
            make_matrices([self])
        return self._made.factors

    def values(self, x: Tensor) -> Tensor:
        """x̂ transformed but not rounded, [..., K] float32; done once for all linears that share `x`."""
        made = self._made_of(x)
        if made.values is None:
            made.values = self._on_input(x)
        return made.values

    def forward(self, x: Tensor) -> Tensor:
        """x̂ transformed and fake-quantized, [..., K] float32; done once for all linears that share `x`."""
        if self.acts is None:
            return self.values(x)
        made = self._made_of(x)
        if made.rounded is None:
            made.rounded = self._rounded(x)
        return made.rounded

    def _made_of(self, x: Tensor) -> _Made:
        if self._made.source is not x:
            self._made.source, self._made.values, self._made.rounded = x, None, None
        return self._made

    def _rounded(self, x: Tensor) -> Tensor:
        if self.range is None:
            clip = self.fixed_clip if self.clip_logit is None else self.clip_logit.sigmoid()
            grid = Grid(self.acts.bits, self.acts.symmetric, self.acts.groups)
            known = self._made_of(x).values
            return self._on_input(x, grid, clip) if known is None else prepare(known, Mixing(), grid, clip)
        scale, zero = input_grid(self.values(x), self.input_transform(), self.acts)
        return fake_quantize(self.values(x), scale, self.acts.bits, zero)

    def forget(self) -> None:
        """Drop what is remembered of the input and the matrices: parameters have changed, or the pass is over."""
        self._made = _Made()


def make_matrices(transforms: Sequence[SharedTransform]) -> None:
    """Make what `forget` drops of the matrices: of all transforms at once, for small ones are little but the calls."""
    with_factors = [transform for transform in transforms if transform.left is not None]
    factors = [factor for transform in with_factors for factor in (transform.left, transform.right)]
    pairs = {factor: (factor.matrix, factor.matrix) for factor in factors if isinstance(factor, _FixedFactor)}
    by_size: defaultdict[int, list[_Factor]] = defaultdict(list)
    for factor in factors:
        if factor not in pairs:
            by_size[len(factor.log_sigma)].append(factor)
    for alike in by_size.values():
        pairs.update(zip(alike, _pairs(alike), strict=True))
    for transform in with_factors:
        transform._made.factors = pairs[transform.left], pairs[transform.right]
