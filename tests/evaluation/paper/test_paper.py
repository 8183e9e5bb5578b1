"""The paper's numbers: read right, within bounds, and beside the runs that they are of."""

import pathlib

import pytest

from clara_jax.evaluation.paper import paper
from clara_jax.evaluation.sweep import plan

ROOT = pathlib.Path(__file__).parents[3]
SWEEPS = (
    "compressor", "mix", "mse", "corpus", "instruct_trained", "joint", "sup", "joint_trained",
    "reasoner", "k",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "count", "width"),
    [("compressor", 16, 8), ("compressor_ablations", 18, 8), ("joint", 48, 8),
     ("joint_ablations", 12, 4), ("recall", 49, 12), ("fidelity", 12, 8)],
)  # fmt: skip
def test_tables_are_whole_and_percentages(name, count, width):
    found = paper.tables()[name]
    assert len(found) == count
    assert {len(row) for row in found.values()} <= {width, 4 if name == "compressor" else width}
    assert all(0 <= value <= 100 for row in found.values() for value in row)
    if name == "recall":  # the more documents, the more are found
        for row in found.values():
            assert all(row[i] < row[i + 1] < row[i + 2] for i in range(0, 12, 3))
    if name == "joint":
        for row in found.values():
            assert all(f1 > exact for f1, exact in zip(row[::2], row[1::2], strict=True))


# Averages as the paper prints them, in percent: Tables 1, 2, 3, 4 and 12.
@pytest.mark.parametrize(
    ("options", "metric", "average"),
    [
        ({"stage": "instruct", "rate": 4}, "cover_exact_match", 66.76),
        ({"stage": "instruct", "rate": 4, "setting": "normal"}, "cover_exact_match", 39.86),
        ({"stage": "instruct", "rate": "none", "setting": "normal"}, "cover_exact_match", 26.6),
        ({"stage": "instruct", "rate": 128, "model": "phi4_mini"}, "cover_exact_match", 45.38),
        ({"stage": "instruct", "change": "mix=paraphrase"}, "cover_exact_match", 60.64),
        ({"stage": "instruct", "rate": 128, "change": "mse=without"}, "cover_exact_match", 55.16),
        ({"stage": "instruct", "change": "trained=generator"}, "cover_exact_match", 58.88),
        ({"stage": "e2e", "rate": 16, "start": "instruct"}, "f1", 58.46),
        ({"stage": "e2e", "rate": 16, "start": "instruct"}, "exact_match", 49.28),
        ({"stage": "e2e", "rate": 4, "setting": "normal"}, "exact_match", 26.35),
    ],
)
def test_means_are_the_averages_that_the_paper_prints(options, metric, average):
    assert paper.numbers(**options)[metric] == pytest.approx(average / 100, abs=1e-4)


def test_numbers_of_one_data_set():
    found = paper.numbers("e2e", rate=4, data="hotpotqa")
    assert found == {"f1": 0.7766, "exact_match": 0.6483, "recall@1": 0.4707, "recall@3": 0.909,
                     "recall@5": 0.9621}  # fmt: skip
    assert paper.numbers("contrastive", rate=4, data="2wiki")["recall@5"] == 0.8502
    assert set(paper.numbers("e2e", setting="normal")) == {"f1", "exact_match"}
    change = paper.numbers("e2e", change="reasoner=random", data="2wiki")
    assert change == {"f1": 0.6268, "exact_match": 0.5755}
    for none in (
        paper.numbers("e2e", change="reasoner=random", data="nq"),
        paper.numbers("e2e", change="reasoner=random", start="instruct"),
        paper.numbers("e2e", rate=8), paper.numbers("scp"), paper.numbers("e2e", change="k=3"),
        paper.numbers("instruct", rate="none"),
    ):  # fmt: skip
        assert none == {}


def test_tables_beside_ours():
    head, cells = paper.beside("e2e", "oracle", [16, 8, 16])
    assert head[:5] == ["model", "from", "rate", "f1", "exact_match"] and len(cells) == 4
    assert cells[0][:5] == ["Mistral-7B", "scp", "16x", "0.601", "0.512"]
    assert paper.beside("scp", "oracle", [16])[1] == [] == paper.beside("e2e", "oracle", [8])[1]
    cells = paper.seconds([4])[1]
    assert cells[:2] == [["Mistral-7B", "full text", "", "", "1.29", "1.00x"],
                         ["Mistral-7B", "4x", "1.09", "0.0997", "0.533", "2.04x"]]  # fmt: skip
    assert len(cells) == 4 and len(paper.seconds([8])[1]) == 2
    cells = paper.fidelity([15.2, 14.0])[1]
    assert [row[:3] for row in cells] == [
        [model, side, "16x"] for side in ("seen", "unseen") for model in paper.MODELS.values()
    ]
    assert cells[2][3:] == ["0.914", "0.600", "0.441", "0.599"]


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_of_the_papers_tables(name, tmp_path):
    """Every number is one of a run, with the options of its name."""
    given, folder = plan.load(f"{ROOT / 'configs' / 'paper.py'}:{name}")
    found = {run.name: run for run in plan.expand(given, folder, str(tmp_path))}
    assert given.paper and set(given.paper) <= set(found) and given.comparable
    assert all(0 < value < 1 for each in given.paper.values() for value in each.values())
    assert len(found) - 1 == len(given.paper) or name == "k"  # the base is one of them
    for run, numbers in given.paper.items():
        place = dict(part.split("=") for part in run.split(","))
        config = found[run].stages[-1].config
        assert str(config.data.rate) == place.get("rate", "32")
        assert config.model.preset == place["model"]
        assert config.eval.sources.endswith(
            f"/{place['data']}_{5 if config.stage == 'instruct' else 20}.jsonl"
        )
        if place["data"].startswith("nq") and config.stage != "instruct":
            assert config.data.sources == "data/nq_train.jsonl" and config.train.steps == 1831
        if "start" in place:
            stages = [stage.config.stage for stage in found[run].stages]
            assert stages[-2] == place["start"]
        wanted = {"instruct": "cover_exact_match", "e2e": "f1", "contrastive": "recall@5"}
        assert wanted[config.stage] in numbers


def test_what_leaves_runs_comparable():
    given, _ = plan.load(f"{ROOT / 'configs' / 'paper.py'}:joint")
    assert plan.comparable(given, {"mesh.tensor": 8, "e2e:data.sources": "x", "seed": 1})
    assert not plan.comparable(given, {"e2e:train.steps": 100})
    other, _ = plan.load(f"{ROOT / 'configs' / 'sweep.py'}:smollm2")
    assert other.paper and not plan.comparable(other, {})
