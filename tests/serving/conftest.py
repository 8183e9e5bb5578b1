"""A tiny random model, and a corpus in memory that is searched exactly."""

import dataclasses
import json
import threading
import time
import types
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest

from clara_jax.config import Config, Data, Mesh, Model, Select, Serve
from clara_jax.data.facts import FactsSource
from clara_jax.errors import UserError
from clara_jax.inference import rank
from clara_jax.inference.engine import Clara
from clara_jax.serving.run import Server
from clara_jax.serving.service import Service
from clara_jax.sharding import make_mesh
from clara_jax.training import setup as setup_lib

TEXTS = [FactsSource(6, seed=3)[i].document for i in range(6)]
OPTIONS = Serve(
    port=0, slots=3, queue=8, deadline=30.0, prompt_tokens=100, max_new_tokens=24, body=20_000
)


class MemoryCorpus:
    """Stands in for `serving.corpus.Corpus`."""

    def __init__(self, setup, texts):
        self._setup = setup
        self.texts, self.alive = [], []
        self.rows_MD = np.zeros((0, 4, 128), np.float32)
        self.reads = 0
        self.fails = None  # what the next search raises
        self.add([{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)])

    def __len__(self):
        return sum(self.alive)

    def warm_up(self):
        rank.scores(np.zeros((4, 128), np.float32), self.rows_MD, "cosine")

    def find(self, queries, questions, top_k):
        if self.fails is not None:
            raise self.fails
        found = []
        for query in queries:
            scores = rank.scores(query, self.rows_MD, "cosine")
            scores = np.where(self.alive, scores, -np.inf)
            best = [i for i in np.argsort(-scores, kind="stable")[:top_k] if self.alive[i]]
            found.append(
                [types.SimpleNamespace(row=int(i), score=scores[i], by="keys") for i in best]
            )
        return found

    def memories(self, rows):
        self.reads += len(rows)
        return self.rows_MD[list(rows)]

    def documents(self, rows):
        return [self.texts[row] for row in rows]

    def add(self, documents):
        taken = {t.id for t, alive in zip(self.texts, self.alive, strict=True) if alive}
        for document in documents:
            if document["id"] in taken:
                raise UserError(f"{document['id']}: there already")
            memory = Clara(self._setup, batch=4).compress([document["text"]] * 4)[:1]
            self.rows_MD = np.concatenate([self.rows_MD, memory])
            self.texts.append(
                types.SimpleNamespace(
                    **document, parent=document["id"], chunk=0, tokens=len(document["text"].split())
                )
            )
            self.alive.append(True)

    def delete(self, ids):
        for i in ids:
            rows = [r for r, t in enumerate(self.texts) if t.id == i and self.alive[r]]
            if not rows:
                raise UserError(f"{i}: no such document")
            self.alive[rows[0]] = False


@pytest.fixture(scope="session")
def setup():
    """A random model on one device whose adapters do something."""
    config = Config(
        model=Model(preset="tiny", tokenizer="facts", vocab_size=160),
        data=Data(document_length=40, rate=10), select=Select(k=2),
    )  # fmt: skip
    made = setup_lib.create(config, make_mesh(Mesh(data=1, fsdp=1), jax.devices()[:1]))
    keys = iter(jax.random.split(jax.random.key(5), 1000))
    trees = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), made.trees)
    return dataclasses.replace(made, trees=trees)


@pytest.fixture(scope="session")
def texts():
    """The corpus' documents."""
    return TEXTS


@pytest.fixture(scope="session")
def service(setup):
    """A service that has warmed up, over six documents."""
    service = Service(setup, MemoryCorpus(setup, TEXTS), OPTIONS)
    service.start()
    yield service
    service.close()


class Running:
    """A server on a port of its own, in a thread of this process."""

    def __init__(self, service, token=None):
        self.server = Server(service, token)
        self._bound = self.server.bound()
        sockets = self._bound.__enter__()
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": sockets})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.port}"
        while not self.server.started:
            time.sleep(0.01)

    def __call__(self, path, body=None, method=None, headers=None):
        """Status, headers and JSON or text of a response."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            response = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as e:
            response = e
        with response:
            text = response.read().decode()
            kind = response.headers["content-type"] or ""
            content = json.loads(text) if kind.startswith("application/json") else text
            return response.status, response.headers, content

    def close(self):
        self.server.should_exit = True
        self.thread.join(30)
        self._bound.__exit__(None, None, None)
        assert not self.thread.is_alive()


@pytest.fixture(scope="session")
def http(service):
    """A running server."""
    running = Running(service)
    yield running
    running.close()


@pytest.fixture
def running(service):
    """Starts servers of a test's own."""
    started = []

    def start(*args):
        started.append(Running(*args))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def settled(service):
    """Waits until nothing is answered and nobody waits."""

    def wait():
        until = time.monotonic() + 20
        while service.engine.busy or service.queue.waiting:
            assert time.monotonic() < until
            time.sleep(0.01)
        service.queue.interval = 0.0  # other tests hold the queue up

    return wait
