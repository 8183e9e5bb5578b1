"""Pictures of sweeps: which there are, and what their lines and bars are of."""

import pytest

from clara_jax.evaluation.sweep import draw
from clara_jax.plotting import pyplot


def record(name, f1, at, recall=None, **others):
    numbers = {"f1": f1, "exact_match": f1 / 2} | ({"recall@1": recall} if recall else {})
    ends = {metric: [value - 0.1, value + 0.1] for metric, value in numbers.items()}
    return {"name": name, "key": name, "at": at, "metrics": numbers, "intervals": ends, **others}


RECORDS = [
    record("base", 0.5, {"rate": 16.0, "k": 3.0}, 0.4),
    record("rate=4", 0.8, {"rate": 4.0}, 0.6),
    record("rate=64", 0.3, {"rate": 64.0}, 0.2),
    {"name": "rate=256", "key": "x", "at": {"rate": 256.0}, "error": "no data"},
    record("k=1", 0.2, {"k": 1.0}),
    record("rate=4,k=1", 0.9, {"rate": 4.0, "k": 1.0}),
    record("mse=without", 0.4, {"mse": "without"}, same_questions=True,
           less_base={"difference": -0.1, "p": 0.0001}),
    record("domain=other", 0.9, {"domain": "other"}, same_questions=False),
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Figures by the names of their files, which are not written."""
    found = {}
    monkeypatch.setattr(
        draw, "save", lambda figure, path: found.update({path.split("/")[-1]: figure})
    )
    yield found
    pyplot().close("all")


def curve(ax):
    """Points of the first line, and the ends of their intervals."""
    line, (_, _, (bars,)) = ax.lines[0], ax.containers[0]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    return line.get_xdata().tolist(), line.get_ydata().tolist(), ends


def test_a_picture_for_each_axis_of_numbers_and_one_of_the_others(drawn):
    assert draw.draw(RECORDS, "x") == ["sweep_rate.png", "sweep_k.png", "sweep_others.png"]
    rate, k, others = drawn.values()
    answers, ranking = rate.axes
    x, y, ends = curve(answers)  # no point of a failed run or of a grid
    assert x == [4, 16, 64] and y == [0.8, 0.5, 0.3]
    assert ends[0] == pytest.approx([0.7, 0.9])
    assert answers.get_xscale() == "log"
    assert [text.get_text() for text in answers.get_xticklabels()] == ["4", "16", "64"]
    assert curve(ranking)[1] == [0.6, 0.4, 0.2]
    assert k.axes[0].get_xscale() == "linear" and curve(k.axes[0])[1] == [0.2, 0.5]
    assert curve(k.axes[1])[1] == [0.4]  # the other ranked nothing
    (ax,) = others.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "base", "mse=without", "domain=other",
    ]  # fmt: skip
    bars = [patch for patch in ax.patches if patch.get_width()]
    assert [bar.get_width() for bar in bars] == [0.5, 0.4, 0.9]
    assert [bool(bar.get_hatch()) for bar in bars] == [False, False, True]
    notes = [text.get_text() for text in ax.texts]
    assert "-0.100 (< 0.001)" in notes and "other questions" in notes


def test_what_there_is_without_the_base(drawn):
    failed = {"name": "base", "key": "b", "at": {"rate": 16.0}, "error": "no data"}
    assert draw.draw([failed], "x") == []
    draw.draw([failed, RECORDS[1], RECORDS[6]], "x")
    (others,) = drawn.values()  # one point is no curve
    assert [text.get_text() for text in others.axes[0].get_yticklabels()] == [
        "rate=4", "mse=without",
    ]  # fmt: skip
