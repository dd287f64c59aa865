"""What we use of diffusers beyond its documented interface: when an upgrade moves one of these, this says which."""

import inspect

import pytest
from diffusers import CogVideoXTransformer3DModel
from diffusers.models import model_loading_utils, modeling_utils
from diffusers.models.model_loading_utils import load_model_dict_into_meta
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from s2q.runtime.diffusers import S2QConfig, S2QQuantizer
from s2q.runtime.refusals import REFUSED

# Hook that we override → the arguments diffusers gives it, by its own signature.
HOOKS = {
    "_process_model_before_weight_loading": ["model", "kwargs"],
    "_process_model_after_weight_loading": ["model", "kwargs"],
    "_dequantize": ["model"],
    "update_missing_keys": ["model", "missing_keys", "prefix"],
    "maybe_update_loaded_keys": ["loaded_keys", "checkpoint_files"],
    "maybe_update_state_dict": ["state_dict"],
    "check_if_quantized_param": ["model", "param_value", "param_name", "state_dict", "kwargs"],
    "create_quantized_param": ["args", "kwargs"],
    "check_quantized_param_shape": ["args", "kwargs"],
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_still_there_with_its_arguments(name: str) -> None:
    signature = inspect.signature(getattr(DiffusersQuantizer, name))
    assert [parameter for parameter in signature.parameters if parameter != "self"] == HOOKS[name]


def test_no_hook_of_ours_is_one_that_diffusers_does_not_know() -> None:
    ours = {name for name, value in vars(S2QQuantizer).items() if inspect.isfunction(value)}
    assert ours == set(HOOKS), "list it above, or it is dead code"


def test_the_mappings_are_dictionaries_that_are_read_at_call_time() -> None:
    assert auto.AUTO_QUANTIZER_MAPPING["s2q"] is S2QQuantizer
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING["s2q"] is S2QConfig
    source = inspect.getsource(auto.DiffusersAutoQuantizer)
    assert "AUTO_QUANTIZER_MAPPING" in source
    assert "AUTO_QUANTIZATION_CONFIG_MAPPING" in source


def test_our_class_has_all_that_diffusers_asks_of_a_quantizer() -> None:
    assert not S2QQuantizer.__abstractmethods__
    assert hasattr(DiffusersQuantizer, "requires_calibration")
    assert '"use_keep_in_fp32_modules"' in inspect.getsource(modeling_utils), "asked of the quantizer by this name"
    for answer in ("is_serializable", "is_trainable", "is_compileable"):
        assert isinstance(inspect.getattr_static(DiffusersQuantizer, answer), property), answer
    assert issubclass(S2QConfig, QuantizationConfigMixin)


LOADER_CALLS = {
    "maybe_update_loaded_keys(": modeling_utils.ModelMixin.from_pretrained,
    "preprocess_model(": modeling_utils.ModelMixin.from_pretrained,
    "postprocess_model(": modeling_utils.ModelMixin.from_pretrained,
    "update_missing_keys(": modeling_utils.ModelMixin._load_pretrained_model,
    "maybe_update_state_dict(": model_loading_utils._load_shard_file,
    "check_if_quantized_param(": load_model_dict_into_meta,
    "create_quantized_param(": load_model_dict_into_meta,
    "check_quantized_param_shape(": load_model_dict_into_meta,
}


@pytest.mark.parametrize("call", LOADER_CALLS)
def test_the_loader_still_calls_the_hook(call: str) -> None:
    assert call in inspect.getsource(LOADER_CALLS[call])


@pytest.mark.parametrize("name", [*REFUSED, "enable_layerwise_casting", "dequantize"])
def test_the_methods_that_we_refuse_or_lean_on_exist(name: str) -> None:
    assert callable(getattr(CogVideoXTransformer3DModel, name))
