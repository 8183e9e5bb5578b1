import dataclasses
import errno
import pathlib
import re

import numpy as np
import pytest

from clara_jax import config
from clara_jax.corpus import compress, format, locks, pieces
from clara_jax.corpus import write as write_lib
from clara_jax.corpus.store import open_store
from clara_jax.data.documents import Document
from clara_jax.data.facts import FactsSource
from clara_jax.errors import UserError
from tests.fixtures.models import altered

TEXTS = [FactsSource(20, seed=4)[i].document for i in range(20)]
DOCUMENTS = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
DOCUMENTS[6] = {"id": "d6", "title": "T", "text": " . ".join(TEXTS[6:9])}  # two pieces or three
OPTIONS = config.Store(part=4, batch=4)


@pytest.fixture(scope="module")
def whole(setup, tmp_path_factory):
    return write_lib.add(tmp_path_factory.mktemp("whole") / "s", *setup, DOCUMENTS, OPTIONS)


def content(store) -> dict[str, bytes]:
    """All files of a store."""
    folder = pathlib.Path(getattr(store, "path", store))
    files = (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", ".readers")
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def parents(store) -> list[str]:
    """Documents that are not deleted, in the order of their rows."""
    alive = np.flatnonzero(store.alive_R)
    return list(dict.fromkeys(document.parent for document in store.documents(alive)))


def test_documents_become_parts_in_their_order(whole, setup, tmp_path):
    finished = []
    store = write_lib.add(tmp_path / "s", *setup, iter(DOCUMENTS), OPTIONS, finished.append)
    assert content(store) == content(whole)
    assert sum(finished) == len(DOCUMENTS) and max(finished) <= 4
    assert parents(store) == [document["id"] for document in DOCUMENTS]


class Killed(BaseException):
    """Ends the work at once, as a kill does: nothing catches it."""


def test_killed_anywhere_it_goes_on_to_the_same_store(whole, setup, tmp_path, monkeypatch):
    write, create = format.write_manifest, format.create_arrays

    def dying(function, calls):
        def run(*args):
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise Killed
            return function(*args)

        return run

    path, listed = tmp_path / "s", []
    for name, function in (("write_manifest", write), ("create_arrays", create)) * 2:
        with monkeypatch.context() as patch:
            patch.setattr(format, name, dying(function, 1))
            with pytest.raises(Killed):
                write_lib.add(path, *setup, DOCUMENTS, OPTIONS)
        listed.append(len(open_store(path).manifest.parts))
    assert listed == [0, 1, 2, 3] and len(whole.manifest.parts) > 4
    (path / "parts" / "00003" / "memories" / "more").mkdir(parents=True)  # of an unfinished part
    assert content(write_lib.add(path, *setup, DOCUMENTS, OPTIONS)) == content(whole)


def test_the_same_again_adds_nothing_and_new_documents_are_added(whole, setup, tmp_path):
    path = tmp_path / "s"
    write_lib.add(path, *setup, DOCUMENTS[:5], OPTIONS)
    before = content(write_lib.add(path, *setup, DOCUMENTS[:5], OPTIONS))
    other = dataclasses.replace(OPTIONS, part=100, dtype="int8")  # a store's own count
    store = write_lib.add(path, *setup, [*DOCUMENTS[3:], TEXTS[0], TEXTS[0]], other)
    after = content(store)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: value for name, value in before.items() if name != "manifest.json"
    }
    digest = Document("", "", TEXTS[0])
    assert parents(store) == [*(d["id"] for d in DOCUMENTS), pieces.digest(digest).hex()]
    assert store.dtype == "bfloat16" and max(part.rows for part in store.manifest.parts) <= 4
    rows = {d.whole: d for d in store.documents(range(store.rows))}
    assert len(rows) == len(DOCUMENTS) + len(whole.find(["d6"])) - 1  # d0 is there twice


