"""A run's data: the training iterator and the held-out batches, and what the base makes for them.

The later stages may read memories that the frozen compressor computes once (`data.memories`), and
answers that the plain base gives from the full texts (`data.answers=teacher`, the paper's). Both
are written to disk as they come, so that a run that was stopped resumes.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clara_jax import distributed, ledger, sharding
from clara_jax.config import Config
from clara_jax.data import question_lengths, question_rows, scp_rows, sources
from clara_jax.data.memories import MemoryFile
from clara_jax.data.prompts import FRAME
from clara_jax.data.question_rows import QuestionRows
from clara_jax.data.reader import Reader
from clara_jax.data.records import QaRecord, digest
from clara_jax.data.streams import Streams
from clara_jax.errors import UserError
from clara_jax.inference import answers as answers_lib
from clara_jax.inference import encode
from clara_jax.ledger import Ledger
from clara_jax.models.clara import Trees
from clara_jax.progress import Progress
from clara_jax.runs.fingerprint import fingerprint
from clara_jax.runs.setup import Model
from clara_jax.stages import STAGES

_CHUNK = 128  # documents or prompts between writes


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    train: Iterator[Any]  # this process's rows of each batch; has `get_state` and `set_state`
    # whole batches of the first `eval.records` dev records; None unless `train.eval_every`
    held_out: list[dict[str, np.ndarray]] | None
    # number and hash of the records, whose order a checkpoint's place in the data counts on
    source: dict[str, int | str]


def open_inputs(model: Model, trees: Trees, workdir: str) -> Inputs:
    """Opens what `model.config` names.

    Raises:
        UserError: a source, a row length or the number of rows does not fit.
    """
    config = model.config
    rows = config.train.batch_rows // config.train.accumulate
    shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    if rows % shards:
        raise UserError(
            f"config.train.batch_rows / accumulate = {rows} rows do not divide by the "
            f"{shards} devices of config.mesh data x fsdp"
        )
    _check_memory(model, rows)
    reader = Reader(scp_rows.open_data(config), model.layout, config)
    dev = Reader(_dev(config), model.layout, config) if config.train.eval_every else None
    if STAGES[config.stage].records == "scp":
        train, held_out = _open_scp(model, reader, dev, rows)
    else:
        train, held_out = _open_questions(model, trees, workdir, reader, dev)
    keys = hashlib.blake2b(reader.source.keys.tobytes(), digest_size=8)
    return Inputs(train, held_out, {"records": len(reader.source), "titles": keys.hexdigest()})


def _check_memory(model: Model, rows: int) -> None:
    """Refuses more rows than the layers' inputs alone, which are always kept, have room for."""
    own, length = model.architecture, model.config.data.decoder_row or FRAME
    kept = jax.ShapeDtypeStruct((rows, length, own.n_layers, own.d_model), jnp.dtype(own.dtype))
    sharding.check_memory(kept, f"config.train.batch_rows={model.config.train.batch_rows}")


def _dev(config: Config) -> sources.Source[Any]:
    source = scp_rows.open_dev(config)
    if 0 < config.eval.records < len(source):
        source = sources.Subset(source, np.arange(config.eval.records))
    return source


def _streams(model: Model, open_stream: Callable[..., Any]) -> Streams:
    """This process's rows of the batches; `open_stream(stream=…, streams=…)` opens one stream."""
    config = model.config
    rows, shards = config.train.batch_rows, config.data.shards or 1
    return Streams(
        lambda n: open_stream(stream=n, streams=shards),
        shards,
        rows,
        sharding.rows_of_processes(model.mesh, rows),
        jax.process_index(),
        # Only data that end need to be agreed on: it waits for the step that is under way.
        distributed.any_of if config.data.epochs else bool,
    )


def _open_scp(
    model: Model, reader: Reader, dev: Reader | None, rows: int
) -> tuple[Streams, list[dict[str, np.ndarray]] | None]:
    lengths = scp_rows.row_lengths(reader)
    open_stream = functools.partial(scp_rows.make_train_iterator, reader, lengths)
    # Held-out rows are like those of training.
    held_out = None if dev is None else scp_rows.eval_batches(dev, lengths, rows)
    return _streams(model, open_stream), held_out


def _open_questions(
    model: Model, trees: Trees, workdir: str, reader: Reader, dev: Reader | None
) -> tuple[Streams, list[dict[str, np.ndarray]] | None]:
    config, stage = model.config, STAGES[model.config.stage]
    memories = None
    if config.data.answers == "teacher" and stage.instructs:
        answers = teacher_answers(model, trees, reader, workdir)
        reader = dataclasses.replace(reader, answers=answers)
    if config.data.memories and stage.ranks:
        records = (one.picked(i) for one in filter(None, (reader, dev)) for i in _places(one))
        memories = compute_memories(model, trees, (d for r in records for d in r.documents))
    shapes = question_lengths.measure(reader, compress=memories is None)
    rows = QuestionRows(reader, shapes, memories)
    train = _streams(model, functools.partial(question_rows.make_train_iterator, rows))
    if dev is None:
        return train, None
    batch_rows = config.train.batch_rows // config.train.accumulate
    held_out = question_rows.eval_batches(QuestionRows(dev, shapes, memories), batch_rows)
    return train, held_out


