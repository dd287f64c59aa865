"""Packed codes come back, take the bytes they should, and lie as compressed-tensors lays them."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from s2q.numerics.packing import pack, packed_width, unpack
from s2q.numerics.quantizer import integer_range

few = settings(max_examples=60, deadline=None)
any_bits = st.integers(2, 8)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 70))


def random_codes(shape: tuple[int, int], bits: int, seed: int = 0) -> torch.Tensor:
    smallest, largest = integer_range(bits)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(smallest, largest + 1, shape, generator=generator, dtype=torch.int8)


@few
@given(shapes, any_bits, st.integers(0, 99))
def test_codes_come_back_whatever_the_width(shape: tuple[int, int], bits: int, seed: int) -> None:
    codes = random_codes(shape, bits, seed)
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (shape[0], packed_width(shape[1], bits))
    assert torch.equal(unpack(words, bits, shape[1]), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_of_the_grid_comes_back(bits: int) -> None:
    smallest, largest = integer_range(bits)
    codes = torch.arange(smallest, largest + 1, dtype=torch.int16).to(torch.int8).unsqueeze(0)
    assert torch.equal(unpack(pack(codes, bits), bits, codes.shape[1]), codes)


@few
@given(shapes, any_bits, st.integers(0, 99))
def test_layout_is_that_of_compressed_tensors(shape: tuple[int, int], bits: int, seed: int) -> None:
    codes = random_codes(shape, bits, seed)
    words = pack(codes, bits)
    assert torch.equal(words, pack_to_int32(codes, bits))
    assert torch.equal(unpack_from_int32(words, bits, torch.Size(shape)), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_storage_is_bits_and_not_bytes(bits: int) -> None:
    assert pack(random_codes((3, 64), bits), bits).nbytes == 3 * 64 * bits // 8


@pytest.mark.parametrize(("bits", "code"), [(4, 8), (4, -9), (2, 2), (7, 64), (7, -65)])
def test_codes_out_of_range_are_refused_and_not_wrapped(bits: int, code: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        pack(torch.tensor([[0, code]], dtype=torch.int8), bits)


def test_words_that_are_not_contiguous_are_read_right() -> None:
    codes = random_codes((6, 40), 4)
    words = pack(codes, 4)
    assert torch.equal(unpack(words.mT.contiguous().mT, 4, 40), codes)
    assert torch.equal(unpack(words[2:5], 4, 40), codes[2:5])
