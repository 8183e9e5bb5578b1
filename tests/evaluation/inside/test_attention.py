import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.errors import UserError
from clara_jax.evaluation.inside import attention, data
from clara_jax.models import clara
from clara_jax.models.attention import attend
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import Decoder, init_params
from clara_jax.models.layers import rotary_tables, rotate
from clara_jax.models.lora import init_adapter
from clara_jax.plotting import pyplot

SMALL = ModelConfig(
    vocab_size=50, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8
)
LORA = LoraConfig(rank=2, alpha=4.0)
M = 3


@functools.partial(jax.jit, static_argnums=0)
def draw(config, key):
    keys = jax.random.split(key, 4)
    base = init_params(config, keys[0])
    noise = iter(jax.random.split(keys[1], 1000))
    adapter = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape),
        init_adapter(config, LORA, keys[2]),
    )
    memory, added = clara.init_memory(base, M, keys[3], "tokens")
    return {"base": base, "compressor": adapter, "memory": memory, "added": added}


def model(config):
    return Decoder(config, LORA), draw(config, jax.random.key(0))


def rows():
    tokens, segments = np.zeros((2, 2, 12), np.int32)
    for row, length in enumerate((12, 9)):
        text = np.arange(5, 5 + length - M)
        tokens[row, :length] = [*text, *range(SMALL.vocab_size, SMALL.vocab_size + M)]
        segments[row, :length] = 1
    positions = np.arange(12, dtype=np.int32) * segments
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(segments)


PLACES = jnp.asarray([[12 - M + m for m in range(M)], [9 - M + m for m in range(M)]])


@pytest.mark.parametrize(
    ("options", "spread"),
    [
        ({}, False),
        pytest.param({"qk_norm": True, "qkv_bias": True}, False, marks=pytest.mark.slow),
        ({"sliding_window": 4}, False),
        ({"remat": "full"}, True),
    ],
)
def test_the_layers_come_to_the_hidden_states_of_the_decoder(options, spread):
    decoder, trees = model(dataclasses.replace(SMALL, **options))
    layout = clara.MemoryLayout(M, spread=spread)
    encode = jax.jit(functools.partial(clara.encode, decoder, layout=layout))
    expected = encode(trees, *rows())
    seen_BMT, hidden = attention.weights(decoder, trees, *rows(), PLACES, layout)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen_BMT.sum(-1), 1, rtol=1e-5)
    assert (seen_BMT[1, :, 9:] == 0).all()  # padding
    for m in range(M):  # later memory tokens
        assert (seen_BMT[0, m, 12 - M + m + 1 :] == 0).all()
    if "sliding_window" in options:
        assert (seen_BMT[0, 0, :6] == 0).all() and (seen_BMT[0, 0, 6:10] > 0).all()


def test_weights_are_those_that_attention_mixes_values_with():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, n, 8)) for i, n in enumerate((4, 2, 2)))
    positions = jnp.tile(jnp.arange(5)[None], (2, 1))
    cos, sin = rotary_tables(SMALL, positions)
    mask = (jnp.arange(5)[:, None] >= jnp.arange(5)[None])[None]
    expected = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, mask)
    flat = (q.reshape(2, 5, -1), k.reshape(2, 5, -1))
    seen = attention.layer_weights(SMALL, *flat, (cos, sin), mask)
    mixed = jnp.einsum("bhts,bshc->bthc", seen, jnp.repeat(v, 2, axis=2)).reshape(2, 5, -1)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)


def test_one_layer_by_hand():
    config = dataclasses.replace(SMALL, n_layers=1)
    decoder, trees = model(config)
    tokens, positions, segments = (x[:1] for x in rows())
    x = np.asarray(clara.embed(config, trees, tokens))[0]
    layer, low = (t["layers"]["attention"] for t in (trees["base"], trees["compressor"]))
    norm = np.asarray(trees["base"]["layers"]["attention_norm"]["scale"])[0]
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * norm

    def linear(name):
        a, b = (np.asarray(low[name][leaf])[0] for leaf in "ab")
        return y @ np.asarray(layer[name]["kernel"])[0] + decoder.lora.scale * (y @ a.T) @ b

    cos, sin = rotary_tables(config, positions)
    q, k = (
        np.asarray(rotate(jnp.asarray(linear(n)).reshape(1, 12, -1, 8), cos, sin))[0] for n in "qk"
    )
    expected = np.zeros((M, 12))
    for m in range(M):
        t = 12 - M + m
        for h in range(4):
            scores = np.exp(k[: t + 1, h // 2] @ q[t, h] / np.sqrt(8))
            expected[m, : t + 1] += scores / scores.sum() / 4
    seen, _ = attention.weights(
        decoder, trees, tokens, positions, segments, PLACES[:1], clara.MemoryLayout(M)
    )
    np.testing.assert_allclose(seen[0], expected, rtol=1e-4, atol=1e-6)


def test_shares_and_labels(random_model):
    given = data.read(random_model.model, "facts:3:1", 3)
    found = attention.measure(*random_model, given)
    total = sum(np.array(found["share"][name]) for name in found["share"])
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert (np.array(found["share"]["ENC, bos, eos"]) > 0).all()
    labels = found["average"]["labels"]
    assert labels[:3] == ["this", "is", "□"] and len(labels) == 25
    assert found["example"]["labels"] == given.documents[0].split()
    own = np.array(found["average"]["weights"]).sum(1)
    np.testing.assert_allclose(own, found["share"]["document"], rtol=1e-5)
    pyplot().close(attention.draw(found))


def test_documents_of_several_lengths_are_shown_in_parts(random_model):
    long = "the dog is red . " * 5
    given = data.Given((long + "the cat", long + "the owl is blue ."))
    found = attention.measure(*random_model, given)
    assert len(found["average"]["labels"]) == 20 and found["average"]["labels"][1] == "5 %"
    own = np.array(found["average"]["weights"]).sum(1)
    np.testing.assert_allclose(own, found["share"]["document"], rtol=1e-5)
    short = attention.measure(*random_model, data.Given((long, "the fox")))
    assert short["average"]["labels"] == ["0 %", "50 %"]
    assert " ".join(found["example"]["labels"]) + " " == (long + "the owl is blue . ")
    pyplot().close(attention.draw(found))


def test_documents_without_a_token_are_left_out(random_model):
    full = data.Given(("the cat is red .", "the owl"))
    given = data.Given(("", *full.documents, " "))
    found = attention.measure(*random_model, given)
    assert found["documents"] == 2 and found == attention.measure(*random_model, full)
    with pytest.raises(UserError, match="no document has a token"):
        attention.measure(*random_model, data.Given(("", " ")))
