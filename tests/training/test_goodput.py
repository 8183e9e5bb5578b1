import time

import jax.numpy as jnp
import pytest

from clara_jax.training import goodput as goodput_lib
from clara_jax.training.goodput import PARTS, Goodput


class Device:
    """Metrics that a device has ready some seconds after it began on them, one after the other."""

    free = 0.0

    def __init__(self, seconds: float):
        Device.free = self.ready = max(Device.free, time.perf_counter()) + seconds

    def block_until_ready(self) -> None:
        time.sleep(max(self.ready - time.perf_counter(), 0))


@pytest.fixture
def goodput(monkeypatch):
    monkeypatch.setattr(goodput_lib.jax, "block_until_ready", lambda x: x.block_until_ready())
    counted = Goodput()
    yield counted
    counted.close()


def loop(goodput: Goodput, steps: int, data: float, device: float) -> dict[str, float]:
    """Two steps in flight, as in training."""
    begun, pending = time.perf_counter(), []
    for _ in range(steps):
        with goodput.spent("data"):
            time.sleep(data)
        if len(pending) >= 2:
            pending[-2].block_until_ready()
        pending.append(goodput.run(lambda: (None, Device(device)))[1])
    pending[-1].block_until_ready()
    time.sleep(0.01)
    found = {name.removeprefix("time/"): value for name, value in goodput.seconds().items()}
    assert found["total"] == pytest.approx(time.perf_counter() - begun, abs=0.05)
    assert found.keys() == {"total", "steps", "other", *PARTS}
    parts = sum(value for name, value in found.items() if name != "total")
    assert parts == pytest.approx(found["total"], abs=0.02)
    return found


def test_data_that_come_in_time_cost_nothing(goodput):
    found = loop(goodput, 10, data=0.02, device=0.05)
    assert found["steps"] == pytest.approx(0.5, abs=0.1)
    assert found["data"] < 0.12  # before the first step


def test_slow_data_cost_what_the_device_waits(goodput):
    found = loop(goodput, 10, data=0.05, device=0.02)
    assert found["steps"] == pytest.approx(0.2, abs=0.1)
    assert found["data"] == pytest.approx(0.05 + 9 * 0.03, abs=0.1)


def test_start_compile_and_checkpoints_are_told_apart(goodput):
    time.sleep(0.05)

    def compiled():
        time.sleep(0.1)
        return None, Device(0.05)

    _, metrics = goodput.run(compiled)
    metrics.block_until_ready()
    time.sleep(0.01)
    with goodput.spent("checkpoints"):
        time.sleep(0.1)
    found = goodput.seconds()
    for name, seconds in (("start", 0.05), ("compile", 0.1), ("steps", 0.05), ("checkpoints", 0.1)):
        assert found[f"time/{name}"] == pytest.approx(seconds, abs=0.05), name
    summary = goodput.summary()
    assert summary.startswith("goodput ") and " in steps; " in summary and "compile " in summary


def test_a_step_that_fails_ends_as_well(monkeypatch):
    counted = Goodput()

    def fail(_):
        raise RuntimeError

    monkeypatch.setattr(goodput_lib.jax, "block_until_ready", fail)
    counted.run(lambda: (None, jnp.zeros(())))
    time.sleep(0.05)
    assert counted.seconds()["time/steps"] < 0.04
    counted.close()
