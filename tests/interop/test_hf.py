import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clara_jax.errors import UserError
from clara_jax.interop import base, hf
from clara_jax.models.config import ModelConfig, RopeScaling
from clara_jax.models.decoder import Decoder, embed, head_logits

V, D, F, L, H, G, C = 64, 32, 48, 2, 4, 2, 16  # H * C is not D

CONFIG = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "num_key_value_heads": G,
    "head_dim": C,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}


def random_tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    shapes["lm_head.weight"] = (V, D)
    for i in range(L):
        layer = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (H * C, D),
            "self_attn.k_proj": (G * C, D),
            "self_attn.v_proj": (G * C, D),
            "self_attn.o_proj": (D, H * C),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write(directory, tensors, config=CONFIG, shards=1):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        safetensors.numpy.save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {}
    for i in range(shards):
        part = dict(list(tensors.items())[i::shards])
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        safetensors.numpy.save_file(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def read(directory, **changes):
    config = dataclasses.replace(base.read_config(directory), **changes)
    return base.load_params(directory, config)


def assert_holds(params, tensors):
    """Every tensor arrived where it belongs, bit for bit."""

    def layers(name):
        return np.stack([tensors[f"model.layers.{i}.{name}.weight"] for i in range(L)])

    def linear(name):
        return layers(name).swapaxes(1, 2)

    expected = {
        "embed": {"embedding": tensors["model.embed_tokens.weight"]},
        "layers": {
            "attention_norm": {"scale": layers("input_layernorm")},
            "attention": {n: {"kernel": linear(f"self_attn.{n}_proj")} for n in "qkvo"},
            "mlp_norm": {"scale": layers("post_attention_layernorm")},
            "mlp": {n: {"kernel": linear(f"mlp.{n}_proj")} for n in ("gate", "up", "down")},
        },
        "norm": {"scale": tensors["model.norm.weight"]},
        "head": {"kernel": tensors["lm_head.weight"].T},
    }
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_arrives_in_its_place(tmp_path, shards):
    tensors = random_tensors()
    assert_holds(read(write(tmp_path, tensors, shards=shards)), tensors)


def test_blocks_of_rows_join(tmp_path, monkeypatch):
    monkeypatch.setattr("clara_jax.interop.weights._BLOCK", 7 * D)
    tensors = random_tensors()
    assert_holds(read(write(tmp_path, tensors)), tensors)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files_read_into_either_dtype(tmp_path, stored):
    tensors = random_tensors(stored)
    directory = write(tmp_path, tensors)
    params = read(directory)
    assert params["norm"]["scale"].dtype == jnp.float32
    assert_holds(params, {k: v.astype(np.float32) for k, v in tensors.items()})
    params = read(directory, param_dtype="bfloat16")
    assert params["norm"]["scale"].dtype == jnp.bfloat16
    assert_holds(params, {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()})


def test_sharded_equals_unsharded_and_reads_only_its_part(tmp_path, monkeypatch):
    directory = write(tmp_path, random_tensors())
    config = base.read_config(directory)
    read_elements = []
    original = hf.Safetensors.read

    def counting(self, name, index):
        values = original(self, name, index)
        read_elements.append(values.size)
        return values

    monkeypatch.setattr(hf.Safetensors, "read", counting)
    whole = base.load_params(directory, config)
    once, read_elements[:] = sum(read_elements), []
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    seen = {}

    def sharding_of(path, shape):
        seen[path] = shape
        spec = {
            "embed/embedding": PartitionSpec(("a", "b"), None),
            "head/kernel": PartitionSpec("a", "b"),
            "norm/scale": PartitionSpec(("a", "b")),
        }
        names = PartitionSpec("a", "b") if path.endswith("scale") else PartitionSpec(None, "a", "b")
        return NamedSharding(mesh, spec.get(path, names))

    parts = base.load_params(directory, config, sharding_of)
    assert sum(read_elements) == once
    assert parts["layers"]["mlp"]["down"]["kernel"].addressable_shards[0].data.shape == (
        L,
        F // 2,
        8,
    )
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert seen["layers/attention/q/kernel"] == (L, D, H * C)
    assert len(seen) == 12


@pytest.mark.parametrize("carries_head", [True, False])
def test_tied_checkpoint_may_carry_its_head(tmp_path, carries_head):
    tensors = random_tensors()
    del tensors["lm_head.weight"]
    if carries_head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    params = read(write(tmp_path, tensors, CONFIG | {"tie_word_embeddings": True}))
    assert "head" not in params


def test_rotary_buffers_are_ignored(tmp_path):
    tensors = random_tensors()
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(C // 2, np.float32)}
    assert_holds(read(write(tmp_path, tensors | buffers)), tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "1.mlp.up_proj.weight is missing"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(H * C)}),
            "unknown tensor model.layers.0.self_attn.q_proj.bias",
        ),
        (
            lambda t: t.update({"model.layers.2.input_layernorm.weight": np.ones(D)}),
            "unknown tensor model.layers.2.input_layernorm.weight",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(D + 1)}),
            r"tensor model.norm.weight has shape \[33\].*\[32\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(D, np.int32)}),
            "tensor model.norm.weight has dtype I32",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    tensors = random_tensors()
    change(tensors)
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, tensors))