def _places(reader: Reader) -> range:
    return range(len(reader.source))


def compute_memories(model: Model, trees: Trees, documents: Iterable[str]) -> MemoryFile:
    """Memories of all documents in the folder `data.memories`: those that are not there are made.

    Raises:
        UserError: the folder holds those of another model, or cannot be written.
    """
    config, architecture = model.config, model.architecture
    maker = {"fingerprint": fingerprint(model, trees)}
    M, D = len(model.extra.memory), architecture.d_model
    open_file = functools.partial(MemoryFile, config.data.memories, maker, M, D, architecture.dtype)
    file = distributed.first_alone(open_file)  # it may make the folder
    documents = list(dict.fromkeys(documents))
    # Another run may be adding memories: what is missing is what the first process misses.
    absent = set(file.missing(documents))
    is_missing = distributed.from_first(np.array([d in absent for d in documents], bool))
    missing = list(itertools.compress(documents, is_missing))
    if missing:
        progress = Progress(len(missing), "compressing")

        for start in range(0, len(missing), _CHUNK):
            part = missing[start : start + _CHUNK]
            vectors = encode.compress(model, trees, part, config.eval.batch).memories
            if distributed.is_first():
                file.append(part, vectors)
            progress.update(start + len(part))
        progress.close()
    if jax.process_count() > 1:
        distributed.barrier("memories")
        file = open_file()
    logging.info("memories: %d documents in %s", len(file), config.data.memories)
    return file


def teacher_answers(model: Model, trees: Trees, reader: Reader, workdir: str) -> list[str]:
    """Answers of the plain base to every question, from the full texts of the documents used.

    Kept in `workdir/teacher.jsonl`, each with a hash of what was asked, so that no answer is taken
    for that of another question. Where the base says nothing, the record's own answer stands.

    Raises:
        UserError: that file belongs to other data.
    """
    path, total = os.path.join(workdir, "teacher.jsonl"), len(reader.source)
    answers, size = _read_answers(path, model, reader)
    if len(answers) < total:
        progress = Progress(total, "teacher answers", start=len(answers))
        with contextlib.ExitStack() as stack:
            # Without what a kill left of a line.
            file = stack.enter_context(Ledger(path, size)) if distributed.is_first() else None
            for start in range(len(answers), total, _CHUNK):
                part = range(start, min(start + _CHUNK, total))
                records = [reader.picked(i) for i in part]
                texts = _teach(model, trees, records)
                for record, text in zip(records, texts, strict=True):
                    if file is not None:
                        file.append({"asked": _asked(model, record), "answer": text})
                answers += texts
                progress.update(part.stop)
        progress.close()
    filled = [text or reader.source[i].answers[0] for i, text in enumerate(answers)]
    logging.info(
        "teacher: %d answers, %d of them empty and replaced by the record's own",
        total,
        sum(not text for text in answers),
    )
    return filled


def _teach(model: Model, trees: Trees, records: Sequence[Any]) -> list[str]:
    config = model.config
    texts = [[model.layout.head(d) for d in record.documents] for record in records]
    asked = answers_lib.answer_prompts(model, [record.question for record in records], texts)
    return answers_lib.answers(
        model, trees, asked, config.data.teacher_tokens, role=None, stop="", batch=config.eval.batch
    )


def _asked(model: Model, record: QaRecord) -> str:
    """A hash of all that the teacher's answer depends on but the weights."""
    config = model.config
    how = [config.model.base, config.data.teacher_tokens, config.data.document_length]
    texts = [config.prompts.answer_system, config.prompts.answer_user, record.question]
    return digest(json.dumps([*how, *texts, *record.documents])).hex()


def _read_answers(path: str, model: Model, reader: Reader) -> tuple[list[str], int]:
    """Answers before the first damaged line of the file, and the bytes of their lines."""
    answers: list[str] = []

    def take(line: ledger.Entry, _: int) -> None:
        asked, answer, number = line["asked"], line["answer"], len(answers)
        if not isinstance(answer, str):
            raise ValueError("no text")
        if number >= len(reader.source) or asked != _asked(model, reader.picked(number)):
            raise UserError(
                f"{path}:{number + 1}: the answer to another question, or under other options; "
                "use another --workdir, or remove the file to have the answers made again"
            )
        answers.append(answer)

    return answers, ledger.read(path, take)
