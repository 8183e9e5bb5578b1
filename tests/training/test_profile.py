import jax
import numpy as np
import pytest

from clara_jax.training.profile import Trace


@pytest.mark.parametrize(
    ("steps", "first", "end", "traced"),
    [
        (0, 0, 20, []),
        (3, 0, 100, [10, 11, 12]),
        (3, 50, 100, [60, 61, 62]),  # a resumed run
        (3, 0, 8, [5, 6, 7]),  # a short one
        (9, 0, 4, [1, 2, 3]),  # never with the first step, which is compiled
        (1, 0, 1, []),
    ],
)
def test_which_steps_are_traced(monkeypatch, tmp_path, steps, first, end, traced):
    running, found, folders = False, [], []

    def begin(folder, **_):
        nonlocal running
        assert not running
        running = True
        folders.append(folder)

    def stop():
        nonlocal running
        assert running
        running = False

    monkeypatch.setattr(jax.profiler, "start_trace", begin)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop)
    trace = Trace(str(tmp_path), steps, first, end)
    for step in range(first, end):
        trace.before(step, np.zeros(1))
        found += [step] * running
    trace.close()
    trace.close()
    assert found == traced and not running
    assert folders == [f"{tmp_path}/profile"] * bool(traced)
