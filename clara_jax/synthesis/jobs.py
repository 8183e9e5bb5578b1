"""What a run works on: documents, or questions over documents, each with a key, in a file.

OUTPUT/documents.jsonl holds them as they came out of the corpus (cut to the limit, copies removed),
so that their number is known and they can be read one by one.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from clara_jax import files
from clara_jax.config import Config
from clara_jax.data import records
from clara_jax.errors import UserError
from clara_jax.synthesis import corpus, pipeline

NAME = "documents.jsonl"
Job = dict[str, Any]
Counts = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Task:
    """What `config.synthesis.task` names: where its jobs come from, and the work on one."""

    read: Callable[[str, Config, Counts], Iterable[Job]]
    work: Callable[..., Awaitable[pipeline.Result]]


def documents(names: str, config: Config, counts: Counts) -> Iterator[Job]:
    """A job for each document of the corpus."""
    read = corpus.Counts()
    for document in corpus.read(names, config, read):
        counts.update(dataclasses.asdict(read))
        job = {"id": document.id, "title": document.title, "text": document.text}
        yield job | {"source": document.origin}
    counts.update(dataclasses.asdict(read))


def questions(names: str, config: Config, counts: Counts) -> Iterator[Job]:
    """A job for each record of files with questions and documents; answers may be missing."""
    del config, counts
    for name in records.names_of(names):
        for value, origin in records.lines(name):
            record = records.parse_qa(value | {"answer": "?"}, origin)  # the teacher will give it
            job = {"id": str(value.get("id", origin)), "source": origin}
            job |= {"question": record.question, "docs": list(record.documents)}
            yield job | ({"pos_index": list(record.gold)} if "pos_index" in value else {})


TASKS = {
    "scp": Task(documents, pipeline.scp),
    "instruct": Task(questions, pipeline.instruct),
}


def collect(names: str, config: Config, counts: Counts | None = None) -> Iterator[Job]:
    """The distinct jobs of a run, each with its key: a hash of all that its results depend on.

    Args:
        names: of files.
        config: options.
        counts: is filled with what became of the corpus.
    """
    seen = set()
    options, counts = config.synthesis, {} if counts is None else counts
    jobs = TASKS[options.task].read(names, config, counts)
    for job in itertools.islice(jobs, options.documents or None):
        content = {name: value for name, value in job.items() if name not in ("id", "source")}
        key = records.digest(json.dumps(content, sort_keys=True))
        if key in seen:
            counts["repeated"] = counts.get("repeated", 0) + 1
        else:
            seen.add(key)
            yield {"key": key.hex(), **job}
    if not seen:
        raise UserError(f"{names}: holds nothing to work on")


def save(folder: str, jobs: Iterable[Job]) -> int:
    """Writes the file; returns the number of jobs."""
    with files.whole_file(os.path.join(folder, NAME)) as f:
        return sum(bool(f.write(json.dumps(job) + "\n")) for job in jobs)


def load(folder: str) -> Iterator[Job]:
    """Reads the file, one job after the other."""
    with open(os.path.join(folder, NAME), encoding="utf-8") as f:
        yield from map(json.loads, f)
