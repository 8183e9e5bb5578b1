"""The decoder: what it computes, what it may not see, and how it is computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from jax.sharding import AxisType

from clara_jax.models.attention import attend, splash
from clara_jax.models.config import LongRope, LoraConfig, ModelConfig, RopeScaling
from clara_jax.models.decoder import (
    EMPTY,
    Cache,
    Decoder,
    abstract_params,
    embed,
    head_logits,
    init_params,
)
from clara_jax.models.layers import RMSNorm, crosses, rope_frequencies, rotary_tables, rotate
from clara_jax.models.layout import Layout
from clara_jax.models.quantize import dequantize, quantize, quantize_params

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
SHORT, LONG = (1.0, 1.2, 1.5, 2.0), (2.0, 3.0, 5.0, 9.0)


def longrope(config: ModelConfig, original_length: int) -> LongRope:
    half = config.rotated // 2
    return LongRope(SHORT[:half], LONG[:half], original_length, attention_factor=1.2)


def inputs(config: ModelConfig, rows: int, length: int, seed: int = 0) -> jax.Array:
    shape = (rows, length, config.d_model)
    return jax.random.normal(jax.random.key(seed), shape, jnp.dtype(config.dtype))


def steps(rows: int, length: int) -> jax.Array:
    return jnp.tile(jnp.arange(length)[None], (rows, 1))


@functools.partial(jax.jit, static_argnames=("config", "lora"))
def apply(config, lora, params, adapter, x, positions, segments, cache, rngs):
    variables = {"params": params} | ({} if adapter is None else {"lora": adapter})
    return Decoder(config, lora).apply(variables, x, positions, segments, cache, rngs=rngs)


def run(config, params, x, positions=None, segments=None, cache=None, *, adapter=None, lora=LORA,
        rngs=None):  # fmt: skip
    positions = steps(*x.shape[:2]) if positions is None else jnp.asarray(positions)
    return apply(config, lora, params, adapter, x, positions, segments, cache, rngs)


# --- What it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "adapted"),
    [
        ({}, False),
        ({"sliding_window": 3, "n_kv_heads": 4, "remat": "full"}, False),
        ({"n_kv_heads": 1, "head_dim": 12, "rope_theta": 1e6, "norm_eps": 1e-2}, True),
        ({"qkv_bias": True}, True),
        ({"qk_norm": True, "norm_eps": 1e-2, "remat": "full"}, True),
        ({"rotary_dim": 6, "longrope": 8}, True),  # rows of 9: the long factors
        ({"longrope": 9, "remat": "q,gate"}, False),  # the short ones
    ],
)
def test_scanned_layers_equal_layers_one_by_one(
    small, reference, random_adapter, changes, adapted, random_params
):
    edge = changes.get("longrope")
    config = dataclasses.replace(small, **{k: v for k, v in changes.items() if k != "longrope"})
    if edge:
        config = dataclasses.replace(config, rope_scaling=longrope(config, edge))
    params, x = random_params(config), inputs(config, 2, 9)
    adapter = random_adapter(config, LORA) if adapted else None
    hidden, cache = run(config, params, x, adapter=adapter)
    assert cache is None
    for row in range(2):
        expected = reference(config, params, x[row], adapter, LORA.scale)
        np.testing.assert_allclose(hidden[row], expected, atol=2e-5)


# --- What a token may see ------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="config")
def input_gradient(config, params, x, row, t, positions=None, segments=None):
    weights = inputs(config, 1, 1, seed=9)[0, 0]
    return jax.grad(lambda x: run(config, params, x, positions, segments)[0][row, t] @ weights)(x)


@pytest.mark.parametrize("t", [0, 3, 7])
def test_no_gradient_to_the_future_nor_to_other_rows(small, t, random_params):
    gradient = input_gradient(small, random_params(small), inputs(small, 2, 8), 0, t)
    size = np.abs(gradient).max(-1)
    assert (size[0, : t + 1] > 0).all()
    assert (size[0, t + 1 :] == 0).all() and (size[1] == 0).all()


def test_packed_sequences_equal_sequences_alone(small, random_params):
    lengths, row = (5, 7, 1, 5), 20
    params, x = random_params(small), inputs(small, 1, row)
    segments, positions = np.zeros((2, 1, row), np.int32)
    start = 0
    for i, length in enumerate(lengths):
        segments[0, start : start + length] = i + 1
        positions[0, start : start + length] = np.arange(length)
        start += length
    packed, _ = run(small, params, x, positions, segments)
    assert np.isfinite(packed).all(), "padding must stay finite: 0 * NaN is NaN"
    start = 0
    for i, length in enumerate(lengths):
        alone, _ = run(small, params, x[:, start : start + length])
        np.testing.assert_allclose(packed[:, start : start + length], alone, atol=2e-5)
        last = start + length - 1
        gradient = input_gradient(small, params, x, 0, last, positions, segments)
        np.testing.assert_array_equal(np.abs(gradient[0]).max(-1) > 0, segments[0] == i + 1)
        start += length


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(small, left, random_params):
    params, x = random_params(small), inputs(small, 1, 6)
    alone, _ = run(small, params, x)
    width = (3, 0) if left else (0, 3)
    padded = jnp.pad(x, ((0, 0), width, (0, 0)), constant_values=7.0)
    segments = jnp.pad(jnp.ones((1, 6), jnp.int32), ((0, 0), width))
    real = slice(3, None) if left else slice(0, 6)
    hidden, _ = run(small, params, padded, steps(1, 9), segments)
    np.testing.assert_allclose(hidden[:, real], alone, atol=2e-5)


def test_sliding_window_bounds_what_a_layer_sees(small, random_params):
    config = dataclasses.replace(small, n_layers=1, sliding_window=3)
    gradient = input_gradient(config, random_params(config), inputs(config, 1, 8), 0, 6)
    seen = np.abs(gradient[0]).max(-1) > 0
    np.testing.assert_array_equal(np.flatnonzero(seen), [4, 5, 6])


# --- Cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 4])
def test_cached_equals_uncached(small, random_adapter, window, random_params):
    config = dataclasses.replace(small, sliding_window=window)
    params, x, adapter = random_params(config), inputs(config, 2, 11), random_adapter(config, LORA)
    expected, _ = run(config, params, x, adapter=adapter)
    cache, start = Cache.create(config, batch=2, slots=16), 0
    for count in (5, 1, 1, 3, 1):
        part = slice(start, start + count)
        positions = steps(2, 11)[:, part]
        hidden, cache = run(config, params, x[:, part], positions, cache=cache, adapter=adapter)
        np.testing.assert_allclose(hidden, expected[:, part], atol=2e-5)
        start += count
        assert int(cache.length) == start


def test_cache_with_rows_of_unequal_length(small, random_params):
    """Prompts of 6 and 3 tokens in one batch, then several tokens at a time."""
    params, x = random_params(small), inputs(small, 2, 11)
    lengths, prompt = np.array([6, 3]), 6
    column = np.arange(prompt)[None]
    positions = np.where(column < lengths[:, None], column, EMPTY)
    hidden, cache = run(
        small, params, x[:, :prompt], jnp.asarray(positions), cache=Cache.create(small, 2, 12)
    )
    outputs = [[hidden[row, :n]] for row, n in enumerate(lengths)]
    assert np.isfinite(hidden).all()
    done = lengths.copy()
    for count in (3, 1):
        rows = np.stack([x[row, n : n + count] for row, n in enumerate(done)])
        positions = done[:, None] + np.arange(count)[None]
        hidden, cache = run(small, params, jnp.asarray(rows), jnp.asarray(positions), cache=cache)
        done += count
        for row in range(2):
            outputs[row].append(hidden[row])
    for row in range(2):
        alone, _ = run(small, params, x[row : row + 1, : done[row]])
        np.testing.assert_allclose(np.concatenate(outputs[row]), alone[0], atol=2e-5)


def test_longrope_decides_by_the_row_and_not_by_padding_or_other_rows(small, random_params):
    config = dataclasses.replace(small, rope_scaling=longrope(small, 5))
    params, x = random_params(config), inputs(config, 2, 8)
    lengths = np.array([8, 5])
    positions = np.where(np.arange(8)[None] < lengths[:, None], np.arange(8)[None], EMPTY)
    hidden, _ = run(config, params, x, positions, cache=Cache.create(config, 2, 8))
    for row, (length, edge) in enumerate(zip(lengths, (1, 100), strict=True)):
        # One that always takes the long factors, and one that never does.
        always = dataclasses.replace(small, rope_scaling=longrope(small, edge))
        alone, _ = run(always, params, x[row : row + 1, :length])
        np.testing.assert_allclose(hidden[row, :length], alone[0], atol=2e-5)


def test_which_rows_would_change_their_frequencies(small):
    config = dataclasses.replace(small, rope_scaling=longrope(small, 10))
    assert not crosses(small, 5, 10**6)
    assert [crosses(config, *lengths) for lengths in ((5, 10), (5, 11), (10, 11), (11, 40))] == [
        None, 10, 10, None,
    ]  # fmt: skip


# --- Recomputation -------------------------------------------------------------------------------


def test_remat_changes_memory_and_nothing_else(small, random_adapter, random_params):
    lora = LoraConfig(rank=4, dropout=0.2)
    measured = {}
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(small, n_layers=6, remat=remat)
        params, adapter = random_params(config), random_adapter(config, lora)
        x = inputs(config, 2, 64)

        def loss(adapter, x, key, config=config, params=params):
            rngs = {"dropout": key}
            hidden, _ = run(config, params, x, adapter=adapter, lora=lora, rngs=rngs)
            return jnp.square(hidden[:, 1:] - hidden[:, :-1]).mean()

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        compiled = step.lower(adapter, x, jax.random.key(0)).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        measured[remat] = compiled(adapter, x, jax.random.key(0)), memory
    (loss_none, grad_none), _ = measured["none"]
    for remat in ("dots", "full"):
        (loss, grad), _ = measured[remat]
        np.testing.assert_allclose(loss, loss_none, rtol=1e-6)
        for leaf, expected in zip(jax.tree.leaves(grad), jax.tree.leaves(grad_none), strict=True):
            size = np.abs(expected).max()
            np.testing.assert_allclose(leaf / size, expected / size, atol=2e-5)
    none, dots, full = (measured[remat][1] for remat in ("none", "dots", "full"))
    assert dots < 0.45 * none and full < 0.75 * dots, (none, dots, full)


def test_biases_and_norms_of_heads_are_trained_alike_under_remat(small, random_params):
    config = dataclasses.replace(small, qkv_bias=True, qk_norm=True)
    params, x = random_params(config), inputs(config, 2, 7)

    def grads(remat):
        how = dataclasses.replace(config, remat=remat)
        return jax.grad(lambda params: jnp.square(run(how, params, x)[0][:, 3:]).sum())(params)

    found, wanted = grads("q,gate"), grads("none")
    attention = wanted["layers"]["attention"]
    for name in ("q", "v"):  # softmax sees no bias of k, but for rotation and norm
        assert (jnp.abs(attention[name]["bias"]).max(-1) > 1e-3).all()
    for name in ("q_norm", "k_norm"):
        assert (jnp.abs(attention[name]["scale"]).max(-1) > 1e-3).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, wanted)


# --- Precision -----------------------------------------------------------------------------------


def equations(jaxpr):
    """All equations, those of inner functions, scans and custom gradients too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda v: isinstance(v, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from equations(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from equations(value)


def dtypes_of(jaxpr, primitive):
    found = [e for e in equations(jaxpr) if e.primitive.name == primitive]
    return {str(e.invars[0].aval.dtype) for e in found}


def test_bfloat16_keeps_norms_softmax_rotary_and_logits_in_float32(small, random_params):
    config = dataclasses.replace(small, dtype="bfloat16", param_dtype="bfloat16")
    params, x = random_params(config), inputs(config, 1, 6)

    def forward(x):
        hidden, _ = run(config, params, x)
        return head_logits(config, params, hidden)

    jaxpr = jax.make_jaxpr(forward)(x).jaxpr
    # rsqrt and square: norms; exp: softmax; cos and sin: rotary.
    for primitive in ("rsqrt", "square", "exp", "cos", "sin"):
        assert dtypes_of(jaxpr, primitive) == {"float32"}, primitive
    # The residual stream and the matmuls of the linear layers are bfloat16.
    assert dtypes_of(jaxpr, "dot_general") == {"bfloat16"}
    assert forward(x).dtype == jnp.float32
    assert run(config, params, x)[0].dtype == jnp.bfloat16


def test_bfloat16_parts_are_only_rounded_at_their_ends(small):
    config = dataclasses.replace(small, dtype="bfloat16")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 4, 2, 8)) * 30, jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    half_ulp = 2.0**-8

    norm = RMSNorm(1e-5, "float32").apply({"params": {"scale": jnp.ones(8)}}, x)
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.asarray(norm, np.float64), expected, rtol=half_ulp)

    positions = np.array([[0, 1, 7, 100]])
    cos, sin = rotary_tables(config, jnp.asarray(positions))
    angles = positions[:, :, None, None] * config.rope_theta ** -(np.arange(4) / 4)
    pairs = (exact[..., :4] + 1j * exact[..., 4:]) * np.exp(1j * angles)
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    turned = np.asarray(rotate(x, cos, sin), np.float64)
    np.testing.assert_allclose(turned, expected, rtol=half_ulp, atol=5e-3)
    far, _ = rotary_tables(config, jnp.asarray([[8191]]))
    angles = 8191 * config.rope_theta ** -(np.arange(4) / 4)
    np.testing.assert_allclose(far[0, 0, 0], np.cos(angles), atol=2e-3)

    # Scores of 1000 and 1004, between which bfloat16 has no number.
    q = jnp.full((1, 1, 1, 8), 8**0.5, jnp.bfloat16)
    k, v = (
        jnp.tile(jnp.asarray(pair, jnp.bfloat16)[None, :, None, None], (1, 1, 1, 8))
        for pair in ([125.0, 125.5], [0.0, 1.0])
    )
    out = attend(q, k, v, jnp.ones((1, 1, 2), bool))
    scores = np.asarray(k, np.float64)[0, :, 0] @ np.asarray(q, np.float64)[0, 0, 0] / np.sqrt(8)
    expected = 1 / (1 + np.exp(scores[0] - scores[1]))
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=half_ulp)