def test_broken_files_are_named(tmp_path):
    directory = write(tmp_path, random_tensors(), shards=2)
    first, second = sorted(directory.glob("*.safetensors"))
    second.write_bytes(second.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{second.name}: not a readable safetensors"):
        read(directory)
    second.unlink()
    with pytest.raises(UserError, match=f"{second.name}: no such file"):
        read(directory)
    first.unlink()
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        read(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        read(directory)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        read(directory)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"rope_theta": 500000.0, "rope_scaling": None, "head_dim": C}),
        ({"head_dim": None}, {"head_dim": D // H}),
        ({"head_dim": ...}, {"head_dim": D // H}),
        ({"num_key_value_heads": ...}, {"n_kv_heads": H}),
        ({"rope_theta": ...}, {"rope_theta": 10000.0}),
        ({"sliding_window": None}, {"sliding_window": None}),
        ({"model_type": "mistral", "sliding_window": 7}, {"sliding_window": 7}),
        ({"model_type": "mistral", "sliding_window": None}, {"sliding_window": None}),
        ({"model_type": "mistral"}, {"sliding_window": 4096}),
        ({"tie_word_embeddings": True}, {"tied_embeddings": True}),
        (
            {"rope_scaling": LLAMA3},
            {"rope_theta": 500000.0, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192)},
        ),
        (
            {"rope_theta": ..., "rope_parameters": LLAMA3 | {"rope_theta": 1e6}},
            {"rope_theta": 1e6, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192)},
        ),
        (
            {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            {"rope_theta": 1e6, "rope_scaling": None},
        ),
    ],
)
def test_config_layouts(tmp_path, changes, expected):
    data = {k: v for k, v in (CONFIG | changes).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(data))
    config = base.read_config(tmp_path)
    assert {key: getattr(config, key) for key in expected} == expected
    assert (config.vocab_size, config.d_model, config.d_ff, config.n_layers) == (V, D, F, L)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported: llama, mistral"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            "rope type 'linear'.*default, llama3, longrope",
        ),
        ({"rope_scaling": {"rope_type": "llama3"}}, "'factor' is missing"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": ...}, "'hidden_size' is missing"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"num_attention_heads": "many"}, "config.json: "),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads=0"),
        ({"num_hidden_layers": -1}, "config.json: num_hidden_layers=-1"),
        ({"hidden_size": 1.5}, "config.json: hidden_size=1.5"),
        ({"sliding_window": "a"}, "config.json: sliding_window='a'"),
        ({"model_type": ["llama"]}, r"config.json: model_type \['llama'\]"),
        ({"rms_norm_eps": None}, "config.json: rms_norm_eps=None"),
        ({"rope_theta": 0}, "config.json: rope_theta=0"),
        ({"rope_scaling": "x"}, "config.json: .*rope_scaling is 'x'"),
        ({"rope_scaling": LLAMA3 | {"factor": "a"}}, "config.json: factor='a'"),
    ],
)
def test_unsupported_configs_are_refused(tmp_path, changes, message):
    data = {k: v for k, v in (CONFIG | changes).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as error:
        base.read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_hub_id_is_resolved_without_weights_of_other_formats(tmp_path, monkeypatch):
    directory = write(tmp_path / "cache", random_tensors())
    asked = {}

    def snapshot_download(repo_id, **kwargs):
        asked.update(kwargs, repo_id=repo_id)
        return str(directory)

    monkeypatch.setattr(hf.huggingface_hub, "snapshot_download", snapshot_download)
    assert base.resolve("some-org/Some.Model-7B") == base.Base("hf", directory)
    assert asked["repo_id"] == "some-org/Some.Model-7B"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_failing_download_is_one_line(monkeypatch):
    def snapshot_download(repo_id, **kwargs):
        raise OSError("404 Client Error.\n\nRepository Not Found")

    monkeypatch.setattr(hf.huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="cannot download org/model from") as error:
        base.read_config("org/model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no-such-directory", "a/b/c", "models/m.gguf", "../x", ""])
def test_what_is_no_base_is_refused_without_a_download(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf, "download", lambda hub_id: pytest.fail(f"downloads {hub_id}"))
    with pytest.raises(UserError, match="neither a model directory"):
        base.resolve(name or "missing")


# --- Parity with transformers -------------------------------------------------------------------

# Lengths of pretraining so short that every branch of the scaling is in use within the text.
SHORT_LLAMA3 = LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 64}

MODELS = {
    "llama": ("llama", {"tie_word_embeddings": False}, {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}, {}),
    "llama3": ("llama", {"tie_word_embeddings": False}, SHORT_LLAMA3),
    "llama3_tied": ("llama", {"tie_word_embeddings": True}, SHORT_LLAMA3),
    "mistral": ("mistral", {"tie_word_embeddings": False, "sliding_window": None}, {}),
    "mistral_window": ("mistral", {"tie_word_embeddings": False, "sliding_window": 9}, {}),
    "mistral_window_tied": ("mistral", {"tie_word_embeddings": True, "sliding_window": 9}, {}),
}


