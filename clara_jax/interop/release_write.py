"""Writes the layout of the PyTorch release (clara_release.py reads it), without torch."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np

from clara_jax.interop import adapters, torch_zip_write
from clara_jax.interop.clara_release import (
    ADAPTER_NAMES,
    ADAPTERS_FILE,
    EMBED,
    HEAD,
    TABLES_FILE,
)
from clara_jax.interop.release_config import CONFIG, Settings, to_json
from clara_jax.models.config import ModelConfig

_BLOCK = 4096  # rows of a table that are fetched at a time

Rows = Callable[[int, int], np.ndarray]


def write(
    directory: str,
    settings: Settings,
    trees: dict[str, Any],
    config: ModelConfig,
    embed: Rows,
    head: Rows | None,
    tokens: int,
) -> None:
    """Writes a checkpoint.

    All of it is in bfloat16 if that holds every trained number exactly, as it does for checkpoints
    that were imported from bfloat16, else in float32.

    Args:
        directory: exists.
        settings: what config.json is to say.
        trees: adapters, `memory` and `added` as host arrays.
        config: of the base.
        embed: gives rows [n, D] from one token to before another of the base's embedding.
        head: the same of its head, transposed; None if it is tied to the embedding.
        tokens: of the base's tokenizer; the release cuts the base's tables to them.
    """
    dtype = np.dtype(ml_dtypes.bfloat16 if _is_bfloat16(trees) else np.float32)
    tensors_of = {
        theirs: adapters.to_tensors(trees[ours], config)
        for theirs, ours in ADAPTER_NAMES.items()
        if ours in trees
    }
    # All have one rank, larger than ours if projections are fused; alpha is twice that.
    rank = max(map(adapters.rank_of, tensors_of.values()))
    settings = dataclasses.replace(settings, rank=rank)
    content = {
        adapter: {name: _widened(name, t, rank).astype(dtype) for name, t in tensors.items()}
        for adapter, tensors in tensors_of.items()
    }
    torch_zip_write.write(os.path.join(directory, ADAPTERS_FILE), content)

    added = trees["added"]
    embed_rows = np.concatenate([trees["memory"], added["embed"]])

    def table(rows: Rows, new: np.ndarray) -> torch_zip_write.Blocks:
        shape = (tokens + len(new), config.d_model)
        return torch_zip_write.Blocks(shape, dtype, _blocks(rows, new, tokens))

    content = {EMBED: table(embed, embed_rows)}
    if head is None:
        content[HEAD] = content[EMBED]  # stored once, as torch does with tied tables
    else:
        new = added["head"].T if "head" in added else _mean(head, tokens, len(embed_rows))
        content[HEAD] = table(head, new)
    torch_zip_write.write(os.path.join(directory, TABLES_FILE), content)
    with open(os.path.join(directory, CONFIG), "w", encoding="utf-8") as f:
        json.dump(to_json(settings), f, indent=2)


def _blocks(rows: Rows, new: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    for start in range(0, tokens, _BLOCK):
        yield rows(start, min(start + _BLOCK, tokens))
    yield new


def _widened(name: str, tensor: np.ndarray, rank: int) -> np.ndarray:
    """A [R, in] or B [out, R] with zeros up to the rank."""
    axis = 0 if "lora_A" in name else 1
    pad = [(0, 0), (0, 0)]
    pad[axis] = (0, rank - tensor.shape[axis])
    return np.pad(tensor, pad)


def _mean(head: Rows, tokens: int, n: int) -> np.ndarray:
    """Head rows of added tokens that have no logit here: the mean of all, as the release starts."""
    blocks = _blocks(head, np.zeros((0, 1)), tokens)
    sums = [block.sum(0, dtype=np.float64) for block in blocks if len(block)]
    return np.tile((np.sum(sums, 0) / tokens).astype(np.float32), (n, 1))


def _is_bfloat16(trees: dict[str, Any]) -> bool:
    return all(
        np.array_equal(leaf.astype(ml_dtypes.bfloat16).astype(np.float32), leaf)
        for leaf in map(np.asarray, jax.tree.leaves(trees))
    )
