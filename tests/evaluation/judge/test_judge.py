"""A model as judge: what it is asked, what its verdicts give, and that nothing is asked twice."""

import dataclasses
import json
import re

import pytest

from benchmarks import synthesis
from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Eval, Select
from clara_jax.data import sources
from clara_jax.endpoint.prompts import conform, schema
from clara_jax.errors import UserError
from clara_jax.evaluation import candidates, results
from clara_jax.evaluation.judge import __main__ as judge
from clara_jax.evaluation.judge import cases as cases_lib

LONG = "This line says nothing of it. " * 12  # more than what a result shows of a document
ANSWERS = ["red fox", "baker", "no", "a mill"]
GIVEN = ["It is a Red Fox.", "the baker", "", "a barn"]


@pytest.fixture(scope="module")
def url():
    with synthesis.endpoint() as address:
        yield address


@pytest.fixture
def data(tmp_path):
    """Four questions; the documents' last words are the answers, the second document's gold."""
    path = tmp_path / "dev.jsonl"
    rows = [
        {"question": f"what is {i} ?", "answer": [answer, f"alias {i}"], "pos_index": [1],
         "docs": [f"Other {i}\nNothing {i}.", f"Page {i}\n{LONG}It is {text}."]}
        for i, (answer, text) in enumerate(zip(ANSWERS, ["a red fox", "the cook", "no", "a mill"],
                                               strict=True))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def workdir(tmp_path, data):
    """A joint run that found the gold document of each question but the last."""
    path = tmp_path / "e2e"
    path.mkdir()
    config = Config(stage="e2e", select=Select(k=1, candidates=2), data=Data(sources="x.jsonl"))
    config_lib.save(config, path / "config.json")
    settings = {"holdout": 0.0} | dataclasses.asdict(Eval(sources=str(data)))
    write(path, sources.open_sources(str(data), form="qa"), settings)
    return str(path)


def write(workdir, records, settings):
    found = [
        {
            "origin": record.origin, "question": record.question, "answer": record.answers[0],
            "answers": list(record.answers), "pos_index": list(record.gold),
            "chosen": [0 if i == 3 else record.gold[0]], "documents": [LONG[:300]],
            "ranked": {"reasoner": [1, 0], "bm25": [0, 1]},
            "reasoner": GIVEN[i], "bm25": GIVEN[i], "gold": GIVEN[i], "no_document": "x",
        }
        for i, record in enumerate(records[n] for n in range(4))
    ]  # fmt: skip
    result = {
        "step": 2, "questions": 4, "candidates": 2.0, "settings": settings, "predictions": found,
        "conditions": {name: {"f1": 0.5} for name in ("reasoner", "bm25", "gold", "no_document")},
    }  # fmt: skip
    results.write(result, str(workdir))


def run(url, output, *names, code=0, model="none"):
    told = [f"--base_url={url}", f"--model={model}", f"--output={output}", "--timeout=5"]
    assert judge.main([*map(str, names), *told]) == code
    return json.loads(output.with_suffix(".json").read_text()) if code < 2 else None


def test_every_prompt_states_its_shape_and_words():
    for name, kind in cases_lib.KINDS.items():
        text = (cases_lib.OWN / f"{name}.txt").read_text()
        rules, form = text.split("Reply with one JSON object")
        assert set(re.findall(r'"(\w+)"', form)) == set(kind.shape)
        for words in kind.shape.values():
            if isinstance(words, tuple):
                assert all(word in form and word in rules for word in words)
    assert {path.stem for path in cases_lib.OWN.glob("*.txt")} == set(cases_lib.KINDS)


def test_verdicts_are_few_words():
    shape = cases_lib.KINDS["equivalence"].shape
    assert schema(shape)["properties"]["equivalence"]["enum"] == ["equivalent", "different"]
    assert conform({"equivalence": " Equivalent."}, shape)["equivalence"] == "equivalent"
    for value in ("equivalent or different", "yes", None, True, ["different"]):
        with pytest.raises(ValueError, match="not one of equivalent, different"):
            conform({"equivalence": value}, shape)


def test_answers_are_judged_by_whole_documents(url, workdir, tmp_path, capsys):
    found = run(url, tmp_path / "j", workdir)
    numbers = found["answers"]["e2e"]
    # "It is a Red Fox." stands there; the baker is a cook; nothing said; a mill was not found.
    words = [judged["verdicts"]["support"]["support"] for judged in numbers["judged"]]
    assert words[0] == "supported" and words[2] == "absent"
    assert "supported" not in (words[1], words[3])
    assert numbers["supported"] == 0.25 and numbers["equivalent"] == 0.5
    assert numbers["exact_match"] == 0.25 and numbers["exact_equivalent"] == 1.0
    assert numbers["agreement"] == 0.75  # "It is a Red Fox." is no exact match
    low, high = numbers["intervals"]["supported"]
    assert 0 <= low < 0.25 < high <= 1 and numbers["not_judged"] == 0
    assert found["judge"]["model"] == "none" and found["judge"]["endpoint"] in url
    text = (tmp_path / "j.md").read_text()
    assert "| e2e | reasoner | 4 | 0.250 [" in text and "Judge: none at 127.0.0.1" in text
    assert text.strip() in capsys.readouterr().out


def test_nothing_is_asked_twice(url, workdir, tmp_path):
    first = run(url, tmp_path / "j", workdir)
    asked = synthesis.counts(url)["requests"]
    assert run(url, tmp_path / "j", workdir) == first
    assert synthesis.counts(url)["requests"] == asked
    # As if killed after five replies: what is not there is asked again, and no more.
    state = tmp_path / "j_replies" / "state.jsonl"
    lines = state.read_text().splitlines(keepends=True)
    replies = [n for n, line in enumerate(lines) if "reply" in json.loads(line)]
    assert len(replies) == 6  # two prompts for each answer that is not empty
    state.write_text("".join(lines[: replies[4] + 1]) + '{"job": "cu')
    assert run(url, tmp_path / "j", workdir) == first
    assert synthesis.counts(url)["requests"] == asked + 1
    run(url, tmp_path / "j", workdir, model="other")  # another judge says it anew
    assert synthesis.counts(url)["requests"] == asked + 7


def test_conditions_have_their_own_documents(workdir):
    (loaded,) = judge.evaluated.load([workdir])
    shown = {
        name: [case.asked["support"]["documents"][4:9] for case in
               cases_lib.answers(loaded, name, 0) if case.asked]
        for name in ("reasoner", "bm25", "gold")
    }  # fmt: skip
    assert shown["gold"] == ["Page ", "Page ", "Page "] and shown["bm25"] == ["Other"] * 3
    assert shown["reasoner"] == ["Page ", "Page ", "Other"]
    whole = cases_lib.answers(loaded, "gold", 1)
    assert len(whole) == 1 and whole[0].asked["support"]["documents"].endswith("It is a red fox.")


def test_candidates_of_a_search_are_found_again(tmp_path, data):
    config = Config(
        stage="e2e", select=Select(k=1, candidates=3),
        eval=Eval(sources=str(data), setting="normal", records=4),
    )  # fmt: skip
    (tmp_path / "s").mkdir()
    config_lib.save(config, tmp_path / "s" / "config.json")
    source = candidates.open_questions(config)
    assert len(source[0].documents) > 2
    settings = {"holdout": 0.0} | dataclasses.asdict(config.eval)
    write(tmp_path / "s", source, settings)
    (loaded,) = judge.evaluated.load([str(tmp_path / "s")])
    first, *_ = cases_lib.answers(loaded, "reasoner", 0)
    assert first.asked["support"]["documents"] == f"[1] {source[0].documents[source[0].gold[0]]}"


def test_scp_has_one_document(tmp_path):
    config = Config(eval=Eval(sources="text:facts:1:2,facts:2:1"), data=Data(holdout=0.1))
    config_lib.save(config, tmp_path / "config.json")
    source = candidates.open_questions(config)
    asked = [(r.document, q, a) for r in (source[1], source[2])
             for q, a in zip(r.questions, r.answers, strict=True)]  # fmt: skip
    found = [{"origin": "-", "question": question, "answer": answer, "answers": [answer],
              "memory": "?", "no_document": "x"} for _, question, answer in asked]  # fmt: skip
    result = {
        "step": 2, "questions": len(asked), "predictions": found,
        "conditions": {"memory": {}, "no_document": {}},
        "settings": {"holdout": 0.1} | dataclasses.asdict(config.eval),
    }  # fmt: skip
    results.write(result, str(tmp_path))
    (loaded,) = judge.evaluated.load([str(tmp_path)])
    cases = cases_lib.answers(loaded, "memory", 0)
    shown = [case.asked["support"] for case in cases]
    assert [(places["documents"], places["question"]) for places in shown] == [
        (f"[1] {document}", question) for document, question, _ in asked
    ]
    with pytest.raises(UserError, match="no_document had no documents"):
        cases_lib.answers(loaded, "no_document", 0)


def test_paraphrases_are_judged(url, tmp_path):
    samples = [
        {"origin": "a:1", "reference": "A is red. B is blue.", "read back": text}
        for text in ("B is blue. A is red.", "A is red.", "A is red. B is green.", " ")
    ]
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"runs": {"r4": {"text": {"unseen": {"samples": samples}}}}}))
    found = run(url, tmp_path / "j", path)["paraphrases"]["r4"]["unseen"]
    assert (found["paraphrases"], found["faithful"], found["complete"]) == (4, 0.5, 0.25)
    assert found["wrong"] == 0.25 and found["left_out"] == 0.5
    assert found["judged"][2]["verdicts"]["faithfulness"]["wrong"] == ["B is green."]
    assert "| r4 | unseen | 4 | 0.500 [" in (tmp_path / "j.md").read_text()


