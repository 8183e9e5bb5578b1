import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clara_jax import api, sharding
from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Prompts, Train
from clara_jax.corpus import write as write_lib
from clara_jax.data import prompts as prompts_lib
from clara_jax.data.facts import FactsSource
from clara_jax.data.records import ScpRecord, reconstruction
from clara_jax.errors import UserError
from clara_jax.evaluation import evaluate as evaluate_lib
from clara_jax.evaluation.answer_losses import labelled_rows
from clara_jax.evaluation.journal import Journal
from clara_jax.evaluation.results import gap_closed, table, write
from clara_jax.evaluation.scp import CONDITIONS, evaluate
from clara_jax.inference import answers as answers_lib
from clara_jax.inference import generate
from clara_jax.models import clara
from clara_jax.models.decoder import head_logits
from clara_jax.runs import setup as setup_lib
from clara_jax.runs.checkpoint import Checkpoints
from clara_jax.sharding import make_mesh
from tests.fixtures.models import altered, noised

CONFIG = Config(
    model=Model(preset="tiny", tokenizer="facts", vocab_size=160),
    data=Data(document_length=40, rate=10),
    memory=Memory(init="tokens"),
    eval=Eval(sources="facts:4:1", records=3, batch=8, max_new_tokens=6),
    prompts=Prompts(qa_system="", qa_user="{docs}"),
)


