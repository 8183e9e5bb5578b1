"""config.json of every family: read as transformers reads it, and written so that it can."""

import dataclasses
import json

import pytest

from clara_jax.errors import UserError
from clara_jax.interop import base
from clara_jax.interop.hf_config import FAMILIES, hf_config
from clara_jax.interop.names import tensors
from clara_jax.models.config import PRESETS, LongRope, ModelConfig

V, D, F, L, H, G = 64, 32, 48, 2, 4, 2


@pytest.fixture
def transformers():
    """Transformers with torch, and its models made on torch's meta device."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        yield transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_as_in_transformers(family, tmp_path, transformers):
    """Sizes alone: what we take for the rest is what transformers' config class has."""
    data = {"model_type": family, "vocab_size": 33000, "hidden_size": 512, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(data))
    config = base.read_config(tmp_path)
    found = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config == dataclasses.replace(
        config,
        family=found.model_type,
        n_kv_heads=found.num_key_value_heads,
        head_dim=getattr(found, "head_dim", None) or 512 // 64,
        norm_eps=found.rms_norm_eps,
        tied_embeddings=found.tie_word_embeddings,
        sliding_window=getattr(found, "sliding_window", None),
        context_length=found.max_position_embeddings,
        rope_theta=found.rope_parameters["rope_theta"],
        rope_scaling=None,
        rotary_dim=None,
    )
    assert found.hidden_act == "silu" and found.rope_parameters["rope_type"] == "default"
    model = transformers.AutoModelForCausalLM.from_config(found)
    assert FAMILIES[family].architecture == type(model).__name__
    names = {tensor.name: tensor.shape for tensor in tensors(config)}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == names


QWEN = {
    "model_type": "qwen2", "vocab_size": V, "hidden_size": D, "intermediate_size": F,
    "num_hidden_layers": 4, "num_attention_heads": H, "num_key_value_heads": G,
}  # fmt: skip
PHI = QWEN | {"model_type": "phi3", "max_position_embeddings": 96}
FULL, SLIDING = "full_attention", "sliding_attention"
OLD = {"type": "longrope", "short_factor": [1, 1, 1], "long_factor": [2, 3.5, 4]}


