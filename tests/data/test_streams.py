"""Batches of several streams do not depend on how many processes read them."""

import asyncio

import grain
import numpy as np
import pytest

from clara_jax.data.streams import Streams, choose
from clara_jax.errors import UserError

ROWS, SHARDS = 8, 4


def open_stream(n: int, shards: int = SHARDS, epochs: int | None = None) -> grain.DatasetIterator:
    return iter(
        grain.MapDataset.range(30)
        .slice(slice(n, None, shards))
        .seed(3)
        .shuffle()
        .repeat(epochs)
        .map(lambda i: {"x": np.array([i, 10 * i])})
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        .batch(ROWS // shards, drop_remainder=True)
    )


def processes(count: int, copies: int = 1) -> list[Streams]:
    """Streams of so many processes, `copies` of which hold the same rows."""
    each = ROWS * copies // count
    of = [range(i // copies * each, (i // copies + 1) * each) for i in range(count)]
    return [Streams(open_stream, SHARDS, ROWS, of, i) for i in range(count)]


def batch(readers: list[Streams], copies: int = 1) -> np.ndarray:
    parts = [next(reader)["x"] for reader in readers]
    return np.concatenate(parts[::copies])


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_any_number_of_processes_reads_the_same_batches(count, copies):
    alone, several = Streams(open_stream, SHARDS, ROWS), processes(count, copies)
    for _ in range(12):  # into a second pass over the data
        expected = next(alone)["x"]
        assert expected.shape == (ROWS, 2)
        np.testing.assert_array_equal(expected[:, 0] % SHARDS, np.arange(ROWS) // (ROWS // SHARDS))
        np.testing.assert_array_equal(batch(several, copies), expected)


def test_one_stream_is_the_pipeline_itself():
    def plain(n: int) -> grain.DatasetIterator:
        return open_stream(n, 1)

    streams, expected = Streams(plain, 1, ROWS), plain(0)
    for _ in range(5):
        np.testing.assert_array_equal(next(streams)["x"], next(expected)["x"])


class Folder:
    """A folder as Orbax gives it to what is saved: it may not exist yet."""

    def __init__(self, path):
        self._path = path

    async def await_creation(self):
        self._path.mkdir(exist_ok=True)
        return self._path


def save(readers, path):
    async def write():
        for reader in readers:
            await (await reader.save(Folder(path)))

    asyncio.run(write())


def load(readers, path):
    async def read():
        for reader in readers:
            await (await reader.load(path))

    asyncio.run(read())


@pytest.mark.parametrize("before", [1, 2, 4, 8])
@pytest.mark.parametrize("after", [1, 2, 8])
def test_a_position_is_restored_with_another_number_of_processes(before, after, tmp_path):
    writers, readers = processes(before), processes(after)
    for _ in range(5):
        batch(writers)
    save(writers, tmp_path / "data")
    names = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names == [f"process_{n}-of-{SHARDS}.json" for n in range(SHARDS)]
    assert sorted(n for writer in writers for n in writer._saved) == list(range(SHARDS))
    load(readers, tmp_path / "data")
    for _ in range(4):
        np.testing.assert_array_equal(batch(writers), batch(readers))


def test_a_position_that_grain_saved_is_read(tmp_path):
    earlier = open_stream(0, 1)
    next(earlier)
    save([earlier], tmp_path / "data")
    streams = Streams(lambda n: open_stream(n, 1), 1, ROWS)
    load([streams], tmp_path / "data")
    np.testing.assert_array_equal(next(streams)["x"], next(earlier)["x"])


def test_all_end_with_the_shortest_stream():
    asked = []

    def any_of(flag: bool) -> bool:
        asked.append(flag)
        return flag or len(asked) == 3  # another process's stream ends there

    def once(n: int) -> grain.DatasetIterator:
        return open_stream(n, epochs=1)

    # Streams 0 and 1 have 8 records, 2 and 3 have 7: four batches of 2 rows, and three.
    assert len(list(Streams(once, SHARDS, ROWS))) == 3
    assert len(list(Streams(once, SHARDS, ROWS, [range(4), range(4, 8)], 0))) == 4
    assert len(list(Streams(once, SHARDS, ROWS, [range(4), range(4, 8)], 0, any_of))) == 2
    assert asked == [False, False, False]


def test_streams_must_divide_the_batch():
    with pytest.raises(UserError, match=r"batch_rows=8 does not divide by config\.data\.shards=3"):
        Streams(open_stream, 3, ROWS)
    assert [choose(count, 6) for count in (1, 2, 3, 4)] == [1, 2, 3, 2]
