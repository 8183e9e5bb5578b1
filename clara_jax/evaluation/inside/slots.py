"""Which memory slot carries which fact: slots are replaced one at a time, and all but one.

A slot is replaced by its mean over all documents, which says nothing about any of them and yet
looks to the generator like a memory (or by zeros). What the log-probability of a fact's answer
loses then is what the slot was *needed* for; what it gains from a slot alone, over none at all, is
what that slot *suffices* for.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clara_jax import api
from clara_jax.evaluation import asking
from clara_jax.evaluation.inside.data import Fact, Given, kinds
from clara_jax.evaluation.results import share
from clara_jax.inference import generate
from clara_jax.inference.generate import PromptBatch
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import Decoder
from clara_jax.plotting import FONT, heat_map, pyplot, shortened, slot_labels
from clara_jax.runs.setup import Model
from clara_jax.text.markdown import table

PLACES = 5  # parts of a document by where a fact's answer stands
_EXAMPLE = 8  # most facts of the example
_NATS = 0.1  # of less a picture shows nothing


def kept_slots(M: int) -> np.ndarray:
    """Which slots stay, bool [C = 2 + 2 M, M]: all; none; all but each; each alone."""
    each = np.eye(M, dtype=bool)
    return np.concatenate([np.ones((1, M), bool), np.zeros((1, M), bool), ~each, each])


def scores(
    model: Model, trees: Trees, facts: Sequence[Fact], memories_NMD: np.ndarray, mean_MD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of every fact's answer with every choice of slots.

    Args:
        model: the model.
        trees: its weights.
        facts: what is asked.
        memories_NMD: of the documents.
        mean_MD: what stands in place of a slot that does not stay.

    Returns:
        Log-probability in nats, and whether every token is the likeliest; both [n, C = 2 + 2 M],
        in the order of `kept_slots`.
    """
    rows = [
        asking.prompt(model, fact.question, memories_NMD[[fact.row]], fact.answer) for fact in facts
    ]
    kept_CM = kept_slots(len(mean_MD))
    nats_nC = np.zeros((len(rows), len(kept_CM)))
    right_nC = np.zeros((len(rows), len(kept_CM)), bool)
    trees = generate.needed(trees, "generator")
    for index, *arrays in asking.answer_batches(model, rows):
        nats, right = _ablate(model.decoder, trees, *arrays, mean_MD, kept_CM)
        nats_nC[index] = generate.to_host(model, nats).T[: len(index)]
        right_nC[index] = generate.to_host(model, right).T[: len(index)]
    return nats_nC, right_nC


