"""Low-bit integers in int32 words, laid out as compressed-tensors' `pack-quantized` format.

A row of K codes becomes a little-endian bit stream: code k + 2^(b−1) (offset binary) stands at bits
[k·b, (k+1)·b), and the stream is cut into ⌈K·b / 32⌉ int32 words, the last one padded with zeros.
For 4 bits this is eight nibbles a word, the lowest nibble first.
"""

import torch
from torch import Tensor

from s2q.numerics.parts import height
from s2q.numerics.quantizer import integer_range

# Codes that are unpacked at a time: bytes, of which more stay in a cache than of floats.
SOME_CODES = 1 << 20


def packed_width(columns: int, bits: int) -> int:
    """Number of int32 words that hold one row of `columns` codes of `bits` bits."""
    return -(-columns * bits // 32)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack signed codes into words.

    Args:
        codes: int8 [N, K], each in the `bits`-bit range.

    Returns:
        int32 [N, ⌈K·bits/32⌉].

    Raises:
        ValueError: a code lies outside the range.
    """
    smallest, largest = integer_range(bits)
    least, most = map(int, codes.aminmax()) if codes.numel() else (0, 0)
    if least < smallest or most > largest:
        raise ValueError(f"codes span {least}..{most}, outside the {bits}-bit range {smallest}..{largest}")
    rows, columns = codes.shape
    joined = torch.zeros(rows, -(-columns // 32) * 32, dtype=torch.uint8, device=codes.device)
    joined[:, :columns] = codes.view(torch.uint8) - smallest  # wraps to what is meant
    # Neighbours are joined three times: eight codes of b bits are b bytes.
    for width, dtype in ((bits, torch.int32), (2 * bits, torch.int64), (4 * bits, torch.int64)):
        first, second = joined.unflatten(-1, (-1, 2)).to(dtype).unbind(-1)
        joined = first | second << width
    stream = joined.view(torch.uint8).unflatten(-1, (-1, 8))[..., :bits].flatten(1)
    return stream.view(torch.int32)[:, : packed_width(columns, bits)].contiguous()


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """The codes that `pack` packed.

    Args:
        words: int32 [N, ⌈K·bits/32⌉], contiguous.
        columns: K.

    Returns:
        int8 [N, K].
    """
    smallest, _ = integer_range(bits)
    rows = words.shape[0]
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return (data[:, :columns] ^ 0x80).view(torch.int8).contiguous()
    if bits == 4:
        out = torch.empty(rows, 2 * data.shape[1], dtype=torch.int8, device=words.device)
        return unpack_nibbles(words, out)[:, :columns].contiguous()
    shifts = torch.arange(8, dtype=torch.uint8, device=words.device)
    stream = ((data.unsqueeze(-1) >> shifts) & 1).view(rows, -1)[:, : columns * bits]
    weights = 1 << torch.arange(bits, dtype=torch.uint8, device=words.device)
    unsigned = (stream.reshape(rows, columns, bits) * weights).sum(-1, dtype=torch.uint8)
    return (unsigned.to(torch.int16) + smallest).to(torch.int8)


def unpack_nibbles(words: Tensor, out: Tensor) -> Tensor:
    """Whole words of 4-bit codes, int32 [N, K/8], into `out`, int8 [N, K] contiguous, which is returned."""
    data, some = words.contiguous().view(torch.uint8), height(out, SOME_CODES)
    for packed, codes in zip(data.split(some), out.split(some), strict=True):
        # A byte's nibbles become the two bytes of a pair, the lower one first.
        pairs = codes.view(torch.int16).copy_(packed)
        pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F)
        codes.sub_(8)
    return out
