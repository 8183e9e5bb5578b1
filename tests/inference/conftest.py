import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Mesh, Model
from clara_jax.sharding import make_mesh
from clara_jax.training import setup as setup_lib
from clara_jax.training.checkpoint import Checkpoints
from clara_jax.training.setup import Setup


@pytest.fixture(scope="module")
def random_setup() -> Callable[[Data, int], Setup]:
    """Makes a random model on one device whose adapters do something."""

    def make(data: Data, seed: int) -> Setup:
        config = Config(model=Model(preset="tiny", tokenizer="facts", vocab_size=160), data=data)
        setup = setup_lib.create(config, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
        keys = iter(jax.random.split(jax.random.key(seed), 1000))
        trees = jax.tree.map(
            lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), setup.trees
        )
        return dataclasses.replace(setup, trees=trees)

    return make


@pytest.fixture(scope="module")
def workdir(random_setup, tmp_path_factory):
    """A run after scp."""
    setup, path = random_setup(Data(document_length=40, rate=10), 5), tmp_path_factory.mktemp("run")
    config_lib.save(setup.config, path / "config.json")
    trained = {name: setup.trees[name] for name in ("compressor", "generator", "memory")}
    with Checkpoints(str(path), 1) as checkpoints:
        checkpoints.save(3, trained, {"count": jnp.zeros(())}, {"position": 0})
    return str(path)
