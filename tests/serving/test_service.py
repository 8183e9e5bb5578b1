"""Answers are those of `Clara`, whatever else runs; slots and queue are given back."""

import dataclasses
import queue
import threading
import time

import numpy as np
import pytest

from clara_jax.api import Clara
from clara_jax.errors import UserError
from clara_jax.inference.sampling import GenerationOptions, Sampling
from clara_jax.serving.queueing import Cancelled, Full, Late, Question

QUESTIONS = [
    "who is bedda daba ?",
    "where ?",
    "what is the job of defa ?",
    "who has a horse ?",
    "which colour does she like ?",
    "red",
    "what food and what instrument ?",
    "city of goba ?",
]
LENGTHS = (5, 12)  # most tokens of their answers


class Asked:
    """A question and its events."""

    def __init__(
        self,
        service,
        question,
        top_k=2,
        answer=True,
        slow=None,
        words=False,
        max_new_tokens=12,
        stop=(),
        rate=0,
        **sampling,
    ):
        self.events = queue.Queue()
        self.error = None
        self.pieces = []

        def on_text(piece):
            self.pieces.append(piece)
            if slow is not None:
                slow.wait(20)

        self._ended = threading.Event()
        options = GenerationOptions(max_new_tokens, Sampling(**sampling), stop)
        self.job = Question(
            self._end,
            question,
            top_k,
            on_found=lambda: None,
            on_text=on_text,
            options=options if answer else None,
            rate=rate,
            wants_words=words,
        )
        service.accept(self.job)

    def _end(self, error):
        assert not self._ended.is_set(), "ended twice"
        self.error = error
        self._ended.set()

    def wait(self):
        assert self._ended.wait(60)
        return "".join(self.pieces)


def expected(service, question, top_k=2, max_new_tokens=12, **how):
    clara, corpus = Clara(service.model, service.trees), service.corpus
    query = clara.encode_query([question])
    (hits,) = corpus.find(query, [question], top_k)
    memories = corpus.rows_MD[[hit.row for hit in hits]]
    return clara.answer([question], [memories], max_new_tokens, **how)[0]


@pytest.fixture(scope="module")
def answers(service):
    """What Clara answers, in one batch; computed before anything counts compilations."""
    clara = Clara(service.model, service.trees)
    hits = [
        service.corpus.find(clara.encode_query([question]), [question], 1 + i % 3)[0]
        for i, question in enumerate(QUESTIONS)
    ]
    memories = [service.corpus.rows_MD[[hit.row for hit in found]] for found in hits]
    whole = clara.answer(QUESTIONS, memories, max(LENGTHS))
    # A word is a token here.
    return [" ".join(text.split()[: LENGTHS[i % 2]]) for i, text in enumerate(whole)]


def test_many_at_once_are_answered_as_one_by_one_and_nothing_compiles(service, answers, settled):
    settled()
    assert len(set(answers)) > 4 and all(answers)
    service.metrics.warmed_up()
    for _ in range(2):  # the ring of columns turns, and slots are used again
        asked = [
            Asked(service, question, 1 + i % 3, max_new_tokens=LENGTHS[i % 2])
            for i, question in enumerate(QUESTIONS)
        ]
        assert [a.wait() for a in asked] == answers
        assert all(a.error is None for a in asked)
    assert service.metrics.compilations() == 0
    assert [len(a.job.hits) for a in asked[:3]] == [1, 2, 3]
    assert asked[0].job.reason in ("stop", "length")
    assert max(len(a.pieces) for a in asked) > 3
    service.corpus.find(np.ones((3, 4, 128), np.float32), ["a"] * 3, 2)  # and it does count:
    Clara(service.model, service.trees).answer_scp(["a b c"], ["a"], max_new_tokens=3)
    assert service.metrics.compilations() > 0


