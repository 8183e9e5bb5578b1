"""The benchmarks run on small models; what they print is measured by hand, never asserted."""

import jax
import pytest

from clara_jax.evaluation import benchmark
from clara_jax.evaluation.benchmark import Options

TINY = Options(preset="tiny")


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_measured_steps(monkeypatch, backend):
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    result = benchmark.scp_step(TINY, 1, "dots")
    assert result.name == "scp step, 1 row, remat dots"
    assert result.unit == {"cpu": "u", "tpu": "s"}[backend]
    assert result.tokens == 275 + 256 and result.release is None
    assert result.time > 0 and result.peak_gib > result.program_gib > 0


def test_compressing_counts_one_document(monkeypatch):
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    result = benchmark.compress(TINY)
    assert result.tokens == 275 and result.time > 0


def test_release_is_compared_only_on_its_own_model_and_device():
    assert benchmark.release(Options(), "1 row") == benchmark.RELEASE["1 row"]
    for other in (TINY, Options(dtype="bfloat16"), Options(base="x.gguf")):
        assert benchmark.release(other, "1 row") is None


def test_mistakes(capsys):
    assert benchmark.main(["packing"]) == 2
    assert "--base" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        benchmark.main(["dancing"])
    assert e.value.code == 2
