"""The CLaRa paper's numbers, as fractions and seconds, to stand beside ours.

They compare with a run only if its base model, data, candidates and recipe are the paper's, as
those of configs/paper.py are meant to be. What is left: the paper's script counts an answer against
the first accepted one alone, and its cover exact match takes the words of it in any order.
"""

import functools
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

NAME = "arXiv 2511.18659v3"
MODELS = {"mistral_7b": "Mistral-7B", "phi4_mini": "Phi4-mini"}  # by our preset
RATES = (4, 16, 32, 64, 128, 256)
DATA = ("nq", "hotpotqa", "musique", "2wiki")
PAIR = ("hotpotqa", "2wiki")  # of Tables 13 and 14
RECALL = ("recall@1", "recall@3", "recall@5")
Rows = Mapping[tuple[str, ...], Sequence[float]]
_TABLES = pathlib.Path(__file__).with_name("tables.tsv")


@functools.cache
def tables() -> Mapping[str, Rows]:
    """Numbers as printed by table and by what a row is of, the first two columns of tables.tsv."""
    found: dict[str, dict[tuple[str, ...], Sequence[float]]] = {}
    for line in _TABLES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, key, *printed = line.split("\t")
            found.setdefault(name, {})[tuple(key.split())] = [float(x) for x in printed]
    return found


def numbers(
    stage: str,
    *,
    model: str = "mistral_7b",
    rate: int | str = 32,
    start: str = "scp",
    setting: str = "oracle",
    data: str = "",
    change: str = "",
) -> dict[str, float]:
    """What the paper has of a run, by metric as in evaluation/sweep; empty: nothing.

    Args:
        stage: that is evaluated: instruct, on five documents; e2e or contrastive, on 20 candidates.
        model: of MODELS.
        rate: of RATES; for instruct also `text` and `none`, which the base reads in their place.
        start: that e2e and contrastive started from: scp or instruct.
        setting: normal or oracle.
        data: of DATA; empty: the mean of all that the paper has.
        change: of an ablation, as `mse=without`; empty: none.
    """
    rate = str(rate)
    found: dict[str, float] = {}
    if stage == "instruct":
        key = (model, change, rate) if change else (model, rate)
        table = "compressor_ablations" if change else "compressor"
        printed = tables()[table].get(key, ())
        printed = printed[:4] if setting == "normal" else printed[4:]
        found |= _of(printed, ("cover_exact_match",), data, DATA)
    if stage == "e2e" and change:
        # All that these tables have started from scp.
        printed = tables()["joint_ablations"].get((model, change, setting, rate), ())
        found |= _of(printed if start == "scp" else (), ("f1", "exact_match"), data, PAIR)
    elif stage == "e2e":
        printed = tables()["joint"].get((start, model, setting, rate), ())
        found |= _of(printed, ("f1", "exact_match"), data, DATA)
    if stage in ("e2e", "contrastive") and setting == "oracle" and not change:
        reasoner = "e2e" if stage == "e2e" else "sup"
        printed = tables()["recall"].get((start, reasoner, model, rate), ())
        found |= _of(printed, RECALL, data, DATA)
    return found


def _of(
    printed: Sequence[float], metrics: Sequence[str], data: str, order: Sequence[str]
) -> dict[str, float]:
    """Of the numbers of all metrics for each data set in turn, those of one, or the means."""
    if not len(printed) or (data and data not in order):
        return {}
    values = np.reshape(printed, (-1, len(metrics)))
    chosen = values[order.index(data)] if data else values.mean(0)
    return {m: round(v / 100, 4) for m, v in zip(metrics, chosen.tolist(), strict=True)}


def beside(stage: str, setting: str, rates: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the paper's models at some rates, means over its four data sets.

    Args:
        stage: as in `numbers`; of others there is no cell.
        setting: normal, or oracle for candidates with the gold ones among them.
        rates: of which there may be none in the paper.
    """
    starts = {"instruct": ("scp",), "e2e": ("scp", "instruct")}.get(stage, ())
    found = {
        (model, start, rate): numbers(stage, model=model, start=start, rate=rate, setting=setting)
        for model, start, rate in itertools.product(MODELS, starts, sorted(set(rates)))
    }
    metrics = list(dict.fromkeys(metric for each in found.values() for metric in each))
    cells = [
        [MODELS[model], start, f"{rate}x", *(f"{each[m]:.3f}" for m in metrics)]
        for (model, start, rate), each in found.items()
        if each
    ]
    return ["model", "from", "rate", *metrics], cells


def seconds(rates: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of Table 15: wall-clock seconds of a question, full text first."""
    head = ["model", "", "compress 20, s", "query, s", "answer from 5, s", "faster than text"]
    cells = []
    for (model, rate), times in tables()["efficiency"].items():
        if rate != "text" and int(rate) not in rates:
            continue
        compress, query, answer = (ms / 1000 for ms in times)
        text = tables()["efficiency"][model, "text"][-1]
        name = "full text" if rate == "text" else f"{rate}x"
        shown = [f"{value:.3g}" if value else "" for value in (compress, query, answer)]
        cells.append([MODELS[model], name, *shown, f"{text / 1000 / (query + answer):.2f}x"])
    return head, cells


def fidelity(rates: Sequence[float]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of Table 16, paraphrases read back, at the rates nearest to some."""
    near = {min(RATES, key=lambda known: abs(math.log(known / rate))) for rate in rates}
    head = ["model", "documents", "rate", "BERTScore", "ROUGE-1", "ROUGE-L", "entities kept"]
    cells = [
        [MODELS[model], side, f"{rate}x", *(f"{value / 100:.3f}" for value in printed[part])]
        for side, part in (("seen", slice(0, 4)), ("unseen", slice(4, 8)))
        for (model, rate), printed in tables()["fidelity"].items()
        if int(rate) in near
    ]
    return head, cells
