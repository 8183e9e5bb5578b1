"""Search: candidates against brute force by hand, and a store that changes under it."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from clara_jax import config as config_lib
from clara_jax.config import Mesh
from clara_jax.corpus.format import StorePart
from clara_jax.corpus.search import build
from clara_jax.corpus.search.combine import combined
from clara_jax.corpus.search.keys import all_scores
from clara_jax.corpus.search.search import Hit, Search, fused
from clara_jax.corpus.search.words import Words
from clara_jax.errors import UserError
from clara_jax.sharding import make_mesh

M, D, ROWS = 3, 16, 90
WORDS = ["river", "castle", "opera", "comet", "violin", "harbour", "desert", "senate"]


def part(number, rows, fed=0):
    return StorePart(f"{number:05}", rows, rows, fed, 0, 0)


class Memories:
    """A store in main memory, but for its keys; two parts."""

    def __init__(self, path, memories, texts, parts=(50, 40)):
        self.path, self._memories, self._texts = str(path), memories, texts
        self.rows, self.alive_R = len(memories), np.ones(len(memories), bool)
        self.parts = tuple(part(i, rows) for i, rows in enumerate(parts))
        for part_ in self.parts:
            (path / "parts" / part_.name).mkdir(parents=True, exist_ok=True)
        self.read = []

    def memories(self, rows):
        self.read.append(list(rows))
        return self._memories[np.asarray(rows, int)]

    def blocks(self, size):
        for first in range(0, self.rows, size):
            yield first, self._memories[first : first + size]

    def texts(self):
        return iter(self._texts)

    def documents(self, rows):
        return [types.SimpleNamespace(id=f"d{r}", whole=self._texts[r]) for r in rows]


@pytest.fixture
def make(tmp_path):
    rng = np.random.default_rng(0)
    memories = 2 + rng.standard_normal((ROWS + 20, M, D), np.float32)
    texts = [" ".join(rng.choice(WORDS, 5)) + f" number{i}" for i in range(ROWS + 20)]

    def store(rows=ROWS, parts=(50, 40), path=tmp_path):
        return Memories(path, memories[:rows], texts[:rows], parts)

    return store


@pytest.fixture
def queries():
    return 2 + np.random.default_rng(1).standard_normal((3, M, D)).astype(np.float32)


ONE = make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1])
KEYS = config_lib.Search(by="keys", key=64, candidates=20)


def best(store, queries, score="cosine"):
    scores = np.array(all_scores(queries, store._memories, score))
    scores[:, ~store.alive_R] = -np.inf
    return scores, np.argsort(-scores, 1)


@pytest.mark.parametrize("score", ["cosine", "mean", "maxsim"])
def test_the_best_are_found_by_the_trained_score(make, queries, score):
    store = make()
    search = Search(store, dataclasses.replace(KEYS, candidates=60), ONE, score)
    hits = search.search(queries, ["", "", ""], 4)
    scores, order = best(store, queries, score)
    if score == "maxsim":  # its keys are another score's
        found = {(n, hit.row) for n, own in enumerate(hits) for hit in own}
        assert len(found & {(n, row) for n in range(3) for row in order[n, :4].tolist()}) >= 9
    else:
        assert [[hit.row for hit in own] for own in hits] == order[:, :4].tolist()
    for n, own in enumerate(hits):
        np.testing.assert_allclose([h.score for h in own], scores[n, [h.row for h in own]], 1e-5)
        assert {hit.by for hit in own} == {"keys"}


def test_recall_is_measured_and_told(make, queries):
    store = make()
    search = Search(store, dataclasses.replace(KEYS, key=2), ONE)
    text = search.describe()
    info = search._snapshot.info
    assert 0.2 < info["recall"] < 0.95, "two numbers of 48 cannot be all there is"
    assert f"{info['recall']:.1%} are among 20 candidates" in text
    whole = Search(make(), dataclasses.replace(KEYS, key=64), ONE)
    assert whole._snapshot.info["recall"] == 1.0


def test_keys_are_made_once(make, monkeypatch):
    Search(make(), KEYS, ONE)
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("made again"))
    store = make()
    monkeypatch.setattr(store, "blocks", lambda size: pytest.fail("read again"))
    Search(store, KEYS, ONE)
    assert store.read == []


def test_a_store_that_has_grown_gets_another_basis(make):
    first = Search(make(30, (30,)), KEYS, ONE)
    store = make()
    second = Search(store, KEYS, ONE)
    assert second._snapshot.nearest.basis.name != first._snapshot.nearest.basis.name
    names = sorted(p.name for p in build._folders(store))
    assert names == [second._snapshot.nearest.basis.name], "the first one is forgotten"


@pytest.mark.parametrize("by", ["keys", "bm25", "fused"])
def test_refresh(make, queries, by):
    """Rows that are added are found, those that are deleted never."""
    options = dataclasses.replace(KEYS, by=by, candidates=110)
    search = Search(make(), options, ONE)
    questions = [f"number{ROWS + 3} river castle"] * 3
    assert ROWS + 3 not in search.candidates(queries, questions)
    grown = make(ROWS + 20, (50, 40, 20))
    queries[0] = grown._memories[ROWS + 3]
    search.refresh(grown)
    assert grown.read in ([], [list(range(ROWS, ROWS + 20))]), "only what is new"
    assert search.search(queries, questions, 1)[0][0].row == ROWS + 3 or by == "bm25"
    assert ROWS + 3 in search.candidates(queries, questions)[0]
    fewer = make(ROWS + 20, (50, 40, 20))
    gone = [ROWS + 3, *range(0, 30)]
    fewer.alive_R[gone] = False
    search.refresh(fewer)
    assert not set(search.candidates(queries, questions).ravel().tolist()) & set(gone)
    again = Search(fewer, options, ONE)
    assert not set(again.candidates(queries, questions).ravel().tolist()) & set(gone)
    assert not {h.row for own in search.search(queries, questions, 99) for h in own} & set(gone)


def test_compacting_is_noticed(make, queries):
    search = Search(make(), dataclasses.replace(KEYS, by="fused", alpha=1), ONE)
    compacted = make()  # as many rows, but others
    compacted.parts = (part(0, 50), part(1, 40, fed=1))
    compacted._memories = compacted._memories[::-1].copy()
    compacted._texts = compacted._texts[::-1]
    for path in (build.files.path(compacted.path) / "parts").glob("*/keys-*"):
        path.unlink()  # compacting removes parts
    search.refresh(compacted)
    _, order = best(compacted, queries)
    assert [h[0].row for h in search.search(queries, [""] * 3, 1)] == order[:, 0].tolist()
    (found,) = search.search(queries[:1], ["number7"], ROWS)
    assert {hit.by for hit in found if hit.row == ROWS - 1 - 7} <= {"both", "bm25"} != set()
    assert ROWS - 1 - 7 in {hit.row for hit in found}


def test_fused_candidates_are_of_both(make, queries):
    store = make()
    search = Search(store, dataclasses.replace(KEYS, by="fused", candidates=8), ONE)
    _, order = best(store, queries)
    question = f"number{order[0, 40]}"
    (found,) = search.candidates(queries[:1], [question])
    assert order[0, 40] in found and order[0, 0] in found
    (hits,) = search.search(queries[:1], [question], 8)
    assert {hit.by for hit in hits if hit.row == order[0, 40]} == {"bm25"}


def test_candidates_keep_their_order_on_request(make, queries):
    store, questions = make(), ["river comet number7", "opera number80", "castle senate number3"]
    options = config_lib.Search(by="bm25", candidates=20, rescore=False)
    search = Search(store, options, ONE)
    store.read.clear()
    found = search.search(queries, questions, 4)
    assert max(map(len, store.read)) <= 3 * 4  # and only what is told is read
    rows_nC = search.candidates(queries, questions)
    scores, order = best(store, queries)
    for hits, rows_C, scores_R, order_R in zip(found, rows_nC, scores, order, strict=True):
        assert [hit.row for hit in hits] == rows_C[:4].tolist() != order_R[:4].tolist()
        np.testing.assert_allclose([h.score for h in hits], scores_R[rows_C[:4]], rtol=1e-5)


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_both_scores_order_the_candidates(make, queries, alpha):
    """At the ends exactly one of them does."""
    store, questions = make(), ["river comet number7", "opera number80", "nothing"]
    options = dataclasses.replace(KEYS, by="fused", candidates=30, alpha=alpha)
    search = Search(store, options, ONE)
    found = search.search(queries, questions, 12)
    trained = best(store, queries)[0]
    index = Words.build(store._texts)
    for n, hits in enumerate(found):
        rows = [row for row in search.candidates(queries, questions)[n].tolist() if row >= 0]
        words = index.scores(questions[n])
        both = combined(trained[n, rows], words[rows], alpha)
        assert [hit.row for hit in hits] == [rows[i] for i in np.argsort(-both, kind="stable")][:12]
        np.testing.assert_allclose([h.score for h in hits], trained[n, [h.row for h in hits]], 1e-5)
        scores = {0: words, 1: trained[n]}.get(alpha)
        if scores is not None:
            by_one = sorted(rows, key=lambda row: -scores[row])  # stable, as candidates stand
            assert [hit.row for hit in hits] == by_one[:12]


def test_an_alpha_of_zero_is_the_ranking_by_words(make, queries):
    questions = ["river comet number7", "opera number80", "castle senate number3"]
    ranked = {}
    for name, changes in {"alpha": {"alpha": 0}, "kept": {"rescore": False}}.items():
        options = dataclasses.replace(KEYS, by="bm25", **changes)
        found = Search(make(), options, ONE).search(queries, questions, 20)
        ranked[name] = [[hit.row for hit in hits] for hits in found]
    assert ranked["alpha"] == ranked["kept"]


def test_reciprocal_ranks_by_hand():
    assert fused({"keys": [4, 7, -1], "bm25": [7, 9, -1]}, 3) == {7: "both", 4: "keys", 9: "bm25"}
    assert list(fused({"keys": [4, 7], "bm25": [9, -1]}, 2)) == [4, 9]


def test_two_hops(make, queries):
    store = make()
    search = Search(store, dataclasses.replace(KEYS, hops=2), ONE)
    asked = []

    def encode(texts):
        asked.extend(texts)
        return queries[1:2]

    (hits,) = search.search(queries[:1], ["who ?"], 5, encode)
    scores, order = best(store, queries)
    first = order[0, :3].tolist()
    others = [row for row in order[1].tolist() if row not in first][:2]
    assert [hit.row for hit in hits] == first + others
    assert hits[3] == Hit(others[0], pytest.approx(scores[1, others[0]], rel=1e-5), "keys")
    assert asked == [f"who ?\n{store._texts[first[0]]}"]


def test_fewer_documents_than_are_asked_for(make, queries):
    store = make(5, (5,))
    search = Search(store, KEYS, ONE)
    found = search.candidates(queries, [""] * 3)
    assert found.shape == (3, 20) and (found[:, 5:] == -1).all()
    assert sorted(found[0, :5]) == [0, 1, 2, 3, 4]
    store.alive_R[:] = False
    search.refresh(store)
    assert search.search(queries, [""] * 3, 5) == [[], [], []]
    search.options = dataclasses.replace(KEYS, hops=2)
    assert search.search(queries, ["a"] * 3, 5, lambda texts: queries) == [[], [], []]
    with pytest.raises(UserError, match="holds no document"):
        Search(store, KEYS, ONE)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\3\4 of a zip", b"{}"])
def test_damaged_keys_are_made_again(make, queries, content):
    store, options = make(), dataclasses.replace(KEYS, by="fused")
    before = Search(store, options, ONE).search(queries, ["river"] * 3, 5)
    for path in (build.files.path(store.path) / "parts").glob("*/keys-*"):
        path.write_bytes(path.read_bytes()[:-7])
    folder = build.files.path(store.path) / "search"
    for name in ("basis.npz", "search.json", "words.json", "data.csc.index.npy"):
        (path,) = folder.glob(f"*/{name}")
        path.write_bytes(content)
        assert Search(make(), options, ONE).search(queries, ["river"] * 3, 5) == before


def test_a_store_that_cannot_be_written_to_is_searched(make, queries, tmp_path, monkeypatch):
    options = dataclasses.replace(KEYS, by="fused")
    expected = Search(make(), options, ONE).search(queries, ["river"] * 3, 5)
    (tmp_path / "other").mkdir()
    store = make(path=tmp_path / "other")
    for path in (tmp_path / "other/parts").iterdir():
        path.rmdir()  # so that no key can be written
    (tmp_path / "other/search").write_text("no folder")
    monkeypatch.setattr(build, "_folders", lambda store: iter(()))
    assert Search(store, options, ONE).search(queries, ["river"] * 3, 5) == expected


@pytest.mark.parametrize("score", ["cosine", "mean", "maxsim"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_store_of_few_documents_is_searched(make, queries, rows, score):
    search = Search(make(rows, (rows,)), dataclasses.replace(KEYS, by="fused"), ONE, score)
    for hits in search.search(queries, ["river"] * 3, 5):
        assert sorted(hit.row for hit in hits) == list(range(rows))
