"""Whatever happened to a checkpoint's bytes, loading it ends in an error or in exactly what was written.

S2Q_FUZZ is the number of inputs that each property is tried on; docs/trust.md says how many have been.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from hostile import flipped, header_end, headers, junk, lengths, tries, with_header
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from s2q.checkpoint import PROVENANCE_NAME, CheckpointError
from s2q.export.source import open_folder
from s2q.shards import INDEX_NAME, SINGLE_NAME

GOLDEN = Path(__file__).parent / "golden" / "format-2"
BYTES = (GOLDEN / SINGLE_NAME).read_bytes()
HEADER = header_end(BYTES)
STORED = load_file(GOLDEN / SINGLE_NAME)
CONFIG = (GOLDEN / "config.json").read_bytes()
CONFIGURED = json.loads(CONFIG)

# What is said of a file that cannot be used; anything else (KeyError, MemoryError, a crash) fails the test.
SAID = (CheckpointError, SafetensorError, OSError)


@contextmanager
def folder_with(**files: bytes | None) -> Iterator[Path]:
    """A copy of the checkpoint with other content in some files; None is no such file."""
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "copy"
        shutil.copytree(GOLDEN, folder)
        for name, content in files.items():
            path = folder / {"weights": SINGLE_NAME, "config": "config.json", "index": INDEX_NAME}.get(name, name)
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        yield folder


def read_by_export(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_folder(folder)
    assert opened.config == {key: value for key, value in CONFIGURED.items() if key != "quantization_config"}
    return {name: opened.tensor(name) for name in opened.places}


def read_by_diffusers(folder: Path) -> dict[str, torch.Tensor]:
    return CogVideoXTransformer3DModel.from_pretrained(folder).state_dict()


READERS = pytest.mark.parametrize("read", [read_by_export, read_by_diffusers])


def error_or_the_same(read: Callable, folder: Path, *also: type[Exception]) -> bool:
    """Whether it was refused; if it was not, it must be what was written."""
    try:
        state = read(folder)
    except (*SAID, *also):
        return True
    assert state.keys() == STORED.keys()
    for name, tensor in STORED.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), f"{name} was loaded wrong, without a word"
    return False


@READERS
@tries
@given(kept=st.integers(0, len(BYTES) - 1))
def test_a_file_cut_anywhere_is_refused(read: Callable, kept: int) -> None:
    with folder_with(weights=BYTES[:kept]) as folder:
        assert error_or_the_same(read, folder)


@READERS
@tries
@given(more=st.binary(min_size=1, max_size=64))
def test_a_file_with_bytes_behind_its_end_is_refused(read: Callable, more: bytes) -> None:
    with folder_with(weights=BYTES + more) as folder:
        assert error_or_the_same(read, folder)


@READERS
@tries
@given(bit=st.integers(8 * HEADER, 8 * len(BYTES) - 1))
def test_one_bit_flipped_in_any_tensor_is_refused(read: Callable, bit: int) -> None:
    with folder_with(weights=flipped(BYTES, [bit])) as folder:
        assert error_or_the_same(read, folder), "a bit of a tensor is another, and nobody noticed"


@READERS
@tries
@given(bits=st.lists(st.integers(0, 8 * HEADER - 1), min_size=1, max_size=4, unique=True))
def test_bits_flipped_in_the_header_are_refused_or_do_not_matter(read: Callable, bits: list[int]) -> None:
    with folder_with(weights=flipped(BYTES, bits)) as folder:
        # diffusers itself stumbles over some headers before any hook of ours: an error all the same.
        error_or_the_same(read, folder, *((ValueError, KeyError) if read is read_by_diffusers else ()))


@READERS
@tries
@given(data=st.binary(max_size=4096))
def test_noise_is_refused(read: Callable, data: bytes) -> None:
    with folder_with(weights=data) as folder:
        assert error_or_the_same(read, folder)


@READERS
@tries
@given(header=headers(list(STORED)[:6]), length=lengths)
def test_a_made_up_header_is_refused_and_takes_no_memory(read: Callable, header: dict, length: int | None) -> None:
    with folder_with(weights=with_header(header, length)) as folder:
        assert error_or_the_same(read, folder)


@READERS
def test_one_name_twice_in_a_header_is_refused(read: Callable) -> None:
    text = BYTES[8:HEADER].decode()
    name = next(iter(STORED))
    twice = text[:-1].rstrip("}") + "}" + f',"{name}":' + json.dumps(json.loads(text)[name]) + "}"
    other = json.loads(text) | {name: json.loads(text)["proj_out.bias"]}
    for header in (twice, text.rstrip()[:-1] + f',"{name}":' + json.dumps(other[name]) + "}"):
        data = struct.pack("<Q", len(header)) + header.encode() + BYTES[HEADER:]
        with folder_with(weights=data) as folder:
            error_or_the_same(read, folder)


@tries
@given(bits=st.lists(st.integers(0, 8 * len(CONFIG) - 1), min_size=1, max_size=3, unique=True))
def test_bits_flipped_in_the_configuration_are_refused_or_do_not_matter(bits: list[int]) -> None:
    with folder_with(config=flipped(CONFIG, bits)) as folder:
        error_or_the_same(read_by_export, folder)


class Shards:
    """The checkpoint in two files, and an index that the test writes."""

    def __init__(self, folder: Path):
        self.folder, names = folder, sorted(STORED)
        self.files = {f"diffusion_pytorch_model-0000{k}-of-00002.safetensors": names[k - 1 :: 2] for k in (1, 2)}
        for file, own in self.files.items():
            save_file({name: STORED[name] for name in own}, folder / file, metadata={"format": "pt"})
        (folder / SINGLE_NAME).unlink()
        self.write({name: file for file, own in self.files.items() for name in own})

    def write(self, weight_map: object) -> None:
        index = {"metadata": {"total_size": sum(t.nbytes for t in STORED.values())}, "weight_map": weight_map}
        (self.folder / INDEX_NAME).write_text(json.dumps(index))

    @property
    def index(self) -> dict[str, str]:
        return json.loads((self.folder / INDEX_NAME).read_text())["weight_map"]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    shutil.copytree(GOLDEN, tmp_path / "folder")
    return Shards(tmp_path / "folder")


@READERS
def test_honest_shards_are_read(read: Callable, shards: Shards) -> None:
    assert not error_or_the_same(read, shards.folder)


@READERS
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_an_index_that_leads_out_of_its_folder_is_refused(
    read: Callable, some: bool, absolute: bool, shards: Shards
) -> None:
    away = shards.folder.parent / "elsewhere"
    away.mkdir()
    for file in shards.files:
        shutil.copy(shards.folder / file, away / file)
    lead = str(away) if absolute else "../elsewhere"
    first = next(iter(shards.files))
    shards.write({n: f"{lead}/{f}" if f == first or not some else f for n, f in shards.index.items()})
    with pytest.raises(ValueError, match=r"leads out of its folder|must be plain filenames"):
        read(shards.folder)


@READERS
def test_a_tensor_in_two_shards_is_refused(read: Callable, shards: Shards) -> None:
    """diffusers would take whichever comes last."""
    first, second = shards.files
    tensors = load_file(shards.folder / second) | {"proj_out.weight": torch.zeros_like(STORED["proj_out.weight"])}
    tensors |= {name: STORED[name] for name in shards.files[first][:1]}
    save_file(tensors, shards.folder / second, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="both hold"):
        read(shards.folder)


@READERS
def test_a_shard_that_is_missing_is_refused(read: Callable, shards: Shards) -> None:
    (shards.folder / next(iter(shards.files))).unlink()
    assert error_or_the_same(read, shards.folder, EnvironmentError)


@tries
@given(weight_map=junk | st.dictionaries(st.sampled_from(sorted(STORED)[:3]), junk | st.just("../../etc/passwd")))
def test_a_made_up_index_is_refused(weight_map: object) -> None:
    with folder_with() as folder:
        Shards(folder).write(weight_map)
        assert error_or_the_same(read_by_export, folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b'{"float_checksums": 3}', b'{"config_fingerprint": 3}'])
@READERS
def test_notes_that_cannot_be_read_are_an_error(read: Callable, content: bytes) -> None:
    with folder_with(**{PROVENANCE_NAME: content}) as folder, pytest.raises(CheckpointError, match=PROVENANCE_NAME):
        read(folder)


@READERS
def test_a_setting_of_the_model_that_was_changed_is_seen(read: Callable) -> None:
    """norm_eps, say: the shapes fit, the video would be another."""
    with folder_with(config=CONFIG.replace(b'"norm_eps": 1e-05', b'"norm_eps": 1e-01')) as folder:
        with pytest.raises(CheckpointError, match="noted"):
            read(folder)
        (folder / PROVENANCE_NAME).unlink()
        assert CogVideoXTransformer3DModel.from_pretrained(folder).config.norm_eps == 0.1, (
            "without the note it cannot be"
        )


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN, folder)
    torch.save(STORED, folder / "diffusion_pytorch_model.bin")
    (folder / SINGLE_NAME).unlink()
    with pytest.raises(CheckpointError, match="pickle"):
        read_by_diffusers(folder)
    with pytest.raises(CheckpointError):
        read_by_export(folder)


def test_nothing_in_s2q_can_run_code_out_of_a_file() -> None:
    """Checkpoints and work folders know no pickle; weights that users give for measuring are read as tensors alone."""
    import s2q

    root = Path(s2q.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("torch.load(") == text.count("weights_only=True"), path.name
        for word in ("pickle.load", "allow_pickle=True", "marshal.load", "weights_only=False"):
            assert word not in text, f"{path.name}: {word}"
        if path.relative_to(root).parts[0] not in ("evaluation", "demo"):
            assert "torch.load(" not in text, path.name