@pytest.fixture(scope="module")
def setup():
    setup = setup_lib.create(CONFIG, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    fresh = {name: tree for name, tree in setup.trees.items() if name != "base"}
    return altered(setup, trees=setup.trees | noised(fresh, 5))


@pytest.fixture(scope="module")
def result(setup, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    source = FactsSource(4, 1)
    result = evaluate(*altered(setup, step=7), source)
    write(result, str(workdir))
    return result, workdir, source


@pytest.mark.parametrize(
    ("no_document", "memory", "full_text", "more_is_better", "expected"),
    [
        (4.0, 3.5, 2.0, False, 0.25),
        (4.0, 1.0, 2.0, False, 1.5),  # better than the text
        (4.0, 5.0, 2.0, False, -0.5),  # worse than nothing
        (0.1, 0.2, 0.5, True, 0.25),
        (0.1, 0.0, 0.5, True, -0.25),
        (4.0, 3.0, 4.0, False, None),
        (0.0, 0.3, 0.0, True, None),
        (2.0, 1.0, 3.0, False, None),  # the text does harm
        (0.5, 0.6, 0.2, True, None),
    ],
)
def test_gap_closed(no_document, memory, full_text, more_is_better, expected):
    found = gap_closed(no_document, memory, full_text, more_is_better)
    assert found == (None if expected is None else pytest.approx(expected))


def test_result_and_file(setup, result):
    result, workdir, source = result
    assert (result["step"], result["records"], result["questions"]) == (7, 3, 15)
    assert (result["memory_tokens"], result["documents_cut"]) == (4, 0)
    words = [len(setup.model.tokenizer.encode(source[i].document)) for i in range(3)]
    assert result["compression_rate"] == pytest.approx(sum(words) / 12)
    assert list(result["conditions"]) == [
        "memory", "no_document", "full_text", "no_document_trained"
    ]  # fmt: skip
    values = [tuple(c[key] for key in ("turn_ce", "answer_ce")) for c in
              result["conditions"].values()]  # fmt: skip
    assert len(set(values)) == 4, "two conditions are the same"
    assert all(math.isfinite(value) for pair in values for value in pair)
    ce = [result["conditions"][n]["answer_ce"] for n in ("no_document", "memory", "full_text")]
    assert result["gap_closed"]["answer_ce"] == gap_closed(*ce, more_is_better=False)
    assert json.loads((workdir / "eval" / "7.json").read_text()) == result
    first = result["predictions"][0]
    assert first["question"] == source[0].questions[0]
    assert len(result["predictions"]) == 15
    assert set(first) == {
        "origin", "document", "question", "answer", "answers", *result["conditions"]
    }  # fmt: skip
    assert [row["document"] for row in result["predictions"]].count(first["document"]) == 5


def test_table(result):
    text = table(result[0])
    assert "15 questions on 3 documents" in text
    assert f"{result[0]['conditions']['full_text']['answer_ce']:.3f}" in text
    assert text.count("share of the gap") == 2


@pytest.mark.parametrize("name", ["memory", "full_text", "no_document_trained"])
def test_losses_equal_a_plain_computation(setup, result, name):
    condition = CONDITIONS[name]
    sums = np.zeros((2, 2))
    length = 160  # what comes after a token does not matter to it

    @jax.jit
    def scores_of(x_TD):
        positions = jnp.arange(length)[None]
        hidden, _ = clara.run(
            setup.model.decoder, setup.trees, condition.role, x_TD[None], positions
        )
        return jax.nn.log_softmax(
            head_logits(setup.model.architecture, setup.trees["base"], hidden[0])
        )

    tokenizer = setup.model.tokenizer
    for record in [result[2][i] for i in range(3)]:
        memory = api.compress(*setup, [record.document]).memories[0]
        docs, vectors = {
            ("all", "memory"): (setup.model.layout.slots(), memory),
            ("all", "text"): (record.document, None),
            ("none", "text"): ("", None),
        }[condition.documents, condition.form]

        def losses(ids, start, end, vectors=vectors):
            """Sum and number of the losses of tokens start to end - 1."""
            x = np.zeros((length, setup.model.architecture.d_model), np.float32)
            x[: len(ids)] = clara.embed(setup.model.architecture, setup.trees, jnp.asarray(ids))
            if vectors is not None:
                x[: len(ids)][np.isin(ids, setup.model.extra.memory)] = vectors
            scores = np.asarray(scores_of(x))
            return [-sum(scores[t - 1, ids[t]] for t in range(start, end)), end - start]

        turn = prompts_lib.qa_text(record.questions, record.answers)
        whole, start = prompts_lib.dialogue(tokenizer, "", docs, turn)
        sums[0] += losses(whole, start, len(whole))
        for question, answer in zip(record.questions, record.answers, strict=True):
            asked = setup.model.layout.scp_question(docs, question)
            ids = asked + tokenizer.encode(f" {answer}")
            sums[1] += losses(ids, len(asked), len(ids))
    values = result[0]["conditions"][name]
    np.testing.assert_allclose(
        [values["turn_ce"], values["answer_ce"]], sums[:, 0] / sums[:, 1], rtol=1e-4
    )


def test_one_row_serves_turn_and_answer(setup):
    record = FactsSource(4, 1)[0]
    rows = labelled_rows(setup.model, record, record.document)
    assert [(row.turn is not None, row.answer is not None) for row in rows] == [
        (True, True), *[(False, True)] * 4
    ]  # fmt: skip
    for row, answer in zip(rows, record.answers, strict=True):
        assert row.prompt.tokens[row.answer] == setup.model.tokenizer.encode(answer)
    single = ScpRecord("qa", ("who ?",), ("red fox",), record.document, "here")
    (row,) = labelled_rows(setup.model, single, record.document)
    assert len(row.prompt.tokens[row.answer]) == 2
    # The same question twice: neither is lost.
    double = ScpRecord("qa", ("who ?",) * 2, ("red fox",) * 2, record.document, "here")
    assert [row.answer is not None for row in labelled_rows(setup.model, double, "")] == [True] * 2


def test_answers_follow_the_memories(setup, result):
    """What is generated is what the engine says to the same question."""
    source = result[2]
    model = api.Clara(*setup)
    for i, prediction in enumerate(result[0]["predictions"][:5]):
        document, question = source[0].document, source[0].questions[i]
        assert prediction["memory"] == model.answer_scp([question], [document], 6)[0]


def test_perfect_and_missing_answers_are_scored(setup, monkeypatch):
    record = FactsSource(4, 1)[0]
    monkeypatch.setattr(
        answers_lib,
        "answers",
        lambda model, trees, asked, *_, **__: [*record.answers[:-1], "nothing"],
    )
    values = evaluate(*setup, [record])["conditions"]["memory"]
    assert values["exact_match"] == values["f1"] == values["cover_exact_match"] == 0.8
    # Documents are drawn: of one there is nothing to tell how they differ.
    assert evaluate(*setup, [record])["intervals"]["memory"]["f1"] == [0.8, 0.8]


def test_only_qa_records_count(setup):
    only = altered(setup, config=dataclasses.replace(
        CONFIG, eval=dataclasses.replace(CONFIG.eval, baselines=False, records=1)
    ))  # fmt: skip
    other = reconstruction("red fox", "here")
    with pytest.raises(UserError, match="no qa record"):
        evaluate(*only, [other])
    found = evaluate(*only, [other, *(FactsSource(4, 1)[i] for i in range(2))])
    assert (found["records"], list(found["conditions"])) == (1, ["memory"])
    assert found["gap_closed"] == {}
    assert "share of the gap" not in table(found)


def test_few_shapes(setup):
    """Questions of like length share what is compiled."""
    before = generate.decode._cache_size()
    evaluate(*setup, FactsSource(4, 2))
    assert generate.decode._cache_size() <= before + 4


def test_run_before_and_after_training(tmp_path, capsys, monkeypatch):
    one_device = make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda config: one_device)
    few = dataclasses.replace(CONFIG.eval, records=1)
    full = dataclasses.replace(CONFIG, train=Train(full=True), eval=few)
    workdir = str(tmp_path)
    untrained = dataclasses.replace(full, eval=dataclasses.replace(few, untrained=True))
    assert evaluate_lib.run(untrained, workdir) == 0
    before = json.loads((tmp_path / "eval" / "0.json").read_text())
    assert "no document" in capsys.readouterr().out
    # There is no adapter, so that the trained model without document is the baseline itself.
    assert list(before["conditions"]) == ["memory", "no_document", "full_text"]
    setup = setup_lib.create(full)
    trained = {
        "base": jax.tree.map(lambda x: 1.1 * x, setup.trees["base"]),
        "memory": setup.trees["memory"],
    }
    config_lib.save(full, tmp_path / "config.json")
    with Checkpoints(workdir, 1) as checkpoints:
        checkpoints.save(12, trained, {"count": jnp.zeros(())}, {"position": 0})
    wanted = dataclasses.replace(full, eval=dataclasses.replace(few, baselines=False, records=2))
    assert evaluate_lib.run(wanted, workdir) == 0
    after = json.loads((tmp_path / "eval" / "12.json").read_text())
    assert (after["step"], after["records"]) == (12, 2)
    assert after["conditions"]["memory"]["turn_ce"] != before["conditions"]["memory"]["turn_ce"]
    # Dev is what the run held out, whatever the command says now.
    data = dataclasses.replace(full.data, holdout=0.5)
    other = dataclasses.replace(full, data=data, eval=Eval(sources="", records=1))
    with pytest.raises(UserError, match=r"name config\.eval\.sources"):
        evaluate_lib.run(other, workdir)


def test_a_kill_and_a_rerun_on_other_documents(setup, tmp_path):
    options = dataclasses.replace(CONFIG.eval, baselines=False, records=0)
    one = altered(setup, config=dataclasses.replace(CONFIG, eval=options))
    evaluate(*one, [FactsSource(4, 1)[0]], Journal(str(tmp_path), {}))  # and killed
    for records in ([FactsSource(4, 2)[i] for i in range(2)], [FactsSource(4, 1)[0]]):
        found = evaluate(*one, records, Journal(str(tmp_path), {}))
        assert found["predictions"] == evaluate(*one, records)["predictions"]
    (path,) = tmp_path.iterdir()
    assert len(path.read_text().splitlines()) == 1 + 2  # the first one's were kept


def test_a_run_trained_anew_or_another_store_is_another_basis(
    random_workdir, tmp_path, monkeypatch
):
    config = config_lib.load(f"{random_workdir}/config.json")
    few = dataclasses.replace(config.eval, records=1)
    bases = []

    def begin(eval_options):
        with pytest.raises(KeyboardInterrupt):
            evaluate_lib.run(dataclasses.replace(config, eval=eval_options), str(workdir))

    def killed(folder, basis):
        bases.append(basis)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_lib, "Journal", killed)
    workdir = shutil.copytree(random_workdir, tmp_path / "run")
    begin(few)
    setup = setup_lib.restore(str(workdir))
    trained = {name: setup.trees[name] for name in ("compressor", "generator", "memory")}
    trained["generator"] = jax.tree.map(lambda x: 1.01 * x, trained["generator"])
    shutil.rmtree(workdir / "checkpoints")
    with Checkpoints(str(workdir), 1) as checkpoints:
        checkpoints.save(3, trained, {"count": jnp.zeros(())}, {"position": 0})
    begin(few)
    begin(few)
    assert bases[0] != bases[1] == bases[2] and bases[0]["step"] == bases[1]["step"]
    for count in (1, 2):
        options = config_lib.Store(part=16)
        write_lib.add(str(tmp_path / "store"), *setup, [f"mill {count} ."], options)
        begin(dataclasses.replace(few, store=str(tmp_path / "store")))
    assert bases[3] != bases[4]


