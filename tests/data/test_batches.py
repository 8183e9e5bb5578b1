"""What a batch holds: real batches have the keys, axes and types that are listed."""

import numpy as np
import pytest

from clara_jax.config import Config, Data, Select, Train
from clara_jax.data import batches, question_lengths, question_rows, scp_rows
from clara_jax.data.prompts import NO_LABEL, TextLayout
from clara_jax.data.question_rows import QuestionRows
from clara_jax.data.reader import Reader
from clara_jax.data.tokenizer import load_tokenizer
from clara_jax.models.config import ExtraTokens
from clara_jax.stages import STAGES


def reader_of(stage: str) -> Reader:
    config = Config(
        stage=stage,
        data=Data(sources="facts:9", document_length=40, rate=10, packing_bins=2, epochs=1),
        select=Select(k=2, candidates=3),
        train=Train(batch_rows=2),
    )
    tokenizer = load_tokenizer("facts")
    extra = ExtraTokens(tokenizer.size, config.memory_tokens)
    return Reader(
        scp_rows.open_data(config), TextLayout(tokenizer, extra, config.prompts, 40), config
    )


@pytest.mark.parametrize("stage", STAGES)
def test_real_batches_are_as_listed(stage):
    reader = reader_of(stage)
    if stage == "scp":
        lengths = scp_rows.row_lengths(reader)
        (batch, *_) = scp_rows.eval_batches(reader, lengths, 2)
        sizes = {"enc": lengths.encoder, "dec": lengths.decoder}
    else:
        shapes = question_lengths.measure(reader, compress=True)
        (batch, *_) = question_rows.eval_batches(QuestionRows(reader, shapes), 2)
        sizes = {"enc": shapes.encoder, "qry": shapes.query, "dec": shapes.decoder}
        sizes |= {"G": shapes.groups, "N": reader.config.places}
    sizes |= {"B": 2, "S": reader.config.data.row_examples, "M": reader.config.memory_tokens}
    expected = batches.shapes(STAGES[stage], sizes)
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == expected


def test_memories_take_the_place_of_texts():
    e2e, instruct = STAGES["e2e"], STAGES["instruct"]
    assert set(batches.keys(e2e, True)) - set(batches.keys(e2e, False)) == {"memories"}
    assert batches.keys(instruct, True) == batches.keys(instruct, False)


def test_the_last_batch_is_filled_with_padding():
    rows = [{"dec_targets": np.full(3, i, np.int32), "dec_slots": np.ones(3)} for i in range(3)]
    first, last = batches.whole_batches(rows, 2)
    assert first["dec_targets"].tolist() == [[0] * 3, [1] * 3]
    assert last["dec_targets"].tolist() == [[2] * 3, [NO_LABEL] * 3]
    assert last["dec_slots"].tolist() == [[1] * 3, [-1] * 3]
