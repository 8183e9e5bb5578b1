"""Adapters: no effect at first, merging, subsets, dropout, gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax.models.config import LINEAR_NAMES, LoraConfig
from clara_jax.models.decoder import Decoder, abstract_params
from clara_jax.models.layers import AdapterDropout, matmul, random_words
from clara_jax.models.lora import init_adapter
from clara_jax.models.quantize import dequantize, quantize, quantize_params

LORA = LoraConfig(rank=4, alpha=12.0, dropout=0.25)


@functools.partial(jax.jit, static_argnums=(0, 1))
def hidden_states(config, lora, params, adapter, key=None):
    x = jax.random.normal(jax.random.key(7), (2, 6, config.d_model), jnp.dtype(config.dtype))
    positions = jnp.tile(jnp.arange(6)[None], (2, 1))
    variables = {"params": params} | ({} if adapter is None else {"lora": adapter})
    rngs = None if key is None else {"dropout": key}
    return Decoder(config, lora).apply(variables, x, positions, rngs=rngs)[0]


@pytest.fixture(scope="module")
def params(small, random_params):
    return random_params(small)


def merge(params, adapter, lora):
    """Base weights with the adapter folded in: W + scale * A B, in the base's dtype."""
    layers = dict(params["layers"])
    for group, linears in adapter["layers"].items():
        layers[group] = dict(layers[group])
        for name, leaf in linears.items():
            base = layers[group][name]
            product = jnp.einsum("lri,lro->lio", leaf["a"], leaf["b"])
            merged = dequantize(base) + lora.scale * product
            if "scale" in base:
                leaf = quantize(merged)
            else:
                leaf = {"kernel": merged.astype(base["kernel"].dtype)}
            layers[group][name] = base | leaf  # beside a bias
    return {**params, "layers": layers}


def test_fresh_adapter_changes_no_bit(small, params):
    adapter = init_adapter(small, LORA, jax.random.key(0))
    plain = hidden_states(small, LORA, params, None)
    np.testing.assert_array_equal(hidden_states(small, LORA, params, adapter), plain)
    dropped = hidden_states(small, LORA, params, adapter, jax.random.key(1))
    np.testing.assert_array_equal(dropped, plain)


def test_initial_values_as_in_peft(small):
    adapter = init_adapter(small, LORA, jax.random.key(0))
    for group, linears in adapter["layers"].items():
        for name, leaf in linears.items():
            n_in = {"o": small.n_heads * small.head_dim, "down": small.d_ff}.get(name, 32)
            bound = n_in**-0.5
            assert leaf["a"].shape == (small.n_layers, LORA.rank, n_in), (group, name)
            assert (leaf["b"] == 0).all()
            assert leaf["a"].dtype == leaf["b"].dtype == jnp.float32
            assert 0.9 * bound < np.abs(leaf["a"]).max() <= bound
            assert np.abs(leaf["a"].mean()) < 0.15 * bound
    first = [leaf["a"][0, 0, 0] for part in adapter["layers"].values() for leaf in part.values()]
    assert len(set(map(float, first))) == len(LINEAR_NAMES), "each has numbers of its own"


def test_merged_base_equals_adapter(small, params, random_adapter):
    adapter = random_adapter(small, LORA)
    with_adapter = hidden_states(small, LORA, params, adapter)
    merged = merge(params, adapter, LORA)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(hidden_states(small, LORA, merged, None), with_adapter, atol=2e-5)
    assert np.abs(with_adapter - hidden_states(small, LORA, params, None)).max() > 0.1
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    for leaf in jax.tree.leaves(merge(half, adapter, LORA)):
        assert leaf.dtype == jnp.bfloat16
    merged = merge(quantize_params(params), adapter, LORA)
    int8 = dataclasses.replace(small, param_dtype="int8")
    assert merged["layers"]["mlp"]["up"]["kernel"].dtype == jnp.int8
    found = hidden_states(int8, LORA, merged, None)
    np.testing.assert_allclose(found, with_adapter, atol=0.2)


