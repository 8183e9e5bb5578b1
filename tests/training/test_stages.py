"""Runs that start from runs: what each stage trains, carries, copies and reads."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from clara_jax import config as config_lib
from clara_jax.config import Select
from clara_jax.data import memories as memories_lib
from clara_jax.data.records import digest
from clara_jax.errors import UserError
from clara_jax.runs import setup as setup_lib
from clara_jax.runs.lineage import lineage
from clara_jax.sharding import put_batch
from clara_jax.training.inputs import compute_memories, open_inputs
from clara_jax.training.optim import make_optimizer
from clara_jax.training.step import compile_step, init_optimizer, make_step
from clara_jax.training.train import train
from tests.fixtures.models import altered, noised, save


def with_options(config, **groups):
    changed = {
        k: dataclasses.replace(getattr(config, k), **v) if isinstance(v, dict) else v
        for k, v in groups.items()
    }
    return dataclasses.replace(config, **changed)


def metrics(workdir) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.endswith("_per_s") and not k.startswith("time/")}
        for line in lines
    ]


def equal(one, other) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def later(tiny):
    """Options of the stages after SCP."""
    prompts = dataclasses.replace(tiny.prompts, answer_system="", answer_user="{docs} {question}")
    return with_options(
        tiny,
        prompts=prompts,
        select=Select(k=2, candidates=6),
        data={"sources": "facts:40", "encoder_row": 0, "decoder_row": 0},
        eval={"sources": "facts:6:1", "records": 6},
        train={"steps": 2, "checkpoint_every": 2, "batch_rows": 4},
    )


@pytest.fixture
def scp(tiny, runs):
    workdir = runs / "scp"
    if not (workdir / "config.json").exists():
        assert train(with_options(tiny, train={"steps": 2}), str(workdir)) == 0
    return workdir


@pytest.fixture
def instruct(later, scp, runs):
    workdir = runs / "instruct"
    if not (workdir / "config.json").exists():
        assert train(with_options(later, stage="instruct", init_from=str(scp)), str(workdir)) == 0
    return workdir


def kept(workdir, step=2) -> list[str]:
    return sorted(p.name for p in (workdir / f"checkpoints/{step}").iterdir() if p.is_dir())


def test_each_stage_starts_from_the_one_before(later, scp, instruct, tmp_path, named):
    assert kept(instruct) == ["compressor", "data", "generator", "optimizer"]
    before, after = (setup_lib.restore(str(run)).trees for run in (scp, instruct))
    assert equal(before["memory"], after["memory"])
    assert not equal(before["compressor"], after["compressor"])
    e2e = with_options(later, stage="e2e", init_from=str(instruct), profile=1)
    start = setup_lib.start(e2e).trees
    for name in ("compressor", "generator", "memory"):
        assert equal(start[name], after[name])
    assert equal(start["reasoner"], after["compressor"])
    assert train(e2e, str(tmp_path)) == 0
    assert kept(tmp_path) == ["data", "generator", "optimizer", "reasoner"]
    end = setup_lib.restore(str(tmp_path))
    assert end.model.step == 2 and equal(end.trees["compressor"], after["compressor"])
    assert not equal(end.trees["reasoner"], after["compressor"])
    assert not equal(end.trees["generator"], after["generator"])
    (trace,) = (path.read_bytes() for path in (tmp_path / "profile").rglob("*.xplane.pb"))
    for scope in ("encode", "score", "select", "generate", "adapter", "loss", "optimizer"):
        assert re.search(rf"[/(]{scope}[/)]".encode(), trace), scope
    last = metrics(tmp_path)[-1]
    slots = [last[f"slot_gradient/{j}"] for j in (1, 2)]
    assert sum(slots) == pytest.approx(1) and min(slots) > 0
    assert {"recall@1", "recall@3", "recall@5", "mrr", "spread", "entropy", "temperature",
            "grad_norm/reasoner", "grad_norm/generator"} <= last.keys()  # fmt: skip
    assert "grad_norm/compressor" not in last
    # The optimizer holds nothing of the others, and the next run carries the reasoner.
    optimizer = tmp_path / "checkpoints/2/optimizer"
    assert "compressor" not in (optimizer / "_METADATA").read_text()
    carried = setup_lib.start(with_options(later, stage="contrastive", init_from=str(tmp_path)))
    assert equal(carried.trees["reasoner"], end.trees["reasoner"])


def test_where_adapters_start_is_an_option(later, scp):
    options = {"stage": "e2e", "init_from": str(scp), "seed": 3}
    trained = setup_lib.restore(str(scp)).trees
    fresh = setup_lib.start(
        with_options(later, **options, generator_init="fresh", reasoner_init="random")
    ).trees
    for name in ("reasoner", "generator"):
        assert not any(x["b"].any() for x in fresh[name]["layers"]["mlp"].values())
    assert equal(fresh["compressor"], trained["compressor"])
    carry = setup_lib.start(with_options(later, **options)).trees
    assert equal(carry["generator"], trained["generator"])
    assert equal(carry["added"], trained["added"])


def test_a_run_stays_what_it_is_when_an_earlier_one_goes_on_or_all_are_moved(later, scp, tmp_path):
    def train(config, name, step=2):
        """Other weights at each step, without a step of training."""
        workdir = tmp_path / name
        started = setup_lib.start(config, str(workdir))
        moved = noised({name: started.trees[name] for name in config.trained}, step)
        save(altered(started, trees=started.trees | moved), workdir, step, keep=2)

    instruct = with_options(later, stage="instruct", init_from=str(scp))
    train(instruct, "instruct")
    e2e = with_options(later, stage="e2e", init_from=str(tmp_path / "instruct"))
    train(e2e, "e2e")
    before = setup_lib.restore(str(tmp_path / "e2e")).trees["compressor"]
    train(instruct, "instruct", 4)
    newest = setup_lib.restore(str(tmp_path / "instruct")).trees["compressor"]
    assert not equal(before, newest)
    assert equal(before, setup_lib.restore(str(tmp_path / "e2e")).trees["compressor"])
    assert equal(before, setup_lib.start(e2e, str(tmp_path / "e2e")).trees["compressor"])
    # A compressor that is trained on leaves a reasoner from before behind.
    again = with_options(later, stage="instruct", init_from=str(tmp_path / "e2e"))
    train(again, "again")
    new = setup_lib.start(with_options(later, stage="e2e", init_from=str(tmp_path / "again"))).trees
    assert equal(new["reasoner"], new["compressor"]) and not equal(new["compressor"], before)
    # Found beside the run.
    (tmp_path / "moved").mkdir()
    for name in ("instruct", "e2e"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert equal(before, setup_lib.restore(str(tmp_path / "moved/e2e")).trees["compressor"])
    (tmp_path / "moved/instruct").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="put it back, or beside"):
        setup_lib.restore(str(tmp_path / "moved/e2e"))
    (tmp_path / "gone").rename(tmp_path / "moved/instruct")
    for step in (6, 8):  # two checkpoints are kept
        train(instruct, "moved/instruct", step)
    with pytest.raises(UserError, match="step 2, from which a later run started, is gone"):
        setup_lib.restore(str(tmp_path / "moved/e2e"))


def test_training_some_of_a_stages_trees_only(later, scp, tmp_path):
    only = with_options(later, stage="e2e", init_from=str(scp), train={"only": "generator"})
    assert train(only, str(tmp_path)) == 0
    assert kept(tmp_path) == ["data", "generator", "optimizer"]
    assert "grad_norm/reasoner" not in metrics(tmp_path)[-1]
    trees = setup_lib.restore(str(tmp_path)).trees
    assert equal(trees["reasoner"], setup_lib.restore(str(scp)).trees["compressor"])
    with pytest.raises(UserError, match="e2e trains reasoner, generator, not 'memory'"):
        config_lib.freeze(
            dataclasses.asdict(with_options(later, stage="e2e", train={"only": "memory"}))
        )


def test_contrastive_learns_to_rank_from_labels(later, scp, tmp_path):
    config = with_options(
        later, stage="contrastive", init_from=str(scp),
        train={"steps": 20, "batch_rows": 8, "log_every": 1, "checkpoint_every": 20},
    )  # fmt: skip
    assert train(config, str(tmp_path)) == 0
    assert kept(tmp_path, 20) == ["data", "optimizer", "reasoner"]
    lines = metrics(tmp_path)
    losses = [line["contrastive_loss"] for line in lines]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert "ce_loss" not in lines[-1] and lines[-1]["loss"] == pytest.approx(
        lines[-1]["contrastive_loss"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_memories_computed_once_train_as_in_the_step(later, scp, tmp_path, accumulate):
    config = with_options(
        later, stage="e2e", init_from=str(scp), lora={"dropout": 0.0},
        train={"eval_every": 2, "accumulate": accumulate},
    )  # fmt: skip
    once = with_options(config, data={"memories": str(tmp_path / "memories")})
    assert train(config, str(tmp_path / "a")) == 0
    assert train(once, str(tmp_path / "b")) == 0
    for one, other in zip(metrics(tmp_path / "a"), metrics(tmp_path / "b"), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), name
    assert {"eval/ce_loss", "eval/recall@1", "eval/mrr"} <= metrics(tmp_path / "b")[-1].keys()


def test_memories_are_made_once_and_only_read_by_their_own_model(
    later, scp, instruct, tmp_path, monkeypatch
):
    config = with_options(
        later, stage="e2e", init_from=str(scp), data={"memories": str(tmp_path / "memories")}
    )
    setup = setup_lib.start(config)
    documents = [f"this is {a} {b} ." for a in ("bida", "deba") for b in ("fima", "goba")]
    file = compute_memories(*setup, documents[:3])
    before = file[digest(documents[1])]
    # A kill in the middle of a write leaves a piece behind.
    with open(tmp_path / "memories/vectors.bin", "ab") as f:
        f.write(b"xyz")
    file = compute_memories(*setup, documents)
    assert len(file) == 4
    np.testing.assert_array_equal(file[digest(documents[1])], before)
    fresh = compute_memories(
        *setup_lib.start(with_options(config, data={"memories": str(tmp_path / "other")})),
        documents,
    )
    for document in documents:
        np.testing.assert_allclose(file[digest(document)], fresh[digest(document)], atol=1e-6)
    monkeypatch.setattr(
        memories_lib.MemoryFile, "append", lambda *_: pytest.fail("nothing was missing")
    )
    compute_memories(*setup, documents[::-1])
    other = setup_lib.start(with_options(config, init_from=str(instruct)))
    with pytest.raises(UserError, match="memories of another model"):
        compute_memories(*other, documents)


@pytest.mark.slow
def test_a_resumed_e2e_run_equals_an_uninterrupted_one(later, scp, tmp_path):
    whole = with_options(
        later, stage="e2e", init_from=str(scp), train={"steps": 4},
        optim={"schedule": "constant", "warmup": 0.0},
    )  # fmt: skip
    assert train(whole, str(tmp_path / "a")) == 0
    assert train(with_options(whole, train={"steps": 2}), str(tmp_path / "b")) == 0
    assert train(whole, str(tmp_path / "b")) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_teacher_answers_are_made_once_and_trained_on(later, scp, tmp_path):
    config = with_options(
        later, stage="instruct", init_from=str(scp),
        data={"answers": "teacher", "teacher_tokens": 3, "sources": "facts:8"},
    )  # fmt: skip
    assert train(config, str(tmp_path)) == 0
    path = tmp_path / "teacher.jsonl"
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    assert len(answers) == 8 and max(len(a.split()) for a in answers) <= 3
    # What is there is kept; only the rest is made, to the same answers, and a cut line again.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:20])
    setup = setup_lib.start(config)
    open_inputs(*setup, str(tmp_path))
    assert path.read_text() == "".join(lines)
    path.write_text("".join([lines[1], *lines[1:]]))
    with pytest.raises(UserError, match=r"teacher\.jsonl:1: the answer to another question"):
        open_inputs(*setup, str(tmp_path))
    path.write_text("".join(json.dumps(json.loads(x) | {"answer": "baker"}) + "\n" for x in lines))
    batch = next(open_inputs(*setup, str(tmp_path)).train)
    baker = setup.model.tokenizer.encode("baker")[0]
    labels = [row[row != -100][0] for row in batch["dec_targets"]]
    assert labels == [baker] * len(labels)


@pytest.mark.parametrize(
    "stage",
    [*(pytest.param(s, marks=pytest.mark.slow) for s in ("instruct", "contrastive")), "e2e"],
)
def test_records_differ_in_their_number_of_candidates(later, scp, tmp_path, stage):
    path = tmp_path / "e2e.jsonl"
    rows = [
        {"question": "who ?", "docs": ["bida fima"] * n, "answer": "baker", "pos_index": gold}
        for n, gold in ((1, [0]), (3, [2]), (9, [8]), (2, []))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = with_options(
        later, stage=stage, init_from=str(scp), data={"sources": str(path), "epochs": 2},
        train={"steps": 10},
    )  # fmt: skip
    assert train(config, str(tmp_path / "run")) == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 2
    assert all(np.isfinite(v) for line in metrics(tmp_path / "run") for v in line.values())


def test_mistakes(later, scp, tmp_path):
    e2e = with_options(later, stage="e2e", init_from=str(scp))
    for options, message in (
        ({"data": {"rate": 20}}, r"config\.data\.rate=20, but .*scp was trained with 10"),
        ({"memory": {"positions": "spread"}}, r"config\.memory\.positions='spread', but"),
        ({"lora": {"rank": 4}}, r"config\.lora\.rank=4, but .* was trained with 16"),
        ({"init_from": str(tmp_path / "none")}, r"config\.init_from=.*none: no such folder"),
        ({"init_from": ""}, "e2e needs a trained compressor"),
        ({"data": {"sources": "text:facts:3"}}, "text: is for scp"),
        ({"data": {"encoder_row": 8}}, r"config\.data\.encoder_row=8 is too short"),
        ({"data": {"decoder_row": 8}}, r"config\.data\.decoder_row=8: no prompt of 40 questions"),
    ):
        with pytest.raises(UserError, match=message):
            train(with_options(e2e, **options), str(tmp_path / "run"))
    path = tmp_path / "no_gold.jsonl"
    path.write_text(json.dumps({"question": "who ?", "docs": ["bida"], "answer": "fima"}) + "\n")
    unlabelled = with_options(e2e, stage="contrastive", data={"sources": str(path)})
    with pytest.raises(UserError, match="no question has pos_index or teacher_scores"):
        train(unlabelled, str(tmp_path / "run"))
    circle = dataclasses.replace(e2e, init_from=str(tmp_path / "a"))
    (tmp_path / "a").mkdir()
    config_lib.save(circle, tmp_path / "a" / "config.json")
    with pytest.raises(UserError, match="leads back to itself"):
        lineage(circle)
    with pytest.raises(UserError, match=r"config\.train\.full is for scp and instruct"):
        config_lib.freeze(dataclasses.asdict(with_options(e2e, train={"full": True})))


@pytest.mark.parametrize("stage", [pytest.param("instruct", marks=pytest.mark.slow), "e2e"])
def test_a_sharded_step_equals_that_of_one_device(later, scp, tmp_path, stage):
    config = with_options(later, stage=stage, init_from=str(scp), lora={"dropout": 0.0})
    found = []
    for mesh in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        setup = setup_lib.start(with_options(config, mesh=mesh))
        batch = next(open_inputs(*setup, str(tmp_path)).train)
        trained = {name: setup.trees[name] for name in config.trained}
        frozen = {name: tree for name, tree in setup.trees.items() if name not in trained}
        optimizer = make_optimizer(config)
        state = (trained, init_optimizer(setup.model, optimizer, trained))
        step = compile_step(setup.model, make_step(setup.model, optimizer), state)
        _, values = step(state, frozen, put_batch(setup.model.mesh, batch), np.int32(0))
        found.append(jax.device_get(values))
        assert step._cache_size() == 1
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