# --- Embedding and head --------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("added", [False, True])
def test_head(small, tied, added, random_params):
    config = dataclasses.replace(small, tied_embeddings=tied)
    params, hidden = random_params(config), inputs(config, 2, 3)
    assert ("head" in params) == (not tied)
    table = params["embed"]["embedding"]
    kernel = table.T if tied else params["head"]["kernel"]
    columns = jax.random.normal(jax.random.key(5), (config.d_model, 7)) if added else None
    logits = head_logits(config, params, hidden, columns)
    np.testing.assert_allclose(logits[..., : config.vocab_size], hidden @ kernel, atol=1e-5)
    assert logits.shape[-1] == config.vocab_size + (7 if added else 0)
    if added:
        np.testing.assert_allclose(logits[..., config.vocab_size :], hidden @ columns, atol=1e-5)


def test_no_head_is_computed_unless_asked_for(small, random_params):
    params, x = random_params(small), inputs(small, 1, 4)
    jaxpr = jax.make_jaxpr(lambda params: run(small, params, x)[0])(params).jaxpr
    sizes = [v.aval.shape for e in equations(jaxpr) for v in e.outvars]
    assert not [shape for shape in sizes if shape and shape[-1] == small.vocab_size]


def test_embed_gives_rows_of_the_table_in_the_activations_dtype(small, random_params):
    params = random_params(small)
    tokens = jnp.asarray([[3, 0, 49]])
    np.testing.assert_array_equal(
        embed(small, params, tokens), params["embed"]["embedding"][tokens]
    )
    half = dataclasses.replace(small, dtype="bfloat16")
    assert embed(half, params, tokens).dtype == jnp.bfloat16


