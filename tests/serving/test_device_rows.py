import itertools

import numpy as np
import pytest

from clara_jax.serving.device_rows import DeviceRows
from clara_jax.serving.slots import buckets


def test_rows_leave_by_least_recent_use_and_are_what_was_read(setup):
    every = np.random.default_rng(0).normal(size=(40, 4, 128)).astype(np.float32)
    counted, reads = [], []

    def read(rows):
        reads.append(list(rows))
        return every[list(rows)]

    rows = DeviceRows(setup.model, 12, read, lambda hits, misses: counted.append((hits, misses)))

    def place(wanted, given=()):
        places = rows.place(wanted, {row: every[row] for row in given})
        placed = np.asarray(rows.table_RMD)[places]
        np.testing.assert_array_equal(placed, every[wanted])

    place(list(range(10)))
    place([10, 0, 11], given=[10])
    assert reads[1:] == [[11]] and counted == [(0, 10), (1, 2)]
    place([12, 1, 12])  # 1 was the next to leave, but is used
    assert rows.missing([0, 1, 2, 3, 12]) == [2]
    place(list(range(20, 32)))
    assert rows.missing(range(20)) == list(range(20))
    with pytest.raises(ValueError, match="13 rows for a table of 12"):
        place(list(range(13)))


def test_buckets_hold_every_length_with_little_padding():
    assert buckets(1) == [64] and buckets(65) == [64, 128]
    lengths = buckets(5000)
    assert lengths[-1] >= 5000 > lengths[-2] and len(lengths) < 40
    for small, large in itertools.pairwise(lengths):
        assert large - small <= max(64, small / 8) and large % 64 == 0
