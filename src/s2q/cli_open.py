"""Opening a pipeline as the options of the command line say: device, dtype, streaming."""

from pathlib import Path
from typing import Any

from s2q.ranks import own_device


def open_for(source: str, text_encoders: list[Path] | None = None, beside: bool = False, **options: Any):
    """Open a pipeline with the device and dtype that the options name, or that suit the machine.

    Args:
        text_encoders: folders of quantized ones, in the place of the pipeline's own, or `beside` them for comparison.
    """
    import diffusers
    import transformers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    from s2q.models.pipelines import open_pipeline

    diffusers.utils.logging.disable_progress_bar()
    downloads_have_bars = not are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()
    if downloads_have_bars:
        enable_progress_bars()  # that took them along
    device = chosen_device(options.pop("device"))
    dtype = chosen_dtype(options.pop("dtype"), device)
    quantized = {}
    if text_encoders:
        from s2q.models.pipelines import locate_configurations
        from s2q.text_encoders.opening import load_text_encoders

        quantized = load_text_encoders(locate_configurations(source)[0], text_encoders, dtype, device)
    own = {} if beside else quantized
    opened = open_pipeline(source, dtype=dtype, device=device, text_encoders=own, **options)
    opened.text_encoders = quantized if beside else {}
    return opened


def chosen_dtype(name: str | None, device: str):
    """The dtype that was asked for, or that suits the device."""
    import torch

    name = name or ("float32" if device == "cpu" else "bfloat16")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"unknown dtype {name!r}: allowed are float32, bfloat16, float16")
    return dtype


def fitting_stream(
    source: str,
    recipe,
    out: Path,
    call: dict[str, Any],
    prompts: list[str],
    *,
    device: str | None,
    dtype: str | None,
    stream: bool | None,
    part: str | None = None,
    force: bool = False,
) -> bool | None:
    """Whether to stream, once calibration on `prompts` has been seen to fit in what is free; `force` does not look."""
    from s2q.fitting import choose_stream, free_disk, free_memory
    from s2q.models.folder import PARTS, pipeline_class
    from s2q.models.inputs import has_length, longest
    from s2q.models.pipelines import default_call, locate
    from s2q.planning import plan

    if force:
        return stream
    folder = locate(source, part)
    given = {name: value for name, value in call.items() if value is not None}
    if not has_length(pipeline_class(folder)):
        frames = longest(prompts[: recipe.sampler.prompts])
        if frames is None:  # only a recipe that records nothing comes this far without a video
            return stream
        given["num_frames"] = frames
    kind = chosen_device(device)
    made = plan(
        folder,
        recipe,
        default_call(source, folder) | given,
        kind,
        chosen_dtype(dtype, kind),
        part=part or PARTS[0],
        timed=False,
    )
    return choose_stream(made, stream, free_memory(kind), free_disk(out))


def chosen_device(name: str | None) -> str:
    """The device that was asked for, or that suits the machine."""
    import torch

    device = own_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: write cpu, cuda, cuda:1 …") from None
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} was asked for, but torch sees no CUDA device here: use --device cpu")
    return device