@pytest.mark.parametrize("param_dtype", ["float32", "int8"])
def test_merging_keeps_biases_and_norms(small, random_params, random_adapter, param_dtype):
    config = dataclasses.replace(small, qkv_bias=True, qk_norm=True)
    params, adapter = random_params(config), random_adapter(config, LORA)
    with_adapter = hidden_states(config, LORA, params, adapter)
    if param_dtype == "int8":
        config = dataclasses.replace(config, param_dtype="int8")
        params = quantize_params(params)
        assert params["layers"]["attention"]["q"]["bias"].dtype == jnp.bfloat16
    merged = merge(params, adapter, LORA)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    atol = 2e-5 if param_dtype == "float32" else 0.2
    np.testing.assert_allclose(hidden_states(config, LORA, merged, None), with_adapter, atol=atol)


@pytest.mark.parametrize("targets", [("q", "down"), ("gate",)])
def test_subset_of_targets(small, params, random_adapter, reference, targets):
    lora = dataclasses.replace(LORA, targets=targets)
    adapter = random_adapter(small, lora)
    names = {name for part in adapter["layers"].values() for name in part}
    assert names == set(targets)
    x = jax.random.normal(jax.random.key(7), (2, 6, small.d_model))
    expected = reference(small, params, x[0], adapter, lora.scale)
    actual = hidden_states(small, lora, params, adapter)
    np.testing.assert_allclose(actual[0], expected, atol=2e-5)
    merged = merge(params, adapter, lora)
    for name in set(LINEAR_NAMES) - set(targets):
        part = "attention" if name in "qkvo" else "mlp"
        assert merged["layers"][part][name]["kernel"] is params["layers"][part][name]["kernel"]


# --- Dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_its_rate_and_keeps_the_mean(rate):
    x = jnp.full((8, 64, 128), 3.0)
    y = AdapterDropout(rate).apply({}, x, rngs={"dropout": jax.random.key(0)})
    dropped = np.asarray(y == 0)
    n = dropped.size
    assert abs(dropped.mean() - rate) < 4 * (rate * (1 - rate) / n) ** 0.5
    assert abs(y.mean() - 3.0) < 4 * 3.0 * (rate / (1 - rate) / n) ** 0.5
    np.testing.assert_allclose(y[~dropped], 3.0 / (1 - rate), rtol=1e-6)
    # Neither rows nor columns share their masks.
    flat = dropped.reshape(-1, 128)
    for a, b in ((flat[:-1], flat[1:]), (flat[:, :-1], flat[:, 1:]), (flat[:, :64], flat[:, 64:])):
        agreement, expected = (a == b).mean(), rate**2 + (1 - rate) ** 2
        assert abs(agreement - expected) < 5 * 0.5 / a.size**0.5


def test_random_words_look_independent():
    """Every bit, its neighbours, and the four corners of squares, whose sums of row and column
    words are dependent before they are mixed."""
    words = np.asarray(random_words(jax.random.key(1), (4, 256, 512)))
    flat = words.reshape(-1, 512)
    bound = 5 * 0.5 / flat.size**0.5
    for bit in range(32):
        ones = (flat >> bit) & 1
        assert abs(ones.mean() - 0.5) < bound, bit
        for a, b in ((ones[:-1], ones[1:]), (ones[:, :-1], ones[:, 1:])):
            assert abs((a ^ b).mean() - 0.5) < bound, bit
        square = ones[:-1, :-1] ^ ones[1:, :-1] ^ ones[:-1, 1:] ^ ones[1:, 1:]
        assert abs(square.mean() - 0.5) < bound, bit
    counts = np.bincount(flat.ravel() >> 24, minlength=256)
    expected = flat.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * (2 * 255) ** 0.5
    assert len(np.unique(flat)) > 0.999 * flat.size


