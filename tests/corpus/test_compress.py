import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from clara_jax import checksums
from clara_jax.config import Config, Search, Store
from clara_jax.corpus import compress, format, write
from clara_jax.corpus.search import fit, retrieval, run
from clara_jax.corpus.search.combine import DEFAULT, with_alpha
from clara_jax.corpus.search.search import of_model
from clara_jax.corpus.store import open_store
from clara_jax.data.facts import FactsSource
from clara_jax.errors import UserError
from clara_jax.inference.encode import encode_query
from clara_jax.runs.load import load_setup

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXTS = [FactsSource(40, seed=6)[i].document for i in range(40)]
PART = 5


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "d.jsonl", TEXTS)


def written(path, texts):
    lines = ({"id": f"d{i}", "text": text} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def content(folder) -> dict[str, bytes]:
    files = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != ".lock"}


def small_parts():
    return Config(store=Store(part=PART, batch=PART))


def test_documents_are_added_deleted_and_compacted(workdir, file, tmp_path, capsys):
    store, ids = str(tmp_path / "store"), tmp_path / "ids.txt"
    ids.write_text("d3\n\nd4\n")
    compress.run(store, workdir, file, config=small_parts())
    opened = open_store(store)
    manifest = opened.manifest
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"{store}: 40 documents, 8 parts"
    assert second.startswith(f"{manifest.fed_tokens} tokens read, 0 cut; realised compression ")
    assert third.startswith("memories 0.0 MB in bfloat16, text 0.0 MB: ")
    compress.run(store, delete=str(ids))
    assert "(2 rows are deleted; --compact takes them away)" in capsys.readouterr().out
    compress.run(store, delete="d1, d2", compact=True)
    assert capsys.readouterr().out.startswith(f"{store}: 36 documents, ")
    compress.run(store, workdir, file)  # what was deleted is in the file
    assert capsys.readouterr().out.startswith(f"{store}: 40 documents, ")


def test_mistakes_are_told_before_any_work(workdir, file, tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "load_setup", lambda *_: pytest.fail("loaded"))
    store = str(tmp_path / "store")
    for arguments, message in (
        ({}, "needs --documents"),
        ({"documents": file}, "needs both --workdir and --documents"),
        ({"workdir": workdir}, "needs --documents"),
        ({"workdir": workdir, "delete": "d1"}, "needs both"),
        ({"fit": file}, "needs both --workdir and --documents, or --fit"),
        ({"fit": file, "workdir": workdir}, "d.jsonl:1: question must be a text"),
        ({"compact": True, "base": "b"}, "--base and --config are for --documents"),
        ({"delete": "d1"}, "no store there"),
        ({"delete": ","}, "names no document"),
        ({"compact": True}, "no store there"),
        ({"workdir": workdir, "documents": str(tmp_path)}, "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            compress.run(store, **arguments)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(pathlib.Path(file).read_text() + '{"id": "d0", "text": "other"}\n')
    with pytest.raises(UserError, match=r"broken.jsonl:41: another document has the id 'd0'"):
        compress.run(store, workdir, str(broken))
    assert not os.path.exists(store)


def test_parquet_and_text_give_the_same_as_lines(workdir, file, tmp_path):
    table = pyarrow.table({"id": [f"d{i}" for i in range(9)], "contents": TEXTS[:9]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    for name, documents in (("a", str(tmp_path / "d.parquet")),
                            ("b", written(tmp_path / "few.jsonl", TEXTS[:9]))):  # fmt: skip
        compress.run(str(tmp_path / name), workdir, documents, config=small_parts())
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_shares_of_workers_are_joined_and_searched(workdir, tmp_path, capsys):
    file, joined = written(tmp_path / "d.jsonl", TEXTS[:9]), str(tmp_path / "joined")
    stores = [str(tmp_path / f"s{i}") for i in range(2)]
    for i, store in enumerate(stores):
        compress.run(store, workdir, file, shard=f"{i}/2")
    compress.run(joined, join=",".join(stores))
    assert f"{joined}: 9 documents, 2 parts" in capsys.readouterr().out
    made = load_setup(workdir)
    searched = of_model(open_store(joined), *made, Search())
    [hits] = searched.search(encode_query(*made, TEXTS[:1]), TEXTS[:1], 9)
    assert sorted(hit.row for hit in hits) == list(range(9))


# --- An alpha of the search ----------------------------------------------------------------------


@pytest.fixture
def fitted(workdir, file, tmp_path):
    """A store, a file of questions, and arguments that fit them."""
    questions = [{"question": f"who is {text[8:20]} ?", "docs": ["", text], "pos_index": [1]}
                 for text in TEXTS[:6]]  # fmt: skip
    questions += [{"question": "who is it ?", "ids": [name]} for name in ("d7", "gone")]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in questions))
    return str(tmp_path / "store"), str(path), {"workdir": workdir, "fit": str(path)}


def test_an_alpha_is_fitted_and_kept(fitted, workdir, file, capsys, caplog):
    store, path, arguments = fitted
    compress.run(store, documents=file, **arguments)
    printed = capsys.readouterr().out.splitlines()[-1]
    info = checksums.loads((pathlib.Path(store) / "search/alpha.json").read_text())
    assert printed.startswith(f"alpha {info['alpha']:.2f}, fitted on 7 questions (1 left out): ")
    opened, made = open_store(store), load_setup(workdir)
    questions = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()][:7]
    texts = [one["question"] for one in questions]
    golds = [["d7"] if "ids" in one else [f"d{n}"] for n, one in enumerate(questions)]
    by_alpha = {each["alpha"]: (each["recall@1"], each["mrr"]) for each in info["metrics"]}
    assert len(by_alpha) == 21 and by_alpha[info["alpha"]] == max(by_alpha.values())
    queries = encode_query(*made, texts)
    for alpha in (0.05, 0.55, 1):  # as a search with it finds them
        hits = of_model(opened, *made, Search(alpha=alpha)).search(queries, texts, 40)
        ids = [[d.id for d in opened.documents([h.row for h in own])] for own in hits]
        values = retrieval.values(ids, golds, ks=(1,))
        expected = [np.mean(values[name]) for name in ("recall@1", "mrr")]
        assert by_alpha[alpha] == pytest.approx(expected)
    assert f"alpha {info['alpha']:.2f}" in of_model(opened, *made, Search()).describe()
    assert "alpha 0.15" in of_model(opened, *made, Search(alpha=0.15)).describe()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_an_alpha_of_other_things_is_told(fitted, workdir, file, caplog):
    store, path, _ = fitted
    compress.run(store, workdir, file)
    made = load_setup(workdir)
    place, opened = pathlib.Path(store) / "search/alpha.json", open_store(store)
    assert with_alpha(Search(), opened, *made).alpha == DEFAULT
    info = fit.fit(opened, *made, path, Search())
    caplog.clear()
    for changes, alpha, message in (
        ({"alpha": 0.85}, 0.85, ""),
        ({"alpha": 0.85, "rows": 10}, 0.85, "had 10 rows when its alpha was fitted and has 40 now"),
        ({"alpha": 0.85, "rows": 100}, 0.85, "had 100 rows"),
        ({"alpha": 0.85, "model": "x"}, DEFAULT, "its alpha is of another model; 0.3 is used"),
        ({"alpha": 7}, DEFAULT, "damaged"),
    ):
        place.write_text(checksums.dumps(info | changes))
        assert with_alpha(Search(), opened, *made).alpha == alpha
        assert message in caplog.text and bool(message) == bool(caplog.records)
        caplog.clear()
    place.write_text(checksums.dumps(info).replace('"alpha"', '"beta"', 1))
    assert with_alpha(Search(), opened, *made).alpha == DEFAULT
    assert "differs from its checksum); 0.3 is used; fit it again" in caplog.text


def test_a_beir_folder_and_its_run(workdir, tmp_path, capsys):
    folder, store, output = tmp_path / "set", str(tmp_path / "store"), tmp_path / "run.trec"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(TEXTS)]
    queries = [{"_id": f"q{i}", "text": " ".join(TEXTS[i].split()[:4])} for i in range(5)]
    for name, values in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(value) + "\n" for value in values)
        (folder / f"{name}.jsonl").write_text(lines)
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(5))
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    compress.run(store, workdir, str(folder), fit=f"{folder}:test")
    assert "fitted on 5 questions (0 left out)" in capsys.readouterr().out
    run.run(store, workdir, f"{folder}:test", output=str(output))
    told, metrics = capsys.readouterr().out.splitlines()
    assert told.startswith("5 questions, keys: ") and "| BM25, alpha " in told
    lines = [line.split() for line in output.read_text().splitlines()]
    assert {(line[1], line[5]) for line in lines} == {("Q0", "clara")} and len(lines) == 5 * 40
    ranks = [int(line[3]) for line in lines if line[0][1:] == line[2][1:]]
    assert [float(line[4]) for line in lines] == [1 / int(line[3]) for line in lines]
    assert f" mrr {np.mean(1 / np.array(ranks)):.4f} ndcg@10 " in metrics
    assert metrics.startswith(f"recall@1 {np.mean(np.array(ranks) == 1):.4f} recall@5 ")


