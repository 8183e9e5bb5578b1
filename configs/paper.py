"""The paper's tables, for `python -m clara_jax.evaluation.sweep configs/paper.py:joint`.

Its models, hyperparameters, numbers of steps and rates, with its numbers beside each run. Those
compare if the environment's DATA (a folder; `data` by default) holds its data, in our records
(docs/training.md, Data), with one accepted answer a question, as the paper's script counts:

    scp_simple.jsonl, scp_complex.jsonl, scp_paraphrase.jsonl   of 2M documents of Wikipedia-2021
    instruct.jsonl         453k questions of COCOM, 5 documents each, Mistral-7B's answers
    nq_train.jsonl …       20 candidates by BGE, gold ones among them; hotpotqa, musique, 2wiki
    nq_normal_5.jsonl …    5 documents by BGE, for instruct; nq_oracle_5.jsonl, gold ones among them
    nq_normal_20.jsonl …   20 of them, for e2e and contrastive; nq_oracle_20.jsonl

With one --output for all of them, what the sweeps have in common is trained once.
"""

import itertools
import os
from collections.abc import Collection, Mapping

from clara_jax.evaluation.paper import paper
from clara_jax.evaluation.sweep.plan import Options, Sweep

FOLDER = os.environ.get("DATA", "data")
MODELS = {
    preset: {"model.preset": preset, "model.base": hub}
    for preset, hub in (
        ("mistral_7b", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("phi4_mini", "microsoft/Phi-4-mini-instruct"),
    )
}
MISTRAL = {"mistral_7b": MODELS["mistral_7b"]}
RATES = {str(rate): {"data.rate": rate} for rate in paper.RATES}
TWO_RATES = {rate: RATES[rate] for rate in ("32", "128")}
PARTS = {"simple": 2_000_000, "complex": 2_000_000, "paraphrase": 1_966_291}  # Table 8
QUESTIONS = {"nq": 58_622, "hotpotqa": 90_185, "musique": 168_745, "2wiki": 167_454}  # Table 9
BATCH = 128  # documents of a step of scp, questions of one of instruct; one epoch of each


def scp(parts: tuple[str, ...], share: float = 1.0) -> Options:
    """Pretraining on parts of the synthetic data, or on a share of all records of them."""
    records = int(share * sum(PARTS[part] for part in parts))
    return {
        "scp:data.sources": ",".join(f"{FOLDER}/scp_{part}.jsonl" for part in parts),
        "scp:data.records": records if share < 1 else 0,
        "scp:train.steps": records // BATCH,
    }


def data(stage: str, names=paper.DATA, settings=("normal", "oracle")) -> dict[str, Options]:
    """A data set's development questions, and, after instruct, those to train on."""
    found: dict[str, Options] = {}
    for name, setting in itertools.product(names, settings):
        documents = 5 if stage == "instruct" else 20
        options = {"eval.sources": f"{FOLDER}/{name}_{setting}_{documents}.jsonl"}
        if stage != "instruct":
            # MuSiQue's do not train alone: with those of two others (appendix B.1).
            parts = ("hotpotqa", "2wiki", name) if name == "musique" else (name,)
            sources = ",".join(f"{FOLDER}/{part}_train.jsonl" for part in parts)
            options |= {"data.sources": sources, "train.steps": QUESTIONS[name] // 32}
        found[f"{name}_{setting}"] = {f"{stage}:{key}": value for key, value in options.items()}
    return found


INSTRUCT = {
    "instruct:data.sources": f"{FOLDER}/instruct.jsonl",
    "instruct:data.answers": "gold",  # the file has those of Mistral-7B, of both models' teacher
    "instruct:train.steps": 453_000 // BATCH,
}
MIXES = {
    "none": {"stages": ("instruct",)},
    "simple": scp(("simple",)),
    "paraphrase": scp(("paraphrase",)),
    "questions": scp(("simple", "complex")),
    "all": {},
}
# The model itself and, for Tables 1 and 5, the plain base on the texts and on nothing.
CONDITIONS = {
    "instruct": "all,reasoner_text,no_document",
    "e2e": "reasoner",
    "contrastive": "reasoner",
}
TRAINED = {"generator": "generator", "all": ""}
START = {"scp": ("scp",), "instruct": ("scp", "instruct")}
TO_INSTRUCT, TO_E2E = data("instruct"), data("e2e")
PAIR = data("e2e", paper.PAIR)
# Name → tables, last stage, axes, all of them crossed.
SWEEPS = {
    "compressor": (
        "Tables 1 and 5",
        "instruct",
        {
            "model": MODELS,
            "rate": RATES,
            "data": TO_INSTRUCT,
        },
    ),
    "mix": ("Tables 3 and 19", "instruct", {"model": MODELS, "mix": MIXES, "data": TO_INSTRUCT}),
    "mse": (
        "Tables 4 and 20",
        "instruct",
        {
            "model": MISTRAL,
            "rate": TWO_RATES,
            "mse": {"without": {"train.mse_weight": 0.0}, "with": {}},
            "data": TO_INSTRUCT,
        },
    ),
    "corpus": (
        "Table 11",
        "instruct",
        {
            "model": MODELS,
            "corpus": {"0.5M": scp(tuple(PARTS), 0.25), "1M": scp(tuple(PARTS), 0.5), "2M": {}},
            "data": TO_INSTRUCT,
        },
    ),
    "instruct_trained": (
        "Table 12",
        "instruct",
        {
            "model": MODELS,
            "rate": TWO_RATES,
            "trained": {name: {"instruct:train.only": only} for name, only in TRAINED.items()},
            "data": TO_INSTRUCT,
        },
    ),
    "joint": (
        "Tables 2, 6 and 7",
        "e2e",
        {
            "start": {name: {"stages": (*stages, "e2e")} for name, stages in START.items()},
            "model": MODELS,
            "rate": RATES,
            "data": TO_E2E,
        },
    ),
    "sup": (
        "Table 7, Sup-",
        "contrastive",
        {
            "start": {name: {"stages": (*stages, "contrastive")} for name, stages in START.items()},
            "model": MODELS,
            "rate": RATES,
            "data": data("contrastive", settings=("oracle",)),
        },
    ),
    "joint_trained": (
        "Tables 6 and 13",
        "e2e",
        {
            "model": MODELS,
            "rate": TWO_RATES,
            "trained": {name: {"e2e:train.only": only} for name, only in TRAINED.items()},
            "data": PAIR,
        },
    ),
    "reasoner": (
        "Tables 6 and 14",
        "e2e",
        {
            "model": MISTRAL,
            "rate": TWO_RATES,
            "reasoner": {name: {"e2e:reasoner_init": name} for name in ("random", "copy")},
            "data": PAIR,
        },
    ),
    "k": (
        "Fig. 8",
        "e2e",
        {
            "model": MISTRAL,
            "k": {str(k): {"eval.k": k} for k in range(1, 11)},
            "data": TO_E2E,
        },
    ),
}
# In these the paper's number is that of the run without the change.
UNCHANGED = ("mix=all", "mse=with", "corpus=2M", "trained=all", "reasoner=copy", "k=5")


def get_sweep(name: str = "joint") -> Sweep:
    """One of SWEEPS; its base is Mistral-7B at 32x on HotpotQA, gold documents among the others."""
    tables, last, axes = SWEEPS[name]
    stages = ("scp", "instruct", "e2e") if "start" in axes else ("scp", last)
    stages = tuple(last if stage == "e2e" else stage for stage in stages)
    return Sweep(
        {stage: f"{stage}.py" for stage in stages},
        axes,
        options={
            **MODELS["mistral_7b"],
            **RATES["32"],
            **scp(tuple(PARTS)),
            **(INSTRUCT if "instruct" in stages else {}),
            **data(last)["hotpotqa_oracle"],
            "eval.records": 0,
            "eval.max_new_tokens": 64,  # tokens: the release's script
            "eval.conditions": CONDITIONS[last],
            "eval.k": 5 if last == "e2e" else 0,
        },
        grids=(tuple(axes),),
        single=name == "k",  # which draws F1 by k
        paper=_numbers(last, axes),
        comparable=True,
        source=f"{paper.NAME}, {tables}",
    )


def _numbers(stage: str, axes: Mapping[str, Collection[str]]) -> dict[str, dict[str, float]]:
    """The paper's of each run of the grid."""
    found = {}
    for labels in itertools.product(*axes.values()):
        place = [f"{axis}={label}" for axis, label in zip(axes, labels, strict=True)]
        at = dict(zip(axes, labels, strict=True))
        name, _, setting = at.pop("data").rpartition("_")
        known = {axis: at.pop(axis) for axis in ("model", "rate", "start") if axis in at}
        changes = [f"{axis}={label}" for axis, label in at.items()]
        (change,) = [c for c in changes if c not in UNCHANGED] or [""]
        found[",".join(place)] = paper.numbers(
            stage, **known, data=name, setting=setting, change=change
        )
    return {run: numbers for run, numbers in found.items() if numbers}
