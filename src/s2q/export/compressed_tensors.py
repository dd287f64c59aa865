"""The same packed tensors under the configuration of compressed-tensors, for engines that read `pack-quantized`."""

import shutil
from pathlib import Path
from typing import Any

from s2q.checkpoint import CheckpointError, SchemeSpec
from s2q.export.source import QuantizedFolder
from s2q.storage import replacing_folder, write_json

FORMAT = "pack-quantized"


def obstacles(scheme: SchemeSpec) -> list[str]:
    """What of a scheme compressed-tensors' `pack-quantized` cannot say; empty if it can be exported."""
    reasons = {
        "a scale on the input's channels (channel_scale)": scheme.channel_scale,
        "a Kronecker or Hadamard transform of the input (kronecker)": scheme.kronecker,
        "a Hadamard transform of the input (hadamard_block)": scheme.hadamard_block is not None,
        "a factor on the input's range (input_clip)": scheme.input_clip,
        "a stored range of the input (input_range)": scheme.input_range,
        "a low-rank branch (low_rank)": scheme.low_rank > 0,
        "groups of the input's channels (act_group_size)": scheme.act_bits is not None
        and scheme.act_group_size is not None,
    }
    return [reason for reason, present in reasons.items() if present]


def quantization_config(source: QuantizedFolder, act_bits: int | None = None) -> dict[str, Any]:
    """`quantization_config` as compressed-tensors reads it; every linear is named, none is matched by a pattern.

    Args:
        act_bits: another number of bits for quantized activations; None keeps the scheme's own.

    Raises:
        CheckpointError: a scheme that `pack-quantized` cannot express, naming what and where.
    """
    wrong = []
    for scheme in source.spec.schemes:
        if scheme.targets and (reasons := obstacles(scheme)):
            wrong.append(
                f"{len(scheme.targets)} linears such as {next(iter(scheme.targets))} have {', '.join(reasons)}"
            )
    if wrong:
        raise CheckpointError(
            f"recipe {source.spec.recipe} cannot be exported to compressed-tensors: {'; '.join(wrong)}. Its "
            f"{FORMAT} format holds codes, scales and zero points alone: quantize with a recipe without these parts "
            "(rtn, gptq), or export --to dequantized"
        )
    groups: dict[str, dict[str, Any]] = {}
    for scheme in source.spec.schemes:
        for targets, group_size in _by_group_size(source, scheme):
            groups[f"group_{len(groups)}"] = {
                "targets": targets,
                "weights": _weights(scheme, group_size),
                "input_activations": _activations(scheme, act_bits),
                "output_activations": None,
                "format": FORMAT,
            }
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def write_compressed_tensors(source: QuantizedFolder, out: Path, act_bits: int | None = None) -> None:
    """Copy the weight files byte for byte and write the other configuration, whole or not at all."""
    settings = quantization_config(source, act_bits)
    with replacing_folder(out) as unfinished:
        for path in sorted(set(source.places.values())):
            shutil.copyfile(path, unfinished / path.name)
        for index in source.folder.glob("*.safetensors.index.json"):
            shutil.copyfile(index, unfinished / index.name)
        write_json(unfinished / "config.json", source.config | {"quantization_config": settings})


def _by_group_size(source: QuantizedFolder, scheme: SchemeSpec) -> list[tuple[list[str], int | None]]:
    """The targets of a scheme by the length of their groups, which depends on a linear's width."""
    found: dict[int | None, list[str]] = {}
    for name in scheme.targets:
        columns = int(source.tensor(f"{name}.weight_shape")[1])
        groups = source.tensor(f"{name}.weight_scale").shape[1]
        found.setdefault(None if scheme.group_size is None else columns // groups, []).append(name)
    return [(names, size) for size, names in found.items()]


def _weights(scheme: SchemeSpec, group_size: int | None) -> dict[str, Any]:
    return {
        "num_bits": scheme.weight_bits,
        "type": "int",
        "symmetric": scheme.symmetric_weights,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }


def _activations(scheme: SchemeSpec, act_bits: int | None) -> dict[str, Any] | None:
    if scheme.act_bits is None:
        return None
    return {
        "num_bits": act_bits or scheme.act_bits,
        "type": "int",
        "symmetric": scheme.symmetric_acts,
        "strategy": "token",
        "dynamic": True,
    }
