import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import store
from clara_jax.config import Config, Data, Mesh, Model, Store
from clara_jax.data.prompts import FRAME
from clara_jax.runs.setup import create
from clara_jax.sharding import make_mesh


def test_both_ways_compress_the_same_documents(monkeypatch):
    config = Config(
        model=Model(preset="tiny", tokenizer="facts", vocab_size=160),
        data=Data(document_length=60, rate=20),
    )
    setup = create(config, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    run, seen = store._run, []

    def noted(model, trees, texts, batch, bucket):
        seen.append((bucket, texts))
        run(model, trees, texts, batch, bucket)

    monkeypatch.setattr(store, "_run", noted)
    monkeypatch.setattr(store, "REPEATS", 2)
    limit = 60 + FRAME + 3
    lengths = np.linspace(10, limit, 32).astype(int)
    documents = [[1] * (n - 3) + list(setup.model.extra.memory) for n in lengths]
    found = store.measure(*setup, documents, Store(part=16, batch=4, bucket=8), 12)
    assert found.documents == 12
    assert found.possible == pytest.approx(32 * limit / lengths.sum())
    assert 1 < found.tokens < found.possible
    assert dataclasses.replace(found, seconds=(1.0, 1.7)).ratio == 1.7
    assert "12 documents, median of" in str(found)
    ways = {bucket: [t for b, texts in seen if b == bucket for t in texts] for bucket in (8, limit)}
    assert ways[8] == ways[limit] and len(ways[8]) == 3 * 12
