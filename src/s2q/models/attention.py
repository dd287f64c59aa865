"""See attention from outside: the queries and keys of any model, where they meet, and what each token receives.

Every attention of diffusers' native backend ends in `torch.nn.functional.scaled_dot_product_attention`, where a
`TorchFunctionMode` sees its arguments. No attention processor has to be replaced.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s2q.memory import in_chunks
from s2q.models.family import Family


def received_attention(
    query: Tensor, key: Tensor, mask: Tensor | None = None, chunk: int = 256, scale: float | None = None
) -> Tensor:
    """S_j = Σ_{h,i} A_{h,i,j}: what each token receives over all heads and queries. Sums to H · S_q.

    The S × S map never exists: `chunk` queries are softmaxed at a time, fewer if they are too many for the memory (the
    sums then end in other last bits). Queries that may see nothing give nothing.

    Args:
        query: [B, H, S_q, D].
        key: [B, H, S_k, D].
        mask: as `scaled_dot_product_attention` takes it, broadcastable to [B, H, S_q, S_k].
        scale: of the scores; None is 1/√D.

    Returns:
        float32 [B, S_k].
    """
    keys = key.float().mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    received = torch.zeros(query.shape[0], key.shape[2], dtype=torch.float32, device=query.device)

    def add(part: slice) -> None:
        scores = query[:, :, part].float() @ keys
        if mask is not None:
            rows = mask if mask.shape[-2] == 1 else mask[..., part, :]
            scores = scores.masked_fill(~rows, -math.inf) if rows.dtype == torch.bool else scores + rows
        shares = scores.softmax(dim=-1)
        if mask is not None:
            shares = shares.nan_to_num(nan=0.0)  # rows that are masked throughout
        received.add_(shares.sum(dim=(1, 2)))

    in_chunks(query.shape[2], chunk, add)
    return received


class AttentionTap(TorchFunctionMode):
    """Inside this context, `receive(block index, received attention [B, S])` is called for every self-attention.

    Where a module attends to each row of the batch by itself, leaving padding out (Mochi), its rows are put together and
    filled up with zeros at the end: padding receives nothing.

    Args:
        may_miss: whether some blocks may go without: a perturbed call (LTX-2) passes their attention by.

    Raises (on leaving the context):
        RuntimeError: a block's self-attention was never seen, as with a fused or linear attention backend.
    """

    def __init__(
        self, model: nn.Module, family: Family, receive: Callable[[int, Tensor], None], may_miss: bool = False
    ):
        super().__init__()
        self._may_miss = may_miss
        self._modules = [block.get_submodule(family.self_attention) for _, block in family.blocks(model)]
        self._receive = receive
        self._active: int | None = None
        self._parts: list[Tensor] = []
        self._seen: set[int] = set()
        self._handles: list = []

    def __enter__(self) -> "AttentionTap":
        for index, module in enumerate(self._modules):
            self._handles += [
                module.register_forward_pre_hook(lambda *_, index=index: self._begin(index)),
                module.register_forward_hook(lambda *_: self._end()),
            ]
        return super().__enter__()

    def __exit__(self, kind, error, trace) -> None:
        super().__exit__(kind, error, trace)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        missing = sorted(set(range(len(self._modules))) - self._seen)
        if kind is None and missing and not (self._may_miss and self._seen):
            raise RuntimeError(
                f"the self-attention of blocks {missing} does not pass through scaled_dot_product_attention: "
                "use diffusers' native attention backend for calibration"
            )

    def _begin(self, index: int) -> None:
        self._active, self._parts = index, []

    def _end(self) -> None:
        index, self._active = self._active, None
        if self._parts:
            longest = max(part.shape[1] for part in self._parts)
            padded = [nn.functional.pad(part, (0, longest - part.shape[1])) for part in self._parts]
            self._seen.add(index)
            self._receive(index, torch.cat(padded))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention and self._active is not None:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            named = dict(zip(names, args, strict=False)) | kwargs
            query, key = named["query"], named["key"]
            if named.get("is_causal"):
                raise RuntimeError("causal self-attention cannot be read: choose a recipe without token weights")
            if key.shape[1] != query.shape[1]:  # grouped queries
                key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            self._parts.append(received_attention(query, key, named.get("attn_mask"), scale=named.get("scale")))
        return function(*args, **kwargs)