def test_dropout_is_off_without_a_generator_and_differs_between_keys(small, params, random_adapter):
    adapter = random_adapter(small, LORA)
    no_dropout = dataclasses.replace(LORA, dropout=0.0)
    off = hidden_states(small, LORA, params, adapter)
    np.testing.assert_array_equal(off, hidden_states(small, no_dropout, params, adapter))
    on = [hidden_states(small, LORA, params, adapter, jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(on[0], on[1])
    assert np.abs(on[0] - on[2]).max() > 1e-3 and np.abs(on[0] - off).max() > 1e-3


def test_dropout_touches_the_adapter_only(small, params):
    """Without an adapter a generator changes nothing."""
    plain = hidden_states(small, LORA, params, None)
    np.testing.assert_array_equal(
        hidden_states(small, LORA, params, None, jax.random.key(0)), plain
    )


def test_dropout_differs_between_layers(small):
    """Two layers that are alike, down to their input, drop different entries."""
    config = dataclasses.replace(small, n_layers=2)
    lora = dataclasses.replace(LORA, targets=("v",))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(config))
    for norm in (params["layers"]["attention_norm"], params["norm"]):
        norm["scale"] += 1.0
    adapter = init_adapter(config, lora, jax.random.key(0))
    leaf = adapter["layers"]["attention"]["v"]
    leaf |= {"a": jnp.stack([leaf["a"][0]] * 2), "b": leaf["b"] + 1.0}

    def only(layer, key):
        """What comes out if only this layer passes its values on; the others leave x alone."""
        kernel = jnp.zeros((2, 32, 32)).at[layer].set(jnp.eye(32))
        params["layers"]["attention"]["o"]["kernel"] = kernel
        return hidden_states(config, lora, params, adapter, key)

    np.testing.assert_array_equal(only(0, None), only(1, None))
    key = jax.random.key(5)
    assert np.abs(only(0, key) - only(1, key)).max() > 1e-3


# --- Gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 3), (3, 8), (5, 5)])
def test_gradient_of_matmul_equals_plain_autodiff(n_in, n_out):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, 5, n_in), (n_in, n_out), (2, 5, n_out)]
    x, w, weights = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))

    def gradient(product):
        return jax.grad(lambda x, w: (product(x, w) * weights).sum(), (0, 1))(x, w)

    np.testing.assert_array_equal(matmul(x, w), x @ w)
    for actual, expected in zip(gradient(matmul), gradient(jnp.matmul), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_adapter_gradient_equals_gradient_through_the_merged_weights(small, params, random_adapter):
    """The merged weights hold the low-rank term as plain matmuls that JAX differentiates."""
    adapter = random_adapter(small, LORA)
    weights = jax.random.normal(jax.random.key(3), (2, 6, small.d_model))

    def through_adapter(adapter):
        return (hidden_states(small, LORA, params, adapter) * weights).sum()

    def through_merged(adapter):
        return (hidden_states(small, LORA, merge(params, adapter, LORA), None) * weights).sum()

    ours = jax.jit(jax.grad(through_adapter))(adapter)
    plain = jax.jit(jax.grad(through_merged))(adapter)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
        assert (np.abs(actual).max((1, 2)) > 0).all(), "every layer has a gradient"


def test_frozen_base_costs_no_weight_gradients(small, random_params, random_adapter):
    """Backward through frozen weights: as many operations as forward, not twice as many."""
    config = dataclasses.replace(small, d_model=64, d_ff=256, n_layers=1)
    params, adapter = random_params(config), random_adapter(config, LORA)

    def loss(params, adapter):
        return hidden_states(config, LORA, params, adapter).sum()

    def operations(f):
        return jax.jit(f).lower(params, adapter).compile().cost_analysis()["flops"]

    forward = operations(loss)
    assert operations(jax.grad(loss, 1)) < 2.6 * forward
    assert operations(jax.grad(loss, (0, 1))) > 2.7 * forward
