"""The description of what stands on disk, without any file."""

import pytest
import torch

from s2q.checkpoint import CheckpointError, QuantizationSpec, SchemeSpec, check_linear, checksum, tensor_layout


def scheme(**changes) -> SchemeSpec:
    base = {"weight_bits": 4, "act_bits": 6, "targets": {}}
    return SchemeSpec(**(base | changes))


def tensors() -> dict[str, torch.Tensor]:
    layout = tensor_layout(3, 10, scheme())
    made = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in layout.items()}
    return made | {"weight_shape": torch.tensor([3, 10])}


def test_layout_of_a_plain_scheme_is_that_of_compressed_tensors() -> None:
    assert tensor_layout(3, 10, scheme()) == {
        "weight_packed": ((3, 2), torch.int32),
        "weight_scale": ((3, 1), torch.float32),
        "weight_shape": ((2,), torch.int64),
    }


def test_layout_of_a_full_scheme_adds_the_transform() -> None:
    full = scheme(channel_scale=True, kronecker=True, input_clip=True, kronecker_factors={"10": (2, 5)})
    added = tensor_layout(3, 10, full).keys() - tensor_layout(3, 10, scheme()).keys()
    assert added == {"input_scale", "input_left", "input_right", "input_clip"}
    assert tensor_layout(3, 10, full)["input_right"] == ((5, 5), torch.float32)


@pytest.mark.parametrize("name", ["weight_packed", "weight_scale", "weight_shape"])
def test_checksum_sees_any_change_of_any_tensor(name: str) -> None:
    changed = tensors()
    changed[name].view(-1)[-1] += 1
    assert checksum(changed) != checksum(tensors())


def test_checksum_does_not_depend_on_order_but_on_names() -> None:
    one = tensors()
    assert checksum(dict(reversed(one.items()))) == checksum(one)
    swapped = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert checksum(swapped) != checksum({"a": torch.ones(2), "b": torch.zeros(2)})


def test_whole_tensors_have_nothing_wrong() -> None:
    good = tensors()
    assert check_linear("x", good, 3, 10, scheme(targets={"x": checksum(good)})) == []


def test_everything_wrong_is_said_at_once() -> None:
    bad = tensors()
    del bad["weight_shape"]
    bad["weight_scale"][0] = float("nan")
    bad["weight_packed"] = bad["weight_packed"][:, :1]
    wrong = check_linear("x", bad, 3, 10, scheme(targets={"x": ""}))
    assert len(wrong) == 3


def test_a_tensor_that_the_scheme_does_not_have_is_wrong_and_no_crash() -> None:
    extra = tensors() | {"input_scale": torch.ones(10)}
    assert any("input_scale" in line for line in check_linear("x", extra, 3, 10, scheme(targets={"x": ""})))


@pytest.mark.parametrize("version", [4, 99])
def test_a_newer_format_says_so_before_anything_else(version: int) -> None:
    with pytest.raises(CheckpointError, match="upgrade s2q"):
        QuantizationSpec.parse({"format_version": version, "nobody": "knows"})


@pytest.mark.parametrize("version", ["two", 0, -1, None])
def test_a_format_that_never_was_is_refused(version) -> None:
    data = {"format_version": version, "recipe": "rtn", "bits": "W4A6", "producer": "s2q", "schemes": []}
    with pytest.raises(CheckpointError):
        QuantizationSpec.parse(data)
