"""The benchmarks run on small models; what they print is measured by hand, never asserted."""

import jax
import numpy as np
import pytest

from benchmarks import measure, programs, search, speed
from benchmarks.programs import Options
from clara_jax.training import objectives

TINY = Options(preset="tiny")


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=pytest.mark.slow), "tpu"])
def test_measured_steps(monkeypatch, backend):
    monkeypatch.setattr(measure, "REPEATS", 1)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    result = programs.scp_step(TINY, 1, "dots")
    assert result.name == "scp step, 1 row, remat dots"
    assert result.unit == {"cpu": "u", "tpu": "s"}[backend]
    assert result.tokens == 275 + 256 and result.release is None
    assert result.time > 0 and result.peak_gib > result.program_gib > 0


def test_compressing_counts_one_document(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 1)
    result = programs.compress(TINY)
    assert result.tokens == 275 and result.time > 0


@pytest.mark.parametrize("compress", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_e2e_step(monkeypatch, compress):
    monkeypatch.setattr(measure, "REPEATS", 1)
    result = programs.e2e_step(TINY, compress)
    assert result.tokens == 64 + 192 + compress * 20 * 275 and result.time > 0


def test_e2e_batches_are_whole_questions():
    """Every slot is filled, every memory found, and both batches are the same question."""
    setup = programs.make_setup(TINY, stage="e2e")
    texts, given = (programs.question_batch(setup.model, compress) for compress in (True, False))
    for key in set(texts) & set(given):
        np.testing.assert_array_equal(texts[key], given[key])
    slots = texts["dec_slots"]
    np.testing.assert_array_equal(slots[slots >= 0], np.arange(5 * 16))
    assert (texts["dec_targets"] >= 0).sum() == 192 - 164
    is_memory = setup.model.extra.is_memory(texts["enc_tokens"])
    np.testing.assert_array_equal(texts["doc_places"].reshape(-1), np.flatnonzero(is_memory))
    found = objectives.candidates(setup.model, setup.trees, texts)
    assert found.shape == given["memories"].shape


def test_answers_are_never_cut_short(monkeypatch):
    monkeypatch.setattr(measure, "REPEATS", 1)
    runs = []

    def measured(*measuring):
        runs.extend(np.asarray(program.run()) for program in measuring)
        return measure.measured(*measuring)

    monkeypatch.setattr(programs, "measured", measured)
    prompts, whole = programs.answer(TINY)
    assert [run.shape for run in runs] == [(4, 1), (4, 64)]
    assert all((run >= 0).all() for run in runs)
    assert prompts.tokens == 4 * 192 and whole.tokens == 4 * (192 + 63)


def test_release_is_compared_only_on_its_own_model_and_device():
    assert programs.release(Options(), "1 row") == programs.RELEASE["1 row"]
    for other in (TINY, Options(dtype="bfloat16"), Options(base="x.gguf")):
        assert programs.release(other, "1 row") is None


def test_search(monkeypatch):
    monkeypatch.setattr(search, "RUNS", 2)
    monkeypatch.setattr(search, "D", 16)
    lines = search.measure(300, 16, 30)
    assert len([line for line in lines if "p50" in line]) == 3
    corpus = search.make(300, 5)
    x, q = (a.reshape(-1, 256).astype(np.float32) for a in (
        corpus.memories_RMD[corpus.sources_n], corpus.queries_nMD))  # fmt: skip
    cosines = (x * q).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(q, axis=1)
    np.testing.assert_allclose(cosines, search.COSINE, rtol=1e-3)


def test_mistakes(capsys):
    assert speed.main(["packing"]) == 2
    assert "--base" in capsys.readouterr().err
    with pytest.raises(SystemExit) as e:
        speed.main(["dancing"])
    assert e.value.code == 2
