"""Every family against transformers: logits, decoding, and checkpoints there and back."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clara_jax import sharding
from clara_jax.config import Mesh
from clara_jax.errors import UserError
from clara_jax.interop import base, hf_write, names
from clara_jax.interop.hf_config import hf_config
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import EMPTY, Cache, Decoder, abstract_params, embed, head_logits
from clara_jax.models.lora import init_adapter
from clara_jax.models.quantize import dequantize

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, D, F, L, H, G = 64, 32, 48, 2, 4, 2
EDGE = 24  # length at which the model with LongRope takes other frequencies
SIZES = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": L,
    "num_attention_heads": H, "num_key_value_heads": G, "tie_word_embeddings": False,
    "max_position_embeddings": 256, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 4.0, 7.0],
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "llama3_tied": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral_window": ("Mistral", {"sliding_window": 9, "head_dim": 16}),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-3}),
    "qwen2_tied_window": ("Qwen2", WINDOW | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rms_norm_eps": 1e-3}),
    "qwen3_tied_window": ("Qwen3", WINDOW | {"head_dim": 8, "tie_word_embeddings": True}),
    "phi3_window": ("Phi3", {"num_key_value_heads": H, "sliding_window": 9}),
    "phi4": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": EDGE,
                      "tie_word_embeddings": True}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Theirs:
    name: str
    directory: str
    model: object

    def logits(self, tokens) -> np.ndarray:
        with torch.no_grad():
            return self.model(input_ids=torch.tensor(np.asarray(tokens))).logits.numpy()


def make(name: str, directory) -> Theirs:
    family, settings = MODELS[name]
    config = getattr(transformers, f"{family}Config")(
        **SIZES | settings, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():  # large enough that a mistake shows
            p.normal_(1.0 if "norm" in parameter_name else 0.0, 0.2)
    model.save_pretrained(directory)
    return Theirs(name, directory, model)


@pytest.fixture(scope="module")
def theirs_of(tmp_path_factory):
    return functools.cache(lambda name: make(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=MODELS)
def theirs(request, theirs_of):
    return theirs_of(request.param)


def by_lengths(first, *others):
    """Parametrises with all families and lengths; others than the first count with LongRope."""
    cases = [(name, first) for name in MODELS] + [("phi4", length) for length in others]
    slow = [(name, length) for name in MODELS if name != "phi4" for length in others]
    return pytest.mark.parametrize(
        ("theirs", "length"),
        [*cases, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)],
        indirect=["theirs"],
    )


def load(theirs: Theirs, **changes):
    config = dataclasses.replace(base.read_config(theirs.directory), **changes)
    return config, base.load_params(theirs.directory, config)


@functools.partial(jax.jit, static_argnames=("config", "lora"))
def run(config, params, tokens, positions, segments=None, cache=None, adapter=None, lora=None):
    variables = {"params": params} | ({} if adapter is None else {"lora": adapter})
    decoder = Decoder(config, lora or LoraConfig())
    x = embed(config, params, tokens)
    hidden, cache = decoder.apply(variables, x, positions, segments, cache)
    return head_logits(config, params, hidden), cache


def ours(config, params, tokens, **how) -> jax.Array:
    tokens = jnp.asarray(tokens)
    positions = jnp.tile(jnp.arange(tokens.shape[1])[None], (len(tokens), 1))
    return run(config, params, tokens, positions, **how)[0]


def text(length: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (1, length))


def close(a, b, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


# --- What is computed -----------------------------------------------------------------------------


@by_lengths(50, EDGE - 4, EDGE, EDGE + 1)
def test_logits_equal_those_of_transformers(theirs, length):
    config, params = load(theirs)
    expected = theirs.logits(text(length))
    assert expected.std() > 0.5
    close(ours(config, params, text(length)), expected)


def test_rows_of_unequal_length_do_not_touch_each_other(theirs):
    """Padding of either kind; with LongRope one row takes the long factors, the other does not."""
    config, params = load(theirs)
    T, rows = 50, [text(50, 2)[0], text(13, 3)[0]]
    tokens, segments, positions = (np.zeros((2, T), np.int32) for _ in range(3))
    for i, row in enumerate(rows):
        tokens[i, : len(row)], segments[i, : len(row)] = row, 1
        positions[i, : len(row)] = np.arange(len(row))
    alone = [theirs.logits(row[None])[0] for row in rows]
    for places, how in (
        (positions, {"segments": segments}),
        (np.where(segments == 1, positions, EMPTY), {"cache": Cache.create(config, 2, T)}),
    ):
        logits, _ = run(config, params, tokens, jnp.asarray(places), **how)
        close(logits[0], alone[0])
        close(logits[1, : len(rows[1])], alone[1])


@by_lengths((8, EDGE), (EDGE + 6, 44))
def test_decoding_equals_the_whole_row(theirs, length):
    config, params = load(theirs)
    prompt, length = length
    tokens = text(length)
    logits, cache = run(
        config, params, tokens[:, :prompt], jnp.arange(prompt)[None],
        cache=Cache.create(config, 1, prompt),
    )  # fmt: skip
    cache, found = cache.grow(length - prompt), [logits]
    for t in range(prompt, length):
        one, cache = run(config, params, tokens[:, t : t + 1], jnp.array([[t]]), cache=cache)
        found.append(one)
    close(np.concatenate(found, 1), theirs.logits(tokens))


LOST = {
    "llama3_tied": {"rope_scaling": None},
    "mistral_window": {"sliding_window": 8},
    "qwen2": {"norm_eps": 1e-6},
    "qwen2_tied_window": {"sliding_window": None},
    "qwen3": {"norm_eps": 1e-6},
    "qwen3_tied_window": {"sliding_window": 10},
    "phi3_window": {"sliding_window": None},
    "phi4": {"rotary_dim": 4, "rope_scaling": None},
}


def test_parity_would_notice_a_lost_setting(theirs):
    config, params = load(theirs)
    config = dataclasses.replace(config, **LOST[theirs.name])
    assert np.abs(ours(config, params, text(50)) - theirs.logits(text(50))).max() > 1e-3


@pytest.mark.parametrize("changes", [
    {"attention_factor": 1.0}, {"original_length": 50}, {"short_factor": (1.0, 1.1, 1.3)},
    {"long_factor": (1.0, 1.1, 1.3)},
])  # fmt: skip
def test_every_setting_of_longrope_counts(theirs_of, changes):
    theirs = theirs_of("phi4")
    config, params = load(theirs)
    wrong = dataclasses.replace(config, rope_scaling=dataclasses.replace(
        config.rope_scaling, **changes))  # fmt: skip
    difference = np.abs(ours(wrong, params, text(50)) - theirs.logits(text(50))).max()
    assert (difference > 1e-3) == ("short_factor" not in changes)
    assert config.rope_scaling.attention_factor == pytest.approx(
        np.sqrt(1 + np.log(256 / EDGE) / np.log(EDGE))
    )


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "phi4"])
def test_sharded_equals_one_device(theirs_of, name, tmp_path):
    config, params = load(theirs_of(name))
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=4, tensor=2))

    def lies(path, shape):
        return sharding.array_sharding(mesh, f"base/{path}", shape)

    parts = base.load_params(theirs_of(name).directory, config, lies)
    jax.tree.map(np.testing.assert_array_equal, params, parts)
    tokens = np.concatenate([text(40, seed) for seed in range(8)])
    batch = sharding.put_batch(mesh, {"tokens": tokens})
    close(ours(config, parts, batch["tokens"]), ours(config, params, tokens), 2e-5)
    if name == "qwen2":
        bias = parts["layers"]["attention"]["q"]["bias"]
        assert {s.data.shape for s in bias.addressable_shards} == {(L, D // 2)}
    hf_write.save_params(tmp_path, parts, config)
    assert_same(tensors_in(tmp_path), tensors_in(theirs_of(name).directory))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "phi4"])
def test_splash_equals_xla(theirs_of, name):
    config, params = load(theirs_of(name))
    segments = jnp.asarray(np.repeat([[1, 2]], [30, 10], axis=1))
    kernel = dataclasses.replace(config, attention="splash")
    expected = ours(config, params, text(40), segments=segments)
    close(ours(kernel, params, text(40), segments=segments), expected, 1e-4)


# --- Checkpoints ----------------------------------------------------------------------------------


def tensors_in(directory) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= safetensors.numpy.load_file(file)
    return found


def assert_same(actual, expected) -> None:
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [10**9, 6000])
def test_there_and_back_is_the_same_bit_for_bit(theirs, tmp_path, dtype, shard_bytes):
    config, params = load(theirs, param_dtype=dtype)
    hf_write.save_params(tmp_path, params, config, dtype=dtype, shard_bytes=shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (
        (len(files) > 3)
        == (tmp_path / "model.safetensors.index.json").exists()
        == (shard_bytes == 6000)
    )
    kind = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[dtype]
    stored = tensors_in(theirs.directory)
    assert_same(tensors_in(tmp_path), {name: array.astype(kind) for name, array in stored.items()})
    largest = max(array.nbytes for array in stored.values())
    for file in files:
        size = sum(array.nbytes for array in safetensors.numpy.load_file(file).values())
        assert size <= max(shard_bytes, largest)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config, dtype)))
    assert base.read_config(tmp_path) == base.read_config(theirs.directory)
    again = base.load_params(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_transformers_reads_what_is_written(theirs, tmp_path):
    """A model of ours with an adapter folded in, whose numbers transformers has never seen."""
    config, params = load(theirs)
    keys = iter(jax.random.split(jax.random.key(3), 100))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    lora = LoraConfig(rank=3, alpha=5.0, dropout=0.0, targets=("q", "v", "gate", "up", "o"))
    adapter = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape),
        init_adapter(config, lora, jax.random.key(4)),
    )
    hf_write.save_params(tmp_path, params, config, adapter=adapter, lora=lora, shard_bytes=20000)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config)))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert type(model) is type(theirs.model) and model.dtype == torch.float32
    for length in (EDGE - 4, 50):
        expected = ours(config, params, text(length), adapter=adapter, lora=lora)
        close(Theirs("", "", model.eval()).logits(text(length)), expected)
    assert np.abs(expected - ours(config, params, text(length))).max() > 0.1


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "phi3_window"])
def test_int8_runs_and_is_written_expanded(theirs_of, name, tmp_path):
    config, whole = load(theirs_of(name))
    int8, params = load(theirs_of(name), param_dtype="int8")
    q = params["layers"]["attention"]["q"]
    assert q["kernel"].dtype == jnp.int8 and q["scale"].dtype == jnp.float32
    if name == "qwen2":
        assert q["bias"].dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract_params(int8))
    expected = ours(config, whole, text(30))
    difference = np.abs(ours(int8, params, text(30)) - expected)
    assert 0 < difference.mean() < 0.05 * expected.std()
    hf_write.save_params(tmp_path, params, int8)
    found = tensors_in(tmp_path)
    row = next(row for row in names.TABLE if row.path == "layers/attention/k/kernel")
    part = names.part(row, int8, "hf")
    kernel = dequantize(params["layers"]["attention"]["k"])[1]
    tensor = found[part.pattern.format(layer=1)]
    np.testing.assert_array_equal(tensor[part.start : part.stop], kernel.T)


def test_a_directory_with_a_model_is_not_written_over(theirs_of, tmp_path):
    config, params = load(theirs_of("qwen2"))
    hf_write.save_params(tmp_path, params, config)
    with pytest.raises(UserError, match=r"holds model\.safetensors already"):
        hf_write.save_params(tmp_path, params, config, shard_bytes=6000)
    with pytest.raises(UserError, match="local directory"):
        hf_write.save_params("gs://bucket/model", params, config)


def test_parts_of_fused_projections():
    config = ModelConfig(
        family="phi3", vocab_size=V, d_model=D, d_ff=F, n_layers=L, n_heads=H, n_kv_heads=G,
        head_dim=8,
    )  # fmt: skip
    found = {row.path.split("/")[-2]: names.part(row, config, "hf") for row in names.TABLE
             if row.path.endswith("kernel") and "layers" in row.path}  # fmt: skip
    bounds = {name: (part.start, part.stop, part.shape[0]) for name, part in found.items()}
    assert bounds == {
        "q": (0, 32, 64), "k": (32, 48, 64), "v": (48, 64, 64), "o": (0, 32, 32),
        "gate": (0, 48, 96), "up": (48, 96, 96), "down": (0, 32, 32),
    }  # fmt: skip
    assert found["k"].names(2)[1] == "model.layers.1.self_attn.qkv_proj.weight"
    assert found["up"].pattern == "model.layers.{layer}.mlp.gate_up_proj.weight"
