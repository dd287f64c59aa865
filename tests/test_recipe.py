"""A method is data: what is misspelt is an error and never a silent second method."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from s2q.recipe import Bits, LinearScheme, LowRankSpec, Recipe, TransformSpec
from s2q.recipes import RECIPES, get_recipe, override

acts = st.one_of(st.integers(4, 8), st.just(16))


@given(st.integers(2, 8), acts, st.booleans())
def test_bits_are_read_as_written(weight: int, act: int, lower: bool) -> None:
    text = f"W{weight}A{act}"
    bits = Bits.parse(f" {text.lower() if lower else text} ")
    assert bits == (weight, None if act == 16 else act)
    assert str(bits) == text


@given(st.integers(0, 40), st.integers(0, 40))
def test_bits_that_are_not_offered_are_refused(weight: int, act: int) -> None:
    if 2 <= weight <= 8 and (4 <= act <= 8 or act == 16):
        return
    with pytest.raises(ValueError, match=r"W2\.\.W8 with A4\.\.A8 or A16"):
        Bits.parse(f"W{weight}A{act}")


@given(st.text(max_size=8))
def test_anything_else_is_refused(text: str) -> None:
    try:
        bits = Bits.parse(text)
    except ValueError:
        return
    assert str(bits).lower() == text.strip().lower(), "read as something that was not written"


@pytest.mark.parametrize("text", ["", "W4", "A6", "4A6", "W4A6x", "W4 A6", "W-4A6", "W4.0A6", "W4A6\nW8A8"])
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="W4A6"):
        Bits.parse(text)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_being_written_and_read(name: str) -> None:
    made = get_recipe(name, "W4A6")
    assert Recipe.model_validate_json(made.model_dump_json()) == made
    assert made.name == name
    assert made.bits == "W4A6"
    assert RECIPES[name].__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_weight_only_leaves_every_input_in_floating_point(name: str) -> None:
    made = get_recipe(name, "W4A16")
    assert made.linear.act_bits is made.modulation.act_bits is None
    assert made.linear.weight_bits == made.modulation.weight_bits == 4


@pytest.mark.parametrize("name", RECIPES)
def test_modulation_has_the_weights_bits_asked_for(name: str) -> None:
    made = get_recipe(name, "W3A4")
    assert made.modulation.weight_bits == made.linear.weight_bits == 3
    assert made.linear.act_bits == 4


def test_an_unknown_recipe_is_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match="s2q_vdit"):
        get_recipe("awq", "W4A6")


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("optim.epochs=5", ("optim", "epochs"), 5),
        ("optim.lr=1e-3", ("optim", "lr"), 1e-3),
        ("sampler.kind=random", ("sampler", "kind"), "random"),
        ('sampler.kind="uniform"', ("sampler", "kind"), "uniform"),
        ("linear.transform=null", ("linear", "transform"), None),
        ("linear.weight_clip=mse", ("linear", "weight_clip"), "mse"),
        ("linear.act_clip=0.9", ("linear", "act_clip"), 0.9),
        ("linear.group_size=64", ("linear", "group_size"), 64),
        ("optim.propagate_error=true", ("optim", "propagate_error"), True),
        ('keep_float=["ff.*"]', ("keep_float",), ("ff.*",)),
        ("linear.transform.alpha=0.5", ("linear", "transform", "alpha"), 0.5),
    ],
)
def test_an_override_changes_its_field_and_nothing_else(assignment: str, path: tuple, value: object) -> None:
    base = get_recipe("s2q_vdit", "W4A6")
    changed = override(base, [assignment])
    got = changed
    for name in path:
        got = getattr(got, name)
    assert got == value
    data, original = changed.model_dump(), base.model_dump()
    parent, original_parent = data, original
    for name in path[:-1]:
        parent, original_parent = parent[name], original_parent[name]
    parent[path[-1]] = original_parent[path[-1]]
    assert data == original


def test_an_override_begins_a_part_that_the_recipe_does_not_have() -> None:
    changed = override(get_recipe("s2q_plus", "W4A6"), ["linear.low_rank.rank=2", "linear.low_rank.start=zero"])
    assert changed.linear.low_rank == LowRankSpec(rank=2, start="zero")
    assert changed.modulation.low_rank is None
    rotated = override(get_recipe("gptq", "W4A6"), ["linear.transform.rotation=hadamard"])
    assert rotated.linear.transform == TransformSpec(rotation="hadamard")


@pytest.mark.parametrize(
    "assignment",
    [
        "linear.low_rank.ranks=2",
        "linear.low_rank.start=zero",
        "linear.low_rank=2",
        "linear.group_size.more=2",
        "optim.epoch=5",
        "optim.epochs",
        "optim=",
        "=5",
        "",
        "optim.epochs.more=5",
        "nothing.at.all=1",
        "optim.epochs=-1",
        "optim.epochs=many",
        "optim.lr=-1",
        "sampler.kind=best",
        "linear.weight_bits=1",
        "linear.act_bits=16",
        "linear.rounding=up",
        "linear.rounding=adaround",
        "linear.act_clip=0",
        "linear.transform.alpha=best",
        "linear.group_size=0",
        "objective.lambda_min=2",
        "optim.lr=NaN",
    ],
)
def test_a_wrong_override_is_refused_and_named(assignment: str) -> None:
    with pytest.raises(ValueError, match="cannot") as caught:
        override(get_recipe("s2q_vdit", "W4A6"), [assignment])
    assert assignment.partition("=")[0] in str(caught.value)


def test_what_only_gptq_does_is_refused_without_it() -> None:
    with pytest.raises(ValueError, match=r"gptq\.act_order and gptq\.step_search change nothing"):
        override(get_recipe("rtn", "W4A8"), ["gptq.act_order=true"])
    assert override(get_recipe("gptq", "W4A8"), ["gptq.act_order=true"]).gptq.act_order


def test_a_range_that_is_upside_down_is_refused() -> None:
    with pytest.raises(ValueError, match="lambda"):
        override(get_recipe("s2q_vdit", "W4A6"), ["objective.lambda_min=0.9", "objective.lambda_max=0.1"])


def test_learning_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="sampler"):
        override(get_recipe("s2q_vdit", "W4A6"), ["sampler.kind=none"])


def test_an_unknown_key_is_refused_anywhere() -> None:
    with pytest.raises(ValidationError, match="grup_size"):
        LinearScheme(weight_bits=4, grup_size=64)
    data = get_recipe("rtn", "W4A6").model_dump()
    data["linear"]["colour"] = "red"
    with pytest.raises(ValidationError, match="colour"):
        Recipe.model_validate(data)


def test_a_recipe_cannot_be_changed_behind_ones_back() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        get_recipe("rtn", "W4A6").linear.weight_bits = 8


def test_down_rotation_is_that_of_inputs_wider_than_the_output_and_of_no_other() -> None:
    made = get_recipe("s2q_plus", "W4A6")
    transform = made.linear.transform
    assert transform.for_shape(160, 640).rotation == "hadamard_blocks"
    assert transform.for_shape(160, 160).rotation == transform.for_shape(640, 160).rotation == "kronecker"
    everywhere = override(made, ["linear.transform.down_rotation=null"]).linear.transform
    assert everywhere.for_shape(160, 640).rotation == "kronecker"


def test_what_only_down_projections_learn_is_learned() -> None:
    fixed = {"channel_scale": False, "rotation": "hadamard_blocks"}
    assert not LinearScheme(weight_bits=4, transform=fixed).learns
    assert LinearScheme(weight_bits=4, transform=fixed | {"down_rotation": "kronecker"}).learns


def test_the_default_recipe_pays_for_its_tokens_only_where_their_bits_are_few() -> None:
    few, plain = get_recipe("s2q_plus", "W4A6").linear, get_recipe("s2q_plus", "W4A8").linear
    assert (few.act_group_size, few.symmetric_acts, few.transform.rotation) == (64, False, "kronecker")
    assert (plain.act_group_size, plain.symmetric_acts, plain.transform.rotation) == (None, True, "hadamard_blocks")
    assert not few.symmetric_weights
    assert not plain.symmetric_weights
