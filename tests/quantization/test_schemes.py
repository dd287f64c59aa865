"""Which linears share what is done to their input."""

from tiny import make_transformer
from torch import nn

from s2q.models.families import COGVIDEOX
from s2q.quantization.schemes import groups_for, scheme_for
from s2q.recipes import get_recipe, override


def test_keys_of_fewer_heads_do_not_share_a_rotation_that_is_not_theirs() -> None:
    block = make_transformer().transformer_blocks[0]
    width = block.attn1.to_k.in_features
    block.attn1.to_k = nn.Linear(width, width // 2)
    chosen = get_recipe("s2q_plus", "W4A6")
    plain = override(chosen, ["linear.transform.down_rotation=null"])
    together = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
    assert together in groups_for(plain, COGVIDEOX, block)
    groups = groups_for(chosen, COGVIDEOX, block)
    assert {("attn1.to_q", "attn1.to_v"), ("attn1.to_k",)} <= set(groups)
    for group in groups:
        shapes = {name: block.get_submodule(name).weight.shape for name in group}
        assert (
            len({scheme_for(chosen, COGVIDEOX, name, shape).transform.rotation for name, shape in shapes.items()}) == 1
        )
