"""Pictures of fidelity's numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax.evaluation.fidelity import facts as facts_lib
from clara_jax.plotting import COLOURS, heat_map, pyplot, save, shortened, tidy

BLUE, ORANGE, GREEN, PINK, RED, _ = COLOURS
STATES = {"kept": GREEN, "altered": RED, "lost": "#BDBDBD"}
SETS = {"unseen": (BLUE, "o", "-"), "seen": (ORANGE, "s", "--")}
COPIES = {
    "paraphrase": PINK,
    "reordered": BLUE,
    "one fact exchanged": ORANGE,
    "another document": GREEN,
}


def facts(runs: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Facts kept against the rate, what became of the others, and by question."""
    order = sorted(runs, key=lambda name: runs[name]["rate"])
    ordered = [runs[name] for name in order]
    rates = [run["rate"] for run in ordered]
    labels = [f"{rate:.3g}" for rate in rates]
    named = len(set(labels)) < len(labels)  # the rate alone tells runs no longer apart
    if named:
        labels = [_label(shortened(name), rate) for name, rate in zip(order, rates, strict=True)]
    figure, axes = pyplot().subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    _facts_by_rate(axes[0], ordered, range(len(rates)) if named else rates, not named)
    found = [run["facts"]["unseen"] for run in ordered]
    _states(axes[1], found)
    _by_question(axes[2], found)
    for ax in axes:
        places = rates if ax is axes[0] and not named else range(len(rates))
        ax.set_xticks(places, labels, **({"rotation": 25, "ha": "right"} if named else {}))
        ax.set_xlabel("run (tokens a memory vector)" if named else "tokens a memory vector")
        ax.set_title(ax.get_title(), pad=40)  # the legend, of two rows, stands below it
    for ax in axes[:2]:
        ax.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    save(figure, path)