def read(tmp_path, data) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(data))
    return base.read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, None),
        ({"sliding_window": 7, "max_window_layers": 0}, None),
        ({"sliding_window": 7, "use_sliding_window": True}, None),  # the first 28 have none
        ({"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 0}, 7),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, None),
        ({"sliding_window": 7, "use_sliding_window": True, "layer_types": [SLIDING] * 4}, 7),
        ({"sliding_window": 7, "use_sliding_window": True, "layer_types": [FULL] * 4}, None),
        ({"attention_bias": True}, None),  # says nothing in this family
    ],
)
def test_windows_of_qwen(tmp_path, changes, window):
    assert read(tmp_path, QWEN | changes).sliding_window == window


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (QWEN | {"use_sliding_window": True, "max_window_layers": 1}, "3 of 4 layers have a slid"),
        (QWEN | {"use_sliding_window": True, "layer_types": [FULL, SLIDING] * 2}, "2 of 4 layers"),
        (QWEN | {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers=-1"),
        (QWEN | {"model_type": "qwen3", "attention_bias": True}, "attention_bias=True"),
        (QWEN | {"mlp_bias": True}, "mlp_bias=True"),
        (QWEN | {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        (PHI | {"lm_head_bias": True}, "lm_head_bias=True"),
        (PHI | {"partial_rotary_factor": 0.4}, "rotary_dim 3 is no even part of 8"),
        (PHI | {"rope_scaling": OLD}, "short_factor has 3 numbers, not 4"),
        (PHI | {"rope_scaling": OLD | {"long_factor": 3}}, "long_factor is not a list"),
        (PHI | {"rope_scaling": {"type": "longrope"}}, "'short_factor' is missing"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(tmp_path, data, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, data)
    assert "\n" not in str(error.value)


def test_layouts_of_longrope(tmp_path):
    wanted = LongRope((1.0,) * 3, (2.0, 3.5, 4.0), 32, LongRope.default_attention_factor(3, 32))
    old = PHI | {"rope_scaling": OLD, "partial_rotary_factor": 0.75}
    old |= {"original_max_position_embeddings": 32}
    config = read(tmp_path, old)
    assert (config.rope_scaling, config.rotary_dim, config.rope_theta) == (wanted, 6, 10000.0)
    new = PHI | {"original_max_position_embeddings": 32, "rope_parameters": OLD | {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}}  # fmt: skip
    assert read(tmp_path, new) == config
    assert read(tmp_path, old | {"rope_scaling": OLD | {"type": "su"}}) == config
    given = read(tmp_path, old | {"rope_scaling": OLD | {"attention_factor": 1.25}})
    assert given.rope_scaling.attention_factor == 1.25
    assert hash(config) == hash(read(tmp_path, new))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_tensors_of_transformers(preset, tmp_path, transformers):
    """Names and shapes of the published sizes, and a config that both of us read."""
    config = PRESETS[preset]
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config, "bfloat16")))
    found = base.read_config(tmp_path)
    assert found == dataclasses.replace(config, context_length=found.context_length)
    assert config.context_length in (None, found.context_length)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(theirs)
    assert str(theirs.dtype) == "torch.bfloat16"
    names = {tensor.name: tensor.shape for tensor in tensors(config)}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == names


@pytest.mark.parametrize("family", ["phi3", "llama"])
@pytest.mark.parametrize("attention_factor", [1.0, 1.25])
def test_longrope_is_written_for_any_family(tmp_path, family, attention_factor, transformers):
    config = ModelConfig(
        family=family, vocab_size=33000, d_model=D, d_ff=F, n_layers=L, n_heads=H, n_kv_heads=G,
        head_dim=8, context_length=64,
        rope_scaling=LongRope((1.0,) * 4, (1.0, 2.0, 3.0, 4.5), 64, attention_factor),
    )  # fmt: skip
    assert read(tmp_path, hf_config(config)) == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    rotary = transformers.AutoModelForCausalLM.from_config(theirs).model.rotary_emb
    assert rotary.attention_scaling == attention_factor


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(128, 96), (78, 62), (46, 26)])
def test_a_part_of_a_head_is_written_so_that_it_is_read(tmp_path, head_dim, rotary_dim):
    config = ModelConfig(
        family="phi3", vocab_size=V, d_model=D, d_ff=F, n_layers=L, n_heads=H, n_kv_heads=G,
        head_dim=head_dim, rotary_dim=rotary_dim, context_length=64,
    )  # fmt: skip
    assert read(tmp_path, hf_config(config)) == config


@pytest.mark.parametrize("change", [{"qkv_bias": True}, {"qk_norm": True}, {"rotary_dim": 4},
                                    {"family": "gpt"}])  # fmt: skip
def test_what_a_family_cannot_say_is_refused(change):
    config = ModelConfig(
        vocab_size=V, d_model=D, d_ff=F, n_layers=L, n_heads=H, n_kv_heads=G, head_dim=8
    )
    assert hf_config(dataclasses.replace(config, sliding_window=5))["model_type"] == "mistral"
    with pytest.raises(UserError, match=f"{next(iter(change))}|family 'gpt'"):
        hf_config(dataclasses.replace(config, **change))


def test_rotary_settings_by_layer_type(tmp_path):
    def read(rope, types):
        data = {
            "model_type": "qwen3", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "rope_parameters": rope, "layer_types": types,
        }  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(data))
        return base.read_config(tmp_path)

    full = {"rope_type": "default", "rope_theta": 7e5}
    rope = {"full_attention": full, "sliding_attention": full | {"rope_theta": 1e4}}
    assert read(rope, ["full_attention"] * 2).rope_theta == 7e5
    with pytest.raises(UserError, match="differ between layers"):
        read(rope, ["full_attention", "sliding_attention"])


@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "intermediate_size"])
def test_sizes_beyond_any_model(tmp_path, key):
    data = {
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(data | {key: 10**9}))
    with pytest.raises(UserError, match="1000000000 is not from 1 to"):
        base.read_config(tmp_path)
