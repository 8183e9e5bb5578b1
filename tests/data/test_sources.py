"""Sources: random access, errors with their place, the split by title, and TFDS both ways."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds

from clara_jax.data import sources
from clara_jax.data.facts import FactsSource
from clara_jax.data.importers import tfds_builder
from clara_jax.errors import UserError


def qa(title: str, text: str = "text", pairs: int = 1) -> dict:
    return {
        "data_type": "qa",
        "question": [f"é{i} {title}?" for i in range(pairs)],
        "answers": [f"a{i}" for i in range(pairs)],
        "docs": [f"{title}\n{text}"],
    }


def e2e(titles: list[str], gold: list[int]) -> dict:
    documents = [f"{title}\ntext" for title in titles]
    return {"question": "q", "docs": documents, "answer": "a", "pos_index": gold}


def write(path, rows) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_random_access_with_origins(tmp_path):
    path = write(tmp_path / "a.jsonl", [qa("é t0"), "", qa("t1"), e2e(["x", "y", "z"], [2, 0])])
    source = sources.JsonlSource(path)
    documents = ["é t0\ntext", "t1\ntext", "z\ntext", "x\ntext"]
    assert [source[i].document for i in range(len(source))] == documents
    assert source[3].document == documents[3] and source[0].document == documents[0]
    origins = [source[i].origin for i in range(4)]
    assert origins == [f"{path}:1", f"{path}:3", f"{path}:4", f"{path}:4"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2] == source[2]


def test_threads_do_not_disturb_each_other(tmp_path):
    path = write(tmp_path / "a.jsonl", [qa(f"t{i}", "x" * (i % 37)) for i in range(300)])
    source = sources.JsonlSource(path)
    order = np.random.default_rng(0).integers(0, 300, 3000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for i, record in zip(order, pool.map(source.__getitem__, order), strict=True):
            assert record.document.startswith(f"t{i}\n")


def test_malformed_line_is_found_when_opening(tmp_path):
    path = write(tmp_path / "a.jsonl", [qa("t"), qa("u") | {"question": "plain"}])
    with pytest.raises(UserError, match=rf"^{path}:2: question must be a list"):
        sources.open_source(path)
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
        sources.open_source(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"no records.*pos_index"):
        sources.open_source(write(tmp_path / "b.jsonl", [e2e(["x"], [])]))
    with pytest.raises(UserError, match=r"c\.jsonl: is empty"):
        sources.open_source(write(tmp_path / "c.jsonl", [" "]))


def test_reconstruct_gives_distinct_documents(tmp_path):
    path = write(tmp_path / "a.jsonl", [e2e(["x", "y"], [0]), e2e(["y", "z"], []), qa("x")])
    source = sources.open_source(f"reconstruct:{path}")
    records = [source[i] for i in range(len(source))]
    assert [r.document for r in records] == ["x\ntext", "y\ntext", "z\ntext"]
    assert all(r.data_type == "reconstruction" and r.answers == (r.document,) for r in records)
    assert records[2].origin == f"{path}:2"


def test_continue_gives_halves(tmp_path):
    documents = [
        "t\nOne two. Three four five. Six.",
        "一句话。两句话。",
        "no sentence here ends",
        "x",
    ]
    path = write(tmp_path / "a.jsonl", [e2e([], []) | {"docs": documents}])
    source = sources.open_source(f"continue:{path}")
    halves = [(source[i].document, *source[i].answers) for i in range(len(source))]
    assert halves == [
        ("t\nOne two.", "Three four five. Six."),
        ("一句话。", "两句话。"),
        ("no sentence", "here ends"),
    ]
    assert {source[i].data_type for i in range(len(source))} == {"continuation"}


def test_several_sources_are_one(tmp_path):
    a = write(tmp_path / "a.jsonl", [qa(f"a{i}") for i in range(3)])
    b = write(tmp_path / "b.jsonl", [qa(f"b{i}") for i in range(2)])
    source = sources.open_sources(f"{a}, reconstruct:{b},2*{b}")
    documents = [source[i].document.split("\n")[0] for i in range(len(source))]
    assert documents == ["a0", "a1", "a2", "b0", "b1", "b0", "b1", "b0", "b1"]
    assert [source[i].data_type[0] for i in range(9)] == list("qqqrrqqqq")
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def titles(source) -> list[str]:
    return [source[i].document.split("\n")[0] for i in range(len(source))]


def test_holdout_keeps_titles_apart(tmp_path):
    rows = [qa(f"title {i % 200}", f"text {i}") for i in range(600)]
    a = write(tmp_path / "a.jsonl", rows)
    names = f"{a},reconstruct:{a}"
    train = sources.open_sources(names, split="train", holdout=0.2)
    dev = sources.open_sources(names, split="dev", holdout=0.2)
    assert not set(titles(train)) & set(titles(dev))
    assert len(train) + len(dev) == 1200 and len(set(titles(train)) | set(titles(dev))) == 200
    assert 20 < len(set(titles(dev))) < 60
    # The split does not depend on what else is read: a larger file keeps every title's side.
    more = write(tmp_path / "b.jsonl", [qa(f"title {i}") for i in range(400)])
    dev_more = set(titles(sources.open_sources(more, split="dev", holdout=0.2)))
    assert dev_more & {f"title {i}" for i in range(200)} == set(titles(dev))
    with pytest.raises(UserError, match=r"belongs to dev with config\.data\.holdout=0"):
        sources.open_sources(a, split="dev")
    with pytest.raises(UserError, match=r"config\.data\.sources is empty"):
        sources.open_sources("")
    with pytest.raises(UserError, match=r"²\*a\.jsonl: cannot be read"):
        sources.open_sources("²*a.jsonl")


def test_holdout_over_files_of_both_forms(tmp_path):
    scp = write(tmp_path / "scp.jsonl", [qa(f"Place {i}") for i in range(1500)])
    groups = [[f"Place {7 * i}", f"Person {i}", f"Person {i + 1}"] for i in range(500)]
    questions = write(tmp_path / "qa.jsonl", [e2e(group, [0]) for group in groups])
    names = f"{scp},reconstruct:{questions}"
    train = set(titles(sources.open_sources(names, split="train", holdout=0.05)))
    dev = set(titles(sources.open_sources(names, split="dev", holdout=0.05)))
    assert dev and not train & dev
    assert 0.03 < len(dev) / (len(dev) + len(train)) < 0.07


def test_tfds_round_trip(tmp_path):
    rows = [qa(f"t{i}", "é", pairs=i % 3 + 1) for i in range(7)]
    rows.append({"data_type": "paraphrase", "answers": ["p"], "docs": ["d"]})
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", [qa("dev")])
    output = str(tmp_path / "tfds")
    arguments = ["--name", "my_scp", "--output", output, f"train={a}", f"dev={b}"]
    assert tfds_builder.main(arguments) == 0
    source = sources.open_source("tfds:my_scp/train", output)
    original = sources.open_source(a)

    def fields(source):
        records = [source[i] for i in range(len(source))]
        return sorted((r.data_type, r.questions, r.answers, r.document) for r in records)

    assert fields(source) == fields(original)
    assert source[2].origin == "tfds:my_scp/train:2"
    assert pickle.loads(pickle.dumps(source))[3] == source[3]
    assert len(sources.open_source("tfds:my_scp/dev", output)) == 1
    assert list((tmp_path / "tfds").rglob("*.array_record*"))
    with pytest.raises(UserError, match="tfds:my_scp/other: cannot be opened"):
        sources.open_source("tfds:my_scp/other", output)


def test_aliases_survive_tfds(tmp_path):
    rows = [e2e(["x", "y"], [1]) | {"aliases": ["b", "é"]}, qa("z", pairs=3)]
    a = write(tmp_path / "a.jsonl", rows)
    tfds_builder.build("with_aliases", str(tmp_path), {"train": a})
    built, original = sources.open_source("tfds:with_aliases/train", str(tmp_path)), [*read(a)]
    accepted = {record.document: record.accepted for record in original}
    assert accepted["y\ntext"] == (("a", "b", "é"),)
    assert {built[i].document: built[i].accepted for i in range(len(built))} == accepted


def read(name: str) -> list:
    source = sources.open_source(name)
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("kept", [0, 100, 65536, 131062])
def test_truncated_shard(tmp_path, kept):
    a = write(tmp_path / "a.jsonl", [qa(f"t{i}") for i in range(3)])
    tfds_builder.build("cut", str(tmp_path), {"train": a})
    (shard,) = tmp_path.rglob("*.array_record*")
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(UserError, match="tfds:cut/train:0: cannot be read") as error:
        sources.open_source("tfds:cut/train", str(tmp_path))
    assert "\n" not in str(error.value)


class Squad(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Rows as TFDS's own SQuAD has them."""

    name = "small_squad"
    code_path = None  # a test module has no package in which TFDS could look for checksums
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        answers = tfds.features.Sequence({"text": text, "answer_start": np.int32})
        features = {"title": text, "context": text, "question": text, "answers": answers}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            known = {"text": [f"a{i}", "b"], "answer_start": [0, 1]}
            none = {"text": [], "answer_start": []}
            yield (
                i,
                {
                    "title": f"The_{i % 4}",
                    "context": f"context {i % 4}",
                    "question": f"q{i}",
                    "answers": none if i in (0, 3, 7, 11) else known,
                },
            )