def test_draws_and_stops_are_those_of_clara(service):
    for how in (
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1.5, "seed": 4},
        {"temperature": 2.0, "top_p": 0.5, "seed": 3},
    ):
        other = Asked(service, QUESTIONS[1])
        asked = Asked(service, QUESTIONS[0], **how)
        assert asked.wait() == expected(service, QUESTIONS[0], **how)
        assert other.wait() == expected(service, QUESTIONS[1])
    whole = Asked(service, QUESTIONS[0]).wait()
    stop = whole[len(whole) // 2 :][:3]
    asked = Asked(service, QUESTIONS[0], stop=(stop, "never"))
    assert asked.wait() == whole.split(stop)[0].strip()
    assert asked.job.reason == "stop"


def test_memories_are_read_at_a_higher_rate(service):
    """Means of neighbours fill fewer slots of the prompt."""
    clara = Clara(service.model, service.trees)
    rate = service.model.config.data.document_length  # one vector a document
    query = clara.encode_query([QUESTIONS[0]])
    (hits,) = service.corpus.find(query, [QUESTIONS[0]], 2)
    memories = service.corpus.rows_MD[[hit.row for hit in hits]]
    (expected_,) = clara.at_rate(rate).answer([QUESTIONS[0]], [memories], 12)
    asked = Asked(service, QUESTIONS[0], 2, max_new_tokens=12, rate=rate)
    assert asked.wait().strip() == expected_ and asked.error is None
    wrong = Asked(service, QUESTIONS[0], 2, rate=rate + 1)
    wrong.wait()
    assert isinstance(wrong.error, UserError) and "possible" in str(wrong.error)


def test_memories_are_read_once(service):
    first = Asked(service, QUESTIONS[3], 3)
    first.wait()
    before = service.corpus.reads
    again = Asked(service, QUESTIONS[3], 3)
    assert again.wait() == "".join(first.pieces)
    assert service.corpus.reads == before
    assert 'clara_memory_cache_total{result="hit"}' in service.metrics.text().decode()


def test_search_alone_and_the_lens(service):
    asked = Asked(service, QUESTIONS[0], 4, answer=False, words=True)
    asked.wait()
    scores = [hit.score for hit in asked.job.hits]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert asked.job.words and not asked.job.ids


def test_the_queue_is_bounded_and_cancelled_requests_give_their_slots_back(service, settled):
    settled()
    held = threading.Event()
    first = Asked(service, QUESTIONS[0], slow=held)  # stops the engine at its first token
    while not first.pieces:
        time.sleep(0.01)
    rest = [Asked(service, QUESTIONS[1]) for _ in range(service.options.queue)]
    with pytest.raises(Full):
        Asked(service, QUESTIONS[1])
    rest[0].job.cancelled = True
    first.job.cancelled = True
    held.set()
    assert isinstance([a.wait() and None for a in rest] and rest[0].error, Cancelled)
    first.wait()
    assert isinstance(first.error, Cancelled)
    assert [a.error for a in rest[1:]] == [None] * (len(rest) - 1)
    settled()
    assert "clara_queue_depth 0.0" in service.metrics.text().decode()


def test_deadlines(service, monkeypatch, settled):
    settled()
    monkeypatch.setattr(service, "options", dataclasses.replace(service.options, deadline=-1.0))
    for answer in (True, False):
        asked = Asked(service, QUESTIONS[0], answer=answer)
        asked.wait()
        assert isinstance(asked.error, Late)
    monkeypatch.setattr(service, "options", dataclasses.replace(service.options, deadline=0.5))
    monkeypatch.setattr(service.queue, "interval", 0.0)
    held = threading.Event()
    asked = [Asked(service, QUESTIONS[0], slow=held) for _ in range(5)]
    time.sleep(0.6)  # some have a slot by now, others wait for one
    held.set()
    for each in asked:
        each.wait()
        assert isinstance(each.error, Late)
    settled()


def test_what_fails_is_told_and_the_next_is_answered(service, settled):
    settled()
    long = Asked(service, "who " * 200)
    long.wait()
    assert isinstance(long.error, UserError) and "too long" in str(long.error)
    service.corpus.fails = OSError("disk")
    both = [Asked(service, QUESTIONS[0], answer=answer) for answer in (True, False)]
    for asked in both:
        asked.wait()
        assert "its log says why" in str(asked.error)
    service.corpus.fails = None
    assert Asked(service, QUESTIONS[0]).wait() == expected(service, QUESTIONS[0])
    assert not service.broken
    settled()


def test_who_would_come_too_late_is_refused_at_once(service, monkeypatch, settled):
    settled()
    held = threading.Event()
    first = Asked(service, QUESTIONS[0], slow=held)
    while not first.pieces:
        time.sleep(0.01)
    monkeypatch.setattr(service.queue, "interval", service.options.deadline / 5)
    rest = [Asked(service, QUESTIONS[1]) for _ in range(3)]  # waits of 0, 1/5 and 2/5
    with pytest.raises(Full) as full:
        Asked(service, QUESTIONS[1])
    assert full.value.after == 9  # half of 3/5 of 30 s
    held.set()
    for asked in (first, *rest):
        asked.wait()
    settled()
    assert service.queue.interval < service.options.deadline / 5  # it was faster
