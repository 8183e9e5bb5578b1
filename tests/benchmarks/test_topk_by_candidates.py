"""The soft top-k's error by the number of candidates."""

import numpy as np
import pytest

from benchmarks import topk, topk_by_candidates


def test_numbers_are_those_of_topk_table(tmp_path, capsys):
    output = str(tmp_path / "t")
    argv = ["--candidates", "3", "4", "--k=1", "--problems=2", "--noise=2", f"--output={output}"]
    assert topk_by_candidates.main(argv) == 0
    text = (tmp_path / "t.md").read_text()
    assert "| estimator | N=3 | N=4 |" in text and "Relative error" in text
    assert (tmp_path / "t.png").stat().st_size > 10_000
    assert "written:" in capsys.readouterr().out


def test_gaps_where_exact_is_unknown(monkeypatch):
    monkeypatch.setattr(topk, "MOST", 3)
    monkeypatch.setattr(topk, "ESTIMATORS", ("straight_through",))
    found = topk_by_candidates.by_candidates([3, 4], 1, 0.1, 0.3, 2, 1)
    cosine = found["cosine"]["straight_through"]
    assert -1 <= cosine[0] <= 1 and np.isnan(cosine[1])
    assert all(0 < x <= 1 for x in found["mass"]["straight_through"])
    text = topk_by_candidates.markdown(found, [3, 4])
    assert f"| straight_through | {cosine[0]:.2f} |  |" in text


@pytest.mark.parametrize("option", ["--k=11", "--k=5", "--problems=0", "--spread=0"])
def test_mistakes(option):
    with pytest.raises(SystemExit) as e:
        topk_by_candidates.main(["--candidates", "3", "4", option])
    assert e.value.code == 2
