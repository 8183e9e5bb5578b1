"""Row lengths that fit the data, what packing into them costs, and length buckets."""

import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterable

import grain
import numpy as np
from absl import flags

from clara_jax.config import Data
from clara_jax.data.prompts import FRAME, TextLayout
from clara_jax.errors import UserError

LONGEST = 1024  # longest row that is chosen automatically; attention is quadratic in it
PADDED_DECODER = 256  # decoder row of the padded layout that packing is compared with
READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=128)
_SIDES = ("enc", "dec")
_STEP = 32  # chosen lengths are multiples of it
_ENOUGH = (0.12, 0.08)  # padding that is good enough: of either side, of both together
_TRIED = 1024  # examples packed to try row lengths
_FREE = (0.92, 1.2)  # decoder rows tried, as multiples of what the data's mean lengths suggest


@dataclasses.dataclass(frozen=True)
class RowLengths:
    """Tokens of a row on the encoder's and on the decoder's side."""

    encoder: int
    decoder: int


@dataclasses.dataclass(frozen=True)
class Report:
    """What a sample of rows holds; see `measure`."""

    lengths: RowLengths  # of the rows
    rows: int  # measured
    examples: int  # in those rows
    encoder_padding: float  # share of the encoder's tokens that is padding
    decoder_padding: float  # share of the decoder's
    rate: float  # realised compression rate, tokens of a document's text over memory tokens
    # tokens of the same examples, each padded to the longest document and PADDED_DECODER tokens,
    # over the tokens of these rows
    token_ratio: float
    possible_ratio: float  # the same if no row had any padding

    def __str__(self) -> str:
        return (
            f"{self.examples} examples in {self.rows} rows of {self.lengths.encoder} + "
            f"{self.lengths.decoder} tokens; padding {self.encoder_padding:.1%} encoder, "
            f"{self.decoder_padding:.1%} decoder; realised compression {self.rate:.1f}x; "
            f"{self.token_ratio:.2f}x fewer tokens than padded examples, of "
            f"{self.possible_ratio:.2f}x possible ({self.token_ratio / self.possible_ratio:.0%})"
        )


