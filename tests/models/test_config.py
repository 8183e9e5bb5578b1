"""Architectures: parameter counts of the published models, and what is refused."""

import dataclasses
import math

import jax
import pytest

from clara_jax.models.config import (
    LINEAR_NAMES,
    PRESETS,
    ExtraTokens,
    LongRope,
    LoraConfig,
    ModelConfig,
)
from clara_jax.models.decoder import abstract_params
from clara_jax.models.lora import init_adapter


def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2_135m", 134_515_008),
        ("smollm2_360m", 361_821_120),
        ("smollm2_1_7b", 1_711_376_384),
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_1_8b", 8_030_261_248),
        ("mistral_7b", 7_241_732_096),
        ("qwen2_5_0_5b", 494_032_768),
        ("qwen2_5_7b", 7_615_616_512),
        ("qwen3_0_6b", 596_049_920),
        ("qwen3_4b", 4_022_468_096),
        ("qwen3_8b", 8_190_735_360),
        ("phi3_mini", 3_821_079_552),
        ("phi4_mini", 3_836_021_760),
    ],
)
def test_presets_have_the_published_sizes(name, parameters):
    assert count(abstract_params(PRESETS[name])) == parameters


def test_adapter_sizes():
    """Rank 16 on all linear layers of Mistral 7B: 41.9M, as PEFT reports it."""
    config = PRESETS["mistral_7b"]

    def init(lora):
        return jax.eval_shape(lambda: init_adapter(config, lora, jax.random.key(0)))

    assert count(init(LoraConfig())) == 41_943_040
    assert count(init(LoraConfig(rank=8, targets=("q", "v")))) == 3_407_872


def test_every_preset_is_valid_in_bfloat16():
    for config in PRESETS.values():
        params = abstract_params(dataclasses.replace(config, param_dtype="bfloat16"))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
        assert ("head" in params) != config.tied_embeddings


SHAPE = {
    "vocab_size": 8, "d_model": 8, "d_ff": 8, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2,
    "head_dim": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 3}, "not a multiple of n_kv_heads 3"),
        ({"head_dim": 3}, "head_dim 3 is odd"),
        ({"rotary_dim": 4}, "rotary_dim 4 is no even part of 2"),
        ({"rotary_dim": 1}, "rotary_dim 1 is no even part of 2"),
        ({"rope_scaling": LongRope((1.0,), (1.0, 2.0), 8, 1.0)}, "long_factor has 2 numbers"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SHAPE | changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("q", "head")}, r"unknown LoRA targets \['head'\]"),
        ({"rank": 0}, "rank 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": -0.1}, "dropout -0.1"),
    ],
)
def test_impossible_adapters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)


def test_lora_scale_and_targets():
    assert LoraConfig().scale == 2.0 and LoraConfig(rank=8, alpha=4.0).scale == 0.5
    assert LoraConfig().targets == LINEAR_NAMES


def test_extra_tokens_follow_the_release():
    extra = ExtraTokens(vocab_size=8192, memory_tokens=4)
    assert extra.memory == (8192, 8193, 8194, 8195)
    assert (extra.enc, extra.sep) == (8197, 8198)
