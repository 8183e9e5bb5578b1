import io
import time

from clara_jax import progress as progress_lib
from clara_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stream, monkeypatch, seconds, start=0):
    times = iter(range(0, 10_000, seconds))
    monkeypatch.setattr(progress_lib.time, "monotonic", lambda: float(next(times)))
    progress = Progress(100, "work", start=start, stream=stream)
    for done in (start + 10, start + 20, start + 30):
        progress.update(done, f"loss {done}")
    progress.close()
    return stream.getvalue()


def test_plain_lines_now_and_then(monkeypatch):
    lines = run(io.StringIO(), monkeypatch, seconds=5).splitlines()
    assert lines == ["work: 20/100, 2.0/s, 0:40 left, loss 20"]


def test_one_line_on_a_terminal(monkeypatch):
    text = run(Terminal(), monkeypatch, seconds=60)
    assert "\n" not in text and text.count("work:") == 3
    assert text.endswith("\r")
    assert "work: 10/100, 10.0/min, 9:00 left" in text


def test_a_resumed_run_counts_only_its_own_work(monkeypatch):
    text = run(io.StringIO(), monkeypatch, seconds=100, start=50)
    assert text.splitlines()[0] == "work: 60/100, 6.0/min, 6:40 left, loss 60"


def test_work_of_unknown_length_says_that_it_goes_on():
    stream, long = io.StringIO(), io.StringIO()
    with progress_lib.doing("compiling", stream):
        pass
    with progress_lib.doing("compiling", long, every=0.02):
        time.sleep(0.2)
    said = long.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == ""  # nothing of what is soon done
    assert said.startswith("compiling: 0:00 so far\n") and said == long.getvalue()