def test_a_base_that_was_moved_can_be_named(random_workdir, monkeypatch):
    config = config_lib.load(f"{random_workdir}/config.json")
    found = {}

    def restored(workdir, mesh, **model):
        found["base"] = model["base"]
        raise KeyboardInterrupt

    def started(config):
        found["base"] = config.model.base
        raise KeyboardInterrupt

    monkeypatch.setattr(setup_lib, "restore", restored)
    monkeypatch.setattr(setup_lib, "start", started)
    untrained = dataclasses.replace(config.eval, untrained=True)
    for options in (config, dataclasses.replace(config, eval=untrained)):
        for base in ("moved", "elsewhere"):
            with pytest.raises(KeyboardInterrupt):
                evaluate_lib.run(options, random_workdir, base)
            assert found["base"] == base


def test_results_of_other_settings_are_kept(tmp_path):
    def write_one(settings, value):
        return write({"step": 3, "value": value, "settings": settings}, str(tmp_path))

    first = write_one({"sources": "a"}, 1)
    assert write_one({"sources": "b"}, 2) != first
    assert write_one({"sources": "a"}, 3) == first  # the same question again
    (tmp_path / "eval" / "3-2.json").write_text("{")  # cut short: replaced by nothing
    write_one({"sources": "c"}, 4)
    found = sorted(p.name for p in (tmp_path / "eval").iterdir())
    assert found == ["3-2.json", "3-3.json", "3.json"]
    assert json.loads((tmp_path / "eval" / "3.json").read_text())["value"] == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write({"step": 3}, str(tmp_path / "file"))


def test_any_accepted_answer_counts_and_text_records_are_passed_over(setup, monkeypatch):
    record = dataclasses.replace(
        FactsSource(4, 1)[0], questions=("who ?",), answers=("Sir Paul",), aliases=(("Paul",),)
    )
    monkeypatch.setattr(
        answers_lib, "answers", lambda model, trees, asked, *_, **__: ["paul"] * len(asked)
    )
    result = evaluate(*setup, [record, dataclasses.replace(record, compress=False)])
    assert result["records"] == 1
    assert result["conditions"]["memory"]["exact_match"] == 1.0