# --- Rotary scaling ------------------------------------------------------------------------------


def test_llama3_scaling_by_hand():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_length=8192)  # fmt: skip
    actual = np.asarray(rope_frequencies(128, 500_000.0, scaling), np.float64)
    cases = {"kept": 0, "divided": 0, "between": 0}
    for i in range(64):
        frequency = 500_000.0 ** -(2 * i / 128)
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            case, expected = "kept", frequency
        elif wavelength > 8192 / 1:
            case, expected = "divided", frequency / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            case, expected = "between", (1 - smooth) * frequency / 8 + smooth * frequency
        cases[case] += 1
        assert actual[i] == pytest.approx(expected, rel=1e-5), (i, case)
    assert min(cases.values()) > 0, cases
    plain = rope_frequencies(128, 500_000.0)
    np.testing.assert_allclose(plain, 500_000.0 ** -(np.arange(64) / 64), rtol=1e-5)


def test_scaling_reaches_the_decoder(small, random_params):
    scaled = dataclasses.replace(small, rope_scaling=RopeScaling(original_length=16))
    params, x = random_params(small), inputs(small, 1, 9)
    assert np.abs(run(small, params, x)[0] - run(scaled, params, x)[0]).max() > 1e-3


# --- Kernels and int8 ----------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "both"), [(None, False), (40, False), (40, True)])
@pytest.mark.parametrize("heads", [pytest.param((4, 4), marks=pytest.mark.slow), (4, 2)])
@pytest.mark.parametrize("meshed", [False, True])
def test_the_tpu_kernel_equals_xla(window, both, heads, meshed):
    """Values and gradients of the kernel, interpreted, on packed rows that are no multiple of 128;
    on a mesh that cuts rows and heads too, and with a mask that lets tokens see what follows."""
    (H, G), (B, T, C) = heads, (4, 150, 16)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (
        jax.random.normal(key, (B, T, n, C)) for key, n in zip(keys, (H, G, G), strict=False)
    )
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0]], [60, 50, 30, 10], axis=1).repeat(B, 0))
    back = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    mask = (back >= 0)[None] | both
    mask = mask & (segments[:, :, None] == segments[:, None, :])
    if window is not None:
        mask &= (jnp.abs(back) < window)[None]
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    axes = (("batch", "data"), ("kv_heads", "tensor"))
    layout = Layout(mesh, axes) if meshed else Layout()
    weight = jax.random.normal(keys[3], (B, T, H * C)) * (segments > 0)[..., None]

    def loss(attention):
        return jax.jit(jax.value_and_grad(lambda qkv: (attention(*qkv) * weight).sum()))((q, k, v))

    wanted = loss(lambda *qkv: attend(*qkv, mask))
    found = loss(lambda *qkv: splash(*qkv, segments, window, layout, mask if both else None))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_cudnn_is_lowered_for_gpus_with_our_mask(small):
    config = dataclasses.replace(small, dtype="bfloat16", attention="cudnn", head_dim=64)
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), abstract_params(config))
    x = inputs(config, 2, 128)
    try:
        text = (
            apply.trace(config, LORA, params, None, x, steps(2, 128), None, None, None)
            .lower(lowering_platforms=("cuda",))
            .as_text()
        )
    except RuntimeError as e:
        pytest.skip(f"jax cannot lower cuDNN calls here: {e}")
    assert "fmha" in text


