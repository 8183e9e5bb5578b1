"""`--mode=synthesize`: verified training records from documents, by any OpenAI-compatible endpoint.

OUTPUT gets train.jsonl (records in the order of the documents), excluded.jsonl (what did not pass,
with the reason), manifest.json, summary.md and summary.png; and state.jsonl and documents.jsonl,
from which the same command resumes after whatever ended it.
"""

import asyncio
import collections
import dataclasses
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import logging

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Config
from clara_jax.config_checks import METHOD
from clara_jax.data import records
from clara_jax.endpoint import client as endpoint_lib
from clara_jax.endpoint.asker import Asker
from clara_jax.endpoint.client import Endpoint, Unavailable
from clara_jax.endpoint.prompts import Prompts
from clara_jax.endpoint.replies import Replies
from clara_jax.errors import INTERRUPTED, UserError
from clara_jax.progress import Progress
from clara_jax.synthesis import estimate, jobs, languages, report
from clara_jax.synthesis.prompts import KINDS, OWN

LEFT = 1  # exit code where the same command has to be run again
# Options that change what a document gives; to change them in the middle would mix two runs.
_BASIS = [
    f.name for f in dataclasses.fields(config_lib.Synthesis) if f.metadata.get("ties") == METHOD
]


def run(
    documents: str,
    output: str,
    config: Config | None = None,
    dry_run: bool = False,
    preview: int | None = None,
) -> int:
    """Makes training records.

    Args:
        documents: files of documents, with commas; of questions with documents in task instruct.
        output: folder for the results, also of an earlier run that did not finish.
        config: options, of which `synthesis`, `seed` and `data.document_length` count.
        dry_run: only count and estimate; nothing is sent or written.
        preview: number of documents to make records of and print; None: all are made and kept.

    Returns:
        Exit code: 0, or LEFT where errors of the endpoint left documents undone.

    Raises:
        UserError: an option, a file or the endpoint is not what it must be.
    """
    config = config_lib.Config() if config is None else config
    if files.is_remote(output):
        raise UserError(f"{output}: --output must be a local folder; copy it from there")
    if preview is not None and preview < 1:
        raise UserError(f"--preview={preview} must be at least 1")
    prompts = Prompts(config.synthesis, KINDS, OWN)
    if dry_run:
        total = estimate.Estimate(config.synthesis, prompts)
        for job in jobs.collect(documents, config):
            total.add(job)
        print(total)
        return 0
    if preview is None:
        return _Run(documents, output, config, prompts)()
    few = config_lib.with_options(config, {"synthesis.documents": preview})
    with tempfile.TemporaryDirectory() as folder:
        code = _Run(documents, folder, few, prompts)()
        for name in ("train.jsonl", "excluded.jsonl"):
            path = os.path.join(folder, name)
            for value, _ in records.lines(path) if os.path.exists(path) else ():  # else stopped
                print(json.dumps(value, indent=2, ensure_ascii=False))
    return code


