"""Row lengths, padding, and length buckets."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.config import Data, Prompts
from clara_jax.data import batches, packing
from clara_jax.data.packing import RowLengths
from clara_jax.data.prompts import TextLayout
from clara_jax.models.config import ExtraTokens

LAYOUT = TextLayout(None, ExtraTokens(4, 1), Prompts(), 70)


def lengths_like(seed: int, n: int = 400) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(60, 276, n), generator.integers(80, 200, n)], axis=1)


def test_chosen_rows_waste_little_and_are_reproducible():
    data = Data()
    for seed in range(3):
        row = packing.choose(lengths_like(seed), data, smallest=275)
        assert row == packing.choose(lengths_like(seed), data, smallest=275)
        assert row.encoder >= 275 and max(row.encoder, row.decoder) <= packing.LONGEST
        unseen = lengths_like(seed + 10, 3000)
        sizes = np.array([(row.encoder, row.decoder)])
        padding = packing.first_fit_padding(unseen, sizes, data.packing_bins, data.row_examples)
        assert padding.max() < 0.15 and (padding * sizes).sum() / sizes.sum() < 0.1


@pytest.mark.filterwarnings("error")
def test_plain_text_has_no_encoder_side():
    lengths = lengths_like(0) * np.array([0, 1])
    assert packing.choose(lengths, Data(), smallest=275).decoder >= 199


def test_config_wins_over_measurement():
    row = packing.choose(lengths_like(0), Data(encoder_row=500), smallest=275)
    assert row.encoder == 500
    row = packing.choose(lengths_like(0), Data(encoder_row=500, decoder_row=333), smallest=275)
    assert row == RowLengths(500, 333)
    padded = packing.choose(lengths_like(0), Data(pack=False), smallest=275)
    assert padded == RowLengths(275, 224)


def test_one_long_answer_does_not_lengthen_rows():
    lengths = lengths_like(0)
    lengths[7, 1] = 1024
    assert packing.choose(lengths, Data(), 275).decoder < 1024


def test_long_documents_make_long_rows():
    row = packing.choose(lengths_like(0) + np.array([2000, 0]), Data(), smallest=2300)
    assert row.encoder >= 2300


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=23),
    st.integers(1, 5),
    st.sampled_from([8, 32]),
)
def test_buckets_hold_every_document_once(sizes, batch, bucket):
    documents = [list(range(i * 100 + 1, i * 100 + 1 + n)) for i, n in enumerate(sizes)]
    seen = []
    for part in batches.encoder_batches(LAYOUT, documents, batch, bucket):
        assert part.tokens.shape == part.segments.shape == part.positions.shape
        assert part.tokens.shape[0] == batch and part.tokens.shape[1] % bucket == 0
        assert part.tokens.dtype == np.int32
        for row, i in enumerate(part.index):
            used = part.segments[row] == 1
            assert part.tokens[row][used].tolist() == documents[i]
            assert part.positions[row][used].tolist() == list(range(len(documents[i])))
            seen.append(int(i))
        assert not part.segments[len(part.index) :].any()
        longest = max(len(documents[i]) for i in part.index)
        assert part.tokens.shape[1] - longest < bucket
    assert sorted(seen) == list(range(len(documents)))


def test_no_documents_make_no_batches():
    assert batches.encoder_batches(LAYOUT, [], 4) == []


def test_first_fit_counts_padding():
    lengths = np.array([[6, 2], [4, 8], [5, 5], [5, 5], [9, 9]])
    sizes = np.array([[10, 10], [10, 20]])
    padding = packing.first_fit_padding(lengths, sizes, bins=2, most=4)
    np.testing.assert_allclose(padding, [[0, 0], [0, 0.5]], atol=1e-12)
    padding = packing.first_fit_padding(lengths[:2], sizes, bins=2, most=1)
    np.testing.assert_allclose(padding, [[0.5, 0.5], [0.5, 0.75]])
    padding = packing.first_fit_padding(lengths[:1], sizes[1:], bins=8, most=1)
    np.testing.assert_allclose(padding, [[0.4, 0.9]])


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """However it dies: one that is killed cannot end them itself."""
    code = (
        "import multiprocessing, time\n"
        "def work():\n"
        "    from clara_jax.data import packing; packing._end_with_parent()\n"
        "    print('ready', flush=True); time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=work).start(); time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, str(tmp_path / "parent.py")]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert parent.stdout.readline()
    start = time.monotonic()
    parent.kill()
    parent.wait()
    assert not parent.stdout.read()  # which the worker holds open as long as it lives
    assert time.monotonic() - start < 30