def test_squad_rows_of_a_context_make_one_record(tmp_path):
    Squad(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = sources.open_source("tfds:small_squad/train", str(tmp_path))
    found = {source[i].document: dict(zip(source[i].questions, source[i].answers, strict=True))
             for i in range(len(source))}  # fmt: skip
    assert found == {
        "The 0\ncontext 0": {"q4": "a4", "q8": "a8"},
        "The 1\ncontext 1": {"q1": "a1", "q5": "a5", "q9": "a9"},
        "The 2\ncontext 2": {"q2": "a2", "q6": "a6", "q10": "a10"},
    }


def test_tfds_mistakes(tmp_path):
    with pytest.raises(UserError, match="give tfds:name/split"):
        sources.open_source("tfds:squad")
    with pytest.raises(UserError, match="tfds:no_such_set/train: cannot be opened"):
        sources.open_source("tfds:no_such_set/train", str(tmp_path))


def test_missing_package_is_named(tmp_path, monkeypatch):
    def data_source(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    monkeypatch.setattr(tfds, "data_source", data_source)
    with pytest.raises(UserError, match=r"tfds:x/train: .*install absent"):
        sources.open_source("tfds:x/train", str(tmp_path))


def test_builder_command_line(tmp_path):
    command = [sys.executable, "-m", "clara_jax.data.importers.tfds_builder"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "split=sources" in shown.stdout
    bad = write(tmp_path / "bad.jsonl", ["{"])
    arguments = ["--name", "x", "--output", str(tmp_path), f"train={bad}"]
    code = "import sys; from clara_jax.data.importers import tfds_builder; "
    code += "r = tfds_builder.main(sys.argv[1:]); "
    code += "assert 'tensorflow' not in sys.modules; sys.exit(r)"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 2 and f"{bad}:1: not JSON" in result.stderr
    assert "Traceback" not in result.stderr
    assert tfds_builder.main(["--name", "Bad Name", "--output", "x", f"train={bad}"]) == 2
    assert tfds_builder.main(["--name", "x", "--output", "x", bad]) == 2


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["={a}"], "split ''"),
        (["all={a}"], "split 'all'"),
        (["tr ain[x]={a}"], r"split 'tr ain\[x\]'"),
        (["train={a}", "train=b.jsonl"], "train twice; write train=.*a.jsonl,b.jsonl"),
    ],
)
def test_builder_refuses_bad_splits(tmp_path, capsys, splits, message):
    a = write(tmp_path / "a.jsonl", [qa("t")])
    arguments = [split.format(a=a) for split in splits]
    assert tfds_builder.main(["--name", "x", "--output", str(tmp_path / "o"), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_builder_needs_a_directory_to_write_to(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", [qa("t")])
    assert tfds_builder.main(["--name", "x", "--output", a, f"train={a}"]) == 2
    assert f"--output {a}: cannot be written to" in capsys.readouterr().err


def test_split_names_may_hold_hyphens(tmp_path):
    a = write(tmp_path / "a.jsonl", [qa("t")])
    tfds_builder.build("hyphen", str(tmp_path), {"a-b": a})
    assert len(sources.open_source("tfds:hyphen/a-b", str(tmp_path))) == 1


def test_text_of_another_source_is_not_compressed():
    plain, text = sources.open_source("facts:5:2"), sources.open_source("text:facts:5:2")
    assert len(text) == 5 and (text.keys == plain.keys).all()
    assert text[3] == dataclasses.replace(plain[3], compress=False)


def test_each_question_of_an_scp_source_by_itself(tmp_path):
    source = sources.open_source("each:facts:4:2", form="qa")
    plain = sources.open_source("facts:4:2")
    asked = [(q, a, plain[i].document) for i in range(4)
             for q, a in zip(plain[i].questions, plain[i].answers, strict=True)]  # fmt: skip
    assert len(source) == len(source.keys) == len(asked) == 20
    for i, (question, answer, document) in enumerate(asked):
        record = source[i]
        assert (record.question, record.answers, record.documents) == (
            question, (answer,), (document,)
        )  # fmt: skip
        assert record.gold == (0,)
    assert source.keys[5] == source.keys[9] == plain.keys[1]
    path = write(tmp_path / "a.jsonl", [e2e(["Oslo\nis big"], [0])])
    with pytest.raises(UserError, match="no question"):
        sources.open_source(f"each:reconstruct:{path}", form="qa")
    with pytest.raises(UserError, match="each:text:facts:3"):
        sources.open_source("text:facts:3", form="qa")


def test_a_source_counted_several_times_is_named_once():
    first, second = FactsSource(3), FactsSource(5)
    assert repr(sources.Concatenation([first, second, first])) == f"2 * {first!r} + {second!r}"