class _Run:
    """One run over all documents."""

    def __init__(self, documents: str, output: str, config: Config, prompts: Prompts):
        self._documents, self._output, self._config = documents, output, config
        self._options, self._prompts = config.synthesis, prompts
        self._left: collections.Counter[str] = collections.Counter()
        self._corpus: dict[str, int] = {}
        self._done = self._excluded = self._total = 0

    def __call__(self) -> int:
        try:
            return self._go()
        except KeyboardInterrupt:
            _tell("stopped; the same command goes on")
            return INTERRUPTED

    def _go(self) -> int:
        options = self._options
        url = endpoint_lib.address(options)  # before anything is written
        if options.task == "scp":
            languages.model()  # missing, it is reported before anything is asked
        basis = {name: getattr(options, name) for name in _BASIS}
        basis |= {"seed": self._config.seed, "prompts": self._prompts.hash}
        todo = jobs.collect(self._documents, self._config, self._corpus)
        first = next(todo)  # so that a wrong name of a file makes no folder
        with Replies(self._output, basis) as store:
            self._total = jobs.save(self._output, itertools.chain([first], todo))
            counts = asyncio.run(self._work(store))
            left = self._total - self._done
            if left:
                why = ", ".join(f"{n} {what}" for what, n in self._left.most_common(3))
                _tell(
                    f"{left} of {self._total} left undone by errors of the endpoint ({why}); run "
                    "the same command again"
                )
            self._write(store, self._manifest(store, url, counts, left))
        return LEFT if left else 0

    async def _work(self, store: Replies) -> dict[str, int]:
        async with Endpoint(self._options, KINDS) as endpoint:
            progress = Progress(self._total, "synthesis", self._count_done(store))
            todo = (job for job in jobs.load(self._output) if job["key"] not in store)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._options.concurrency):
                        group.create_task(self._worker(todo, endpoint, store, progress))
            except ExceptionGroup as e:
                raise e.exceptions[0] from e
            finally:
                progress.close()
            return dict(endpoint.counts)

    def _count_done(self, store: Replies) -> int:
        self._done = sum(job["key"] in store for job in jobs.load(self._output))
        if self._done:
            logging.info("%d of %d are done already", self._done, self._total)
        return self._done

    async def _worker(
        self, todo: Iterator[jobs.Job], endpoint: Endpoint, store: Replies, progress: Progress
    ) -> None:
        """Takes one job after the other."""
        work = jobs.TASKS[self._options.task].work
        for job in todo:
            ask = Asker(
                job["key"], endpoint, store, self._prompts, self._options, self._config.seed
            )
            try:
                result = await work(job, ask, self._options)
            except Unavailable as e:
                self._left[str(e)] += 1
            else:
                result |= {"id": job["id"], "source": job["source"], "malformed": ask.malformed}
                store.finish(job["key"], result)
                self._done += 1
                self._excluded += bool(result["excluded"])
            errors = endpoint.counts.total() - endpoint.counts["requests"]
            progress.update(
                self._done,
                f"{endpoint.counts['requests']} requests, {errors} failed, "
                f"{self._excluded} excluded, {self._left.total()} left",
            )

    def _manifest(
        self, store: Replies, url: str, counts: dict[str, int], left: int
    ) -> dict[str, Any]:
        options = dataclasses.asdict(self._options)
        for own in ("base_url", "model", "task"):
            del options[own]
        return {
            "task": self._options.task,
            "model": self._options.model,
            "endpoint": endpoint_lib.host(url),
            "prompts": {"version": self._prompts.version, "sha256": self._prompts.hash},
            "seed": self._config.seed,
            "documents": self._documents,
            "corpus": self._corpus,
            "document_length": self._config.data.document_length,
            "options": options,
            "tokens": estimate.describe(self._options, store.tokens),
            "replies": store.count,
            "requests_of_last_run": counts,
            "left_undone": left,
        }

    def _write(self, store: Replies, manifest: dict[str, Any]) -> None:
        """Writes the results, each file whole."""
        summary = report.Report()
        with (
            files.whole_file(os.path.join(self._output, "train.jsonl")) as train,
            files.whole_file(os.path.join(self._output, "excluded.jsonl")) as excluded,
        ):
            for job in jobs.load(self._output):
                result = store.result(job["key"])
                if result is None:
                    continue
                summary.add(result)
                for record in result["records"]:
                    train.write(json.dumps(record, ensure_ascii=False) + "\n")
                for part in result["excluded"]:
                    line = {"id": result["id"], "source": result["source"], **part}
                    excluded.write(json.dumps(line, ensure_ascii=False) + "\n")
        counts = summary.counts
        manifest["counts"] = {"jobs": self._total, **counts}
        if others := len(store) - counts["jobs done"]:
            _tell(
                f"{self._output}: {others} more done by earlier runs are not among the documents "
                "now, so not in train.jsonl either; their state is kept"
            )
        if summary.reasons and counts["jobs without any record"] == counts["jobs done"]:
            (reason, _), *_ = summary.reasons.most_common(1)
            _tell(
                f"{self._output}: no record at all, mostly for the reason: {reason}; see "
                "excluded.jsonl"
            )
        files.write(
            os.path.join(self._output, "manifest.json"), json.dumps(manifest, indent=2) + "\n"
        )
        report.write(self._output, summary, manifest)
        logging.info("%s: %s", self._output, manifest["counts"])


def _tell(message: str) -> None:
    print(f"clara_jax: {message}", file=sys.stderr)