def test_what_cannot_be_fitted(fitted, workdir, file, tmp_path):
    store, path, arguments = fitted
    compress.run(store, workdir, file)
    with pytest.raises(UserError, match="no BM25 to combine"):
        compress.run(store, config=Config(search=Search(by="keys")), **arguments)
    pathlib.Path(path).write_text('{"question": "who ?", "ids": ["gone"]}')
    with pytest.raises(UserError, match="names no document of"):
        compress.run(store, **arguments)


# --- A real kill ---------------------------------------------------------------------------------


def test_kill_9_and_again_is_the_same_store(workdir, file, tmp_path):
    """A process of the command line is killed when two parts are there."""
    whole = tmp_path / "whole"
    write.add(whole, *load_setup(workdir), compress.stream(file), small_parts().store)
    store = tmp_path / "store"
    program = (
        "import sys, time\n"
        "from clara_jax.corpus import compress, write as write_lib\n"
        "from clara_jax.config import Config, Store\n"
        "begin = write_lib._Writer.write\n"
        "def write(self, rows):\n"
        "    begin(self, rows)\n"
        "    time.sleep(0.2)\n"
        "write_lib._Writer.write = write\n"
        f"options = Config(store=Store(part={PART}, batch={PART}))\n"
        "compress.run(*sys.argv[1:4], config=options)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(store), workdir, file], cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            manifest = store / "manifest.json"
            if manifest.exists() and len(format.read_manifest(str(store)).parts) >= 2:
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
    listed = len(format.read_manifest(str(store)).parts)
    assert 2 <= listed < 8
    done = []
    setup = load_setup(workdir)
    write.add(store, *setup, compress.stream(file), small_parts().store, done.append)
    assert sum(done) == len(TEXTS) - PART * listed
    # Two processes may round differently, as one reads from the cache what the other compiled.
    rounded = ("/memories/c/", "checksums.json")
    found, wanted = (
        {name: data for name, data in content(path).items() if not any(x in name for x in rounded)}
        for path in (store, whole)
    )
    assert found == wanted
    rows = range(len(TEXTS))
    memories = open_store(store).memories(rows)
    np.testing.assert_allclose(memories, open_store(whole).memories(rows), atol=0.05)
    assert np.isfinite(memories).all()
