"""The report page: what is on it, that it needs no other file, and charts that tell the truth."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from clara_jax import config as config_lib
from clara_jax.config import Config
from clara_jax.evaluation import results
from clara_jax.evaluation.page import __main__ as page
from clara_jax.evaluation.page import charts
from clara_jax.evaluation.page.charts import Series
from clara_jax.plotting import pyplot


def result(rate, right):
    rows = [
        {
            "origin": f"f:{i}", "question": f"who is <{i}> | ?", "answer": "a fox",
            "answers": ["a fox", "Fox"], "pos_index": [1], "chosen": [1, 0],
            "documents": ["the <gold> text", "the other text"],
            "ranked": {"reasoner": [1, 0], "bm25": [0, 1]},
            "reasoner": "fox" if i < right else "a hound", "no_document": "nothing",
        }
        for i in range(4)
    ]  # fmt: skip
    conditions = {
        "reasoner": {"f1": right / 4, "exact_match": right / 4, "seconds": 8.0 / rate},
        "no_document": {"f1": 0.0, "exact_match": 0.0, "seconds": 1.0},
    }
    return {
        "step": 3, "questions": 4, "compression_rate": float(rate), "conditions": conditions,
        "retrieval": {"reasoner": {"recall@1": 1.0}}, "predictions": rows,
        "intervals": {"reasoner": {"f1": [0.1, 0.9]}},
        "environment": {"devices": "1 x cpu", "jax": "0.1.2"}, "settings": {"setting": "normal"},
    }  # fmt: skip


@pytest.fixture
def workdirs(tmp_path):
    for name, rate, right in (("a4", 4, 3), ("b16", 16, 1)):
        workdir = tmp_path / name
        workdir.mkdir()
        config = Config(stage="e2e")
        data = dataclasses.replace(config.data, rate=rate)
        config_lib.save(dataclasses.replace(config, data=data), workdir / "config.json")
        lines = [
            {"step": s, "loss": 2.0 / s, "recall@1": s / 4, "eval/recall@5": 1} for s in (1, 2, 3)
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        results.write(result(rate, right), str(workdir))
    return [str(tmp_path / "a4"), str(tmp_path / "b16")]


def test_the_page_has_everything_and_needs_nothing_else(workdirs, tmp_path, capsys):
    output = tmp_path / "report.html"
    assert page.main([str(output), *workdirs, "--title=A <title>"]) == 0
    assert capsys.readouterr().out.split() == [str(output), str(tmp_path / "report.md")]
    html = output.read_text()
    assert html.count("A &lt;title&gt;") == 2
    for title in ("Answers and retrieval", "Differences", "By compression rate",
                  "Training", "Examples: a4", "Examples: b16", "Hardware and versions",
                  "Options that differ between the runs"):  # fmt: skip
        assert title in html
    assert "who is &lt;0&gt;" in html and "<gold>" not in html
    assert "candidates: normal" in html and "0.1.2" in html and "1 x cpu" in html
    assert re.search(r"<td>data.rate</td><td>4</td><td>16</td>", html)
    # The paper's, of the models from scp and from instruct, at both rates.
    assert html.count("<td>Mistral-7B</td>") == 4 and "<td>16x</td><td>0.403</td>" in html
    assert "Not comparable: arXiv 2511.18659v3, candidates normal" in html
    assert "0.750 (" in html and "+0.500" in html  # with interval; the paired difference
    assert html.count("<svg") == 6 and "prefers-color-scheme" in html and "@media print" in html
    # Nothing is fetched: no links, scripts, pictures or fonts from elsewhere.
    assert not re.search(r"<(script|link|img|iframe)|url\((?!#)|@import|src=", html)
    assert set(re.findall(r'href="(.)', html)) == {"#"}  # marks of a chart in itself
    assert html.count('class="right"') == 3 + 1 and html.count('class="wrong"') == 1 + 3
    assert '<span class="gold">gold</span> the &lt;gold&gt; text' in html


def test_the_page_warns_of_what_does_not_compare(workdirs, tmp_path):
    path = tmp_path / "b16" / "eval" / "3.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"settings": {"setting": "given"}}))
    lines = (tmp_path / "b16" / "eval" / "3.jsonl").read_text().splitlines()
    first = {key: value for key, value in json.loads(lines[0]).items() if key != "retrieval"}
    text = "\n".join([json.dumps(first), *lines[1:]]) + "\n"
    (tmp_path / "b16" / "eval" / "3.jsonl").write_text(text)
    assert page.main([str(tmp_path / "report.html"), *workdirs]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.count("means do not compare: setting normal (a4), given (b16).") == 1
    assert text.count("Rankings, over the 3 questions that name gold documents:") == 1


def test_markdown_has_the_same_tables_and_charts(workdirs, tmp_path):
    assert page.main([str(tmp_path / "report.html"), *workdirs]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| data.rate | 4 | 16 |" in text and "who is <0> \\| ?" in text
    charts = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(charts) == 6
    for name in charts:
        root = ElementTree.parse(tmp_path / name).getroot()
        assert root.tag.endswith("svg")
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    for part in tables:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in part.splitlines()}
        assert len(widths) == 1, part


def test_a_run_has_one_colour_in_all_charts(workdirs, tmp_path):
    path = tmp_path / "a4" / "metrics.jsonl"
    path.write_text(path.read_text().replace("recall@1", "other"))
    assert page.main([str(tmp_path / "report.html"), *workdirs]) == 0
    (chart,) = tmp_path.glob("*/recall-at-1.svg")
    assert "var(--c1, " in chart.read_text() and "var(--c0, " not in chart.read_text()


def test_one_run_without_curves_or_environment(workdirs, tmp_path, capsys):
    (tmp_path / "a4" / "metrics.jsonl").unlink()
    path = tmp_path / "a4" / "eval" / "3.json"
    told = json.loads(path.read_text())
    del told["environment"], told["intervals"]
    path.write_text(json.dumps(told))
    assert page.main([str(tmp_path / "one.html"), workdirs[0], "--examples=0"]) == 0
    html = (tmp_path / "one.html").read_text()
    assert "<svg" not in html and "Differences" not in html and "<article" not in html
    assert "Not recorded" in html and "Options that are not the defaults" in html
    assert not (tmp_path / "one_charts").exists()
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    assert page.main([str(tmp_path / "file" / "x.html"), workdirs[1]]) == 2
    assert "x.html: cannot be written" in capsys.readouterr().err
    assert page.main([str(tmp_path / "x.html"), str(tmp_path)]) == 2
    assert "no evaluation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        page.main(["x.pdf", workdirs[0]])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures, svg = [], charts.svg
    monkeypatch.setattr(charts, "svg", lambda f, title: figures.append(f) or svg(f, title))
    return figures


def test_time_and_memory_are_on_the_page_too(workdirs, drawn, tmp_path, capsys):
    rows = [{"name": n, "compress": 0.5, "query": 0.1, "prompt": 0.2, "whole": w, "program_gib": 1,
             "peak_gib": 1, "stored": 2048, "cache": 1} for n, w in (("full text", 4), ("16x", 0.7),
            ("4x", 0.9))]  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps({"rows": rows}))
    arguments = [str(tmp_path / "r.html"), workdirs[0], f"--efficiency={tmp_path / 'e.json'}"]
    assert page.main(arguments) == 0
    html = (tmp_path / "r.html").read_text()
    assert "faster than text" in html and "5.12x" in html  # 4.1 / 0.8
    memories, text = (line.get_xydata().tolist() for line in drawn[-1].axes[0].get_lines())
    assert memories == [[4, 1.0], [16, pytest.approx(0.8)]] and text == [[4, 4.1], [16, 4.1]]
    (tmp_path / "e.json").write_text("[]")
    assert page.main(arguments) == 2
    assert "no table of evaluation.efficiency" in capsys.readouterr().err


def test_without_matplotlib_there_is_a_page_without_charts(workdirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert page.main([str(tmp_path / "report.html"), *workdirs]) == 0
    error = capsys.readouterr().err
    assert error == "no charts: plots need matplotlib: pip install 'clara-jax[plot]'\n"
    html = (tmp_path / "report.html").read_text()
    assert (
        "<svg" not in html and "Differences" in html and not (tmp_path / "report_charts").exists()
    )


def test_lines_of_all_conditions_are_told_apart_and_named():
    points, ends = [(4, 0.2), (8, 0.4)], [(0.1, 0.3), (0.3, 0.5)]
    names = [f"condition {i} <$x$>" for i in range(11)]
    figure = charts.chart("t", "x", [Series(name, points, ends, True) for name in names])
    (ax,) = figure.axes
    lines = ax.get_lines()
    assert [line.get_xydata().tolist() for line in lines] == [[list(p) for p in points]] * 11
    assert len({line.get_color() for line in lines[:9]}) == 9  # by colour alone
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == 11
    figure.canvas.draw()
    bars = [bar for (bar,) in (container[2] for container in ax.containers)]
    assert len({bar.get_transform().transform((4, 0.2))[0] for bar in bars}) == 11
    assert ax.get_ylim()[0] <= 0.1 and ax.get_ylim()[1] >= 0.5  # intervals are whole
    element = charts.svg(figure, "t")
    assert not pyplot().fignum_exists(figure.number)
    assert all(name.replace("<", "&lt;").replace(">", "&gt;") in element for name in names)
    assert (
        all(f"var(--c{number}, " in element for number in range(9)) and ' id="line' not in element
    )
    # In a file of its own it has the colours of the dark too.
    ElementTree.fromstring(charts.alone(element))
    assert all(charts.STYLE.count(f"--c{number}:") == 1 for number in range(9))


@pytest.mark.parametrize(
    ("points", "log"),
    [([(3, 5.0)], False), ([(3, 5.0)], True), ([(0, -1e-9), (1, 1e9)], False),
     ([(1, 2.01), (2, 2.02)], True), ([(1, 1e-5), (2, 1e4)], True), ([(0, 0.0)], False)],
)  # fmt: skip
def test_axes_of_any_range(points, log):
    figure = charts.chart("t", "x", [Series("a", points, [(y, y) for _, y in points])], log_y=log)
    figure.canvas.draw()
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    ticks = [label for label in ax.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert 2 <= len(ticks) <= 16 and all(label.get_text() for label in ticks)
    assert "nan" not in charts.svg(figure, "t")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_it_in_the_dark(workdirs, tmp_path):
    """The page's corner is light or dark as the reader's system asks."""
    pytest.importorskip("matplotlib")
    from matplotlib import image

    assert page.main([str(tmp_path / "report.html"), *workdirs]) == 0
    brightness = []
    for dark in (False, True):
        picture = tmp_path / f"{dark}.png"
        options = ["--blink-settings=preferredColorScheme=0"] * dark
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=600,400",
             f"--user-data-dir={tmp_path / 'browser'}", f"--screenshot={picture}", *options,
             f"file://{tmp_path / 'report.html'}"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        brightness.append(float(image.imread(picture)[:20, :20, :3].mean()))
    assert brightness[0] > 0.95 and brightness[1] < 0.2
