"""How diffusers learns to load and save s2q checkpoints: two entries in its mappings, made when s2q is imported."""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import diffusers.quantizers.auto as auto
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from s2q.checkpoint import PROVENANCE_NAME, QUANT_METHOD, CheckpointError, QuantizationSpec, check_linear
from s2q.runtime.linear import QuantLinear, SharedInput
from s2q.runtime.refusals import UnsupportedError, allow_again, refuse
from s2q.shards import Notes, read_notes, tensor_places


class Method(str, Enum):
    """diffusers asks the method for its `.value`."""

    S2Q = QUANT_METHOD


class S2QConfig(QuantizationConfigMixin):
    """`quantization_config` of a transformer that s2q quantized; its keys are those of `QuantizationSpec`."""

    def __init__(self, quant_method: str = QUANT_METHOD, **spec: Any):
        self.quant_method = Method.S2Q
        self.spec = QuantizationSpec.parse(spec)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `config.json`."""
        return {"quant_method": QUANT_METHOD, **self.spec.model_dump(mode="json")}

    def to_diff_dict(self) -> dict[str, Any]:
        """diffusers' base class prints this."""
        return self.to_dict()

    def __iter__(self):
        yield from self.to_dict().items()


class S2QQuantizer(DiffusersQuantizer):
    """Swaps the linears before loading, and checks strictly that every tensor came, whole and in its own dtype."""

    requires_calibration = True
    use_keep_in_fp32_modules = True
    is_compileable = True
    _notes = Notes()

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        swap_linears(model, self.quantization_config.spec)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        # diffusers only warns and leaves the tensors uninitialised, which makes noise instead of video.
        if missing_keys:
            raise CheckpointError(f"the checkpoint lacks {_some(sorted(missing_keys))}")
        return missing_keys

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        files = [Path(file) for file in checkpoint_files]
        tensor_places(files)  # diffusers keeps to plain names in the folder, but not to one file a tensor
        self._notes = read_notes(files[0].parent) if files else Notes()
        return loaded_keys

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        names = [name for name, t in state_dict.items() if t.is_floating_point() and not bool(t.isfinite().all())]
        if names:
            raise CheckpointError(f"values that are not finite in {_some(names)}: the file is damaged")
        names = self._notes.damaged_floats(state_dict)
        if names:
            raise CheckpointError(
                f"{_some(names)} do not match the checksums in {PROVENANCE_NAME}: the file is damaged, or another "
                f"program wrote it anew (then remove {PROVENANCE_NAME})"
            )
        return state_dict

    def check_if_quantized_param(self, model: nn.Module, param_value: Tensor, param_name: str, *args, **kwargs) -> bool:
        owner, _, leaf = param_name.rpartition(".")
        module = model.get_submodule(owner)
        return isinstance(module, QuantLinear) and leaf in module.tensor_names

    def check_quantized_param_shape(self, param_name: str, expected: torch.Size, param: Tensor) -> None:
        raise CheckpointError(f"{param_name} has shape {list(param.shape)}, expected {list(expected)}")

    def create_quantized_param(
        self, model: nn.Module, value: Tensor, name: str, device: Any, state_dict: Mapping[str, Tensor], *args, **kwargs
    ) -> None:
        # `value` has been cast to the model's dtype; scales and transforms must stay as they were written.
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        module._parameters[leaf] = nn.Parameter(state_dict[name].to(device), requires_grad=False)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        wrong = []
        for name, scheme in self.quantization_config.spec.scheme_of().items():
            linear = model.get_submodule(name)
            tensors = linear.packed_tensors()
            # Tensors that a device map put on disk are on the meta device here; they are checked when they are not.
            if not any(tensor.is_meta for tensor in tensors.values()):
                wrong += check_linear(name, tensors, linear.out_features, linear.in_features, scheme)
        for group in self.quantization_config.spec.shared_inputs:
            wrong += _differing_transforms(model, group)
        if self._notes.config_differs():
            wrong.append(f"config.json is not what {PROVENANCE_NAME} noted: damaged, or edited (then remove the note)")
        if wrong:
            raise CheckpointError("the checkpoint cannot be used: " + _some(wrong, "; "))
        refuse(model)
        return model

    def _dequantize(self, model: nn.Module) -> nn.Module:
        packed = {name: model.get_submodule(name) for name in self.quantization_config.spec.scheme_of()}
        _check_can_dequantize(packed)
        dtype = model.dtype
        for name, linear in packed.items():
            model.set_submodule(name, linear.dequantize(None if linear.bias is not None else dtype))
        # diffusers leaves our configuration behind: saved with it, the folder could not be loaded again.
        kept = {key: value for key, value in model.config.items() if key != "quantization_config"}
        model._internal_dict = FrozenDict(kept)
        allow_again(model)
        return model


def _check_can_dequantize(linears: Mapping[str, nn.Module]) -> None:
    """Refuse linears that are wrapped by an adapter, or whose tensors are not at hand."""
    wrapped = [name for name, linear in linears.items() if not isinstance(linear, QuantLinear)]
    if wrapped:
        raise UnsupportedError(
            f"dequantize() while adapters are attached to {_some(wrapped)}: remove them first (unload_lora_weights of "
            "the pipeline, or delete_adapters), and load them again afterwards"
        )
    away = [name for name, linear in linears.items() if linear.weight_packed.is_meta]
    if away:
        raise UnsupportedError(f"dequantize() while {_some(away)} is offloaded: load the model without a device map")


def swap_linears(model: nn.Module, spec: QuantizationSpec) -> None:
    """Put an empty `QuantLinear` in the place of every linear that `spec` names.

    Raises:
        CheckpointError: a name that the model does not have as an `nn.Linear`.
    """
    modules = dict(model.named_modules())
    absent = [name for name in spec.scheme_of() if not isinstance(modules.get(name), nn.Linear)]
    if absent:
        raise CheckpointError(f"{type(model).__name__} has no linear layer named {_some(absent)}")
    for name, scheme in spec.scheme_of().items():
        old = modules[name]
        bias = old.bias is not None
        new = QuantLinear(old.in_features, old.out_features, bias, scheme, old.weight.device, old.weight.dtype)
        model.set_submodule(name, new)
    for group in spec.shared_inputs:
        shared = SharedInput(len(group))
        for name in group:
            model.get_submodule(name).shared_input = shared


def install(model: nn.Module, spec: QuantizationSpec, tensors: Mapping[str, Tensor]) -> None:
    """Turn a float model in memory into what loading its quantized folder gives: it runs, and is saved, as that one.

    Args:
        tensors: full name → tensor of every quantized linear, see `s2q.checkpoint`, without biases, which stay.

    Raises:
        CheckpointError: tensors that are missing or do not fit; the model must not be used then.
    """
    modules = dict(model.named_modules())
    kept = {name: modules[name].bias for name in spec.scheme_of() if name in modules}
    devices = {name: modules[name].weight.device for name in kept}
    config = S2QConfig(**spec.model_dump(mode="json"))
    quantizer = S2QQuantizer(config, pre_quantized=True)
    quantizer.preprocess_model(model)
    for name, bias in kept.items():
        linear = model.get_submodule(name)
        linear.bias = bias
        for key in linear.tensor_names:
            if f"{name}.{key}" in tensors:
                tensor = tensors[f"{name}.{key}"].to(devices[name])
                linear._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    model.register_to_config(quantization_config=config)


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


def register() -> None:
    """Enter "s2q" into diffusers' mappings; doing so twice changes nothing."""
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = S2QQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = S2QConfig


def _some(items: list[str], separator: str = ", ", most: int = 8) -> str:
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
