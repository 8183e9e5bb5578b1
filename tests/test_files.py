"""Runs and data on gs://, with a folder of this machine as the bucket."""

import dataclasses
import json
import os
import pathlib
import sys

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from orbax.checkpoint._src.path import gcs_utils

from clara_jax import files, ledger
from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Store, Train, freeze
from clara_jax.corpus import format, write
from clara_jax.data.sources import JsonlSource
from clara_jax.errors import UserError
from clara_jax.evaluation import results
from clara_jax.ledger import Ledger
from clara_jax.models.config import LoraConfig
from clara_jax.runs import lineage
from clara_jax.runs import setup as setup_lib
from clara_jax.runs import workdir as workdir_lib
from clara_jax.runs.checkpoint import Checkpoints
from clara_jax.runs.load import load_setup
from clara_jax.training.train import train


class Bucket(DirFileSystem):
    """What gcsfs would be: objects appear when they are whole, and none is ever appended to."""

    protocol = ("gs", "gcs")
    folder = ""

    def __init__(self, **unused):
        super().__init__(path=self.folder, fs=LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(os.fspath(path)).lstrip("/")

    def open(self, path, mode="rb", **kwargs):
        assert "a" not in mode and "+" not in mode
        return super().open(path, mode, **kwargs)


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder that gs://bucket is."""
    folder = tmp_path / "storage"
    folder.mkdir()
    monkeypatch.setattr(Bucket, "folder", str(folder))
    for name in Bucket.protocol:
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, name, Bucket)
    Bucket.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()

    def store(path):
        is_folder = not path.endswith("/_sharding")  # for GCS all names are alike
        where, inside = gcs_utils.parse_gcs_path(path, add_trailing_slash=is_folder)
        return {"driver": "file", "path": f"{folder}/{where}/{inside}"}

    # What Orbax does without epath: arrays through TensorStore, and a question to the bucket.
    monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", store)
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield folder / "bucket"
    Bucket.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()


def tiny(sources: str, steps: int) -> Config:
    return Config(
        model=Model(preset="tiny", tokenizer="facts", vocab_size=192),
        lora=LoraConfig(dropout=0.0),
        data=Data(sources=sources, document_length=40, rate=10, encoder_row=48, decoder_row=192),
        memory=Memory(init="tokens"),
        train=Train(steps=steps, batch_rows=2, log_every=1, checkpoint_every=2),
        eval=Eval(sources=sources, records=2, max_new_tokens=2),
        mesh=Mesh(fsdp=1),
    )


RECORDS = [
    {"data_type": "qa", "question": [f"who is {n} ?"], "answers": ["a"], "docs": [f"{n}\nis a"]}
    for n in range(300)
]


