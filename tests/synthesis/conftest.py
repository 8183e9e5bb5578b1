"""The endpoint without a model, the corpus it is asked about, and runs over it."""

import contextlib
import json
import pathlib
import subprocess
import sys

import pytest

from clara_jax.config import Config, Synthesis
from clara_jax.synthesis import benchmark

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAM = (sys.executable, "-m", "clara_jax.main")


@pytest.fixture
def serve():
    """Starts endpoints with the faults that a test wants."""
    with contextlib.ExitStack() as stack:
        yield lambda *options: stack.enter_context(benchmark.endpoint(*options))


@pytest.fixture(scope="session")
def url():
    """An endpoint without faults."""
    with benchmark.endpoint() as address:
        yield address


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    benchmark.write_documents(str(path), 60)
    return str(path)


@pytest.fixture
def config():
    """A config with these options of synthesis."""

    def make(url, **options):
        options = {"base_url": url, "model": "none", "timeout": 5.0} | options
        return Config(synthesis=Synthesis(**options))

    return make


@pytest.fixture
def command():
    def run(*arguments, **environment):
        import os

        return subprocess.run(
            [*PROGRAM, "--mode=synthesize", *arguments], cwd=ROOT, capture_output=True, text=True,
            timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )  # fmt: skip

    return run


@pytest.fixture
def lines():
    return lambda path: [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