@functools.partial(jax.jit, static_argnames="decoder")
def _ablate(
    decoder: Decoder,
    trees: Trees,
    batch: PromptBatch,
    places_BA: jax.Array,
    targets_BA: jax.Array,
    mean_MD: jax.Array,
    kept_CM: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """All choices of slots of a batch in one program, [C, B] each; see `scores`."""

    def one(kept_M: jax.Array) -> tuple[jax.Array, jax.Array]:
        assert batch.vectors_BSD is not None  # each prompt has a document
        vectors_BMD = jnp.where(kept_M[None, :, None], batch.vectors_BSD, mean_MD[None])
        replaced = batch.replace(vectors_BSD=vectors_BMD)
        return asking.log_probabilities(decoder, trees, replaced, places_BA, targets_BA)

    return jax.lax.map(one, kept_CM)


def measure(model: Model, trees: Trees, given: Given) -> dict[str, Any]:
    """Needs and gains [slots, columns] in nats, by question, by place and for one document."""
    memories_NMD = api.compress(model, trees, given.documents, model.config.eval.batch).memories
    mean_MD = memories_NMD.mean(0) if given.replace == "mean" else np.zeros_like(memories_NMD[0])
    nats_nC, right_nC = scores(model, trees, given.facts, memories_NMD, mean_MD)
    M = len(mean_MD)
    needs_nM = nats_nC[:, :1] - nats_nC[:, 2 : 2 + M]
    gains_nM = nats_nC[:, 2 + M :] - nats_nC[:, 1:2]

    def panel(columns: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        columns = {name: list(rows) for name, rows in columns.items() if len(rows)}
        return {
            "columns": list(columns),
            "facts": [len(rows) for rows in columns.values()],
            "needed": [[float(needs_nM[r, m].mean()) for r in columns.values()] for m in range(M)],
            "suffices": [
                [float(gains_nM[r, m].mean()) for r in columns.values()] for m in range(M)
            ],
        }

    facts = list(enumerate(given.facts))
    by_kind = {kind: [n for n, f in facts if f.question == kind] for kind in kinds(given.facts)}
    by_place = {
        f"{100 * i // PLACES}-{100 * (i + 1) // PLACES} %": [
            n for n, f in facts if f.place is not None and int(f.place * PLACES) == i
        ]
        for i in range(PLACES)
    }
    counts = np.bincount([f.row for f in given.facts])
    row = int(counts.argmax())
    chosen = [(n, f) for n, f in facts if f.row == row]
    if len(chosen) < 2:  # no document has several: the first facts of all
        chosen = facts
    chosen = chosen[:_EXAMPLE]
    example = panel({f"{f.question}\n{f.answer}": [n] for n, f in chosen})
    specific = [_concentration(needs) for needs in needs_nM]
    return {
        "replaced_by": given.replace,
        "documents": len(given.documents),
        "facts": len(given.facts),
        "right": {
            "all slots": share(right_nC[:, 0]),
            "no slot": share(right_nC[:, 1]),
            "one slot taken away": share(right_nC[:, 2 : 2 + M].mean(1)),
            "one slot alone": share(right_nC[:, 2 + M :].mean(1)),
            "its best slot alone": share(right_nC[:, 2 + M :].max(1)),
        },
        "concentration": share(specific),
        "concentration_if_even": 1 / M,
        "panels": {
            "by question": panel(by_kind),
            "by place of the answer in the document": panel(by_place),
            "one example": {**example, "document": given.documents[row]},
        },
    }


def _concentration(needs_M: np.ndarray) -> float:
    """Share of what is lost over all slots that the most important one loses."""
    lost = np.maximum(needs_M, 0)
    return float(lost.max() / lost.sum()) if lost.sum() > 0 else 1 / len(lost)


def draw(result: dict[str, Any]) -> Any:
    """Heat maps, slots over facts: needed above, sufficient below."""
    panels = {name: p for name, p in result["panels"].items() if p["columns"]}
    slots = len(next(iter(panels.values()))["needed"])
    widths = [max(len(p["columns"]), 3) for p in panels.values()]
    size = {"figsize": (4 + 0.6 * sum(widths), 3.2 + 2 * max(1.6, 0.25 * slots))}
    figure, axes = pyplot().subplots(
        2, len(panels), squeeze=False, width_ratios=widths, layout="constrained", **size
    )
    titles = {"needed": "taken away: nats lost", "suffices": "alone: nats gained over none"}
    for line, (kind, title) in zip(axes, titles.items(), strict=True):
        for ax, (name, p) in zip(line, panels.items(), strict=True):
            labels = ["\n".join(map(shortened, c.split("\n"))) for c in p["columns"]]
            values = np.array(p[kind])
            rows = slot_labels(slots) if ax is line[0] else []
            columns = labels if kind == "suffices" else []
            heading = f"{name}\n{title}"
            image = heat_map(ax, values, rows, columns, title=heading, least_most=_NATS)
            bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
            bar.ax.tick_params(labelsize=FONT)
            bar.set_label("nats", fontsize=FONT)
            if np.abs(values).max() < _NATS:
                ax.set_xlabel(f"no effect of {_NATS:g} nats or more", fontsize=FONT)
    what = "its mean over documents" if result["replaced_by"] == "mean" else "zeros"
    figure.suptitle(
        f"Which memory slot carries which fact\n{result['facts']} facts of {result['documents']} "
        f"documents; a slot taken away becomes {what}",
        fontsize=12,
    )
    return figure


def text(result: dict[str, Any]) -> list[str]:
    """The numbers, as lines of Markdown."""
    rows = [
        [name, f"{right['mean']:.3f}", "{:.3f}-{:.3f}".format(*right["interval"])]
        for name, right in result["right"].items()
    ]
    c = result["concentration"]
    return [
        table(["slots that the generator reads", "answers right", "95 %"], rows),
        "",
        f"Of all that a fact loses over the slots, its most important slot loses {c['mean']:.0%} "
        f"({c['interval'][0]:.0%}-{c['interval'][1]:.0%}); "
        f"{result['concentration_if_even']:.0%} if slots shared evenly.",
    ]
