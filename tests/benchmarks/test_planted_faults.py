import json
import pathlib

import pytest

from benchmarks import planted_faults
from clara_jax.synthesis import checks

NAMES = "Ada Lind,Bo Quist,Cy Marsh,Di Holt,Ed Vane,Flo Renn,Gus Tarn,Hal Brook".split(",")
TOWNS = "Torv,Lenz,Marn,Quell,Vosk,Brill,Dunmar,Pellow".split(",")


@pytest.fixture
def data(tmp_path):
    """Scp records of sixty small documents that differ in names, towns and numbers."""
    path = tmp_path / "data.jsonl"
    with path.open("w") as f:
        for i in range(60):
            first, second = NAMES[i % 8], NAMES[(i + 3) % 8]
            town, far = TOWNS[i // 8], TOWNS[(i // 8 + 2) % 8]
            year, boats = 1800 + i, 312 + 7 * i
            text = (
                f"The stone bridge in {town} was built by {first} in {year} for the guild. "
                f"At the market {second} sold {boats} wooden boats to merchants from {far}. "
                "Heavy rain often flooded the lower streets during spring."
            )
            record = {
                "data_type": "qa",
                "question": ["Who built the stone bridge?", "When was the stone bridge built?",
                             "How many wooden boats were sold at the market?"],
                "answers": [first, str(year), str(boats)],
                "docs": [f"Chronicle {i}\n{text}"],
            }  # fmt: skip
            f.write(json.dumps(record) + "\n")
    return str(path)


def test_faults_of_every_kind_are_planted_once_each(data):
    examples = planted_faults.read([data])
    found = planted_faults.plant(examples, 100, seed=1)
    kinds = [kind for kind, *_ in found]
    assert [kinds.count(kind) for kind in planted_faults.FAULTS] == [10] * 5
    assert kinds.count(planted_faults.CLEAN) == 50
    assert len({(document.id, pair.question) for _, document, pair in found}) == 100
    given = {(document.id, pair.question): pair.answer for document, pair in examples}
    for kind, document, pair in found:
        same = given[document.id, pair.question] == pair.answer
        assert same == (kind == planted_faults.CLEAN), kind
    assert (
        found
        == planted_faults.plant(examples, 100, seed=1)
        != planted_faults.plant(examples, 100, seed=2)
    )


def test_halves_share_no_document(data):
    halves = [
        {d.id for d, _ in planted_faults.read([data], half)} for half in planted_faults.HALVES
    ]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 60


def test_checks_find_them(data):
    counts = planted_faults.measure(planted_faults.plant(planted_faults.read([data]), 100, seed=0))
    spoilt = sum(hits for kind, (hits, _) in counts.items() if kind != planted_faults.CLEAN)
    assert spoilt >= 35 and counts[planted_faults.CLEAN][0] <= 5


def test_command(data, capsys, monkeypatch):
    assert planted_faults.main(["--data", data, "--seed", "0", "1", "--count", "50"]) == 0
    out = capsys.readouterr().out
    assert "| changed number | 5 |" in out and "all 2 seeds" in out
    monkeypatch.setattr(checks._Page, "against", lambda *_: ())  # without rules nothing is found
    planted_faults.main(["--data", data, "--count", "50"])
    assert "| **all faults** | 25 | 0 | 0.0% | 0.0% to" in capsys.readouterr().out
    assert planted_faults.main(["--data", data, "--count", "5000"]) == 2


def test_wilson():
    assert planted_faults.wilson(70, 100) == pytest.approx((0.604, 0.781), abs=1e-3)
    assert planted_faults.wilson(0, 10) == pytest.approx((0, 0.278), abs=1e-3)


def test_checks_find_them_in_the_half_that_rules_were_not_tuned_on(data):
    """On real data where `shared` is beside the repository."""
    folder = pathlib.Path(__file__).parents[3] / "shared" / "data"
    real = [str(folder / f"scp_{name}_train.jsonl") for name in ("squad", "nq", "pubmedqa")]
    paths, count = (real, 200) if folder.is_dir() else ([data], 60)
    examples = planted_faults.read(paths, "held")
    total = [
        planted_faults.measure(planted_faults.plant(examples, count, seed)) for seed in range(5)
    ]
    spoilt = sum(n for c in total for kind, (n, _) in c.items() if kind != planted_faults.CLEAN)
    assert spoilt >= 0.7 * 5 * count / 2
    assert sum(c[planted_faults.CLEAN][0] for c in total) <= 0.1 * 5 * count / 2
