"""The batches of training: packing, order, shards, exact resumption, padding."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from absl import logging

from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Train
from clara_jax.data import packing, prompts, scp_rows
from clara_jax.data.batches import Batch
from clara_jax.data.prompts import TextLayout
from clara_jax.data.reader import Reader
from clara_jax.errors import UserError
from clara_jax.models.config import ExtraTokens

LENGTH, RATE = 24, 8
MEMORY = LENGTH // RATE
SCP_KEYS = {
    "enc_tokens", "enc_segments", "enc_positions", "dec_tokens", "dec_segments", "dec_positions",
    "dec_targets", "dec_slots", "doc_places", "doc_valid",
}  # fmt: skip


@pytest.fixture
def extra(words) -> ExtraTokens:
    return ExtraTokens(words.size, MEMORY)


@pytest.fixture
def records(tmp_path) -> str:
    """60 records whose documents, like their answers, name them."""
    path = tmp_path / "scp.jsonl"
    generator = np.random.default_rng(0)
    with open(path, "w") as f:
        for i in range(60):
            words = " ".join(generator.choice(["one", "two", "three"], generator.integers(1, 30)))
            row = {
                "data_type": "qa", "question": ["who?"], "answers": [f"#{i:03d}" + words[:20]],
                "docs": [f"#{i:03d} {words}"],
            }  # fmt: skip
            f.write(json.dumps(row) + "\n")
    return str(path)


def make_config(path: str, **data) -> Config:
    options = {
        "document_length": LENGTH, "rate": RATE, "encoder_row": 120, "decoder_row": 700,
        "packing_bins": 4, "epochs": 1,
    }  # fmt: skip
    short = config_lib.Prompts(qa_system="s", qa_user="{docs}")
    return Config(
        data=Data(sources=str(path), **(options | data)), train=Train(batch_rows=2), prompts=short
    )


def make_reader(config, words, extra) -> Reader:
    layout = TextLayout(
        words,
        extra,
        config.prompts,
        config.data.document_length,
        config.seed,
        config.memory.kind == "pool",
        config.vectors,
    )
    return Reader(scp_rows.open_data(config), layout, config)


def make_rows(config, words, extra, **options) -> list[Batch]:
    reader = make_reader(config, words, extra)
    return list(scp_rows.make_dataset(reader, scp_rows.row_lengths(reader), **options))


def make_iterator(config, words, extra, **options):
    reader = make_reader(config, words, extra)
    return scp_rows.make_train_iterator(reader, scp_rows.row_lengths(reader), **options)


def name_of(words, tokens) -> int:
    """The number that a document or an answer holds."""
    text = words.decode(tokens)
    return int(text[text.index("#") + 1 :][:3])


def names(words, rows) -> list[int]:
    return [
        name_of(words, row["enc_tokens"][row["enc_segments"] == segment])
        for row in rows
        for segment in range(1, row["enc_segments"].max() + 1)
    ]


@pytest.mark.parametrize("pack", [True, False])
def test_rows_hold_every_record_once_and_slots_point_at_its_memory(words, extra, records, pack):
    config = make_config(records, pack=pack)
    reader, found = make_reader(config, words, extra), []
    for row in make_rows(config, words, extra):
        assert set(row) == SCP_KEYS and {a.dtype for a in row.values()} == {np.dtype(np.int32)}
        assert row["enc_tokens"].shape == (120,) and row["dec_tokens"].shape == (700,)
        examples = row["enc_segments"].max()
        assert examples == row["dec_segments"].max() and (pack or examples == 1)
        for segment in range(1, examples + 1):
            enc, dec = row["enc_segments"] == segment, row["dec_segments"] == segment
            index = name_of(words, row["enc_tokens"][enc])
            found.append(index)
            expected = reader.example(index, 700)
            np.testing.assert_array_equal(row["enc_tokens"][enc], expected.enc_tokens)
            np.testing.assert_array_equal(row["dec_tokens"][dec], expected.turns.tokens)
            np.testing.assert_array_equal(row["dec_targets"][dec], expected.turns.targets)
            for side, used in (("enc", enc), ("dec", dec)):
                assert row[f"{side}_positions"][used].tolist() == list(range(used.sum()))
            slots = row["dec_slots"][dec]
            assert (slots >= 0).sum() == MEMORY
            # A slot's id equals that of the memory token it points at, in the same segment.
            pointed = row["doc_places"].reshape(-1)[slots[slots >= 0]]
            np.testing.assert_array_equal(row["enc_tokens"][pointed], extra.memory)
            np.testing.assert_array_equal(
                row["dec_tokens"][dec][slots >= 0], row["enc_tokens"][pointed]
            )
            assert (row["enc_segments"][pointed] == segment).all()
        assert row["doc_valid"].tolist() == [s < examples for s in range(16)]
        padding = row["dec_segments"] == 0
        assert (row["dec_targets"][padding] == prompts.NO_LABEL).all()
        assert (row["dec_slots"][padding] == -1).all() and not row["enc_tokens"][
            row["enc_segments"] == 0
        ].any()
    assert sorted(found) == list(range(60))


@pytest.mark.parametrize("pack", [True, False])
def test_documents_as_text_are_packed_beside_compressed_ones(words, extra, records, pack):
    config = make_config(f"{records},text:{records}", pack=pack, row_examples=4)
    found = make_rows(config, words, extra)
    assert sum(row["dec_segments"].max() for row in found) == 120
    assert sum((row["enc_tokens"] == extra.memory[0]).sum() for row in found) == 60
    assert sum(row["doc_valid"].sum() for row in found) == 60
    for row in found:
        slots = np.flatnonzero(row["dec_slots"] >= 0)
        pointed = row["doc_places"].reshape(-1)[row["dec_slots"][slots]]
        np.testing.assert_array_equal(row["dec_tokens"][slots], row["enc_tokens"][pointed])
        np.testing.assert_array_equal(row["dec_segments"][slots], row["enc_segments"][pointed])
    layout = make_reader(config, words, extra).layout
    report = packing.measure(found, dataclasses.replace(config.data, packing_bins=999), layout)
    only = make_rows(make_config(records, pack=pack), words, extra)
    expected = packing.measure(only, dataclasses.replace(config.data, packing_bins=999), layout)
    assert report.examples == 120 and report.rate == pytest.approx(expected.rate)


@pytest.mark.parametrize("pack", [True, False])
def test_pooled_memories_have_a_place_in_their_text(words, extra, records, pack):
    config = make_config(f"{records},text:{records}", pack=pack)
    config = config_lib.with_options(config, {"memory.kind": "pool"})
    found = make_rows(config, words, extra)
    assert not any(extra.is_memory(row["enc_tokens"]).any() for row in found)
    assert sum(row["doc_valid"].sum() for row in found) == 60
    for row in found:
        slots = np.flatnonzero(row["dec_slots"] >= 0)
        pointed = row["doc_places"].reshape(-1)[row["dec_slots"][slots]]
        np.testing.assert_array_equal(row["dec_segments"][slots], row["enc_segments"][pointed])
        for segment in np.unique(row["enc_segments"][row["enc_segments"] > 0]):
            (own,) = np.nonzero(row["enc_segments"] == segment)
            windows = [t * MEMORY // len(own) for t in row["doc_places"][segment - 1] - own[0]]
            assert windows == list(range(MEMORY))


@pytest.mark.parametrize("pack", [True, False])
def test_each_document_is_read_at_every_rate(words, extra, records, pack):
    """One encoder pass; the prompts differ in their slots, and each slot has its own vector."""
    config = make_config(f"{records},text:{records}", pack=pack, decoder_row=1400, rates=(8, 24))
    reader, labels, earlier = make_reader(config, words, extra), 0, None
    for row in make_rows(config, words, extra):
        assert row["dec_segments"].max() <= 32
        for segment in range(1, row["dec_segments"].max() + 1):
            dec = row["dec_segments"] == segment
            example, part = divmod(segment - 1, 2)
            slots = row["dec_slots"][dec]
            of_rate = [range(3), [3]][part]
            is_text = not row["doc_valid"][example]
            expected = [] if is_text else [example * 4 + j for j in of_rate]
            assert slots[slots >= 0].tolist() == expected
            assert row["dec_positions"][dec].tolist() == list(range(dec.sum()))
            targets = row["dec_targets"][dec]
            labels += (targets >= 0).sum() * (2 if is_text else 1)
            if part == 1 and not is_text:  # a text is read once
                np.testing.assert_array_equal(targets[targets >= 0], earlier[earlier >= 0])
            earlier = targets
    plain = make_reader(make_config(f"{records}"), words, extra)
    assert labels == 4 * sum((plain.example(i, 700).turns.targets >= 0).sum() for i in range(60))
    short = make_config(records, rates=(8, 24), decoder_row=60)
    assert make_reader(short, words, extra).example(0, 60) is None
    assert reader.example(0, 1400).turns.cut is False


def test_rows_hold_no_more_examples_than_allowed(words, extra, records):
    packed = make_rows(make_config(records, row_examples=2), words, extra)
    assert max(row["enc_segments"].max() for row in packed) == 2


def test_epochs_are_shuffled_anew_and_seeds_differ(words, extra, records):
    config = make_config(records, pack=False, epochs=2)
    order = names(words, make_rows(config, words, extra))
    first, second = order[:60], order[60:]
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second and first != list(range(60))
    assert order == names(words, make_rows(config, words, extra))
    other = dataclasses.replace(config, seed=1)
    assert names(words, make_rows(other, words, extra)) != order


def test_streams_are_disjoint_and_complete(words, extra, records):
    config = make_config(records)
    shards = [names(words, make_rows(config, words, extra, stream=i, streams=4)) for i in range(4)]
    assert sorted(itertools.chain(*shards)) == list(range(60))
    with pytest.raises(UserError, match="cannot be shared out to 61"):
        make_rows(config, words, extra, stream=0, streams=61)


def equal(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in SCP_KEYS)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pack": False},
        {"workers": 1},
        pytest.param({"packing_bins": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_saved_position_gives_the_same_batches(words, extra, records, options):
    config = make_config(records, epochs=0, **options)
    counts = [2] if "workers" in options else [1, 7, 45]  # 45 batches reach into a later epoch
    for count in counts:
        fresh = make_iterator(config, words, extra)
        for _ in range(count):
            next(fresh)
        state = json.loads(json.dumps(fresh.get_state()))
        expected = [next(fresh) for _ in range(4)]
        resumed = make_iterator(config, words, extra)
        resumed.set_state(state)
        assert all(equal(next(resumed), batch) for batch in expected)
        fresh.set_state(state)  # an iterator that is under way can be set back as well
        assert all(equal(next(fresh), batch) for batch in expected)


def test_batches_have_one_shape(words, extra, records):
    config = make_config(records, epochs=0)
    iterator = make_iterator(config, words, extra, stream=1, streams=2)
    for _ in range(5):
        shapes = {key: value.shape for key, value in next(iterator).items()}
        assert shapes["enc_tokens"] == (1, 120) and shapes["dec_slots"] == (1, 700)


def test_evaluation_sees_every_record_once(words, extra, records):
    config = make_config(records)
    reader = make_reader(config, words, extra)
    batches = scp_rows.eval_batches(reader, packing.RowLengths(120, 700), 7)
    assert {batch["enc_tokens"].shape for batch in batches} == {(7, 120)}
    single = [{key: batch[key][i] for key in batch} for batch in batches for i in range(7)]
    assert sorted(names(words, single)) == list(range(60))
    assert any(not row["enc_segments"].any() for row in single)
    labels = sum(int((row["dec_targets"] >= 0).sum()) for row in single)
    expected = [reader.example(i, 700) for i in range(60)]
    assert labels == sum(int((example.turns.targets >= 0).sum()) for example in expected)


def test_encoder_row_that_is_too_short_names_the_smallest(words, extra, records):
    smallest = LENGTH + 3 + MEMORY
    with pytest.raises(UserError, match=f"the smallest that fits is {smallest}"):
        make_rows(make_config(records, encoder_row=smallest - 1), words, extra)
    assert make_rows(make_config(records, encoder_row=smallest), words, extra)


def test_prompts_that_fill_the_row_are_reported_and_skipped(words, extra, tmp_path, monkeypatch):
    path = tmp_path / "scp.jsonl"
    good = {"data_type": "qa", "question": ["q"], "answers": ["#001"], "docs": ["#001"]}
    long = {"data_type": "paraphrase", "answers": ["#002"], "docs": ["#002"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, long, good)))
    config = make_config(str(path), decoder_row=90)
    users = ("x" * 200 + "{docs}",)
    config = dataclasses.replace(
        config, prompts=dataclasses.replace(config.prompts, paraphrase_users=users)
    )
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    assert names(words, make_rows(config, words, extra)) == [1, 1]
    assert f"record skipped, number 1: {path}:2: the prompt has" in warnings[0]

    path.write_text(json.dumps(long) + "\n")
    with pytest.raises(UserError, match=r"decoder_row=90: no prompt of 1 records"):
        make_rows(config, words, extra)


def test_the_log_tells_what_was_cut(words, extra, records, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    reader = make_reader(make_config(records), words, extra)
    examples = [reader.example(i, 700) for i in range(60)]
    row = int(np.median([len(example.turns.tokens) for example in examples]))
    config = make_config(records, epochs=0, decoder_row=row)
    next(make_iterator(config, words, extra))
    documents = sum(example.document_cut for example in examples)
    answers = sum(len(example.turns.tokens) > row for example in examples)
    assert 0 < documents < 60 and 0 < answers < 60
    log = "\n".join(lines)
    assert f"{documents} documents cut to {LENGTH} tokens, {answers} answers cut" in log
    assert "padding" in log and "realised compression" in log and "possible" in log


# Rate, mean and spread of the logarithm of a document's tokens, most questions about it.
LIKE = {"nq": (4, 4.7, 0.43, 1), "squad": (16, 5.0, 0.33, 5), "pubmedqa": (16, 5.5, 0.2, 1)}


@pytest.mark.parametrize("name", LIKE)
def test_padding_of_documents_of_many_lengths(words, tmp_path, name):
    rate, mean, spread, most = LIKE[name]
    generator, rows = np.random.default_rng(0), []
    for length in np.exp(generator.normal(mean, spread, 400)).astype(int):
        n = int(generator.integers(1, most + 1))
        answers = [" one" * int(k) for k in generator.integers(1, 6, n)]
        row = {"data_type": "qa", "question": [" two?"] * n, "answers": answers}
        rows.append(row | {"docs": [" three" * int(length)]})
    path = tmp_path / "scp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = config_lib.Prompts(qa_system=" one" * 30, qa_user="{docs}")
    config = Config(data=Data(sources=str(path), rate=rate), prompts=short)
    extra = ExtraTokens(words.size, config.memory_tokens)
    reader = make_reader(config, words, extra)
    lengths = scp_rows.row_lengths(reader)
    assert max(lengths.encoder, lengths.decoder) <= 1024
    dataset = scp_rows.make_dataset(reader, lengths)
    data = dataclasses.replace(config.data, packing_bins=128)
    report = packing.measure(dataset, data, reader.layout)
    print(f"{name} at {rate}x: {report}")
    assert report.encoder_padding < 0.15 and report.decoder_padding < 0.15
    assert report.token_ratio >= 0.9 * report.possible_ratio
    assert 1 < report.rate <= rate


def test_what_to_evaluate_on():
    def dev(eval_sources="", **data):
        eval_options = config_lib.Eval(sources=eval_sources)
        return scp_rows.open_dev(Config(data=Data(**data), eval=eval_options))

    assert len(dev("facts:4:1", sources="facts:1000")) == 4
    assert 50 < len(dev(sources="facts:1000", holdout=0.1)) < 150
    with pytest.raises(UserError, match=r"name config\.eval\.sources"):
        dev(sources="facts:1000")


def test_a_part_of_the_records_is_chosen_by_the_seed():
    data = Data(sources="facts:50", records=10)
    chosen = [scp_rows.open_data(Config(data=data, seed=seed)) for seed in (0, 0, 1)]
    origins = [[source[i].origin for i in range(len(source))] for source in chosen]
    assert len(set(origins[0])) == 10
    assert origins[0] == origins[1] != origins[2]
    half = dataclasses.replace(data, holdout=0.5)
    dev = scp_rows.open_dev(Config(data=half))
    assert len(dev) > 10 and not {r.origin for r in map(dev.__getitem__, range(len(dev)))} & {
        scp_rows.open_data(Config(data=half))[i].origin for i in range(10)
    }
