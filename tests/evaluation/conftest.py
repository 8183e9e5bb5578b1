import jax
import jax.numpy as jnp
import pytest

from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Prompts
from clara_jax.runs import setup as setup_lib
from clara_jax.runs.checkpoint import Checkpoints
from clara_jax.sharding import make_mesh
from tests.fixtures.models import altered


@pytest.fixture(scope="session")
def random_model():
    """A random model after scp, on one device, whose adapters do something."""
    config = Config(
        model=Model(preset="tiny", tokenizer="facts", vocab_size=160),
        data=Data(document_length=40, rate=10),
        memory=Memory(init="tokens"),
        eval=Eval(sources="facts:6:1", batch=8, max_new_tokens=4),
        prompts=Prompts(qa_system="", qa_user="{docs}"),
    )
    setup = setup_lib.create(config, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    keys = iter(jax.random.split(jax.random.key(5), 1000))
    noise = lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape)  # noqa: E731
    return altered(setup, trees=jax.tree.map(noise, setup.trees))


@pytest.fixture(scope="session")
def random_workdir(random_model, tmp_path_factory):
    """Its run."""
    path = tmp_path_factory.mktemp("runs") / "scp"
    path.mkdir()
    config_lib.save(random_model.model.config, path / "config.json")
    trained = {name: random_model.trees[name] for name in ("compressor", "generator", "memory")}
    with Checkpoints(str(path), 1) as checkpoints:
        checkpoints.save(3, trained, {"count": jnp.zeros(())}, {"position": 0})
    return str(path)