def test_ids_that_stand_for_two_documents_are_told(setup, tmp_path):
    path = tmp_path / "s"
    with pytest.raises(UserError, match=r"^documents\[1\]: another document has the id 'a'; "):
        write_lib.add(path, *setup, [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])
    write_lib.add(path, *setup, [{"id": "a", "text": "x"}, DOCUMENTS[6]], OPTIONS)
    with pytest.raises(UserError, match="another document has the id 'a'"):
        write_lib.add(path, *setup, [{"id": "a", "title": "T", "text": "x"}])
    with pytest.raises(UserError, match="another document has the id 'd6#1'"):
        write_lib.add(path, *setup, [{"id": "d6#1", "text": "x"}])
    long = DOCUMENTS[6] | {"id": "b"}
    with pytest.raises(UserError, match="a piece of 'b' has the id 'b#0'"):
        write_lib.add(path, *setup, [{"id": "b#0", "text": "x"}, long])
    assert parents(open_store(path)) == ["a", "d6"]


def test_deleted_documents_may_come_back(whole, setup, tmp_path):
    path = tmp_path / "s"
    write_lib.add(path, *setup, DOCUMENTS, OPTIONS)
    gone = ["d1", "d6", "d19"]
    before = content(path)
    for ids, message in ((["d1", "x"], "no document of the id 'x'"),
                         (["d6#1"], "'d6#1' is a piece of 'd6'; delete the whole")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            write_lib.delete(path, ids)
    assert content(path) == before
    store = write_lib.delete(path, gone)
    left = [d["id"] for d in DOCUMENTS if d["id"] not in gone]
    assert parents(store) == left and store.rows == whole.rows
    with pytest.raises(UserError, match="no document of the id 'd6'"):
        write_lib.delete(path, ["d6"])
    store = write_lib.add(path, *setup, [{"id": "d6", "text": "now short"}], OPTIONS)
    assert parents(store) == [*left, "d6"]
    assert [d.text for d in store.documents(store.find(["d6"]))] == ["now short"]
    store = write_lib.delete(path, ["d6"])
    assert parents(store) == left


def test_compacting_keeps_what_is_left(whole, setup, tmp_path, monkeypatch):
    path = tmp_path / "s"
    write_lib.add(path, *setup, DOCUMENTS[:14], OPTIONS)
    for document in DOCUMENTS[14:]:
        write_lib.add(path, *setup, [document], OPTIONS)
    many = write_lib.delete(path, ["d4", "d6", "d15"])
    alive = np.flatnonzero(many.alive_R)
    expected = many.documents(alive), many.memories(alive)
    kept = {name for name in content(path) if name.startswith("parts/00000/")}
    with monkeypatch.context() as patch:  # a kill before and after the manifest is replaced
        patch.setattr(format, "write_manifest", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            write_lib.compact(path)
    assert parents(open_store(path)) == parents(many)
    store = write_lib.compact(path)
    assert store.alive_R.all() and not any(store.manifest.deleted.values())
    assert store.documents(range(store.rows)) == expected[0]
    np.testing.assert_array_equal(store.memories(range(store.rows)), expected[1])
    assert len(store.manifest.parts) < len(many.manifest.parts) - 4
    assert max(part.rows for part in store.manifest.parts) <= 4
    after = content(path)
    assert kept <= set(after), "parts that lose nothing stay as they are"
    names = {name.split("/")[1] for name in after if name.startswith("parts/")}
    assert names == {part.name for part in store.manifest.parts}
    sums = (store.manifest.fed_tokens, store.manifest.documents)
    assert sums == (sum(d.tokens for d in expected[0]), 17)
    assert content(write_lib.compact(path)) == after


def test_a_very_long_document_is_written_in_steps(setup, tmp_path):
    text = " . ".join(TEXTS)
    store = write_lib.add(tmp_path / "s", *setup, [{"id": "a", "text": text}, "b"], OPTIONS)
    assert [part.documents for part in store.manifest.parts] == [1, 1]
    assert store.manifest.parts[0].rows > 8
    assert " ".join(d.text for d in store.documents(store.find(["a"]))) == text
    small = write_lib.add(
        tmp_path / "t", *setup, [{"id": "a", "text": text}], config.Store(part=64, batch=4)
    )
    np.testing.assert_allclose(
        store.memories(store.find(["a"])), small.memories(small.find(["a"])), atol=0.05
    )
    write_lib.delete(tmp_path / "s", ["a"])
    assert write_lib.compact(tmp_path / "s").rows == 1


def test_what_is_cut_is_counted(setup, tmp_path):
    tokens = len(setup.model.tokenizer.encode("a " * 30))
    documents = [{"id": "a", "title": "a " * 30, "text": "it is so . " * 9}]
    store = write_lib.add(tmp_path / "s", *setup, documents, OPTIONS)
    found = store.documents(range(store.rows))
    kept = len(setup.model.tokenizer.encode(found[0].title))
    assert kept <= 20 and store.manifest.cut_tokens == tokens - kept
    assert all(d.tokens == len(setup.model.tokenizer.encode(d.whole)) <= 40 for d in found)


def test_only_one_run_changes_a_store(setup, tmp_path):
    path = tmp_path / "s"

    def documents():
        yield "one"
        with pytest.raises(UserError, match="another run is writing there"):
            write_lib.add(path, *setup, ["two"])
        yield "three"

    assert write_lib.add(path, *setup, documents()).rows == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else; give --store another name"):
        write_lib.add(other, *setup, ["one"])
    with pytest.raises(UserError, match="no store there"):
        write_lib.delete(other, ["one"])
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_store_that_a_server_keeps_is_not_compacted(setup, tmp_path):
    path = tmp_path / "s"
    write_lib.add(path, *setup, ["one", "two"])
    with locks.kept(str(path)), locks.kept(str(path)):
        with pytest.raises(UserError, match="a server answers from it; stop it first"):
            write_lib.compact(path)
        assert write_lib.add(path, *setup, ["three"]).rows == 3
    assert len(write_lib.compact(path).manifest.parts) == 1
    with pytest.raises(UserError, match="no store there"), locks.kept(str(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_names_of_parts_never_come_again(setup, tmp_path):
    path, names = tmp_path / "s", []
    for text in ("one", "two"):
        store = write_lib.add(path, *setup, [{"id": "a", "text": text}])
        names += [part.name for part in store.manifest.parts]
        write_lib.delete(path, ["a"])
        assert write_lib.compact(path).rows == 0
    assert names == ["00000", "00001"]


def test_a_full_disk_loses_nothing(setup, tmp_path, monkeypatch):
    path = tmp_path / "s"
    before = write_lib.add(path, *setup, ["one"]).manifest

    def full(*unused):
        raise OSError(28, "No space left on device")

    for name in ("write_table", "write_manifest", "create_arrays"):
        with monkeypatch.context() as patch:
            patch.setattr(format, name, full)
            with pytest.raises(UserError, match=r"No space left on device.*run the same command"):
                write_lib.add(path, *setup, ["two"])
        assert open_store(path).manifest == before
    assert write_lib.add(path, *setup, ["two"]).rows == 2


def test_memories_that_are_no_numbers_are_refused(setup, tmp_path):
    trees = setup.trees | {"memory": setup.trees["memory"] * float("nan")}
    with pytest.raises(UserError, match="'a': memories are not finite"):
        write_lib.add(tmp_path / "s", *altered(setup, trees=trees), [{"id": "a", "text": "b"}])


# --- Damage --------------------------------------------------------------------------------------


def changed(path: pathlib.Path, data: bytes = b"", place: int | None = None) -> None:
    """Writes other content, or changes one byte."""
    if place is not None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["documents.arrow", "memories/c/0/0/0", "checksums.json"])
def test_a_torn_end_is_left_out_and_made_again_by_the_same_command(
    whole, setup, tmp_path, caplog, name
):
    path = tmp_path / "s"
    many = write_lib.add(path, *setup, DOCUMENTS, OPTIONS)
    for part in many.parts[-2:]:  # as a power cut leaves what was not synced
        changed(path / "parts" / part.name / name)
    store = open_store(path)
    assert store.parts == many.parts[:-2]
    (line,) = {r.message for r in caplog.records}
    assert "opened without its last 2 parts" in line and "--documents makes it again" in line
    store.documents(range(store.rows))
    store.memories(range(store.rows))
    write_lib.repair(path)
    assert content(write_lib.add(path, *setup, DOCUMENTS, OPTIONS)) == content(whole)


def test_a_flipped_byte_in_a_part_is_told_and_mended(whole, setup, tmp_path):
    path = tmp_path / "s"
    write_lib.add(path, *setup, DOCUMENTS, OPTIONS)
    write_lib.delete(path, ["d0", "d5", "d19"])
    table = path / "parts/00001/documents.arrow"
    changed(table, place=table.stat().st_size // 2)
    message = r"parts/00001/documents\.arrow: this part .* differs from its checksum.*--verify"
    for call in (lambda s: s.documents(range(8)), lambda s: s.find(["d4"])):
        with pytest.raises(format.Damaged, match=message):
            call(open_store(path))
    memories = path / "parts/00002/memories/c/0/0/0"
    changed(memories, place=100)
    write_lib.repair(path)  # looks at documents and at sizes
    assert [part.name for part in open_store(path).parts][:2] == ["00000", "00002"]
    with pytest.raises(format.Damaged, match=r"parts/00002: memories/c/0/0/0 differs"):
        compress.run(str(path), verify=True)
    with pytest.raises(format.Damaged, match=r"parts/00002: memories/c/0/0/0 differs"):
        write_lib.compact(path)
    write_lib.repair(path, verify=True)
    store = write_lib.add(path, *setup, DOCUMENTS[:19], OPTIONS)
    compress.run(str(path), verify=True)
    there = {d.parent for d in store.documents(np.flatnonzero(store.alive_R))}
    assert there == {document["id"] for document in DOCUMENTS[:19]}


def test_a_store_of_an_earlier_version_is_read_and_its_damage_ends_no_process(setup, tmp_path):
    path = tmp_path / "s"
    store = write_lib.add(path, *setup, DOCUMENTS[:8], OPTIONS)
    ids = [d.id for d in store.documents(range(store.rows))]
    for seal in path.rglob("checksums.json"):
        seal.unlink()
    manifest = path / "manifest.json"
    manifest.write_text(re.sub(r',\s*"crc32": \d+', "", manifest.read_text()))
    assert [d.id for d in open_store(path).documents(range(store.rows))] == ids
    table = path / "parts/00000/documents.arrow"
    offsets = np.array([len("d0")], np.int64).tobytes()  # the second offset of the ids
    data = table.read_bytes()
    table.write_bytes(data.replace(offsets, np.array([2**40], np.int64).tobytes(), 1))
    with pytest.raises(format.Damaged, match="this part of the store cannot be read"):
        open_store(path).documents(range(4))


def test_a_changed_manifest_is_told(setup, tmp_path):
    path = tmp_path / "s"
    write_lib.add(path, *setup, DOCUMENTS[:8], OPTIONS)
    write_lib.delete(path, ["d1"])
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"d1"', '"d2"'))
    with pytest.raises(format.Damaged, match="differs from its checksum"):
        open_store(path)


def test_deleting_and_compacting_can_be_repeated(setup, tmp_path):
    path = tmp_path / "s"
    write_lib.add(path, *setup, DOCUMENTS, OPTIONS)
    for _ in range(2):
        write_lib.delete(path, ["d1", "d6"], again=True)
    for _ in range(2):
        write_lib.delete(path, ["d1", "d6"], again=True)
        store = write_lib.compact(path)
    assert parents(store) == [d["id"] for d in DOCUMENTS if d["id"] not in ("d1", "d6")]
    with pytest.raises(UserError, match="no document of the id 'x'"):
        write_lib.delete(path, ["d1", "x"], again=True)
    with pytest.raises(UserError, match="no document of the id 'd1'"):
        write_lib.delete(path, ["d1"])


def test_a_full_disk_leaves_no_part_behind(setup, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(format, "seal", full)
    with pytest.raises(UserError, match="No space left"):
        write_lib.add(tmp_path / "s", *setup, DOCUMENTS, OPTIONS)
    assert not list((tmp_path / "s/parts").iterdir())
