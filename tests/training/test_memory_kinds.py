"""Pooled memories, seen both ways, at several rates, through the stages to an answer."""

import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

import clara_jax
from clara_jax import config as config_lib
from clara_jax.config import Select, with_options
from clara_jax.data import scp_rows
from clara_jax.data.facts import FactsSource
from clara_jax.data.packing import RowLengths
from clara_jax.data.reader import Reader
from clara_jax.errors import UserError
from clara_jax.exchange import export_model
from clara_jax.runs import setup as setup_lib
from clara_jax.training.goodput import Goodput
from clara_jax.training.loop import Loop
from clara_jax.training.objectives import Draw, scp
from clara_jax.training.train import train


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("pooled")


@pytest.fixture
def joint(tiny, workdir):
    """A run of e2e from one of scp; documents have 24 tokens at most, memories 3 vectors and 1."""
    scp = with_options(
        tiny,
        {
            "data.document_length": 24,
            "data.rates": (8, 24),
            "data.encoder_row": 0,
            "data.decoder_row": 0,
            "memory.kind": "pool",
            "memory.sees": "all",
            "train.steps": 2,
        },
    )
    e2e = with_options(
        scp,
        {
            "stage": "e2e",
            "init_from": str(workdir / "scp"),
            "prompts.answer_system": "",
            "prompts.answer_user": "{docs} {question}",
            "select": Select(k=2, candidates=4),
            "data.sources": "facts:20",
            "train.batch_rows": 2,
        },
    )
    if not (workdir / "e2e").exists():
        assert train(scp, str(workdir / "scp")) == 0
        assert train(e2e, str(workdir / "e2e")) == 0
    return workdir / "e2e"


def test_the_map_is_trained_and_kept(joint, workdir):
    lines = [json.loads(line) for line in (workdir / "scp/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["grad_norm/pool"] > 0 and "mse_loss" not in lines[-1]
    assert "grad_norm/memory" not in lines[-1]
    maps = [setup_lib.restore(str(workdir / run)).trees["pool"] for run in ("scp", "e2e")]
    np.testing.assert_array_equal(*maps)
    assert 0 < np.abs(maps[0] - jnp.eye(len(maps[0]))).max() < 0.1


def test_prompts_hold_means_of_neighbours_at_a_higher_rate(joint):
    clara = clara_jax.load(joint)
    documents = ["one two three four five six seven", "one"]
    memories = clara.compress(documents)
    assert memories.shape[1] == 3 and np.isfinite(memories).all()
    fine, coarse = (
        clara.at_rate(rate).prompt_embeddings(["who ?"], [memories])[0] for rate in (0, 24)
    )
    assert len(fine) - len(coarse) == 2 * 2

    def places(prompt, vector):
        return np.flatnonzero(np.abs(prompt - vector).max(-1) < 1e-6)

    for memory_MD in memories:
        (first,) = places(fine, memory_MD[0])
        np.testing.assert_allclose(fine[first : first + 3], memory_MD, atol=1e-6)
        assert len(places(coarse, memory_MD.mean(0))) == 1
    with pytest.raises(UserError, match=r"cannot be put together to 2 .*possible: 8, 24"):
        clara.at_rate(12)


def test_ask_answers_at_a_rate(joint, tmp_path, capsys, command):
    (tmp_path / "documents.txt").write_text("one two three\n\nfour five six\n")
    files = [f"--workdir={joint}", f"--documents={tmp_path / 'documents.txt'}"]
    asked = ["--mode=ask", *files, "--question=who ?", "--max_new_tokens=4"]
    clara = clara_jax.load(joint)
    documents = ["one two three", "four five six"]
    for rate in (8, 24):
        assert command(*asked, f"--rate={rate}") == 0
        (answer,) = clara.at_rate(rate).ask(["who ?"], [documents], max_new_tokens=4)
        assert capsys.readouterr().out.split("\n")[0] == answer.text
    assert command(*asked, "--rate=7") == 2
    assert "possible: 8, 24" in capsys.readouterr().err


def test_an_export_compresses_alike(joint, tmp_path):
    export_model.run(str(joint), "native", str(tmp_path / "x"))
    texts = ["one two three four", "two"]
    before, after = (clara_jax.load(path) for path in (joint, tmp_path / "x"))
    np.testing.assert_array_equal(after.compress(texts), before.compress(texts))
    np.testing.assert_array_equal(after.encode_query(texts), before.encode_query(texts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory.kind": "pool", "memory.sees": "memories"}, "there are none with"),
        ({"memory.kind": "pool", "memory.positions": "spread"}, "there are none with"),
        ({"data.rates": (16, 24)}, r"config\.data\.rates: memories of 16 vectors"),
        ({"eval.rate": 24}, r"config\.eval\.rate: memories of 16 vectors"),
        ({"data.rates": (16, 16)}, "must be different rates"),
        ({"data.rates": (512,)}, "leaves no memory vector"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    config = with_options(config_lib.Config(), options)
    with pytest.raises(UserError, match=message):
        config_lib.freeze(dataclasses.asdict(config))


@pytest.mark.parametrize(("others", "warned"), [(2.0, True), (2.03, False), (None, False)])
def test_a_generator_that_does_not_read_is_noticed(others, warned, monkeypatch):
    values = {"eval/ce_loss": 2.0} | ({} if others is None else {"eval/ce_loss_others": others})
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    run = types.SimpleNamespace(
        evaluate=lambda trees: values,
        goodput=Goodput(),
        report=lambda upto: None,
        done=3,
        frozen={},
        state=({}, None),
        writer=types.SimpleNamespace(write=lambda step, values: None),
        _throughput=types.SimpleNamespace(restart=lambda: None),
    )
    Loop.held_out(run)
    assert bool(lines) == warned and all("step 3: the generator does not read" in x for x in lines)


def test_memories_of_others_cost_what_is_read(random_setup):
    """The rows' memories change places; labels, slots and what is counted stay."""
    model, trees = random_setup(config_lib.Data(document_length=40, rate=10, row_examples=2), 3)
    reader = Reader(FactsSource.open("20", ""), model.layout, model.config)
    (batch, *_) = scp_rows.eval_batches(reader, RowLengths(96, 128), 2)
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    sums = scp(model, trees, batch, Draw(others=True)).sums
    own, others = sums["ce_loss"], sums["ce_loss_others"]
    assert abs(own - others) > 1e-3
