import jax
import pytest

from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Prompts
from clara_jax.runs import setup as setup_lib
from clara_jax.sharding import make_mesh
from tests.fixtures.models import altered, noised, save


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
    return altered(setup, trees=noised(setup.trees, 1))


@pytest.fixture(scope="session")
def random_workdir(random_model, tmp_path_factory):
    """Its run."""
    return save(random_model, tmp_path_factory.mktemp("runs") / "scp")
