"""A quantized transformer folder, read and checked tensor by tensor without making a model of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from torch import Tensor

from s2q.checkpoint import PROVENANCE_NAME, QUANT_METHOD, CheckpointError, QuantizationSpec, SchemeSpec, check_linear
from s2q.deferred import Deferred, read_tensor, stored
from s2q.runtime.linear import QuantLinear
from s2q.shards import read_notes, weight_places


@dataclass(frozen=True)
class QuantizedFolder:
    """What stands in a folder that `s2q quantize` wrote; tensors are read when asked for."""

    folder: Path
    config: dict[str, Any]
    """`config.json`, without `quantization_config`."""
    spec: QuantizationSpec
    places: dict[str, Path]
    """Name of each tensor → its file."""

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        return read_tensor(self.places[name], name)

    def kept(self) -> dict[str, Deferred]:
        """Everything by name that does not belong to a quantized linear's codes (its bias is kept)."""
        linears, found = self.spec.scheme_of(), {}
        for path in dict.fromkeys(self.places.values()):
            for name, tensor in stored(path).items():
                owner, _, leaf = name.rpartition(".")
                if owner not in linears or leaf == "bias":
                    found[name] = tensor
        return found

    def packed(self, name: str) -> dict[str, Tensor]:
        """The tensors of one quantized linear, by the names of `s2q.checkpoint`, without its bias."""
        prefix = f"{name}."
        found = (full.removeprefix(prefix) for full in self.places if full.startswith(prefix))
        return {leaf: self.tensor(prefix + leaf) for leaf in found if leaf != "bias"}

    def linear(self, name: str) -> QuantLinear:
        """One quantized linear, as the runtime has it."""
        tensors, bias = self.packed(name), f"{name}.bias" in self.places
        rows, columns = tensors["weight_shape"].tolist()
        linear = QuantLinear(columns, rows, bias, self.spec.scheme_of()[name], "meta")
        if bias:
            tensors["bias"] = self.tensor(f"{name}.bias")
        for key, tensor in tensors.items():
            linear._parameters[key] = torch.nn.Parameter(tensor, requires_grad=False)
        return linear


def open_folder(folder: Path) -> QuantizedFolder:
    """Read the configuration and check every tensor, checksums included.

    Raises:
        CheckpointError: no such folder, not made by s2q, incomplete or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json: give the folder that s2q quantize wrote") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} holds no settings")
    settings = config.pop("quantization_config", None)
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method != QUANT_METHOD:
        what = f"quantized by {method}" if method else "not quantized"
        raise CheckpointError(f"{folder} is {what}: give a folder that s2q quantize wrote")
    names = config.get("architectures")  # as transformers writes it, diffusers does not
    if "_class_name" not in config and isinstance(names, list):
        raise CheckpointError(
            f"{folder} is a quantized text encoder ({', '.join(map(str, names))}): s2q push and s2q export take transformers "
            f"alone. Upload it by `hf upload OWNER/NAME {folder}`, provenance and card included"
        )
    spec = QuantizationSpec.parse({key: value for key, value in settings.items() if key != "quant_method"})
    opened = QuantizedFolder(folder, config, spec, weight_places(folder))
    notes = read_notes(folder)
    if notes.config_differs():
        raise CheckpointError(f"{folder / 'config.json'} is not what {PROVENANCE_NAME} noted: damaged, or edited")
    wrong = _misfits(opened)
    for name, scheme in spec.scheme_of().items():
        wrong += _check(opened, name, scheme)
    for name, kept in opened.kept().items():
        tensor = kept.make()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            wrong.append(f"{name} has values that are not finite")
        elif notes.damaged_floats({name: tensor}):
            wrong.append(f"{name} does not match its checksum: the file is damaged")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise CheckpointError(f"{folder} cannot be used: {'; '.join(wrong[:8])}{more}")
    return opened


def _misfits(opened: QuantizedFolder) -> list[str]:
    """What does not fit the model of the configuration, by name and shape."""
    name = opened.config.get("_class_name")
    model_class = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(model_class, type) and issubclass(model_class, diffusers.ModelMixin)):
        raise CheckpointError(f"config.json names the class {name!r}, which diffusers {diffusers.__version__} has not")
    try:
        with accelerate.init_empty_weights():
            model = model_class.from_config(opened.config)
    except Exception as error:  # a damaged setting can fail anywhere inside the class
        raise CheckpointError(f"{name} cannot be made of config.json: {error!r}") from error
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    wrong = []
    for linear in opened.spec.scheme_of():
        shape, key = expected.pop(f"{linear}.weight", None), f"{linear}.weight_shape"
        if shape is None:
            wrong.append(f"{name} has no linear layer named {linear}")
        elif key in opened.places and opened.tensor(key).tolist() != list(shape):
            wrong.append(f"{key} is not that of the model, {list(shape)}")
    kept = {key: tensor.like.shape for key, tensor in opened.kept().items()}
    wrong += [f"{key} is missing" for key in expected if key not in kept]
    wrong += [f"{key} is not part of a {name}" for key in kept if key not in expected]
    return wrong + [
        f"{key} has shape {list(shape)}, expected {list(expected[key])}"
        for key, shape in kept.items()
        if key in expected and shape != expected[key]
    ]


def _check(opened: QuantizedFolder, name: str, scheme: SchemeSpec) -> list[str]:
    tensors = opened.packed(name)
    shape = tensors.get("weight_shape", torch.empty(0))
    if shape.dtype != torch.int64 or shape.shape != (2,) or int(shape.min()) < 1:
        return [f"{name}.weight_shape is missing or no shape"]
    rows, columns = shape.tolist()
    return check_linear(name, tensors, rows, columns, scheme)
