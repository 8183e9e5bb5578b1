"""Pictures of fidelity: runs of one rate are told apart, and legends hide no point."""

import pytest

from clara_jax.evaluation.fidelity import draw
from clara_jax.plotting import pyplot


def side(kept):
    return {
        "facts": 9, "kept": kept, "altered": 0.0, "lost": 1 - kept, "constant": 0.1,
        "intervals": {"kept": [kept, kept]}, "by_question": {"who ?": {"kept": kept}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "labels"),
    [
        ({"a": 8.331, "b": 8.334}, ["a (8.33x)", "b (8.33x)"]),
        ({"a": 16.3, "b": 4.1}, ["4.1", "16.3"]),
    ],
)
def test_labels_and_legends_of_facts(monkeypatch, rates, labels):
    figures = []
    monkeypatch.setattr(draw, "save", lambda figure, path: figures.append(figure))
    runs = {
        name: {"rate": rate, "facts": {"unseen": side(0.1), "seen": side(0.2)}}
        for name, rate in rates.items()
    }
    draw.facts(runs, "x.png")
    figures[0].draw_without_rendering()
    for axes in figures[0].axes:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == labels
        if legend := axes.get_legend():
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert sum(axes.get_legend() is not None for axes in figures[0].axes) == 2
    pyplot().close(figures[0])