@pytest.fixture(scope="module", params=MODELS)
def parity(request, tmp_path_factory):
    """(name, directory of a random model, function tokens -> logits of transformers)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family, settings, rope = MODELS[request.param]
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }[family]
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    keys += ("num_attention_heads", "num_key_value_heads", "head_dim")
    rope = {"rope_type": "default", "rope_theta": 10000.0} | rope
    config = config_class(
        **{key: CONFIG[key] for key in keys},
        **settings,
        rope_parameters=rope,
        max_position_embeddings=512,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # large enough that a mistake shows
            p.normal_(1.0 if "norm" in name else 0.0, 0.2)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)

    def logits(tokens, mask=None):
        with torch.no_grad():
            mask = mask if mask is None else torch.tensor(mask)
            return model(input_ids=torch.tensor(tokens), attention_mask=mask).logits.numpy()

    return request.param, directory, logits


@functools.partial(jax.jit, static_argnums=0)
def our_logits(config: ModelConfig, params, tokens, positions, segments=None):
    x = embed(config, params, tokens)
    hidden, _ = Decoder(config).apply({"params": params}, x, positions, segments)
    return head_logits(config, params, hidden)


def texts() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, V, n) for n in (100, 37, 1)]


def test_logits_equal_those_of_transformers(parity):
    _, directory, theirs = parity
    config = base.read_config(directory)
    params = base.load_params(directory, config)
    text = texts()[0]
    expected = theirs(text[None])
    assert expected.std() > 0.5
    ours = our_logits(config, params, text[None], np.arange(len(text))[None])
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_padded_logits_equal_those_of_transformers(parity):
    _, directory, theirs = parity
    config = base.read_config(directory)
    params = base.load_params(directory, config)
    T, rows = 112, [(text, left) for left in (True, False) for text in texts()]
    tokens, segments, positions = (np.zeros((len(rows), T), np.int32) for _ in range(3))
    for row, (text, left) in enumerate(rows):
        where = slice(T - len(text), T) if left else slice(0, len(text))
        tokens[row, where] = text
        segments[row, where] = 1
        positions[row, where] = np.arange(len(text))
    ours = our_logits(config, params, tokens, positions, segments)
    real = segments == 1
    padded = theirs(tokens, segments)
    np.testing.assert_allclose(ours[real], padded[real], atol=1e-4, rtol=0)
    alone = np.concatenate([theirs(text[None])[0] for text, _ in rows])
    np.testing.assert_allclose(ours[real], alone, atol=1e-4, rtol=0)


def test_packed_logits_equal_those_of_transformers(parity):
    _, directory, theirs = parity
    config = base.read_config(directory)
    params = base.load_params(directory, config)
    tokens = np.concatenate([*texts(), np.zeros(6, int)])[None]
    positions = np.concatenate([*(np.arange(len(t)) for t in texts()), np.zeros(6)])[None]
    segments = np.repeat([1, 2, 3, 0], [100, 37, 1, 6])[None]
    ours = our_logits(config, params, tokens, positions.astype(np.int32), segments)
    alone = np.concatenate([theirs(text[None])[0] for text in texts()])
    np.testing.assert_allclose(ours[0, :-6], alone, atol=1e-4, rtol=0)


def test_parity_would_notice_a_lost_setting(parity):
    name, directory, theirs = parity
    config = base.read_config(directory)
    params = base.load_params(directory, config)
    lost = {
        "llama3": {"rope_scaling": None},
        "llama3_tied": {"rope_scaling": None},
        "mistral_window": {"sliding_window": None},
        "mistral_window_tied": {"sliding_window": 8},
    }.get(name, {"rope_theta": 20000.0})
    config = dataclasses.replace(config, **lost)
    text = texts()[0]
    ours = our_logits(config, params, text[None], np.arange(len(text))[None])
    assert np.abs(ours - theirs(text[None])).max() > 1e-2


def test_both_config_layouts_of_transformers_read_alike(parity, tmp_path):
    _, directory, _ = parity
    data = json.loads((directory / "config.json").read_text())
    rope = data.pop("rope_parameters")
    data["rope_theta"] = rope.pop("rope_theta")
    data["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert base.read_config(tmp_path) == base.read_config(directory)


def test_a_tied_head_of_its_own_is_refused(tmp_path):
    tensors, tied = random_tensors(), CONFIG | {"tie_word_embeddings": True}
    with pytest.raises(UserError, match=r"lm_head.weight differs .* tie_word_embeddings to false"):
        read(write(tmp_path / "other", tensors, tied))


def test_one_file_is_read_rather_than_shards_beside_it(tmp_path, caplog):
    new = random_tensors()
    directory = write(tmp_path, {name: x + 1 for name, x in new.items()}, shards=2)
    write(directory, new)
    assert_holds(read(directory), new)
    assert "is read, not the files of" in caplog.text


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_no_number_is_refused(tmp_path, wrong, dtype):
    tensors = random_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = wrong
    with pytest.raises(UserError, match=r"layers/mlp/up/.* holds NaN or infinite"):
        read(write(tmp_path, tensors), param_dtype=dtype)
