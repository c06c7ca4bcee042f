from __future__ import annotations

from sensmerge.models.layers import block_of, blocks, layer_of


def test_a_block_is_the_name_up_to_its_first_number() -> None:
    assert block_of("model.layers.10.mlp.experts.3.w1.weight") == "model.layers.10"
    assert block_of("transformer.h.0.attn.c_attn.bias") == "transformer.h.0"
    assert block_of("model.norm.weight") is None
    assert block_of("weight.0") is None


def test_layers_outside_blocks_are_modules() -> None:
    assert layer_of("model.layers.1.norm.weight") == "model.layers.1"
    assert layer_of("model.embed_tokens.weight") == "model.embed_tokens"
    assert layer_of("lm_head.weight") == "lm_head"
    assert layer_of("bare") == "bare"


def test_blocks_are_in_the_order_of_their_numbers() -> None:
    names = ["m.layers.10.w", "m.layers.2.w", "m.layers.2.v", "m.norm.w", "m.layers.0.w"]
    assert blocks(names) == ["m.layers.0", "m.layers.2", "m.layers.10"]
