"""The corpus that an endpoint is asked about, and runs over it."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import synthesis

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAM = (sys.executable, "-m", "clara_jax.main")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    synthesis.write_documents(str(path), 60)
    return str(path)


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
