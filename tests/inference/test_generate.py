import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.config import Data, Mesh
from clara_jax.errors import UserError
from clara_jax.inference import generate as generate_lib
from clara_jax.inference.generate import NONE, Prompt, prompt_batches
from clara_jax.inference.sampling import (
    Draws,
    GenerationOptions,
    Sampling,
    before_stop,
    nucleus,
    stop_ids,
)
from clara_jax.models import clara
from clara_jax.models.config import LongRope
from clara_jax.models.decoder import Decoder, head_logits
from clara_jax.sharding import make_mesh, replicated, shardings
from tests.fixtures.models import altered

LENGTHS = (5, 70, 12, 64, 1, 33, 9)
NEW = 12


@pytest.fixture(scope="module")
def setup(random_setup):
    """A random model whose added tokens are scored too."""
    setup = random_setup(Data(document_length=32, rate=8), 7)
    D, M = setup.model.architecture.d_model, len(setup.model.extra.memory)
    # Large enough for added tokens to be chosen now and then.
    head = {"head": 0.1 * jax.random.normal(jax.random.key(8), (D, M + 3))}
    added = {**setup.trees["added"], **head}
    return altered(setup, trees={**setup.trees, "added": added})


def generate(model, trees, prompts, new, role="generator", batch=16, **options):
    options = GenerationOptions(new, **options)
    return generate_lib.generate(model, trees, prompts, options, role=role, batch=batch)


def random_prompts(setup, lengths=LENGTHS, seed=0):
    """Prompts of every length with slots in those that have room for them."""
    rng = np.random.default_rng(seed)
    prompts, M = [], len(setup.model.extra.memory)
    for length in lengths:
        ids, vectors = rng.integers(0, setup.model.architecture.vocab_size, length), None
        if length > M:
            start = rng.integers(0, length - M)
            ids[start : start + M] = setup.model.extra.memory
            vectors = rng.standard_normal((M, setup.model.architecture.d_model)).astype(np.float32)
        prompts.append(Prompt(ids.tolist(), vectors))
    return prompts


def uncached_logits(setup, role, length):
    """A function that computes everything anew: of ids [T] and embeddings [n, D] of the first n."""
    trees, config = setup.trees, setup.model.architecture

    @jax.jit
    def logits(ids, x_fixed, is_fixed):
        x = jnp.where(is_fixed[None, :, None], x_fixed[None], clara.embed(config, trees, ids[None]))
        hidden, _ = clara.run(setup.model.decoder, trees, role, x, jnp.arange(length)[None])
        return head_logits(config, trees["base"], hidden[0], trees["added"].get("head"))

    return logits


def uncached(logits, setup, prompt, length, new):
    """Greedy decoding of one prompt, without cache and without other rows."""
    n, D = len(prompt.tokens), setup.model.architecture.d_model
    ids = np.zeros(length, np.int32)
    ids[:n] = prompt.tokens
    fixed, is_fixed = np.zeros((length, D), np.float32), np.zeros(length, bool)
    if prompt.vectors is not None:
        is_fixed[:n] = np.isin(prompt.tokens, setup.model.extra.memory)
        fixed[is_fixed] = prompt.vectors
    for t in range(n, n + new):
        ids[t] = int(logits(ids, fixed, is_fixed)[t - 1].argmax())
    return ids[n : n + new].tolist()


@pytest.mark.parametrize(
    ("role", "window"),
    [(None, None), pytest.param("generator", None, marks=pytest.mark.slow), ("generator", 8)],
)
def test_cached_equals_uncached(setup, role, window):
    model = dataclasses.replace(setup.model.architecture, sliding_window=window)
    setup = altered(setup, decoder=Decoder(model, setup.model.config.lora))
    prompts = random_prompts(setup)
    found = generate(*setup, prompts, NEW, role=role, batch=4)
    ends = stop_ids(setup.model.tokenizer)
    length = max(LENGTHS) + NEW
    logits = uncached_logits(setup, role, length)
    for prompt, generation in zip(prompts, found, strict=True):
        expected = uncached(logits, setup, prompt, length, NEW)
        cut = next((i + 1 for i, token in enumerate(expected) if token in ends), NEW)
        assert generation.tokens == expected[:cut]
    if window is None:
        every = [token for generation in found for token in generation.tokens]
        assert max(every) >= setup.model.architecture.vocab_size, (
            "no added token was chosen: test more prompts"
        )