def test_a_run_on_gs_is_resumed_and_read(bucket, tmp_path, monkeypatch, named):
    bucket.mkdir()
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (bucket / "train.jsonl").write_text(text)
    workdir, half = "gs://bucket/runs/one", tiny("gs://bucket/train.jsonl", 2)
    saved, save = [], Checkpoints.save

    def note(self, step, *rest):
        saved.append((step, len(workdir_lib.read_metrics(workdir))))
        save(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", note)
        assert train(half, workdir) == 0
    assert saved == [(2, 2)]  # what a resumed run will not write again is there
    # What a kill may leave: a checkpoint without the mark of its end is none.
    run = bucket / "runs" / "one"
    (run / "checkpoints" / "3").mkdir()
    whole = dataclasses.replace(half, train=dataclasses.replace(half.train, steps=4), profile=1)
    assert train(whole, workdir) == 0
    kept = ["checkpoints", "config.json", "data.json", "metrics.jsonl", "origins.json", "profile"]
    assert sorted(os.listdir(run)) == kept
    (trace,) = (run / "profile" / "plugins").rglob("*.xplane.pb")
    assert b"(alignment)/" in trace.read_bytes()
    assert [line["step"] for line in workdir_lib.read_metrics(workdir)] == [1, 2, 3, 4]
    (run / "checkpoints" / "9").mkdir()
    assert load_setup(workdir).model.step == 4
    result = {
        "step": 4,
        "conditions": {"memory": {}},
        "predictions": [{"question": "?", "answer": "a", "memory": "a"}],
    }
    assert results.write(result, workdir) == f"{workdir}/eval/4.json"
    assert workdir_lib.newest_evaluation(workdir) == result
    later = dataclasses.replace(half, init_from=workdir)
    files.make_folder("gs://bucket/runs/two")
    lineage.save_origins("gs://bucket/runs/two", later)
    assert lineage.read_origins("gs://bucket/runs/two") == {"one": 4}
    assert not [name for name in os.listdir(tmp_path) if name.startswith("gs:")]


def test_a_remote_source_is_copied_once_and_again_when_it_has_changed(bucket, tmp_path):
    bucket.mkdir()
    file = bucket / "a.jsonl"
    file.write_text(json.dumps(RECORDS[0]) + "\n")
    assert len(JsonlSource("gs://bucket/a.jsonl")) == 1
    copy = files.local("gs://bucket/a.jsonl")
    assert copy.startswith(str(tmp_path / "cache")) and copy.endswith("a.jsonl")
    before = os.stat(copy).st_ino
    assert files.local("gs://bucket/a.jsonl") == copy and os.stat(copy).st_ino == before
    file.write_text(2 * (json.dumps(RECORDS[1]) + "\n"))
    assert len(JsonlSource("gs://bucket/a.jsonl")) == 2
    with pytest.raises(UserError, match=r"gs://bucket/none\.jsonl: cannot be read"):
        files.local("gs://bucket/none.jsonl")
    file.write_text("{}\n")
    with pytest.raises(UserError, match=r"^gs://bucket/a\.jsonl:1: "):  # not the copy's name
        JsonlSource("gs://bucket/a.jsonl")


def test_a_ledger_on_gs_is_written_again_as_a_whole(bucket, monkeypatch):
    name, entries = "gs://bucket/lines", []
    with Ledger(name) as lines:
        lines.append({"n": 1})
        assert not (bucket / "lines").exists()
        lines.flush()
        assert (bucket / "lines").read_text() == '{"n": 1}\n'
        monkeypatch.setattr(ledger, "_PAUSE", 0.0)
        assert lines.append({"n": "é"}) == 9
        assert (bucket / "lines").read_text() == '{"n": 1}\n{"n": "é"}\n'
    with Ledger(name, size=9) as lines:
        lines.append({"n": 3})
    assert ledger.read(name, lambda entry, start: entries.append((entry["n"], start))) == 18
    assert entries == [(1, 0), (3, 9)]


def test_half_a_file_never_shows(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(RuntimeError), files.whole_file(path) as f:  # noqa: PT012
        f.write("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    for content in ("whole, é", b"\xff"):
        files.write(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


def test_a_lock_is_held_by_one_or_shared_by_many(tmp_path):
    name = str(tmp_path / ".lock")
    with files.lock(name, "in use", shared=True), files.lock(name, "in use", shared=True):
        with pytest.raises(files.Busy, match=r"^in use$"), files.lock(name, "in use"):
            pass
    with files.lock(name, "in use", wait=True):
        with pytest.raises(files.Busy), files.lock(name, "in use", shared=True):
            pass


def test_urls_that_cannot_be_used(monkeypatch, tmp_path):
    def missing(scheme):
        raise ImportError("Please install gcsfs")

    with pytest.raises(UserError, match="a local folder or on gs://"):
        train(tiny("facts:9", 1), "s3://bucket/run")
    with pytest.raises(UserError, match="nope:// is no storage"):
        files.local("nope://a/b")
    config = tiny("facts:9", 1)
    data = dataclasses.asdict(dataclasses.replace(config.data, memories="gs://b/m"))
    with pytest.raises(UserError, match=r"config\.data\.memories='gs://b/m' must be a local"):
        freeze({"data": data})
    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    for act in (lambda: train(tiny("facts:9", 1), "gs://b/r"), lambda: load_setup("gs://b/r")):
        with pytest.raises(UserError, match=r"^gs://b/r.* pip install 'clara-jax\[gcs\]'$"):
            act()


def test_what_a_storage_raises_is_told(bucket, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("403: forbidden\nand more")

    monkeypatch.setattr(Bucket, "exists", refuse)
    with pytest.raises(UserError, match=r"gs://bucket/r: cannot be reached .*403: forbidden\)$"):
        train(tiny("facts:9", 1), "gs://bucket/r")
    monkeypatch.setattr(Bucket, "open", refuse)
    with pytest.raises(OSError, match="403"):
        files.read("gs://bucket/r/config.json")
    monkeypatch.setattr(Bucket, "exists", lambda *_, **__: False)
    with pytest.raises(UserError, match=r"^gs://bucket/r/eval: cannot write .*403: forbidden\)$"):
        results.write({"step": 1}, "gs://bucket/r")


def test_a_store_on_gs(bucket, tmp_path, monkeypatch):
    original = format.kvstore

    def kvstore(folder):
        return original(folder.replace("gs://", f"{bucket.parent}/"))

    expected = format.kvstore("gs://bucket/stores/one/parts/00000/memories")
    assert expected == {
        "driver": "gcs", "bucket": "bucket", "path": "stores/one/parts/00000/memories/",
    }  # fmt: skip
    monkeypatch.setattr(format, "kvstore", kvstore)
    texts = [f"{n} is a" for n in range(7)]
    setup = setup_lib.create(tiny("", 1))
    name, options = "gs://bucket/stores/one", Store(part=3, batch=8)
    bucket.mkdir()
    write.add(name, *setup, texts[:4], options)
    unfinished = bucket / "stores" / "one" / "parts" / "00002" / "memories"  # as a kill leaves it
    unfinished.mkdir(parents=True)
    (unfinished / "zarr.json").write_text("{")
    remote = write.add(name, *setup, texts, options)
    local = write.add(tmp_path / "local", *setup, texts[:4], options)
    local = write.add(tmp_path / "local", *setup, texts, options)
    assert remote.documents(range(7)) == local.documents(range(7))
    (first, block), *_ = remote.blocks(7)
    assert first == 0 and block.tobytes() == next(local.blocks(7))[1].tobytes()
    gone = remote.documents([1])[0].id
    write.delete(name, [gone])
    compacted = write.compact(name)
    assert list(compacted.texts()) == [text for text in texts if text != texts[1]]
    parts = {path.name for path in (bucket / "stores" / "one" / "parts").iterdir()}
    assert parts == {part.name for part in compacted.manifest.parts}
    assert not [name for name in os.listdir(tmp_path) if name.startswith("gs:")]
