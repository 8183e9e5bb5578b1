"""The corpus that an endpoint is asked about, and runs over it."""

import json
import pathlib

import pytest

from benchmarks import synthesis


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    synthesis.write_documents(str(path), 60)
    return str(path)


@pytest.fixture
def lines():
    return lambda path: [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