def test_other_rows_do_not_matter(setup):
    prompts = random_prompts(setup, (5, 70, 12))
    together = generate(*setup, prompts, NEW, batch=4)
    alone = [generate(*setup, [prompt], NEW, batch=1)[0] for prompt in prompts]
    assert together == alone


def test_sharded_equals_one_device(setup):
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    trees = jax.device_put(setup.trees, replicated(mesh))
    trees["base"] = jax.device_put(trees["base"], shardings(mesh, "base", trees["base"]))
    sharded = altered(setup, mesh=mesh, trees=trees)
    prompts = random_prompts(setup)
    # Eight rows are shared out over the mesh.
    for sampling in (Sampling(), Sampling(temperature=1.5, top_p=0.9)):
        found = generate(*sharded, prompts, NEW, sampling=sampling, batch=8)
        assert found == generate(*setup, prompts, NEW, sampling=sampling, batch=8)


def test_one_compilation_a_bucket(setup):
    def compiled(lengths, **options):
        before = generate_lib.decode._cache_size()
        generate(*setup, random_prompts(setup, lengths), 7, **options)
        return generate_lib.decode._cache_size() - before

    assert compiled((3, 60, 64, 17, 9, 33), batch=2) > 0
    assert compiled((64, 20, 40, 60, 61, 11, 5, 6), batch=2) == 0
    assert compiled((65, 66), batch=2) == 1
    assert compiled((100, 128, 3, 99), batch=2) == 0


def test_stop_token_ends_its_row_alone(setup):
    batches = prompt_batches(random_prompts(setup), setup.model.extra, 8)
    _, batch = next(batches)
    size = setup.model.architecture.vocab_size + len(setup.model.extra.memory) + 3
    trees = generate_lib.needed(setup.trees, "generator")

    def decode(stop):
        stop_V = np.zeros(size, bool)
        stop_V[stop] = True
        out = generate_lib.decode(
            setup.model.decoder, trees, batch, stop_V, role="generator", max_new_tokens=NEW
        )
        return np.asarray(out)

    free = decode([])
    assert (free[: len(LENGTHS)] != NONE).all()
    assert (free[len(LENGTHS) :] == NONE).all(), "rows that only fill the batch say nothing"
    stop = [free[0, 4], free[1, 2]]
    for row, stopped in zip(free, decode(stop), strict=True):
        hits = np.flatnonzero(np.isin(row, stop))
        end = hits[0] + 1 if len(hits) else NEW
        np.testing.assert_array_equal(stopped[:end], row[:end])
        assert (stopped[end:] == NONE).all()


def test_decoding_stops_when_all_rows_have(setup, monkeypatch):
    steps, run = [], clara.run

    def counted(*args, **kwargs):
        jax.debug.callback(lambda: steps.append(1))
        return run(*args, **kwargs)

    longest = 5
    for seed in range(50):  # a random model may end at once: take prompts where it does not
        prompts = random_prompts(setup, (20, 21, 22), seed)
        expected = [generation.tokens for generation in generate(*setup, prompts, 31, batch=4)]
        if min(map(len, expected)) >= longest:
            break
    stops = sorted({tokens[longest - 1] for tokens in expected})
    monkeypatch.setattr(generate_lib, "stop_ids", lambda tokenizer, stop: stops)
    monkeypatch.setattr(clara, "run", counted)
    jax.clear_caches()
    found = generate(*setup, prompts, 31, batch=4)
    jax.effects_barrier()
    most = max(len(generation.tokens) for generation in found)
    assert len(steps) == most <= longest  # the prompt gives the first token
    jax.clear_caches()


def test_text_ends_before_the_stop_text(setup):
    tokenizer = setup.model.tokenizer
    newlines = stop_ids(tokenizer, ("\n",))
    assert all(i in newlines for i in tokenizer.encode("\n"))
    assert set(stop_ids(tokenizer)) < set(newlines)
    assert tokenizer.eos_id in stop_ids(tokenizer)
    words = tokenizer.encode("city job")
    assert not set(words) & set(newlines)
    # A text that tokens hold only together: the row runs on, the text is cut all the same.
    prompts = random_prompts(setup, (10,))
    free = generate(*setup, prompts, NEW)[0]
    middle = free.text[3:8]
    assert generate(*setup, prompts, NEW, stop=middle)[0].text == free.text.split(middle)[0]
    # Of several texts the first that occurs counts, whatever their order.
    later = free.text[6:12]
    for stop in ([middle, later], [later, "", middle]):
        assert generate(*setup, prompts, NEW, stop=stop)[0].text == free.text.split(middle)[0]
    assert generate(*setup, prompts, NEW, stop=[])[0] == free


