"""Compress, fill slots, read: the pieces of the method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import Prompts
from clara_jax.data.prompts import TextLayout
from clara_jax.models import clara
from clara_jax.models.config import ExtraTokens, LoraConfig
from clara_jax.models.decoder import Decoder

M = 3
LORA = LoraConfig(rank=2, dropout=0.0)


@pytest.fixture(scope="module")
def trees(small, random_params, random_adapter):
    base = random_params(small)
    memory, added = clara.init_memory(base, M, jax.random.key(1), "tokens")
    added = {"embed": added["embed"] + jnp.arange(3.0)[:, None]}
    return {
        "base": base,
        "compressor": random_adapter(small, LORA, 1),
        "generator": random_adapter(small, LORA, 2),
        "memory": memory,
        "added": added,
    }


def test_added_tokens_have_embeddings_of_their_own(small, trees):
    extra = ExtraTokens(small.vocab_size, M)
    tokens = jnp.asarray([[0, 49, *extra.memory, extra.enc, extra.sep]])
    x = clara.embed(small, trees, tokens)[0]
    table = trees["base"]["embed"]["embedding"]
    np.testing.assert_array_equal(x[:2], table[jnp.asarray([0, 49])])
    np.testing.assert_array_equal(x[2 : 2 + M], trees["memory"])
    np.testing.assert_array_equal(x[2 + M :], trees["added"]["embed"][1:])
    half = clara.embed(dataclasses.replace(small, dtype="bfloat16"), trees, tokens)
    assert half.dtype == jnp.bfloat16


def test_embedding_gradient_reaches_only_the_tokens_that_occur(small, trees):
    extra = ExtraTokens(small.vocab_size, M)
    tokens = jnp.asarray([[5, extra.memory[1], extra.sep]])
    parts = {name: trees[name] for name in ("base", "memory", "added")}
    gradient = jax.grad(lambda t: clara.embed(small, t, tokens).sum())(parts)

    def rows(g):
        return np.flatnonzero(np.abs(g).max(1)).tolist()

    assert rows(gradient["base"]["embed"]["embedding"]) == [5]
    assert rows(gradient["memory"]) == [1]
    assert rows(gradient["added"]["embed"]) == [2]


def test_fill_slots():
    x = jnp.zeros((2, 4, 3))
    vectors = jnp.arange(2 * 5 * 3.0).reshape(2, 5, 3) + 1
    slots = jnp.asarray([[-1, 4, 0, -1], [2, -1, -1, 2]])
    filled = clara.fill_slots(x, vectors, slots)
    for row in range(2):
        for t in range(4):
            slot = int(slots[row, t])
            expected = x[row, t] if slot < 0 else vectors[row, slot]
            np.testing.assert_array_equal(filled[row, t], expected)
    assert clara.fill_slots(x.astype(jnp.bfloat16), vectors, slots).dtype == jnp.bfloat16


def test_memories_are_the_states_at_their_places(small, trees):
    hidden = jax.random.normal(jax.random.key(0), (2, 6, small.d_model))
    places = jnp.asarray([[[2, 3, 4], [0, 1, 2]], [[1, 2, 3], [3, 3, 5]]])
    memories = clara.memories(trees, hidden, places)
    for row in range(2):
        np.testing.assert_array_equal(memories[row], hidden[row][places[row]])
    half = clara.memories({**trees, "pool": 0.5 * jnp.eye(small.d_model)}, hidden, places)
    np.testing.assert_allclose(half, 0.5 * memories, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 30])
def test_pooled_states_are_means_of_windows(length):
    """Window j of M holds the tokens t with floor(t M / L) = j; of a short text, one token."""
    layout = clara.MemoryLayout(4, "pool")
    rng = np.random.default_rng(length)
    hidden = rng.standard_normal((2, length + 9, 5)).astype(np.float32)
    # The text lies behind another in its row, and before padding.
    segments = np.array([[1] * 6 + [2] * length + [0] * 3] * 2)
    positions = np.array([[*range(6), *range(length), 0, 0, 0]] * 2)
    actual = clara.pooled(jnp.asarray(hidden), positions, segments, layout)
    assert np.isfinite(actual).all()
    places = TextLayout(None, ExtraTokens(9, 4), Prompts(), 40, pools=True).places(length)
    for j, place in enumerate(places):
        window = [t for t in range(length) if t * 4 // length == j]
        if length < 4:  # the nearest token
            window = [min(range(length), key=lambda t: abs(t + 0.5 - (j + 0.5) * length / 4))]
        expected = hidden[:, [6 + t for t in window]].mean(1)
        np.testing.assert_allclose(actual[:, 6 + place], expected, atol=1e-6)


def test_coarser_memories_are_means_of_neighbours():
    memories = np.random.default_rng(0).standard_normal((2, 3, 8, 5)).astype(np.float32)
    every = np.asarray(clara.every_rate(jnp.asarray(memories), (8, 4, 1)))
    assert every.shape == (2, 3, 13, 5)
    np.testing.assert_array_equal(every[:, :, :8], memories)
    np.testing.assert_allclose(every[:, :, 9], memories[:, :, 2:4].mean(2), atol=1e-6)
    np.testing.assert_allclose(every[:, :, 12], memories.mean(2), atol=1e-6)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("sees", ["before", "memories", "all"])
def test_who_sees_whom_in_the_encoder(small, trees, sees, window):
    """By changing one token at a time; packed texts never see each other."""
    config, V = dataclasses.replace(small, sliding_window=window), small.vocab_size
    memory = [V, V + 1, V + 2]
    tokens = np.array([[1, 2, 3, 4, *memory, 5, 6, *memory]])
    segments = np.array([[1] * 7 + [2] * 5])
    positions = np.array([[*range(7), *range(5)]])
    layout = clara.MemoryLayout(M, sees=sees)

    @jax.jit
    def states(x_BTD):
        one = dataclasses.replace(config, n_layers=1)
        base = {**trees["base"], "layers": jax.tree.map(lambda x: x[:1], trees["base"]["layers"])}
        both = clara.both_ways(one, layout, tokens, segments)
        apply = Decoder(one, LORA).apply
        return apply({"params": base}, x_BTD, jnp.asarray(positions), segments, None, both)[0]

    x = clara.embed(small, trees, jnp.asarray(tokens))
    before = states(x)
    is_memory = np.isin(tokens[0], memory)
    for s in range(tokens.shape[1]):
        seen = np.abs(np.asarray(states(x.at[:, s].add(1.0)) - before)[0]).max(-1) > 1e-6
        for t in range(tokens.shape[1]):
            both = sees == "all" or (sees == "memories" and is_memory[s] and is_memory[t])
            expected = segments[0, s] == segments[0, t] and (s <= t or both)
            if window is not None:
                expected = expected and abs(positions[0, s] - positions[0, t]) < window
            assert seen[t] == expected, (s, t)


def test_memory_tokens_spread_over_their_documents(small, trees, batch):
    """Two packed documents of 4 and 10 tokens; only the rotary positions of memory tokens move."""
    V = small.vocab_size
    memory = [V, V + 1, V + 2]
    tokens = jnp.asarray([[V + M + 1, 1, 2, 3, *memory, V + M + 1, *range(9), *memory, 0, 0]])
    positions = jnp.asarray([[*range(7), *range(13), 0, 0]])
    spread = clara.spread_positions(small, trees, tokens, positions)[0].tolist()
    assert spread[:4] == [0, 1, 2, 3] and spread[7:17] == list(range(10))
    # The middles of three parts: (2 j + 1) / 6 of the length, rounded down.
    assert spread[4:7] == [0, 2, 3] and spread[17:20] == [1, 5, 8] and spread[20:] == [0, 0]


def test_spread_memory_tokens_still_see_all_before_them_and_nothing_after(small, trees, batch):
    decoder, V = Decoder(small, LORA), small.vocab_size
    tokens, positions = batch["enc_tokens"], batch["enc_positions"]
    first = int(np.argmax(np.asarray(tokens[0]) == V))

    def states(tokens, spread):
        args = (tokens, positions, batch["enc_segments"])
        return clara.encode(decoder, trees, *args, clara.MemoryLayout(M, spread=spread))[0]

    plain, spread = states(tokens, False), states(tokens, True)
    np.testing.assert_array_equal(spread[:first], plain[:first])
    assert np.abs(spread[first:] - plain[first:]).max(-1).min() > 1e-4
    # The last token of the text reaches the first memory token, whose position is lower.
    other = states(tokens.at[0, first - 1].set(11), True)
    assert np.abs(other[first] - spread[first]).max() > 1e-4
    np.testing.assert_array_equal(other[: first - 1], spread[: first - 1])


@pytest.mark.parametrize("init", ["mean", "tokens"])
def test_init_memory(small, trees, init):
    table = np.asarray(trees["base"]["embed"]["embedding"])
    memory, added = clara.init_memory(trees["base"], M, jax.random.key(3), init)
    assert memory.shape == (M, small.d_model) and memory.dtype == jnp.float32
    assert set(added) == {"embed"} and added["embed"].shape == (3, small.d_model)
    np.testing.assert_allclose(added["embed"], np.tile(table.mean(0), (3, 1)), atol=1e-6)
    if init == "mean":
        np.testing.assert_allclose(memory, np.tile(table.mean(0), (M, 1)), atol=1e-6)
    else:
        nearest = np.abs(table[None] - np.asarray(memory)[:, None]).max(-1)
        assert (nearest.min(1) == 0).all() and len(set(nearest.argmin(1))) > 1
    noisy, same = clara.init_memory(trees["base"], M, jax.random.key(3), init, noise=0.5)
    np.testing.assert_array_equal(same["embed"], added["embed"])
    assert np.std(noisy - memory) == pytest.approx(0.5 * table.std(), rel=0.3)


# --- The two passes ------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def passes(config, trees, batch):
    decoder = Decoder(config, LORA)
    enc = (batch["enc_tokens"], batch["enc_positions"], batch["enc_segments"])
    hidden = clara.encode(decoder, trees, *enc, clara.MemoryLayout(M))
    return hidden, clara.generate_hidden(decoder, trees, batch, hidden)


@pytest.fixture(scope="module")
def batch(small):
    V = small.vocab_size
    enc = np.array([[V + M + 1, 1, 7, 8, 2, V, V + 1, V + 2]])
    dec = np.array([[4, V, V + 1, V + 2, V + M + 2, 9, 10]])
    slots = np.array([[-1, 5, 6, 7, -1, -1, -1]])
    tokens = {"enc_tokens": enc, "dec_tokens": dec}
    for side, array in (("enc", enc), ("dec", dec)):
        tokens[f"{side}_segments"] = np.ones_like(array)
        tokens[f"{side}_positions"] = np.arange(array.shape[1])[None]
    return {k: jnp.asarray(v, jnp.int32) for k, v in {**tokens, "dec_slots": slots}.items()}


def test_each_pass_has_its_own_adapter_and_slots_hold_memories(small, trees, batch, reference):
    hidden, generated = passes(small, trees, batch)
    x = clara.embed(small, trees, batch["enc_tokens"])[0]
    expected = reference(small, trees["base"], x, trees["compressor"], LORA.scale)
    np.testing.assert_allclose(hidden[0], expected, atol=2e-5)
    x = np.array(clara.embed(small, trees, batch["dec_tokens"])[0])
    x[1:4] = expected[5:8]
    read = reference(small, trees["base"], x, trees["generator"], LORA.scale)
    np.testing.assert_allclose(generated[0], read, atol=5e-5)


@pytest.mark.parametrize("missing", ["absent", "none"])
def test_role_without_an_adapter_is_the_plain_base(small, trees, batch, reference, missing):
    plain = {k: v for k, v in trees.items() if k not in ("compressor", "generator")}
    if missing == "none":
        plain |= {"compressor": None, "generator": None}
    hidden, _ = passes(small, plain, batch)
    x = clara.embed(small, trees, batch["enc_tokens"])[0]
    np.testing.assert_allclose(hidden[0], reference(small, trees["base"], x), atol=2e-5)


def test_the_text_reaches_the_generator_through_memories_alone(small, trees, batch):
    """Other text in the document changes what is read; other tokens under the slots do not."""
    _, read = passes(small, trees, batch)
    other = {**batch, "enc_tokens": batch["enc_tokens"].at[0, 2].set(30)}
    _, read_other = passes(small, trees, other)
    assert np.abs(read_other[0, 1:] - read[0, 1:]).max(-1).min() > 1e-3
    np.testing.assert_array_equal(read_other[0, 0], read[0, 0])
    under = {**batch, "dec_tokens": batch["dec_tokens"].at[0, 2].set(17)}
    np.testing.assert_array_equal(passes(small, trees, under)[1], read)
