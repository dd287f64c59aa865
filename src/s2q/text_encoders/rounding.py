"""Round the linears of a text encoder, block by block: one pass over the blocks, one block's Hessians in memory."""

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from s2q.numerics.gptq import HessianFactor, accumulate_hessian, hessian_factor
from s2q.progress import Progress
from s2q.quantization.freeze import freeze
from s2q.quantization.layer import SimulatedLinear
from s2q.quantization.schemes import scheme_spec
from s2q.quantization.transforms import SharedTransform
from s2q.recipe import LinearScheme
from s2q.runtime.linear import QuantLinear
from s2q.text_encoders.calibration import Tokens
from s2q.text_encoders.opening import TextEncoder, block_linears

ROWS = 256
"""Output channels rounded at a time; a multiple of 32, so that packed zero points end with a word."""


@torch.no_grad()
def quantize_blocks(encoder: TextEncoder, scheme: LinearScheme, tokens: Tokens | None, progress: Progress) -> None:
    """Put a packed `QuantLinear` in the place of every linear of the blocks of `encoder`.

    Args:
        scheme: weight-only, without a transform.
        tokens: what the encoder is run on, once, if the scheme looks at inputs. The Hessians of a block are those of
            what the quantized blocks before it make, over all tokens that the masks show.
    """
    with progress.stage(encoder.part, len(encoder.blocks)) as stage:
        if tokens is None:
            for _, block in encoder.blocks:
                for name, linear in block_linears(block):
                    _replace(block, name, linear, scheme, None)
                stage.advance()
            return
        device = encoder.model.get_input_embeddings().weight.device
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        watched = {block: _Watched(name, block, scheme, mask.bool()) for name, block in encoder.blocks}

        def quantize_and_run_again(block: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            if block not in watched:
                return None
            watched.pop(block).replace()
            stage.advance()
            return block(*args, **kwargs)

        handles = [block.register_forward_hook(quantize_and_run_again, with_kwargs=True) for block in watched]
        encoder.model.config.use_cache = False  # keys and values of a cache would be kept for nothing, and twice
        encoder.model(input_ids=ids, attention_mask=mask)
        for handle in handles:
            handle.remove()
        if watched:
            raise ValueError(f"{type(encoder.model).__name__} did not run all of its blocks: it cannot be calibrated")


class _Watched:
    """A block until it is quantized: the Hessian of each of its inputs."""

    def __init__(self, name: str, block: nn.Module, scheme: LinearScheme, shown: Tensor):
        self._name, self._block, self._scheme, self._shown = name, block, scheme, shown
        self._seen: list[tuple[Tensor, Tensor, list[str]]] = []  # input, Hessian, the linears that share them
        self._handles = [
            linear.register_forward_pre_hook(lambda module, args, name=name: self._see(name, args[0]))
            for name, linear in block_linears(block)
        ]

    def _see(self, name: str, x: Tensor) -> None:
        sharing = next((names for seen, _, names in self._seen if seen is x), None)
        if sharing is not None:
            sharing.append(name)
            return
        hessian = torch.zeros(x.shape[-1], x.shape[-1], device=x.device)
        accumulate_hessian(hessian, x[self._shown] if x.shape[:2] == self._shown.shape else x.flatten(0, -2))
        self._seen.append((x, hessian, [name]))

    def replace(self) -> None:
        """Quantize the linears by what was seen."""
        for handle in self._handles:
            handle.remove()
        linears = dict(block_linears(self._block))
        unseen = linears.keys() - {name for *_, names in self._seen for name in names}
        if unseen:
            raise ValueError(f"no input reached {', '.join(sorted(unseen))} of {self._name}: GPTQ cannot round them")
        while self._seen:
            _, hessian, names = self._seen.pop(0)
            factor = hessian_factor(hessian)
            for name in names:
                _replace(self._block, name, linears[name], self._scheme, factor)


def _replace(
    block: nn.Module, name: str, linear: nn.Linear, scheme: LinearScheme, factor: HessianFactor | None
) -> None:
    with align_module_device(linear):
        block.set_submodule(name, packed_linear(linear, scheme, factor))


def packed_linear(linear: nn.Linear, scheme: LinearScheme, factor: HessianFactor | None) -> QuantLinear:
    """The linear with its weight rounded and packed, on the same device."""
    columns, device = linear.in_features, linear.weight.device
    bias = linear.bias is not None
    packed = QuantLinear(columns, linear.out_features, bias, scheme_spec(scheme, columns), "meta", linear.weight.dtype)
    # To the nearest, rows know nothing of each other: a few at a time fit the cache.
    share = ROWS if factor is None else linear.out_features
    pieces = [_rounded(rows, scheme, factor) for rows in linear.weight.detach().split(share)]
    for name in packed.tensor_names:
        whole = torch.tensor([linear.out_features, columns]) if name == "weight_shape" else None
        tensor = torch.cat([piece[name] for piece in pieces]) if whole is None else whole
        packed.register_parameter(name, nn.Parameter(tensor.to(device), requires_grad=False))
    if bias:
        packed.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    return packed


def _rounded(weight: Tensor, scheme: LinearScheme, factor: HessianFactor | None) -> dict[str, Tensor]:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    inputs = SharedTransform(columns, scheme, torch.ones(columns, device=weight.device), torch.Generator())
    return freeze(SimulatedLinear(linear, scheme, inputs), factor)