def places(runs: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Facts kept by their place in the document, and by the piece of a long one."""
    panels = {
        "by_place": "place of the fact in the document (fifths)",
        "by_piece": "piece of the document that holds the fact",
    }
    shown = [
        key for key in panels if any(run["facts"]["unseen"][key] for run in runs.values())
    ]  # long documents are not everywhere
    figure, axes = pyplot().subplots(
        1, len(shown), figsize=(6.5 * len(shown), 4.4), layout="constrained", squeeze=False
    )
    for ax, key in zip(axes[0], shown, strict=True):
        found = {name: run["facts"]["unseen"][key] for name, run in runs.items()}
        # Runs of other limits have other pieces.
        groups = sorted({group for groups in found.values() for group in groups}, key=int)
        for i, (name, values) in enumerate(found.items()):
            side = 0.06 * (i - (len(runs) - 1) / 2)  # intervals stand beside each other
            x = [groups.index(group) + side for group in values]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dv<"[i % 6]}
            label = _label(name, runs[name]["rate"])
            _with_bars(ax, x, list(values.values()), label=label, **style)
        first = next(iter(found.values()))
        counts = [f"\n({first[group]['facts']})" if group in first else "" for group in groups]
        ax.set_xticks(range(len(groups)), map("".join, zip(groups, counts, strict=True)))
        ax.set(xlabel=f"{panels[key]}; in brackets: number of facts")
        ax.set(ylabel="facts kept", ylim=(0, 1.03))
        tidy(ax)
        ax.legend(fontsize=9)
    save(figure, path)


def similarity(runs: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """How close documents are to their changed copies, by each scorer."""
    columns = len(next(iter(runs.values()))["similarity"]["scores"])
    size = {"figsize": (4.4 * columns, 4.0 * len(runs)), "layout": "constrained"}
    figure, axes = pyplot().subplots(len(runs), columns, squeeze=False, sharey="col", **size)
    for row, (name, run) in zip(axes, runs.items(), strict=True):
        for ax, (scorer, copies) in zip(row, run["similarity"]["scores"].items(), strict=True):
            look = {"widths": 0.6, "patch_artist": True, "medianprops": {"color": "black"}}
            drawn = ax.boxplot(list(copies.values()), whis=(5, 95), showfliers=False, **look)
            for box, copy in zip(drawn["boxes"], copies, strict=True):
                box.set(facecolor=COPIES[copy], alpha=0.75)
            ax.set_xticks(range(1, len(copies) + 1), [copy.replace(" ", "\n") for copy in copies])
            told = run["similarity"]["told_apart"][scorer]["mean"]
            of = "of its own with itself" if scorer == "BM25" else "cosine"
            ax.set_title(f"{_label(name, run['rate'])}: {scorer}\nsame facts nearer: {told:.0%}")
            ax.set_ylabel(f"closeness ({of})")
            tidy(ax)
    figure.suptitle("Documents against copies of them (whiskers: 5 to 95 %)", fontsize=11)
    save(figure, path)


def _facts_by_rate(
    ax: Any, runs: Sequence[Mapping[str, Any]], places: Sequence[float], of_rates: bool
) -> None:
    """`places` are rates, or those of runs that are not joined by a line."""
    for name, (colour, marker, line) in SETS.items():
        has = [i for i, run in enumerate(runs) if run["facts"].get(name)]
        style = {"color": colour, "marker": marker, "ls": line if of_rates else "none"}
        found = [runs[i]["facts"][name] for i in has]
        _with_bars(ax, [places[i] for i in has], found, label=f"{name} documents", **style)
    floor = np.mean([run["facts"]["unseen"]["constant"] for run in runs])
    if floor:
        ax.axhline(floor, color="grey", ls=":", label="best constant answers")
    kept = [run["facts"]["unseen"]["kept"] for run in runs]
    if of_rates and (knee := facts_lib.knee(places, kept)):  # of three rates or more
        ax.axvspan(*knee, color="grey", alpha=0.12, lw=0, label="steepest fall")
    ax.set(ylabel="facts kept", ylim=(0, 1.03), title="Facts kept against the rate")
    if of_rates:
        ax.set_xscale("log")
        ax.set_xlim(min(places) / 1.15, max(places) * 1.15)
        ax.minorticks_off()
    else:
        ax.set(xlim=(-0.5, len(places) - 0.5), title="Facts kept by each run")
    tidy(ax)


def _states(ax: Any, found: Sequence[Mapping[str, Any]]) -> None:
    bottom = np.zeros(len(found))
    for state, colour in STATES.items():
        shares = np.array([each[state] for each in found])
        bars = ax.bar(range(len(found)), shares, bottom=bottom, color=colour, label=state)
        texts = [f"{share:.1%}" if share >= 0.04 else "" for share in shares]
        ax.bar_label(bars, texts, label_type="center", fontsize=9)
        bottom += shares
    precise = [each.get("precision", np.nan) for each in found]
    ax.plot(range(len(found)), precise, "D", mfc="white", mec="black", label="right among the sure")
    ax.set(ylabel="share of facts", ylim=(0, 1.03))
    ax.set_title("What became of them (unseen documents)")


def _by_question(ax: Any, found: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for each in found for name in each["by_question"]))[:14]
    shares = np.array(
        [[each["by_question"].get(n, {}).get("kept", np.nan) for n in names] for each in found]
    )
    heat_map(ax, shares.T, names, [], title="Facts kept, by question", most=1.0, numbers=".2f")


def _with_bars(
    ax: Any, x: Sequence[float], found: Sequence[Mapping[str, Any]], **style: Any
) -> None:
    """A line of what is kept, with 95 % intervals."""
    if found:
        y = np.array([each["kept"] for each in found])
        ends = [
            each["intervals"]["kept"] if "intervals" in each else each["interval"] for each in found
        ]
        gaps = np.maximum(np.abs(np.transpose(ends) - y), 0)
        ax.errorbar(x, y, yerr=gaps, capsize=3, lw=1.6, elinewidth=1, **style)


def _label(name: str, rate: float) -> str:
    return f"{name} ({rate:.3g}x)"
