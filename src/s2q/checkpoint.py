"""What stands on disk: names, shapes and dtypes of a quantized linear's tensors, and the configuration beside them.

A quantized transformer is an ordinary diffusers folder. Beside the untouched float tensors, each quantized linear
has, with N outputs, K inputs, b bits and G groups of input channels (`weight_*` as in compressed-tensors'
`pack-quantized` format):

    weight_packed      int32    [N, ⌈K·b/32⌉]   codes, see s2q.numerics.packing
    weight_scale       float32  [N, G]          step size of each output channel's groups
    weight_zero_point  int32    [⌈N·b/32⌉, G]   zero points, packed along N       (unless symmetric_weights)
    weight_shape       int64    [2]             N, K
    input_scale        float32  [K]             diagonal scale of the input       (if the scheme has channel_scale)
    input_left         float32  [n1, n1]        P1 of the Kronecker transform     (if the scheme has kronecker)
    input_right        float32  [n2, n2]        P2, n1 · n2 = K
    input_clip         float32  [1]             factor on the range               (if the scheme has input_clip)
    input_range        float32  [2]             lowest and highest value          (if the scheme has input_range)
    low_rank_down      bfloat16 [r, K]          the branch beside the codes       (if the scheme has low_rank)
    low_rank_up        bfloat16 [N, r]
    bias               as in the float model

`config.json` carries `quantization_config`, described by `QuantizationSpec`.
"""

import zlib
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from s2q.numerics.packing import packed_width
from s2q.numerics.quantizer import group_count

FORMAT_VERSION = 3
QUANT_METHOD = "s2q"
PROVENANCE_NAME = "s2q_provenance.json"


class CheckpointError(ValueError):
    """A checkpoint that must not be used: incomplete, damaged, or made for another version."""


class SchemeSpec(BaseModel):
    """One way of quantizing, and the linears that are quantized so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: int = Field(ge=2, le=8)
    act_bits: int | None = Field(None, ge=4, le=8)
    symmetric_weights: bool = True
    symmetric_acts: bool = True
    group_size: int | None = Field(None, ge=1)
    """Most input channels of a group of the weight, see `s2q.numerics.quantizer.group_count`; None is one group."""
    act_group_size: int | None = Field(None, ge=1)
    """The same of the tokens; where both have groups, they are the same."""
    channel_scale: bool = False
    kronecker: bool = False
    hadamard_block: int | None = Field(None, ge=1)
    """Length of the blocks of a Hadamard transform, a power of two that divides K; None is none."""
    input_clip: bool = False
    input_range: bool = False
    """Whether the input's range is stored instead of measured on each token."""
    low_rank: int = Field(0, ge=0)
    """Rank of the branch, at most the shorter side of a weight; 0 is none."""
    low_rank_on_codes: bool = False
    """Whether the branch multiplies the quantized input instead of the transformed one."""
    kronecker_factors: dict[str, tuple[int, int]] = Field(default_factory=dict)
    """Input width → (n1, n2)."""
    targets: dict[str, str]
    """Name of the linear → checksum of its tensors, see `checksum`."""

    @model_validator(mode="after")
    def _one_rotation(self) -> "SchemeSpec":
        block = self.hadamard_block
        if block is not None and block & (block - 1):
            raise ValueError(f"hadamard_block {block} is no power of two")
        if block is not None and self.kronecker:
            raise ValueError("a scheme has kronecker or hadamard_block, not both")
        return self

    @model_validator(mode="after")
    def _groups_agree(self) -> "SchemeSpec":
        if self.group_size and self.act_group_size and self.group_size != self.act_group_size:
            raise ValueError(f"group_size {self.group_size} and act_group_size {self.act_group_size} differ")
        return self

    def factors(self, columns: int) -> tuple[int, int]:
        """n1, n2 of the Kronecker transform for inputs of `columns` channels."""
        try:
            n1, n2 = self.kronecker_factors[str(columns)]
        except KeyError:
            raise CheckpointError(f"kronecker_factors has no entry for width {columns}") from None
        if n1 * n2 != columns:
            raise CheckpointError(f"kronecker_factors {n1} × {n2} do not make width {columns}")
        return n1, n2


