"""What loading through diffusers and through transformers have in common: swap the linears, check what came."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2q.checkpoint import PROVENANCE_NAME, QUANT_METHOD, CheckpointError, QuantizationSpec, check_linear
from s2q.runtime.linear import QuantLinear, SharedInput
from s2q.runtime.refusals import UnsupportedError
from s2q.shards import Notes


class SpecConfig:
    """`quantization_config` as either library holds it; its keys are those of `QuantizationSpec`."""

    def __init__(self, quant_method: str = QUANT_METHOD, **spec: Any):
        self.quant_method: Any = QUANT_METHOD
        if not spec:
            raise CheckpointError(
                "s2q cannot quantize while it loads, for it calibrates: use s2q quantize, or s2q.quantize in Python. What it "
                "writes brings its own configuration, and is loaded without one"
            )
        self.spec = QuantizationSpec.parse(spec)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `config.json`."""
        return {"quant_method": QUANT_METHOD, **self.spec.model_dump(mode="json")}

    def to_diff_dict(self) -> dict[str, Any]:
        """The libraries print this."""
        return self.to_dict()

    def __iter__(self):
        yield from self.to_dict().items()


def swap_linears(model: nn.Module, spec: QuantizationSpec) -> None:
    """Put an empty `QuantLinear` in the place of every linear that `spec` names.

    Raises:
        CheckpointError: a name that the model does not have as an `nn.Linear`.
    """
    modules = dict(model.named_modules())
    absent = [name for name in spec.scheme_of() if not isinstance(modules.get(name), nn.Linear)]
    if absent:
        raise CheckpointError(f"{type(model).__name__} has no linear layer named {some(absent)}")
    for name, scheme in spec.scheme_of().items():
        old = modules[name]
        bias = old.bias is not None
        new = QuantLinear(old.in_features, old.out_features, bias, scheme, old.weight.device, old.weight.dtype)
        model.set_submodule(name, new)
    for group in spec.shared_inputs:
        shared = SharedInput(len(group))
        for name in group:
            model.get_submodule(name).shared_input = shared


def check_nothing_missing(missing: Sequence[str]) -> None:
    """The libraries only warn and leave the tensors uninitialised, which makes noise instead of video.

    Raises:
        CheckpointError: `missing`, the names of tensors that no file holds, is not empty.
    """
    if missing:
        raise CheckpointError(f"the checkpoint lacks {some(sorted(missing))}")


def check_floats(tensors: Mapping[str, Tensor], notes: Notes) -> None:
    """Check tensors as they stand in the files, before anything is cast.

    Raises:
        CheckpointError: values that are not finite, or that are not what `s2q quantize` noted.
    """
    names = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if names:
        raise CheckpointError(f"values that are not finite in {some(names)}: the file is damaged")
    names = notes.damaged_floats(tensors)
    if names:
        raise CheckpointError(
            f"{some(names)} do not match the checksums in {PROVENANCE_NAME}: the file is damaged, or another "
            f"program wrote it anew (then remove {PROVENANCE_NAME})"
        )


def check_loaded(model: nn.Module, spec: QuantizationSpec, notes: Notes) -> None:
    """Check every quantized linear of a model that has been loaded.

    Raises:
        CheckpointError: a tensor of another shape or dtype, or that does not match its checksum; linears that cannot
            share an input; a configuration that is not what was noted. All offenders are named.
    """
    wrong = []
    for name, scheme in spec.scheme_of().items():
        linear = model.get_submodule(name)
        tensors = linear.packed_tensors()
        # Tensors that a device map put on disk are on the meta device here; they are checked when they are not.
        if not any(tensor.is_meta for tensor in tensors.values()):
            wrong += check_linear(name, tensors, linear.out_features, linear.in_features, scheme)
    for group in spec.shared_inputs:
        wrong += _differing_transforms(model, group)
    if notes.config_differs():
        wrong.append(f"config.json is not what {PROVENANCE_NAME} noted: damaged, or edited (then remove the note)")
    if wrong:
        raise CheckpointError("the checkpoint cannot be used: " + some(wrong, "; "))


def dequantize_linears(model: nn.Module, spec: QuantizationSpec, dtype: torch.dtype) -> None:
    """Put a float linear in the place of every packed one; those without a bias to follow have `dtype`.

    Raises:
        UnsupportedError: a linear that is wrapped by an adapter, or whose tensors are not at hand.
    """
    packed = {name: model.get_submodule(name) for name in spec.scheme_of()}
    _check_can_dequantize(packed)
    for name, linear in packed.items():
        kind = linear.input_dtype or (None if linear.bias is not None else dtype)
        model.set_submodule(name, linear.dequantize(kind))


def _check_can_dequantize(linears: Mapping[str, nn.Module]) -> None:
    wrapped = [name for name, linear in linears.items() if not isinstance(linear, QuantLinear)]
    if wrapped:
        raise UnsupportedError(
            f"dequantize() while adapters are attached to {some(wrapped)}: remove them first (unload_lora_weights of "
            "the pipeline, or delete_adapters), and load them again afterwards"
        )
    away = [name for name, linear in linears.items() if linear.weight_packed.is_meta]
    if away:
        raise UnsupportedError(f"dequantize() while {some(away)} is offloaded: load the model without a device map")


def _differing_transforms(model: nn.Module, group: tuple[str, ...]) -> list[str]:
    """What keeps the linears of `group` from sharing one quantized input; an empty list if nothing does."""
    first, *rest = (model.get_submodule(name) for name in group)
    wrong = []
    for name, linear in zip(group[1:], rest, strict=True):
        same = linear.scheme == first.scheme and linear.in_features == first.in_features
        pairs = zip(linear.input_transform(), first.input_transform(), strict=True)
        if not same or not all(a is b or a.is_meta or b.is_meta or torch.equal(a, b) for a, b in pairs):
            wrong.append(f"{name} and {group[0]} are said to be shared_inputs, but transform theirs differently")
    return wrong


def some(items: Sequence[str], separator: str = ", ", most: int = 8) -> str:
    """The first few of `items`, and how many more there are."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
