"""The mesh and where every array lies on it."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clara_jax import sharding
from clara_jax.aot import programs
from clara_jax.config import Config, Data, Mesh, Model, Train
from clara_jax.errors import UserError
from clara_jax.models.config import PRESETS, ExtraTokens, LoraConfig, ModelConfig
from clara_jax.models.decoder import Decoder, abstract_params, head_logits, init_params
from clara_jax.models.lora import init_adapter
from clara_jax.runs import setup as setup_lib
from clara_jax.runs.setup import Loaded, abstract, create
from clara_jax.stages import ADAPTERS
from clara_jax.training.inputs import open_inputs
from clara_jax.training.optim import make_optimizer
from clara_jax.training.step import abstract_optimizer, compile_step, init_optimizer, make_step
from tests.fixtures.models import altered

TINY = ModelConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8
)


def names(name: str, tree) -> dict[str, tuple[int, ...]]:
    """Shapes by path, as sharding.shardings has them."""
    return {
        "/".join((name, *(str(getattr(key, "key", getattr(key, "name", key))) for key in path))): (
            leaf.shape
        )
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def every_array(model: ModelConfig, stage: str = "e2e") -> dict[str, tuple[int, ...]]:
    """Paths and shapes of all that a run has: weights, optimizer, batches, prompts, caches."""
    config = Config(stage=stage, data=Data(document_length=32, rate=8))
    adapters = {name: init_adapter(model, config.lora, jax.random.key(0)) for name in ADAPTERS}
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=1, tensor=1))
    extra = ExtraTokens(model.vocab_size, config.memory_tokens)
    setup = Loaded(setup_lib.Model(config, mesh, Decoder(model), None, extra), {})
    _, _, prompts, state = programs.inference_shapes(
        *altered(setup, trees={"base": {}, "memory": {}, "added": {}})
    )
    trees = {
        "base": abstract_params(model),
        **jax.eval_shape(lambda: adapters),
        "memory": jax.ShapeDtypeStruct((4, model.d_model), jnp.float32),
        "added": {"embed": jax.ShapeDtypeStruct((3, model.d_model), jnp.float32)},
        "batch": programs.batch_shapes(setup.model),
        "prompts": prompts,
        "cache": state.rows.cache,
    }
    return {
        path: shape for name, tree in trees.items() for path, shape in names(name, tree).items()
    }


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("param_dtype", ["bfloat16", "int8"])
def test_every_parameter_matches_exactly_one_rule(preset, tied, param_dtype):
    how = {"tied_embeddings": tied, "param_dtype": param_dtype}
    params = abstract_params(dataclasses.replace(PRESETS[preset], **how))
    assert any("scale" in path and "norm" not in path for path in names("base", params)) == (
        param_dtype == "int8"
    )
    for path, shape in names("base", params).items():
        _matches_one_rule(path, shape)


@pytest.mark.parametrize("stage", ["scp", "instruct", "e2e", "contrastive"])
def test_every_other_array_matches_exactly_one_rule(stage):
    for path, shape in every_array(TINY, stage).items():
        _matches_one_rule(path, shape)


def _matches_one_rule(path: str, shape: tuple[int, ...]) -> None:
    rules = [axes for pattern, axes in sharding.RULES if re.fullmatch(pattern, path)]
    assert len(rules) == 1, path
    assert len(rules[0]) <= len(shape), f"{path}: a rule for another number of axes"
    assert {axis for axis in rules[0] if axis} <= set(sharding.MESH_AXES)


def test_no_rule_is_dead():
    kinds = {"param_dtype": "int8"}, {"qkv_bias": True, "qk_norm": True}
    every = [*every_array(TINY)]
    for changes in kinds:
        every += every_array(dataclasses.replace(TINY, **changes))
    for pattern, _ in sharding.RULES:
        assert any(re.fullmatch(pattern, path) for path in every), pattern


def test_optimizer_state_lies_like_what_it_belongs_to():
    mesh = sharding.make_mesh(Mesh(data=1, fsdp=4, tensor=2))
    config = Config(
        model=Model(preset="tiny"), data=Data(document_length=32, rate=8), train=Train(full=True)
    )
    setup = abstract(config, mesh)
    trained = {name: setup.trees[name] for name in config.trained}
    state = abstract_optimizer(setup.model, make_optimizer(config), trained)
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(state) if len(leaf.shape) == 3}
    assert specs == {leaf.sharding.spec for leaf in jax.tree.leaves(trained) if leaf.ndim == 3}
    assert len(specs) > 1


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
    sharded = jax.device_put(params, sharding.shardings(mesh, "base", params))
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
    with pytest.raises(UserError, match=r"head/kernel: axis 1 of size 51 .*config\.mesh tensor"):
        sharding.array_sharding(mesh, "base/head/kernel", (32, 51))
    with pytest.raises(UserError, match=r"mlp/down/kernel: axis 2 of size 30 .*config\.mesh fsdp"):
        sharding.array_sharding(mesh, "base/layers/mlp/down/kernel", (2, 48, 30))
    with pytest.raises(UserError, match=r"batch/x: axis 0 of size 6 .* by 4.*data x fsdp"):
        sharding.array_sharding(mesh, "batch/x", (6, 3))


@pytest.mark.parametrize(
    "path", ["base/embed", "base/layers/attention/qk/kernel", "base/final_norm/scale", "norm/scale"]
)
def test_unknown_parameter_is_an_error(path):
    mesh = sharding.make_mesh(Mesh())
    with pytest.raises(UserError, match=f"no sharding rule for the array {path}"):
        sharding.array_sharding(mesh, path, (4, 4))


@pytest.mark.parametrize(
    ("sizes", "full"),
    [
        ((2, 2, 2), False),
        ((2, 2, 2), True),
        *(
            pytest.param(sizes, full, marks=pytest.mark.slow)
            for sizes, full in [
                ((8, 1, 1), False), ((1, 8, 1), False), ((1, 4, 2), False), ((2, 1, 4), False),
                ((8, 1, 1), True), ((1, 8, 1), True), ((1, 4, 2), True), ((2, 1, 4), True),
            ]
        ),
    ],
)  # fmt: skip
def test_an_scp_step_is_that_of_one_device_on_any_mesh(one_device_step, sizes, full):
    """Loss, norms of gradients and what the optimizer makes of them; the base trained as well."""
    mesh = Mesh(*sizes)
    values, trained = scp_step(mesh, full)
    wanted, wanted_trained = one_device_step(full)
    for name, value in wanted.items():
        assert values[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(wanted_trained), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.fixture(scope="module")
def one_device_step():
    return functools.cache(lambda full: scp_step(Mesh(1, 1, 1), full))


def scp_step(mesh: Mesh, full: bool):
    """Metrics and trained trees after a step from the same weights and batch on a mesh."""
    config = Config(
        model=Model(preset="tiny", tokenizer="facts", vocab_size=192, remat="q,gate"),
        data=Data(sources="facts:200", document_length=40, rate=10, encoder_row=96,
                  decoder_row=96, packing_bins=8),
        lora=LoraConfig(dropout=0.0),
        train=Train(batch_rows=8, full=full, loss_chunks=2),
        mesh=mesh,
    )  # fmt: skip
    setup = create(config)
    batch = next(open_inputs(*setup, "").train)
    trained = {name: setup.trees[name] for name in config.trained}
    frozen = {name: tree for name, tree in setup.trees.items() if name not in trained}
    if not full:  # B is zero at first, and A then has no gradient
        trained["compressor"] = jax.tree.map(lambda x: x + 0.01, trained["compressor"])
    optimizer = optax.sgd(1.0)
    state = (trained, init_optimizer(setup.model, optimizer, trained))
    step = compile_step(setup.model, make_step(setup.model, optimizer), state)
    (trained, _), values = step(
        state, frozen, sharding.put_batch(setup.model.mesh, batch), np.int32(0)
    )
    assert step._cache_size() == 1
    return jax.device_get((values, trained))


def test_more_than_all_memory_is_refused():
    check = sharding.check_memory
    check({"a": jax.ShapeDtypeStruct((4,), np.float32)}, "it")
    with pytest.raises(UserError, match=r"it needs 4,000,000 GB of memory at least, all devices"):
        check({"a": jax.ShapeDtypeStruct((10**9, 10**6), np.float32)}, "it")
