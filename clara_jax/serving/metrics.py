"""What the server counts, for Prometheus."""

import time

import jax
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_EVENT = "/jax/core/compile/backend_compile_duration"
_WINDOW = 5.0  # seconds that tokens/s is a mean of
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_compiled = 0  # programs, of this process


def _count(event: str, duration_secs: float, **_: object) -> None:
    global _compiled
    _compiled += event == _EVENT


jax.monitoring.register_event_duration_secs_listener(_count)


class Metrics:
    """Counters of one server."""

    def __init__(self):
        self.registry = r = CollectorRegistry()
        ProcessCollector(registry=r)  # memory and CPU time, on Linux
        self.requests = Counter(
            "clara_requests", "Requests answered.", ["path", "status"], registry=r
        )
        self.seconds = Histogram(
            "clara_request_seconds", "Time of a request.", ["path"], buckets=_SECONDS, registry=r
        )
        name, text = "clara_time_to_first_token_seconds", "From request to first text."
        self.first_token = Histogram(name, text, buckets=_SECONDS, registry=r)
        self.queue_depth = Gauge("clara_queue_depth", "Requests that wait.", registry=r)
        self.slots_busy = Gauge("clara_slots_busy", "Answers being decoded.", registry=r)
        self.documents = Gauge("clara_documents", "Documents in the store.", registry=r)
        self.tokens = Counter("clara_generated_tokens", "Tokens decoded.", registry=r)
        rate = Gauge("clara_tokens_per_second", "Tokens decoded, of late.", registry=r)
        rate.set_function(self._rate)
        cache = Counter(
            "clara_memory_cache", "Memories found on the device, or not.", ["result"], registry=r
        )
        self._hits, self._misses = cache.labels("hit"), cache.labels("miss")
        text = "Programs compiled before and after warm-up."
        compilations = Gauge("clara_compilations", text, ["when"], registry=r)
        self._start = _compiled
        self._warm: int | None = None  # programs compiled before `warmed_up`
        compilations.labels("warm_up").set_function(
            lambda: (_compiled if self._warm is None else self._warm) - self._start
        )
        compilations.labels("serving").set_function(self.compilations)
        self._recent = (time.monotonic(), 0.0)  # start and tokens of the window
        self._last = 0.0  # tokens/s of the window before

    def warmed_up(self) -> None:
        """From now on nothing should compile."""
        self._warm = _compiled

    def compilations(self) -> int:
        """Programs compiled since `warmed_up`."""
        return 0 if self._warm is None else _compiled - self._warm

    def cache(self, hits: int, misses: int) -> None:
        """Counts a use of the memories on the device."""
        self._hits.inc(hits)
        self._misses.inc(misses)

    def step(self, tokens: int, now: float) -> None:
        """Counts tokens."""
        self.tokens.inc(tokens)
        start, count = self._recent
        if now - start > _WINDOW:
            self._last = count / (now - start)
            start, count = now, 0.0
        self._recent = start, count + tokens

    def text(self) -> bytes:
        """All in Prometheus' format."""
        return generate_latest(self.registry)

    def _rate(self) -> float:
        start, _ = self._recent
        return self._last if time.monotonic() - start < 2 * _WINDOW else 0.0