def choose(lengths: np.ndarray, data: Data, smallest: int) -> RowLengths:
    """Row lengths: those of the config, or where it says 0 the shortest that waste little.

    Args:
        lengths: int [n, 2], tokens of examples on the encoder's and the decoder's side.
        data: `pack`, `encoder_row`, `decoder_row`, `row_examples` and `packing_bins` are used.
        smallest: encoder row that holds any document.
    """
    if not data.pack:
        longest = round_up(int(lengths[:, 1].max()))
        return RowLengths(data.encoder_row or smallest, data.decoder_row or longest)
    # One very long answer must not make all rows long: the longest hundredth may be cut.
    longest = int(np.quantile(lengths[:, 1], 0.99, method="higher"))
    encoder_rows = [data.encoder_row] if data.encoder_row else steps(smallest)
    # Sources of plain text alone have nothing on the encoder's side.
    ratio = lengths[:, 1].mean() / max(lengths[:, 0].mean(), 1)
    # A short sample is repeated, as epochs are, so that every candidate fills its bins often.
    generator = np.random.default_rng(0)
    repeats = -(-_TRIED // len(lengths))
    sample = np.concatenate([generator.permutation(lengths) for _ in range(repeats)])[:_TRIED]
    tried = []
    for encoder in encoder_rows:
        near = [d for d in steps(longest) if _FREE[0] <= d / (encoder * ratio) <= _FREE[1]]
        decoders = [data.decoder_row] if data.decoder_row else near or [round_up(longest)]
        tried += [RowLengths(encoder, decoder) for decoder in decoders]
    tried.sort(key=lambda row: row.encoder + row.decoder)
    sizes = np.array([(row.encoder, row.decoder) for row in tried])
    padding = first_fit_padding(sample, sizes, data.packing_bins, data.row_examples)
    total = (padding * sizes).sum(1) / sizes.sum(1)
    enough = np.flatnonzero((padding.max(1) <= _ENOUGH[0]) & (total <= _ENOUGH[1]))
    return tried[int(enough[0]) if len(enough) else int(total.argmin())]


def first_fit_padding(lengths: np.ndarray, sizes: np.ndarray, bins: int, most: int) -> np.ndarray:
    """Shares of padding, float [c, 2], when examples are packed as Grain's first-fit does.

    Args:
        lengths: int [n, 2], tokens of each example on both sides; longer ones are cut to the row.
        sizes: int [c, 2], row lengths to try, all at once.
        bins: rows filled at the same time; all are given out when an example fits in none.
        most: examples a row holds at most.
    """
    every = np.arange(len(sizes))
    free = np.repeat(sizes[:, None], bins, axis=1)
    count = np.zeros((len(sizes), bins), int)
    padding, rounds = np.zeros(sizes.shape), np.zeros((len(sizes), 1))
    for length in lengths:
        need = np.minimum(length, sizes)
        fits = (free >= need[:, None]).all(2) & (count < most)
        chosen = fits.argmax(1)
        full = ~fits[every, chosen]
        if full.any():
            padding[full] += (free[full] / sizes[full, None]).mean(1)
            rounds[full] += 1
            free[full], count[full], chosen[full] = sizes[full, None], 0, 0
        free[every, chosen] -= need
        count[every, chosen] += 1
    # Too few examples to fill all bins once: take those that were begun.
    begun = (count > 0)[..., None]
    partial = (free / sizes[:, None] * begun).sum(1) / begun.sum(1)
    return np.where(rounds > 0, padding / np.maximum(rounds, 1), partial)


def measure(rows: Iterable[dict[str, np.ndarray]], data: Data, layout: TextLayout) -> Report:
    """Measures the first `data.packing_bins` rows, which packing fills together."""
    sample = list(itertools.islice(rows, data.packing_bins))
    segments = {side: np.stack([row[f"{side}_segments"] for row in sample]) for side in _SIDES}
    lengths = RowLengths(*(segments[side].shape[1] for side in _SIDES))
    encoder, decoder = (float((segments[side] == 0).mean()) for side in _SIDES)
    rates = len(layout.vectors)
    examples = int(-(-segments["dec"].max(1) // rates).sum())
    documents = sum(int(row["doc_valid"].sum()) for row in sample)
    text = int((segments["enc"] > 0).sum()) - (FRAME + len(layout.tail)) * documents
    memory = documents * layout.extra.memory_tokens
    padded = documents * layout.longest + examples * rates * PADDED_DECODER
    used = sum(int((segments[side] > 0).sum()) for side in _SIDES)
    total = sum(segments[side].size for side in _SIDES)
    rate = text / max(memory, 1)
    ratios = padded / total, padded / used
    return Report(lengths, len(sample), examples, encoder, decoder, rate, *ratios)


def smallest_row(data: Data, layout: TextLayout) -> int:
    """Tokens of the shortest encoder row that holds any document.

    Raises:
        UserError: `data.encoder_row` is set and shorter.
    """
    smallest = layout.longest
    if 0 < data.encoder_row < smallest:
        raise UserError(
            f"config.data.encoder_row={data.encoder_row} is too short for a document of "
            f"config.data.document_length={data.document_length} tokens; "
            f"the smallest that fits is {smallest}"
        )
    return smallest


def round_up(length: int) -> int:
    """The next multiple of the step of chosen lengths."""
    return -(-length // _STEP) * _STEP


def steps(smallest: int) -> list[int]:
    """Row lengths worth trying, from one that holds `smallest` tokens to the longest."""
    start = round_up(smallest)
    return list(range(start, max(start, LONGEST) + 1, _STEP))


def prefetch(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
    """Prepares batches in processes of their own, if there are to be any.

    Each of them reads a part of the records, so that their number changes which batch comes when.
    """
    if not workers:
        return dataset
    if not flags.FLAGS.is_parsed():  # as in a notebook; Grain's worker processes ask for flags
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers)
    return dataset.mp_prefetch(options, worker_init_fn=_end_with_parent)


def _end_with_parent(*_: int) -> None:
    """Ends this process soon after the one that started it, however that died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait = multiprocessing.connection.wait
        threading.Thread(
            target=lambda: wait([parent.sentinel]) and os._exit(1), daemon=True
        ).start()