class QuantizationSpec(BaseModel):
    """The `quantization_config` of `config.json`, format version 3.

    Version 1 had none of groups, zero points, stored ranges and low-rank branches, version 2 no Hadamard blocks; both are
    read as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = Field(FORMAT_VERSION, ge=1)
    recipe: str
    bits: str
    producer: str
    schemes: tuple[SchemeSpec, ...]
    shared_inputs: tuple[tuple[str, ...], ...] = ()
    """Linears that receive the same tensor and transform and quantize it in the same way: done once for all of them."""

    @classmethod
    def parse(cls, data: Mapping) -> "QuantizationSpec":
        """Validate a configuration read from disk.

        Raises:
            CheckpointError: a newer format, a key that is unknown or missing, a linear named twice.
        """
        version = data.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CheckpointError(
                f"this checkpoint has format version {version}, this s2q reads up to {FORMAT_VERSION}: upgrade s2q"
            )
        try:
            spec = cls.model_validate(dict(data))
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors()]
            raise CheckpointError(f"quantization_config is not valid: {'; '.join(wrong[:8])}") from None
        names = [name for scheme in spec.schemes for name in scheme.targets]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise CheckpointError(f"quantization_config names these linears twice: {', '.join(twice)}")
        stray = sorted({name for group in spec.shared_inputs for name in group} - set(names))
        if stray:
            raise CheckpointError(f"shared_inputs names linears that are not quantized: {', '.join(stray)}")
        return spec

    def scheme_of(self) -> dict[str, SchemeSpec]:
        """Name of each quantized linear → its scheme."""
        return {name: scheme for scheme in self.schemes for name in scheme.targets}


def tensor_layout(rows: int, columns: int, scheme: SchemeSpec) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name → (shape, dtype) of the tensors that replace a float weight [N=rows, K=columns]."""
    groups = group_count(columns, scheme.group_size)
    if columns % (scheme.hadamard_block or 1):
        raise CheckpointError(f"hadamard_block {scheme.hadamard_block} does not divide width {columns}")
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "weight_packed": ((rows, packed_width(columns, scheme.weight_bits)), torch.int32),
        "weight_scale": ((rows, groups), torch.float32),
        "weight_shape": ((2,), torch.int64),
    }
    if not scheme.symmetric_weights:
        layout["weight_zero_point"] = ((packed_width(rows, scheme.weight_bits), groups), torch.int32)
    if scheme.channel_scale:
        layout["input_scale"] = ((columns,), torch.float32)
    if scheme.kronecker:
        n1, n2 = scheme.factors(columns)
        layout["input_left"] = ((n1, n1), torch.float32)
        layout["input_right"] = ((n2, n2), torch.float32)
    if scheme.input_clip:
        layout["input_clip"] = ((1,), torch.float32)
    if scheme.input_range:
        layout["input_range"] = ((2,), torch.float32)
    if scheme.low_rank:
        rank = min(scheme.low_rank, rows, columns)
        layout["low_rank_down"] = ((rank, columns), torch.bfloat16)
        layout["low_rank_up"] = ((rows, rank), torch.bfloat16)
    return layout


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over a linear's quantized tensors (bias excluded: it follows the model's dtype), in order of name."""
    value = 0
    for name in sorted(tensors):
        data = tensors[name].detach().to("cpu").contiguous()
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(memoryview(data.view(-1).view(torch.uint8).numpy()), value)
    return f"{value:08x}"


def check_linear(name: str, tensors: Mapping[str, Tensor], rows: int, columns: int, scheme: SchemeSpec) -> list[str]:
    """What is wrong with a linear's tensors, one sentence each; an empty list if nothing is."""
    layout = tensor_layout(rows, columns, scheme)
    wrong = [f"{name}.{key} is missing" for key in layout if key not in tensors]
    wrong += [f"{name}.{key} is not part of its scheme" for key in tensors if key not in layout]
    for key, tensor in tensors.items():
        if key not in layout:
            continue
        shape, dtype = layout[key]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            wrong.append(f"{name}.{key} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            wrong.append(f"{name}.{key} has values that are not finite")
    if wrong:
        return wrong
    if tensors["weight_shape"].tolist() != [rows, columns]:
        return [f"{name}.weight_shape says {tensors['weight_shape'].tolist()}, the model has {[rows, columns]}"]
    if checksum(tensors) != scheme.targets[name]:
        return [f"the tensors of {name} do not match their checksum: the file is damaged"]
    return []