def test_several_stop_texts(setup):
    both = stop_ids(setup.model.tokenizer, ("city", "job"))
    parts = [set(stop_ids(setup.model.tokenizer, (text,))) for text in ("city", "job")]
    assert set(both) == parts[0] | parts[1] and parts[0] - parts[1] and parts[1] - parts[0]
    assert before_stop("a.b?c", ("?", ".")) == "a"
    assert before_stop("abc", (".",)) == before_stop("abc", ()) == "abc"
    for stop in (3, None, ["a", 3]):
        with pytest.raises(UserError, match="must be a text or a list of texts"):
            generate(*setup, [], 2, stop=stop)


def test_slots_and_vectors_must_agree(setup):
    vectors = np.zeros((3, setup.model.architecture.d_model), np.float32)
    prompt = Prompt(list(setup.model.extra.memory), vectors)
    with pytest.raises(ValueError, match="4 slots for 3 vectors"):
        generate(*setup, [prompt], 2)


def test_few_prompts_make_a_small_batch(setup):
    shapes = [
        next(prompt_batches(random_prompts(setup, (5,) * n), setup.model.extra, 6))[
            1
        ].tokens_BT.shape
        for n in (1, 2, 3, 5, 9)
    ]
    assert shapes == [(1, 64), (2, 64), (4, 64), (6, 64), (6, 64)]
    assert generate(*setup, [], 3) == []


# --- Sampling ------------------------------------------------------------------------------------


def draw_many(logits, rows, seed=0, step=0, temperature=1.0, top_p=1.0, first=0):
    draws = Draws.create(Sampling(temperature, top_p, seed), rows, range(first, first + rows))
    draws = draws.replace(count_B=draws.count_B + step)
    logits_BV = jnp.tile(jnp.asarray(logits, jnp.float32)[None], (rows, 1))
    tokens_B, after = jax.jit(Draws.tokens)(draws, logits_BV)
    np.testing.assert_array_equal(after.count_B, step + 1)
    return np.asarray(tokens_B)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities(temperature):
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    drawn = np.bincount(draw_many(logits, 20000, temperature=temperature), minlength=4) / 20000
    expected = np.exp(logits / temperature)
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.015)
    assert set(draw_many(logits, 500, temperature=1e-40)) == {0}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [0, 1, 3]), (1.0, [0, 1, 2, 3])],
)
def test_nucleus_holds_the_fewest_tokens(top_p, kept):
    logits = np.log([0.15, 0.5, 0.1, 0.25])
    left = nucleus(jnp.asarray(logits)[None], top_p)[0]
    assert np.flatnonzero(np.isfinite(left)).tolist() == kept
    drawn = np.bincount(draw_many(logits, 4000, top_p=top_p), minlength=4)
    assert np.flatnonzero(drawn).tolist() == kept
    share = np.exp(logits)[1] / np.exp(logits)[kept].sum()
    assert drawn[1] / 4000 == pytest.approx(share, abs=0.03)


def test_a_draw_depends_on_seed_prompt_and_step():
    logits = np.zeros(1000)
    first = draw_many(logits, 50)
    assert len(set(first)) > 40, "rows draw alike"
    np.testing.assert_array_equal(draw_many(logits, 20, first=30), first[30:])
    for other in (draw_many(logits, 50, seed=1), draw_many(logits, 50, step=1)):
        assert (other == first).mean() < 0.1


