import json
import os
import pathlib

import numpy as np
import pytest

from clara_jax import config
from clara_jax.corpus import compress, format
from clara_jax.corpus import join as join_lib
from clara_jax.corpus import write as write_lib
from clara_jax.corpus.store import open_store
from clara_jax.errors import UserError
from tests.corpus.test_write import DOCUMENTS, OPTIONS, Killed, content, parents


@pytest.fixture(scope="module")
def shards(setup, tmp_path_factory):
    """Stores of four workers, and one of a single worker."""
    folder = tmp_path_factory.mktemp("shards")
    file = folder / "d.jsonl"
    lines = [*DOCUMENTS, *DOCUMENTS[3:9]]  # with duplicates
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def made(name, share):
        documents = compress._of(compress._share(share), str(file))
        return write_lib.add(folder / name, *setup, documents, OPTIONS).path

    return [made(f"s{i}", f"{i}/4") for i in range(4)], made("whole", "0/1")


def described(store):
    """Texts and memories of the rows that are not deleted, by id."""
    rows = np.flatnonzero(store.alive_R)
    memories = store.memories(rows)
    found = {d.id: (d, m) for d, m in zip(store.documents(rows), memories, strict=True)}
    assert len(found) == len(rows)
    return found


def assert_same(store, other):
    store, other = described(store), described(other)
    assert set(store) == set(other)
    for name, (document, memories) in store.items():
        assert document == other[name][0]
        np.testing.assert_array_equal(memories, other[name][1])


def test_joined_shards_are_the_store_of_one_worker(shards, setup, tmp_path):
    stores, whole = shards
    before = [content(store) for store in stores]
    assert all(parents(open_store(store)) for store in stores)
    assert sum(open_store(store).rows for store in stores) == open_store(whole).rows
    joined = join_lib.join(str(tmp_path / "j"), stores)
    assert_same(joined, open_store(whole))
    for part in pathlib.Path(joined.path).glob("parts/*/documents.arrow"):
        assert os.stat(part).st_nlink > 1
    again = content(joined)
    assert content(join_lib.join(joined.path, stores)) == again
    # It changes as any store does, and the others do not.
    write_lib.delete(joined.path, ["d1", "d6"])
    added = write_lib.add(joined.path, *setup, [*DOCUMENTS, {"id": "n", "text": "new"}], OPTIONS)
    assert sorted(parents(added)) == sorted([*(d["id"] for d in DOCUMENTS), "n"])
    write_lib.check(write_lib.compact(joined.path).path)
    write_lib.delete(joined.path, ["n"])
    assert_same(open_store(joined.path), open_store(whole))
    assert [content(store) for store in stores] == before
    with pytest.raises(UserError, match="holds another store"):
        join_lib.join(joined.path, stores)


def test_what_a_later_store_says_counts(setup, tmp_path):
    def made(name, documents):
        return write_lib.add(tmp_path / name, *setup, documents, OPTIONS).path

    first, second = made("a", DOCUMENTS[:7]), made("b", DOCUMENTS[4:10])
    joined = join_lib.join(str(tmp_path / "j"), [first, second])
    assert_same(joined, open_store(made("one", DOCUMENTS[:10])))
    write_lib.delete(first, ["d0", "d5"])
    write_lib.delete(second, ["d4", "d9"])
    changed = [{"id": "d4", "text": "another text"}]
    write_lib.add(second, *setup, changed, OPTIONS)
    expected = ["d1", "d2", "d3", "d5", "d6", "d7", "d8", "d4"]
    for number in range(2):  # deleted, and compacted
        joined = join_lib.join(str(tmp_path / f"j{number}"), [first, second])
        assert sorted(parents(joined)) == sorted(expected)
        [row] = joined.find(["d4"])
        assert joined.documents([row])[0].text == "another text"
        write_lib.compact(second)
    with pytest.raises(UserError, match=r"a: another document of the stores before has the id 'd4"):
        join_lib.join(str(tmp_path / "k"), [second, made("a2/a", DOCUMENTS[4:5])])


def test_a_kill_while_joining(shards, tmp_path, monkeypatch):
    stores, whole = shards
    path, link, calls = tmp_path / "j", os.link, []

    def dying(*names):
        calls.append(names)
        if len(calls) > 5:
            raise Killed
        link(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", dying)
        with pytest.raises(Killed):
            join_lib.join(str(path), stores)
    assert open_store(path).rows == 0 and list(path.glob("parts/*/*"))
    assert_same(join_lib.join(str(path), stores), open_store(whole))

    def refused(*names):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refused)
    assert_same(join_lib.join(str(tmp_path / "copied"), stores), open_store(whole))


def test_what_cannot_be_joined(shards, setup, tmp_path):
    stores, _ = shards
    small = write_lib.add(tmp_path / "small", *setup, DOCUMENTS[:1],
                          config.Store(part=4, batch=4, dtype="int8")).path  # fmt: skip
    path = str(tmp_path / "j")
    for others, message in (
        ([*stores, small], "small: differs from .*s0 in dtype; only stores"),
        ([stores[0], stores[0]], "names a store twice"),
        ([path, stores[0]], "--store itself|twice"),
        ([stores[0], str(tmp_path / "none")], "no store there"),
        (["gs://bucket/s"], "local folders"),
        ([], "names no store"),
    ):
        target = path if path not in others else others[0]
        with pytest.raises(UserError, match=message):
            join_lib.join(target, others)
        assert not os.path.exists(path)
    for shard in ("4/4", "x", "1/", "-1/2"):
        with pytest.raises(UserError, match="give i/n"):
            compress.run(path, "w", "d", shard=shard)
    with pytest.raises(UserError, match="a share of --documents"):
        compress.run(path, compact=True, shard="0/2")
    table = next(pathlib.Path(small).glob("parts/*/documents.arrow"))
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(format.Damaged, match="arrow has"):
        join_lib.join(path, [small])
