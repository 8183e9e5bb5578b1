import dataclasses

import pytest

from clara_jax.config import Serve
from clara_jax.serving import queueing
from clara_jax.serving.queueing import Full, Queue


def test_the_queue_is_bounded_in_number_and_in_time():
    queue = Queue(dataclasses.replace(Serve(), queue=3, deadline=10.0))
    queue.interval = 6.0
    queue.enter()  # nobody is before it
    with pytest.raises(Full) as full:
        queue.enter()  # it would wait 6 seconds of the 5 that are allowed
    assert full.value.after == 3 and queue.waiting == 1
    queue.interval = 0.1
    for _ in range(2):
        queue.enter()
    with pytest.raises(Full, match="3 requests wait already") as full:
        queue.enter()
    assert full.value.after == 1


def test_the_interval_is_that_of_requests_served_while_others_wait(monkeypatch):
    times = iter([0.0, 4.0, 5.0, 100.0, 101.0])
    monkeypatch.setattr(queueing.time, "monotonic", lambda: next(times))
    queue = Queue(Serve())
    for _ in range(3):
        queue.enter()
    queue.leave(True)  # at 0
    queue.leave(True)  # at 4
    assert queue.interval == pytest.approx(0.4)
    queue.leave()  # at 5, one that gave up; then nobody waits
    for _ in range(2):
        queue.enter()
    queue.leave(True)  # at 100: idle time does not count
    assert queue.interval == pytest.approx(0.4)
    queue.leave(True)  # at 101
    assert queue.interval == pytest.approx(0.4 + 0.1 * 0.6)