def test_each_row_is_drawn_by_its_own_values():
    logits = np.sin(np.arange(50.0))
    rows = [Sampling(), Sampling(1.5, 1.0, 3), Sampling(0.7, 0.5, 4), Sampling(2.0, 0.9, 3)]
    alone = [draw_many(logits, 1, s.seed, 2, s.temperature, s.top_p)[0] for s in rows]
    draws = jax.tree.map(
        lambda *parts: np.concatenate(parts), *(Draws.create(sampling, 1) for sampling in rows)
    )
    draws = draws.replace(count_B=draws.count_B + 2)
    logits_BV = jnp.tile(jnp.asarray(logits, jnp.float32)[None], (len(rows), 1))
    assert np.asarray(draws.tokens(logits_BV)[0]).tolist() == alone
    assert alone[0] == logits.argmax() and len(set(alone)) > 2


def test_sampled_texts_do_not_depend_on_the_batches(setup):
    prompts = random_prompts(setup)
    hot = Sampling(temperature=1.5, top_p=0.9, seed=3)
    found = generate(*setup, prompts, NEW, sampling=hot, batch=8)
    for batch in (2, 4):
        assert generate(*setup, prompts, NEW, sampling=hot, batch=batch) == found
    # Prompts after these change nothing either.
    assert generate(*setup, prompts[:3], NEW, sampling=hot) == found[:3]
    assert generate(*setup, prompts, NEW, sampling=Sampling(1.5, 0.9, 4), batch=8) != found
    twice = generate(*setup, [prompts[0]] * 2, NEW, sampling=hot)
    assert twice[0] != twice[1]
    # Logits that are all but equal: the same noise at every step would repeat one token.
    flat = generate(*setup, prompts, NEW, sampling=Sampling(temperature=1e6))
    longest = max((generation.tokens for generation in flat), key=len)
    assert len(set(longest)) > len(longest) / 2 > 3


def test_cold_sampling_is_greedy(setup):
    prompts = random_prompts(setup)
    greedy = generate(*setup, prompts, NEW, batch=8)
    assert generate(*setup, prompts, NEW, sampling=Sampling(temperature=1e-6), batch=8) == greedy
    assert generate(*setup, prompts, NEW, sampling=Sampling(5.0, top_p=1e-9), batch=8) == greedy


def test_other_values_do_not_compile_again(setup):
    prompts = random_prompts(setup, (3, 60))

    def compiled(sampling):
        before = generate_lib.decode._cache_size()
        generate(*setup, prompts, 6, sampling=sampling)
        return generate_lib.decode._cache_size() - before

    assert compiled(Sampling()) == 1
    assert compiled(Sampling(temperature=0, top_p=0.3, seed=8)) == 0
    assert compiled(Sampling(temperature=0.7)) == 1
    assert compiled(Sampling(temperature=0.9, top_p=0.5, seed=8)) == 0


def test_greedy_neither_sorts_nor_draws(setup):
    _, batch = next(prompt_batches(random_prompts(setup), setup.model.extra, 8))
    trees = generate_lib.needed(setup.trees, "generator")
    stop_V = np.zeros(setup.model.architecture.vocab_size + len(setup.model.extra.memory) + 3, bool)

    def program(sampling):
        draws = Draws.create(sampling, 8) if sampling.temperature else None
        return generate_lib.decode.lower(
            setup.model.decoder, trees, batch, stop_V, draws, role="generator", max_new_tokens=3
        ).as_text()

    greedy, sampled = program(Sampling()), program(Sampling(temperature=1.0))
    for word in ("stablehlo.sort", "threefry"):
        assert word not in greedy and word in sampled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": None}, "temperature=None"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": 2**32}, "seed=4294967296"),
    ],
)
def test_values_that_cannot_be_meant(values, message):
    with pytest.raises(UserError, match=message):
        Sampling(**values)


def test_answers_over_the_length_of_longrope_are_refused(setup):
    """Keys in the cache would not fit. A longer prompt, or an answer that ends before, is fine."""
    half = (1.0,) * (setup.model.architecture.head_dim // 2)
    model = dataclasses.replace(
        setup.model.architecture, rope_scaling=LongRope(half, half, 20, 1.0)
    )
    decoder = dataclasses.replace(setup.model.decoder, config=model)
    setup = altered(setup, decoder=decoder)
    prompts = [Prompt([5] * 21), Prompt([5] * 9)]
    with pytest.raises(
        UserError, match=r"13 after a prompt of 9 .* 20, .* at most 12 new"
    ) as error:
        generate(*setup, prompts, 13)
    assert "\n" not in str(error.value)
    assert len(generate(*setup, prompts, 12)) == 2
