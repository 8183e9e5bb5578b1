"""A source in the format of TensorFlow Datasets, read without TensorFlow."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from clara_jax.data import records
from clara_jax.data.records import ScpRecord
from clara_jax.errors import UserError, reason
from clara_jax.text.chunks import whole


class TfdsSource:
    """A TFDS data set, read without TensorFlow: the scp form, or a SQuAD-like set.

    SQuAD-like rows `{context, question, answers: {text}, title?}` of one context make one record;
    questions without an answer are left out.

    Args:
        name: `name/split`; the name may hold a configuration and a version.
        data_dir: where TFDS keeps its data; empty: its default.

    Raises:
        UserError: no such data set or split, or rows of another kind.
    """

    def __init__(self, name: str, data_dir: str = ""):
        self._name = f"tfds:{name}"
        self._rows = open_rows(name, data_dir)
        groups: dict[int | bytes, list[int]] = {}
        keys = {}
        # Rows of one data set have the same fields.
        is_scp = len(self._rows) > 0 and records.is_scp(read_row(self._rows, 0, self._name))
        for i in range(len(self._rows)):
            record = self._record([i])
            if record is not None:
                # Rows of the scp form stay apart, as lines of a file do.
                group = i if is_scp else records.digest(record.document)
                groups.setdefault(group, []).append(i)
                keys[group] = records.title_key(record.document)
        if not groups:
            raise UserError(f"{self._name}: no record has an answer")
        self._groups = list(groups.values())
        self.keys = np.array(list(keys.values()), np.uint32)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> ScpRecord:
        record = self._record(self._groups[index])
        assert record is not None  # else it is in no group
        return record

    def __repr__(self) -> str:
        return f"TfdsSource({self._name!r}, {len(self)} records)"

    def _record(self, rows: list[int]) -> ScpRecord | None:
        origin = f"{self._name}:{rows[0]}"
        values = [read_row(self._rows, i, self._name) for i in rows]
        if records.is_scp(values[0]):
            return records.parse_scp(_with_aliases(values[0], origin), origin)
        pairs, context = [], ""
        for value in values:
            try:
                if texts := value["answers"]["text"]:
                    pairs.append((value["question"], texts[0]))
                context = value["context"]
            except (KeyError, TypeError) as e:
                raise UserError(
                    f"{origin}: has fields {', '.join(value)}; known are those of scp records and "
                    "of SQuAD: context, question, answers.text"
                ) from e
        if not pairs:
            return None
        title = value.get("title", "").replace("_", " ")
        questions, answers = zip(*pairs, strict=True)
        return ScpRecord("qa", questions, answers, whole(title, context), origin)


def open_rows(name: str, data_dir: str = "") -> Any:
    """The rows of `name/split` by position, each for `read_row`.

    Raises:
        UserError: no such data set or split.
    """
    dataset, _, split = name.rpartition("/")
    if not dataset:
        raise UserError(f"tfds:{name}: give tfds:name/split, such as tfds:squad/train")
    try:
        return tfds.data_source(
            dataset,
            split=split,
            data_dir=data_dir or None,
            builder_kwargs={"file_format": "array_record"},
        )
    except ImportError as e:  # it imports what a data set needs when it is needed
        raise UserError(
            f"tfds:{name}: tensorflow-datasets needs a package that is missing ({e}); install "
            f"{e.name or 'it'}"
        ) from e
    except Exception as e:  # its own errors and those of protobuf have no common base
        raise UserError(f"tfds:{name}: cannot be opened ({reason(e)})") from e


def read_row(rows: Any, index: int, name: str) -> dict[str, Any]:
    """One of the rows, its texts as str.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return _decode(rows[index])
    # ArrayRecord raises RuntimeError; a row that it lost without one, or text that is not
    # UTF-8, is a ValueError; a feature of another package's type needs that package.
    except (RuntimeError, ValueError, ImportError) as e:
        raise UserError(
            f"{name}:{index}: cannot be read; build or download the data set again ({reason(e)})"
        ) from e


def _with_aliases(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """Aliases as a list a question, where the set has them in one list (`tfds_builder`)."""
    aliases = value.get("aliases")
    if aliases is None:
        return value
    try:
        lists: list[list[str]] = [[] for _ in value["question"]]
        for text, question in zip(aliases["text"], aliases["question"], strict=True):
            lists[question].append(text)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise UserError(f"{origin}: aliases must have text and question, its position") from e
    return value | {"aliases": lists}


def _decode(value: Any) -> Any:
    """Text of TFDS arrives as bytes, and lists of text as arrays of bytes or lists of them."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _decode(v) for key, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_decode(v) for v in value]
    return value
