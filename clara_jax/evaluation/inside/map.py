"""Where documents and their memories lie: PCA and t-SNE of their means (paper, Fig. 9).

Trained with the alignment loss (MSE), memories lie among the states of texts; without it the paper
shows them apart. Means of the plain base's states over a document's tokens are compared with means
of its memory vectors, of one model or of two. The loss itself compares memories with the
compressor's own states, which its adapter may move as well: the gap to those is told beside.
"""

from typing import Any

import numpy as np
from absl import logging

from clara_jax import api
from clara_jax.errors import UserError
from clara_jax.evaluation.asking import text_means
from clara_jax.evaluation.inside.data import Given
from clara_jax.evaluation.results import share
from clara_jax.models.clara import Trees
from clara_jax.plotting import FONT, pyplot
from clara_jax.runs.setup import Model
from clara_jax.stages import STAGES

_FEWEST = 3


def pca(points: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The first two principal components [n, 2], and their shares of the variance."""
    centred = points - points.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    shares = values**2 / max(float((values**2).sum()), 1e-12)
    return centred @ axes[:2].T, shares[:2].tolist()


def tsne(points: np.ndarray, seed: int = 0) -> np.ndarray | None:
    """Two coordinates [n, 2] by t-SNE; None, and a line in the log, without scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        logging.warning("no t-SNE: pip install 'clara-jax[evaluation]' (scikit-learn)")
        return None
    perplexity = min(30.0, (len(points) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return made.fit_transform(points)


def measure(model: Model, trees: Trees, given: Given) -> dict[str, Any]:
    """Coordinates of both kinds of means, and how far apart they lie.

    Raises:
        UserError: there are too few documents.
    """
    if len(given.documents) < _FEWEST:
        raise UserError(
            f"map: {len(given.documents)} documents are too few; give {_FEWEST} or more"
        )
    compared = [(model, trees), *([given.other] if given.other else [])]
    found = {}
    for name, (model, trees) in zip(given.names, compared, strict=True):
        texts = text_means(model, trees, given.documents)
        own = text_means(model, trees, given.documents, "compressor")
        batch = model.config.eval.batch
        memories = api.compress(model, trees, given.documents, batch).memories.mean(1)
        both = np.concatenate([texts, memories])
        flat, shares = pca(both)
        curved = tsne(both)
        found[name] = {
            "mse_weight": _mse_weight(model),
            **apart(texts, memories),
            # What the loss compares memories with; without an adapter it is the same.
            "compressor_gap": apart(own, memories)["gap"],
            "pca": {"points": flat.tolist(), "shares": shares},
            "tsne": None if curved is None else {"points": curved.tolist()},
        }
    return {"documents": len(given.documents), "models": found}


def _mse_weight(model: Model) -> float | None:
    """Of the alignment loss; None where the run did not train the compressor."""
    return model.config.train.mse_weight if STAGES[model.config.stage].compresses else None


def apart(texts: np.ndarray, memories: np.ndarray) -> dict[str, Any]:
    """How far memories lie from texts.

    Args:
        texts: [n, D].
        memories: [n, D], of the same documents.

    Returns:
        `gap`, the distance of the two centres in units of the texts' root mean square distance from
        theirs; `cosine`, mean of each memory and its own text; `nearest`, how often a memory's
        nearest text (both centred) is its own, with its 95 % interval, and `chance` of that.
    """
    spread = np.sqrt(np.square(texts - texts.mean(0)).sum(1).mean())
    gap = np.linalg.norm(texts.mean(0) - memories.mean(0)) / max(float(spread), 1e-9)
    lengths = np.linalg.norm(texts, axis=1) * np.linalg.norm(memories, axis=1)
    cosine = ((texts * memories).sum(1) / np.maximum(lengths, 1e-9)).mean()
    ours, theirs = (x - x.mean(0) for x in (memories, texts))
    ours, theirs = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (ours, theirs)
    )
    hits = (ours @ theirs.T).argmax(1) == np.arange(len(ours))
    return {
        "gap": float(gap),
        "cosine": float(cosine),
        "nearest": share(hits),
        "chance": 1 / len(texts),
    }


def draw(found: dict[str, Any]) -> Any:
    """A row of PCA and t-SNE for each model."""
    models = found["models"]
    kinds = [k for k in ("pca", "tsne") if all(model[k] for model in models.values())]
    figure, axes = pyplot().subplots(
        len(models), len(kinds), figsize=(5.5 * len(kinds), 4.4 * len(models)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for line, (name, model) in zip(axes, models.items(), strict=True):
        for ax, kind in zip(line, kinds, strict=True):
            points, n = np.array(model[kind]["points"]), found["documents"]
            texts, memories = points[:n], points[n:]
            for text, memory in zip(texts, memories, strict=True):
                ax.plot(*zip(text, memory, strict=True), color="#cccccc", lw=0.4, zorder=0)
            ax.scatter(*texts.T, s=14, c="#0072b2", marker="o", label="text of the document")
            ax.scatter(*memories.T, s=20, c="#d55e00", marker="^", label="its memory")
            mse = "" if model["mse_weight"] is None else f", MSE weight {model['mse_weight']:g}"
            label = {"pca": "PCA", "tsne": "t-SNE"}[kind]
            ax.set_title(f"{name}{mse}: {label}", fontsize=FONT + 2)
            if kind == "pca":
                ax.set_xlabel(
                    "first component, {:.0%} of the variance".format(*model[kind]["shares"])
                )
                ax.set_ylabel("second, {1:.0%}".format(*model[kind]["shares"]))
            else:
                ax.set(xticks=[], yticks=[])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    title = f"Means of texts and of memories, {found['documents']} documents"
    figure.suptitle(f"{title}\n(a line joins the two of a document)", fontsize=12)
    return figure


def text(found: dict[str, Any]) -> list[str]:
    """Distances, as lines of Markdown."""
    lines = [
        "| run | MSE weight | gap of the centres | gap, compressor's own states | cosine | "
        "nearest text is its own | chance |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, m in found["models"].items():
        low, high = m["nearest"]["interval"]
        weight = "" if m["mse_weight"] is None else f"{m['mse_weight']:g}"
        lines.append(
            f"| {name} | {weight} | {m['gap']:.2f} | {m['compressor_gap']:.2f} | "
            f"{m['cosine']:.3f} | {m['nearest']['mean']:.3f} ({low:.3f}-{high:.3f}) | "
            f"{m['chance']:.3f} |"
        )
    return lines
