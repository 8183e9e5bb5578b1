"""The mesh and where every array lies on it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax import sharding
from clara_jax.config import Mesh
from clara_jax.errors import UserError
from clara_jax.models.config import PRESETS, ModelConfig
from clara_jax.models.decoder import Decoder, abstract_params, head_logits, init_params

TINY = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8
)


def paths(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(abstract_params(config))
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_matches_exactly_one_rule(preset, tied):
    config = dataclasses.replace(PRESETS[preset], tied_embeddings=tied)
    for path, shape in paths(config).items():
        rules = [axes for pattern, axes in sharding.RULES if re.fullmatch(pattern, path)]
        assert len(rules) == 1, path
        assert len(rules[0]) in (0, len(shape)), f"{path}: a rule for another number of axes"
        assert {axis for axis in rules[0] if axis} <= set(sharding.MESH_AXES)


def test_no_rule_is_dead():
    every = paths(TINY)
    for pattern, _ in sharding.RULES:
        assert any(re.fullmatch(pattern, path) for path in every), pattern


def test_sharded_equals_unsharded():
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=4, tensor=2))
    params = init_params(TINY, jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, TINY.vocab_size, (8, 6), np.int32)
    positions = np.tile(np.arange(6, dtype=np.int32), (8, 1))
    batch = {"tokens": tokens, "positions": positions}

    @jax.jit
    def step(params, batch):
        def loss(params):
            x = params["embed"]["embedding"][batch["tokens"]]
            hidden, _ = Decoder(TINY).apply({"params": params}, x, batch["positions"])
            logits = jax.nn.log_softmax(head_logits(TINY, params, hidden[:, :-1]))
            labels = batch["tokens"][:, 1:, None]
            return -jnp.take_along_axis(logits, labels, axis=-1).mean()

        return jax.value_and_grad(loss)(params)

    expected, expected_grads = step(params, batch)
    sharded = jax.device_put(params, sharding.base_shardings(mesh, params))
    actual, grads = step(sharded, sharding.put_batch(mesh, batch))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for grad, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(grad, wanted, atol=1e-5)

    # Every device holds an eighth of each matrix, and an own part of the rows of the batch.
    for leaf in jax.tree.leaves(sharded):
        parts = 8 if leaf.ndim > 1 and leaf.shape[-2:] != (TINY.n_layers, TINY.d_model) else 1
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // parts}
    rows = sharding.put_batch(mesh, batch)["tokens"]
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 6)}


def test_replicated_is_on_all_devices_whole():
    mesh = sharding.make_mesh(Mesh())
    x = jax.device_put(jnp.ones((3, 5)), sharding.replicated(mesh))
    assert len(x.addressable_shards) == 8
    assert {shard.data.shape for shard in x.addressable_shards} == {(3, 5)}


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [
        (Mesh(), (1, 8, 1)),
        (Mesh(data=-1, fsdp=2, tensor=2), (2, 2, 2)),
        (Mesh(data=2, fsdp=1, tensor=4), (2, 1, 4)),
        (Mesh(data=1, fsdp=8, tensor=-1), (1, 8, 1)),
    ],
)
def test_mesh_takes_what_is_left(mesh, sizes):
    assert tuple(sharding.make_mesh(mesh).shape.values()) == sizes


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh(data=3, fsdp=-1, tensor=1),
        Mesh(data=-1, fsdp=-1, tensor=1),
        Mesh(data=0, fsdp=-1, tensor=1),
        Mesh(data=-2, fsdp=-4, tensor=1),
        Mesh(data=16, fsdp=1, tensor=1),
    ],
)
def test_mesh_that_does_not_fit_is_one_clear_line(mesh):
    with pytest.raises(UserError, match=r"config\.mesh .*8 devices") as error:
        sharding.make_mesh(mesh)
    assert "\n" not in str(error.value)


def test_shapes_that_do_not_divide_are_named():
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=4, tensor=2))
    with pytest.raises(UserError, match=r"head/kernel: size 51 .*config\.mesh\.tensor=2"):
        sharding.base_sharding(mesh, "head/kernel", (32, 51))
    with pytest.raises(UserError, match=r"mlp/down/kernel: size 30 .*config\.mesh\.fsdp=4"):
        sharding.base_sharding(mesh, "layers/mlp/down/kernel", (2, 48, 30))


@pytest.mark.parametrize("path", ["embed", "layers/attention/qk/kernel", "final_norm/scale"])
def test_unknown_parameter_is_an_error(path):
    mesh = sharding.make_mesh(Mesh())
    with pytest.raises(UserError, match=f"no sharding rule for the parameter {path}"):
        sharding.base_sharding(mesh, path, (4, 4))
