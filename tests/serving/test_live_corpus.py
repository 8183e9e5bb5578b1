"""The server over a real store."""

import dataclasses

import numpy as np
import pytest

from clara_jax.config import Search
from clara_jax.corpus import write
from clara_jax.corpus.format import Damaged
from clara_jax.errors import UserError
from clara_jax.inference.encode import encode_query
from clara_jax.serving.live_corpus import TOGETHER, LiveCorpus
from clara_jax.serving.metrics import Metrics


@pytest.mark.parametrize("hops", [1, 2])
def test_a_store_is_searched_added_to_and_deleted_from(setup, texts, tmp_path, hops):
    documents = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    write.add(str(tmp_path / "store"), *setup, documents)
    search = Search(key=4, candidates=8, hops=hops)
    config = dataclasses.replace(setup.model.config, search=search)
    corpus = LiveCorpus(str(tmp_path / "store"), *setup, config)
    corpus.warm_up()
    question = "who plays the zither ?"
    query = encode_query(*setup, [question], 1)
    before = corpus.find(query, [question], 3)[0]
    metrics = Metrics()
    metrics.warmed_up()
    assert corpus.find(query, [question], 3)[0] == before
    corpus.basis.queries(np.repeat(query, TOGETHER, 0))
    assert len(before) == 3 and len(corpus) == 6 and metrics.compilations() == 0
    assert corpus.rows(["d2", "d1"]) == [2, 1]
    corpus.add([{"id": "new", "title": "", "text": question}])
    corpus.add([{"id": "new", "title": "", "text": question}])  # there already
    hit = corpus.find(query, [question], 1)[0][0]
    assert len(corpus) == 7 and hit.score > 0.99
    assert corpus.documents([hit.row])[0].id == "new"
    np.testing.assert_allclose(corpus.memories([hit.row]), query, atol=0.03)
    with pytest.raises(UserError, match="new"):
        corpus.add([{"id": "new", "title": "", "text": "another"}])
    corpus.delete(["new"])
    after = corpus.find(query, [question], 3)[0]
    assert len(corpus) == 6 and after == before
    with pytest.raises(UserError, match="new"):
        corpus.delete(["new"])
    if hops == 1:  # rows of another store would be taken for those that are known
        (tmp_path / "store").rename(tmp_path / "gone")
        with pytest.raises(Damaged, match="no store there"):
            corpus.add([{"id": "new", "title": "", "text": question}])
        assert not (tmp_path / "store").exists()
        write.add(str(tmp_path / "store"), *setup, documents[1:])
        with pytest.raises(Damaged, match="another store now, or compacted"):
            corpus.delete(["d1"])
