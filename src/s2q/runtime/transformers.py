"""How transformers learns to load and save text encoders that s2q quantized: registered when this is imported."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from s2q.checkpoint import QUANT_METHOD, CheckpointError
from s2q.runtime.linear import QuantLinear
from s2q.runtime.loading import (
    SpecConfig,
    check_floats,
    check_loaded,
    check_nothing_missing,
    dequantize_linears,
    some,
    swap_linears,
)
from s2q.shards import Notes, check_together, read_notes, tensor_places


class S2QTextConfig(SpecConfig, QuantizationConfigMixin):
    """`quantization_config` of a text encoder that s2q quantized; its keys are those of `QuantizationSpec`."""


class S2QTextQuantizer(HfQuantizer):
    """Swaps the linears before loading, and checks strictly that every tensor came, whole and in its own dtype."""

    requires_calibration = True
    _notes = Notes()
    _dtype: torch.dtype | None = None

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        self._dtype = dtype
        return dtype

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        # Scales must stay as they were written, whatever transformers would keep in which dtype.
        owner, _, leaf = converter.target_patterns[0].rpartition(".")
        if leaf in self._packed.get(owner, ()):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        swap_linears(model, self.quantization_config.spec)
        linears = {name: model.get_submodule(name) for name in self.quantization_config.spec.scheme_of()}
        self._packed = {name: linear.tensor_names for name, linear in linears.items()}
        kept = model._get_dtype_plan(self._dtype)
        for name, linear in linears.items():
            linear.input_dtype = next((dtype for part, dtype in kept.items() if part in name.split(".")), None)
            _mark_initialised(model, name)
        if checkpoint_files:
            self._check_files(model, [Path(file) for file in checkpoint_files])

    def _check_files(self, model: nn.Module, files: list[Path]) -> None:
        """All that can be known before tensors are cast: names, shapes, and every tensor that is not quantized."""
        check_together(files, Path(model.config.name_or_path))
        places = tensor_places(files)
        self._notes = read_notes(files[0].parent)
        expected = model.state_dict()
        check_nothing_missing(sorted(set(expected) - set(places) - set(model.all_tied_weights_keys)))
        packed = {f"{name}.{key}" for name, keys in self._packed.items() for key in keys}
        wrong = []
        for path in files:
            with safe_open(path, "pt") as file:
                for name in set(file.keys()) & set(expected):
                    shape = file.get_slice(name).get_shape()
                    if shape != list(expected[name].shape):
                        wrong.append(f"{name} has shape {shape}, expected {list(expected[name].shape)}")
                    elif name not in packed:
                        check_floats({name: file.get_tensor(name)}, self._notes)
        if wrong:
            raise CheckpointError("the checkpoint cannot be used: " + some(sorted(wrong), "; "))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for name in self._packed:
            model.get_submodule(name).requires_grad_(False)  # transformers makes every floating tensor trainable
        check_loaded(model, self.quantization_config.spec, self._notes)
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        dequantize_linears(model, self.quantization_config.spec, dtype or model.dtype)
        return model


def _mark_initialised(model: nn.Module, name: str) -> None:
    """Nothing of a packed linear is ever missing: keep transformers from drawing random weights into it.

    It asks the modules that hold a linear to initialise it, too; those with buffers of their own are left to that.
    """
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        module = model.get_submodule(".".join(parts[:depth]))
        if isinstance(module, QuantLinear) or not module._buffers:
            module._is_hf_initialized = True


def register() -> None:
    """Enter "s2q" into transformers' mappings; doing so twice changes nothing."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(S2QTextConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(S2QTextQuantizer)


register()