def test_malformed_replies_are_not_judged_and_errors_leave_work(workdir, tmp_path, capsys):
    with synthesis.endpoint("--faults=1", "--kinds=malformed") as broken:
        found = run(broken, tmp_path / "a", workdir)["answers"]["e2e"]
    assert found["not_judged"] == 3 and found["supported"] == 0.0  # the empty answer's alone
    error = found["judged"][0]["verdicts"]["support"]["error"]
    assert error == "malformed reply to support: no JSON object"
    with synthesis.endpoint("--faults=0.5", "--kinds=500", "--seed=2") as troubled:
        names = [workdir, "--retries=0", "--concurrency=1"]
        found = run(troubled, tmp_path / "b", *names, code=1)["answers"]["e2e"]
        assert 0 < found["not_judged"] < 4
        assert "left undone by errors of the endpoint" in capsys.readouterr().err
        again = [*names, f"--base_url={troubled}", "--model=none", f"--output={tmp_path / 'b'}"]
        assert any(judge.main(again) == 0 for _ in range(20))
    found = json.loads((tmp_path / "b.json").read_text())["answers"]["e2e"]
    assert found["not_judged"] == 0 and found["supported"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--base_url is empty"),
        (["--base_url=ftp://x"], "--base_url='ftp://x' must begin with http"),
        (["--base_url=http://127.0.0.1:9/v1", "--retries=0"], "no answer after 1 tries"),
        (["--base_url=URL", "--model=missing"], "status 404: no such model.*--base_url and model"),
        (["--base_url=URL", "--model="], "--model is empty"),
        (["--base_url=URL", "--concurrency=0"], "--concurrency=0 must be from 1 to"),
        (["--base_url=URL", "--condition=no_document"], "no_document had no documents"),
        (["--base_url=URL", "--condition=gld"], "no condition 'gld' was evaluated; there are"),
        (["--base_url=URL", "--sources=none.jsonl"], "none.jsonl: cannot be read"),
        (["--base_url=URL", "--output=gs://x/y"], "must be a local name"),
        (["--base_url=URL", "--prompts=none"], "--prompts='none': no such folder"),
        (["--base_url=URL", "none.json"], "none.json: cannot be read"),
        (["--base_url=URL", "DATA/e2e/config.json"], "no result of clara_jax.evaluation.fidelity"),
        (["--base_url=URL", "DATA"], "no evaluation; run --mode=evaluate"),
    ],
)
def test_mistakes_are_one_line(url, workdir, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    given = [a.replace("URL", url).replace("DATA", str(tmp_path)) for a in arguments]
    options = [a for a in given if a.startswith("--")]
    names = [a for a in given if a not in options]
    assert judge.main([workdir, *names, "--model=none", *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error


def test_records_that_changed_are_noticed(workdir, data):
    (loaded,) = judge.evaluated.load([workdir])
    rows = data.read_text().splitlines(keepends=True)
    data.write_text("".join([rows[0], rows[2], rows[1], rows[3]]))
    with pytest.raises(UserError, match=r"question 2 is not that of the records now .*dev.jsonl:2"):
        cases_lib.answers(loaded, "reasoner", 0)
    data.write_text("".join(rows[:3]))
    with pytest.raises(UserError, match=r"question 4 .*\(at their end\)"):
        cases_lib.answers(loaded, "reasoner", 0)
    moved = data.with_name("moved.jsonl")
    moved.write_text("".join(rows))
    assert len(cases_lib.answers(loaded, "reasoner", 0, sources=str(moved))) == 4
    loaded.result.pop("settings")
    with pytest.raises(UserError, match="does not say on what"):
        cases_lib.answers(loaded, "reasoner", 0)
    path = data.with_name("f.json")
    path.write_text(json.dumps({"runs": {"r": {"facts": {}}}}))
    with pytest.raises(UserError, match="no paraphrase read back"):
        cases_lib.paraphrases(str(path), 0)
