"""`--mode=compress`: documents into a store, which ask and serve then read.

--documents is streamed into the store, long ones in pieces; what is there already is left out, so
that the same command resumes after a kill, and appends when the file has grown. On a store alone,
--delete takes ids (with commas between, or a file with one a line), and --compact takes away what
is deleted. In one command: first deleted, then added, then compacted. Documents whose part is
damaged are compressed again; --verify looks for damage in memories as well, which takes a pass over
all files of the store.

--shard=i/n takes the i-th of n shares of the documents, which depends on their ids alone: n workers
with a store each do every document once, and --join makes one store of theirs (join.py).

--fit finds how the trained score and BM25 are best combined in a search (search/fit.py), on
questions whose documents are known; with --documents or at any later time.
"""

from collections.abc import Iterator
from typing import Any

from absl import logging

from clara_jax import distributed, files
from clara_jax.config import Config
from clara_jax.corpus import format, write
from clara_jax.corpus import join as join_lib
from clara_jax.corpus.search import fit as fit_lib
from clara_jax.corpus.store import Store, open_store
from clara_jax.data import judged, records
from clara_jax.data.documents import Document, stream
from clara_jax.errors import UserError
from clara_jax.models.clara import Trees
from clara_jax.progress import Progress
from clara_jax.runs.load import load_setup
from clara_jax.runs.setup import Model


def run(
    store: str,
    workdir: str | None = None,
    documents: str | None = None,
    base: str | None = None,
    config: Config | None = None,
    delete: str | None = None,
    fit: str | None = None,
    shard: str | None = None,
    **tasks: Any,
) -> int:
    """Changes a store and prints what it then holds.

    Args:
        store: its folder.
        workdir: of the run whose model compresses.
        documents: file for `documents.stream`.
        base: the base model, as for `api.load`.
        config: its groups `store` and, for `fit`, `search` count.
        delete: ids of documents, or a file of them.
        fit: questions for `search.fit`.
        shard: `i/n`, to take a share of the documents; i is from 0.
        **tasks: `compact`, `verify`, which reads all files that are there, and `join`, the stores
            that this one is made of, with commas between.

    Returns:
        The exit code, 0.

    Raises:
        UserError: nothing is to be done, or model, documents or store cannot be used.
    """
    compact, verify = (bool(tasks.get(name)) for name in ("compact", "verify"))
    join = tasks.get("join")
    by_model = documents is not None or fit is not None
    if not by_model and delete is None and not (compact or verify or join):
        raise UserError(
            "--mode=compress needs --documents or --fit (with --workdir), --delete, --compact, "
            "--verify or --join"
        )
    if by_model != (workdir is not None):
        raise UserError("--mode=compress needs both --workdir and --documents, or --fit")
    if not by_model and (base is not None or config is not None):
        raise UserError("--base and --config are for --documents and --fit; leave them out")
    if shard is not None and documents is None:
        raise UserError("--shard is a share of --documents; name them too")
    share = _share(shard or "0/1")
    if fit is not None:
        judged.read(fit)  # so that its mistakes are reported before hours of work
    if join is not None:
        join_lib.join(store, records.names_of(join))
    if documents is not None and (files.path(store) / format.MANIFEST).exists():
        write.repair(store, bool(verify))
    elif verify:
        write.check(store)
    if delete is not None:
        write.delete(store, _ids(delete), again=bool(compact))
    new = _new(store, documents, share) if documents is not None else 0
    made = load_setup(workdir, base) if workdir is not None else None
    if documents is not None and made is not None:
        _add(store, made, _of(share, documents), new, config)
    if compact:
        write.compact(store)
    fitted = _fit(store, made, fit, config) if fit is not None and made is not None else ""
    if distributed.is_first():
        print(show(Store(store)) + fitted)
    return 0


def show(store: Store) -> str:
    """What a store holds, and how large it is."""
    manifest, dead = store.manifest, store.rows - int(store.alive_R.sum())
    pieces = "" if manifest.rows == manifest.documents else f" in {manifest.rows} pieces"
    over = manifest.memory_bytes / max(manifest.text_bytes, 1)
    gone = f" ({dead} rows are deleted; --compact takes them away)" if dead else ""
    return (
        f"{store.path}: {manifest.documents} documents{pieces}{gone}, {len(manifest.parts)} parts\n"
        f"{manifest.fed_tokens} tokens read, {manifest.cut_tokens} cut; realised compression "
        f"{manifest.realised_compression:.1f}x ({manifest.rate}x for full documents)\n"
        f"memories {_megabytes(manifest.memory_bytes)} in {manifest.dtype}, text "
        f"{_megabytes(manifest.text_bytes)}: {over:.1f} bytes of memories for a byte of text"
    )


def _share(given: str) -> tuple[int, int]:
    """Number of a share, and of how many it is one."""
    number, _, count = given.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--shard={given}: give i/n with i from 0 to n - 1, as 0/4")
    return int(number), int(count)


def _of(share: tuple[int, int], documents: str) -> Iterator[Document]:
    """Documents of a share; all of the same id are of the same one, wherever they stand."""
    number, count = share
    for document in stream(documents):
        if int.from_bytes(records.digest(document.id)) % count == number:
            yield document


def _new(store: str, documents: str, share: tuple[int, int]) -> int:
    """A first pass over the documents, so that mistakes are reported before hours of work."""
    is_there = (files.path(store) / format.MANIFEST).exists()
    known = write.known(Store(store)) if is_there else {}
    new = sum(1 for _ in write.unknown(known, _of(share, documents)))
    logging.info("%s: %d documents are new", documents, new)
    return new


def _add(
    store: str,
    made: tuple[Model, Trees],
    documents: Iterator[Document],
    new: int,
    config: Config | None,
) -> None:
    progress, done = Progress(new, "compressing"), 0

    def report(finished: int) -> None:
        nonlocal done
        done += finished
        if distributed.is_first():
            progress.update(done)

    write.add(store, *made, documents, (config or Config()).store, report)
    progress.close()


def _fit(store: str, made: tuple[Model, Trees], questions: str, config: Config | None) -> str:
    opened = open_store(store)
    opened.check(*made)
    return "\n" + fit_lib.show(
        fit_lib.fit(opened, *made, questions, (config or made[0].config).search)
    )


def _ids(given: str) -> list[str]:
    """Ids of a file, one a line, or of a list with commas between."""
    parts = given.split(",")
    if files.path(given).is_file():
        parts = files.read(given).split("\n")
    ids = [part.strip() for part in parts if part.strip()]
    if not ids:
        raise UserError(f"--delete={given}: names no document")
    return ids


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