def test_int8_is_as_exact_as_its_steps(small):
    params = jax.jit(init_params, static_argnums=0)(small, jax.random.key(0))
    quantized = jax.jit(quantize_params)(params)
    for path, leaf in jax.tree.leaves_with_path(quantized):
        name = path[-1].key
        assert (leaf.dtype == jnp.int8) == (name == "kernel"), path
    gate, held = params["layers"]["mlp"]["gate"], quantized["layers"]["mlp"]["gate"]
    error = jnp.abs(dequantize(held) - gate["kernel"])
    assert (error <= held["scale"][:, None, :] / 2 + 1e-7).all()
    assert int(jnp.abs(held["kernel"]).max()) == 127
    assert (held["scale"].astype(jnp.bfloat16) == held["scale"]).all()
    assert dequantize(quantize(jnp.zeros((3, 2)))).sum() == 0

    whole = jax.tree.map(
        lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, quantized
    )
    for group in ("attention", "mlp"):
        for name, leaf in whole["layers"][group].items():
            whole["layers"][group][name] = {"kernel": dequantize(leaf)}
    x = inputs(small, 2, 7)
    int8 = dataclasses.replace(small, param_dtype="int8")
    np.testing.assert_allclose(run(int8, quantized, x)[0], run(small, whole, x)[0], atol=1e-5)
    head = {"kernel": dequantize(quantized["head"])}
    wanted = head_logits(small, whole | {"head": head}, x)
    np.testing.assert_allclose(head_logits(int8, quantized, x), wanted, rtol=1e-4, atol=1e-4)
    made = jax.eval_shape(lambda key: init_params(int8, key), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == (
        jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(int8))
    )


def test_adapters_train_on_an_int8_base(small, random_adapter):
    """Gradients of an adapter on int8 weights equal those on the same weights in float32."""
    int8 = dataclasses.replace(small, param_dtype="int8", remat="q,gate")
    quantized = quantize_params(init_params(small, jax.random.key(0)))
    whole = {**quantized, "layers": {**quantized["layers"]}}
    for group in ("attention", "mlp"):
        whole["layers"][group] = {
            name: {"kernel": dequantize(leaf)} for name, leaf in quantized["layers"][group].items()
        }
    adapter = random_adapter(small, LORA)
    x = inputs(small, 2, 7)

    def grads(config, params):
        return jax.jit(jax.grad(lambda a: (run(config, params, x, adapter=a)[0] ** 2).sum()))(
            adapter
        )

    found, wanted = grads(int8, quantized), grads(small, whole)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
