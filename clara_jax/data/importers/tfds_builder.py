"""Turns our JSONL into a TFDS data set of ArrayRecord shards, without TensorFlow.

    python -m clara_jax.data.importers.tfds_builder --name my_scp \
        --output ~/tensorflow_datasets train=a.jsonl

reads back as `tfds:my_scp/train` with `config.data.tfds_dir` set to the output directory.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from clara_jax.data import sources
from clara_jax.data.records import ScpRecord
from clara_jax.errors import UserError, command, reason

_SPLIT = re.compile("[A-Za-z][A-Za-z0-9_-]*")


class ScpBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """SCP records of one source a split; `build` names it."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, splits: Mapping[str, sources.Source[ScpRecord]], **kwargs: Any):
        self._splits = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        texts = tfds.features.Sequence(text)
        fields = {"data_type": text, "question": texts, "answers": texts, "docs": texts}
        # Each with its question's position, for lists of lists need TensorFlow.
        fields["aliases"] = tfds.features.Sequence({"text": text, "question": np.int64})
        # The info is made here because that of the base class needs TensorFlow.
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(fields))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # nothing is downloaded
        return {name: self._generate_examples(source) for name, source in self._splits.items()}

    def _generate_examples(self, source: sources.Source[ScpRecord]) -> Iterator[tuple[int, dict]]:
        for i in range(len(source)):
            record = source[i]
            aliases = [(q, text) for q, texts in enumerate(record.aliases) for text in texts]
            yield (
                i,
                {
                    "data_type": record.data_type,
                    "question": list(record.questions),
                    "answers": list(record.answers),
                    "docs": [record.document],
                    "aliases": {
                        "text": [text for _, text in aliases],
                        "question": [question for question, _ in aliases],
                    },
                },
            )


def build(name: str, output: str, splits: Mapping[str, str]) -> None:
    """Writes a data set.

    Args:
        name: of the data set: lower case letters, digits and underscores.
        output: TFDS data directory.
        splits: names of sources with commas between (data/sources.py), by split.

    Raises:
        UserError: a name is not allowed, a source cannot be read, or the data set exists already
            or cannot be written.
    """
    if not name.isidentifier() or name != name.lower():
        raise UserError(f"--name {name}: use lower case letters, digits and underscores")
    for split in splits:
        if not _SPLIT.fullmatch(split) or split == "all":
            raise UserError(
                f"split {split!r}: use letters, digits, - and _ after a letter; all is reserved"
            )
    opened = {split: sources.open_sources(names) for split, names in splits.items()}
    builder_class = type(name, (ScpBuilder,), {"name": name}, skip_registration=True)
    try:
        builder = builder_class(opened, data_dir=output, file_format="array_record")
        if builder.data_path.exists():
            raise UserError(
                f"{builder.data_path}: exists already; remove it or choose another --name"
            )
        builder.download_and_prepare()
    except (OSError, RuntimeError) as e:  # ArrayRecord raises RuntimeError
        raise UserError(f"--output {output}: cannot be written to ({reason(e)})") from e


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="name of the data set")
    parser.add_argument("--output", required=True, help="TFDS data directory to write to")
    parser.add_argument(
        "splits", nargs="+", metavar="split=sources", help="as train=a.jsonl,b.jsonl dev=c.jsonl"
    )
    args = parser.parse_args(argv)
    splits: dict[str, str] = {}
    for item in args.splits:
        split, equals, source = item.partition("=")
        if not equals:
            raise UserError(f"{item}: write split=file.jsonl, such as train={item}")
        if split in splits:
            raise UserError(f"{split} twice; write {split}={splits[split]},{source}")
        splits[split] = source
    build(args.name, args.output, splits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
