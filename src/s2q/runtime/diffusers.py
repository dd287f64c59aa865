"""How diffusers learns to load and save s2q checkpoints: two entries in its mappings, made when this is imported."""

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

from s2q.checkpoint import QUANT_METHOD, CheckpointError, QuantizationSpec
from s2q.runtime.feed_forward import fuse_gelu, part_gelu
from s2q.runtime.linear import QuantLinear
from s2q.runtime.loading import (
    SpecConfig,
    check_floats,
    check_loaded,
    check_nothing_missing,
    dequantize_linears,
    swap_linears,
)
from s2q.runtime.refusals import allow_again, refuse
from s2q.shards import Notes, read_notes, tensor_places


class Method(str, Enum):
    """diffusers asks the method for its `.value`."""

    S2Q = QUANT_METHOD


class S2QConfig(SpecConfig, QuantizationConfigMixin):
    """`quantization_config` of a transformer that s2q quantized; its keys are those of `QuantizationSpec`."""

    def __init__(self, quant_method: str = QUANT_METHOD, **spec: Any):
        super().__init__(quant_method, **spec)
        self.quant_method = Method.S2Q


def prepare(model: nn.Module, spec: QuantizationSpec) -> None:
    """Empty packed linears in a transformer, for weights to come, and GELU with them.

    Raises:
        CheckpointError: as `swap_linears`.
    """
    swap_linears(model, spec)
    fuse_gelu(model)  # now, before a device map takes hold of the modules' methods


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
        prepare(model, self.quantization_config.spec)

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        check_nothing_missing(missing_keys)
        return missing_keys

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        files = [Path(file) for file in checkpoint_files]
        tensor_places(files)  # diffusers keeps to plain names in the folder, but not to one file a tensor
        self._notes = read_notes(files[0].parent) if files else Notes()
        return loaded_keys

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        check_floats(state_dict, self._notes)
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
        check_loaded(model, self.quantization_config.spec, self._notes)
        refuse(model)
        return model

    def _dequantize(self, model: nn.Module) -> nn.Module:
        dequantize_linears(model, self.quantization_config.spec, model.dtype)
        part_gelu(model)
        # diffusers leaves our configuration behind: saved with it, the folder could not be loaded again.
        kept = {key: value for key, value in model.config.items() if key != "quantization_config"}
        model._internal_dict = FrozenDict(kept)
        allow_again(model)
        return model


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


def register() -> None:
    """Enter "s2q" into diffusers' mappings; doing so twice changes nothing."""
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = S2QQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = S2QConfig


register()
