"""Checkpoints in the layout of the PyTorch release of CLaRa, and PISCO's, read without torch.

A directory holds `config.json`, `adapters.pth` ({adapter: {parameter: tensor}}) and
`decoder_first_last_layers.pth` (embedding and head with rows for the added tokens). The base model
itself is not in it.
"""

import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np

from clara_jax.errors import UserError
from clara_jax.interop import adapters, hub_ids, weights
from clara_jax.interop.names import TABLE
from clara_jax.interop.release_config import CONFIG, Settings, read_settings
from clara_jax.interop.torch_zip import Tensor, TorchFile
from clara_jax.models.config import LoraConfig, ModelConfig

ADAPTERS_FILE, TABLES_FILE = "adapters.pth", "decoder_first_last_layers.pth"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"

ADDED_TOKENS = 3  # AE, ENC, SEP, after the memory tokens

ADAPTER_NAMES = {
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "reasoner",
    "decoder_adapter": "generator",
}

# Rows of the embedding that are compared with the base's, and how far apart they may be: bfloat16
# rounds them by 0.2 %, GGUF's 4 bits by 10 %.
_COMPARED = 64
_FAR = {"hf": 0.01, "gguf": 0.3}


@dataclasses.dataclass(frozen=True)
class Release:
    """A checkpoint's trained parts, as float32 numpy arrays."""

    settings: Settings  # how it was trained
    lora: LoraConfig  # rank, alpha and targets of its adapters
    adapters: dict[str, Any]  # `lora` trees by name (compressor, reasoner, generator)
    memory: np.ndarray  # [M, D] embeddings of the memory tokens
    # {"embed": [3, D] embeddings of AE, ENC, SEP, "head": [D, M + 3] head columns of the memory
    # tokens and these three}
    added: dict[str, np.ndarray]

    @property
    def trees(self) -> dict[str, Any]:
        """All of them by name (models/clara.py)."""
        return {**self.adapters, "memory": self.memory, "added": self.added}


def is_release(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory looks like a checkpoint of the release."""
    names = (CONFIG, ADAPTERS_FILE, TABLES_FILE)
    return all((pathlib.Path(directory) / name).is_file() for name in names)


def looks_like(directory: str | os.PathLike[str]) -> list[str]:
    """Hub ids of well-known base models whose shapes a checkpoint has.

    Raises:
        UserError: a file is missing or damaged.
    """
    settings = read_settings(directory)
    tables = TorchFile(pathlib.Path(directory) / TABLES_FILE)
    file = TorchFile(pathlib.Path(directory) / ADAPTERS_FILE)
    embed = tables.named(tables.content).get(EMBED)
    trees = list(file.named(file.content).values())
    if not isinstance(embed, Tensor) or len(embed.shape) != 2 or not trees:
        return []
    shapes = {k: t.shape for k, t in file.named(trees[0]).items() if isinstance(t, Tensor)}

    def rows(name: str) -> int:
        sizes = (s[0] for k, s in shapes.items() if k.endswith(f".{name}.lora_B.weight"))
        return next(sizes, 0)

    qkv = rows("qkv_proj") or rows("q_proj") + 2 * rows("k_proj")
    d_ff = rows("gate_proj") or rows("gate_up_proj") // 2
    layers = {match[1] for name in shapes if (match := re.search(r"\.layers\.(\d+)\.", name))}
    vocab = embed.shape[0] - settings.memory_tokens - ADDED_TOKENS
    return hub_ids.like(vocab, embed.shape[1], d_ff, len(layers), qkv)


def read(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    base: weights.Checkpoint | None = None,
    tokens: int | None = None,
) -> Release:
    """Reads a release checkpoint for a base of the given architecture.

    Tensors that are no adapter's (some checkpoints repeat embedding and head in every adapter) are
    left out.

    Args:
        directory: of the checkpoint.
        config: of the base.
        base: the base's weights, whose embedding is compared with the checkpoint's copy.
        tokens: of the base's tokenizer; the release cuts the vocabulary to them where the base's
            tables are larger. None: as many as the tables have.

    Raises:
        UserError: a file is missing, damaged or not plain tensors; a tensor is missing, unknown,
            mis-shaped or not finite; the base does not fit.
    """
    directory = pathlib.Path(directory)
    settings = read_settings(directory)
    memory, added = _added_tokens(directory / TABLES_FILE, settings, config, base, tokens)
    trees, lora = _adapters(directory / ADAPTERS_FILE, settings, config)
    return Release(settings, lora, trees, memory, added)


def _adapters(
    path: pathlib.Path, settings: Settings, config: ModelConfig
) -> tuple[dict[str, Any], LoraConfig]:
    file = TorchFile(path)
    by_name = {}
    for name, tensors in file.named(file.content).items():
        if name not in ADAPTER_NAMES:
            raise UserError(f"{path}: unknown adapter {name!r}; known: {', '.join(ADAPTER_NAMES)}")
        by_name[name] = {k: v for k, v in file.named(tensors).items() if "lora_" in k}
    for name, ours in ADAPTER_NAMES.items():
        if ours in settings.adapters and name not in by_name:
            have = ", ".join(by_name) or "none"
            raise UserError(
                f"{path}: adapter {name} is missing (there is {have}), but {CONFIG} says that this "
                f"checkpoint was trained in stage {settings.stage}, which trains it"
            )
    modules = {name.rpartition(".lora_")[0] for tensors in by_name.values() for name in tensors}
    targets = [n for n, own in adapters.modules(config).items() if modules.intersection(own)]
    lora = LoraConfig(settings.rank, 2.0 * settings.rank, targets=tuple(targets))
    trees = {}
    for name, tensors in by_name.items():
        arrays = {f"{name}: {k}": file.array(f"{name}: {k}", t) for k, t in tensors.items()}
        trees[ADAPTER_NAMES[name]] = adapters.to_tree(
            arrays, str(path), lora, config, prefix=f"{name}: "
        )
    return trees, lora


def _added_tokens(
    path: pathlib.Path,
    settings: Settings,
    config: ModelConfig,
    base: weights.Checkpoint | None,
    tokens: int | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    file, M = TorchFile(path), settings.memory_tokens
    tensors = file.named(file.content)
    unknown = sorted(set(tensors) - {EMBED, HEAD})
    if unknown:
        raise UserError(f"{path}: unknown tensor {unknown[0]}")
    sizes = {size + M + ADDED_TOKENS: size for size in (tokens, config.vocab_size) if size}

    def table(name: str) -> tuple[np.ndarray, int]:
        array = file.array(name, tensors.get(name))
        wanted = (config.vocab_size + M + ADDED_TOKENS, config.d_model)
        if array.ndim != 2 or array.shape[1] != wanted[1] or len(array) not in sizes:
            raise UserError(
                f"{path}: tensor {name} has shape {list(array.shape)}, but this base and {CONFIG} "
                f"ask for {list(wanted)}; is it the right base?"
            )
        return array, sizes[len(array)]

    embed, n_base = table(EMBED)
    if base is not None:
        _compare(path, embed, n_base, base)
    # Rows below the vocabulary are the base's own, which training never touches.
    embed_rows = _finite(file, EMBED, embed[n_base:])
    head_rows = embed_rows
    if not config.tied_embeddings:
        head, n_head = table(HEAD)
        head_rows = _finite(file, HEAD, head[n_head:])
    elif HEAD in tensors and not np.array_equal(table(HEAD)[0], embed):
        raise UserError(
            f"{path}: {HEAD} differs from {EMBED}, but this base ties both; is it the right base?"
        )
    added = {"embed": embed_rows[M:], "head": np.ascontiguousarray(head_rows.T)}
    return embed_rows[:M], added


def _compare(path: pathlib.Path, embed: np.ndarray, n_base: int, base: weights.Checkpoint) -> None:
    """Refuses a base of the same shapes whose embedding is another than the file's copy."""
    name = getattr(TABLE[0], base.format)
    rows = np.linspace(0, n_base - 1, min(n_base, _COMPARED)).astype(int)
    columns = slice(0, embed.shape[1])
    theirs = np.concatenate([base.read(name, (slice(i, i + 1), columns)) for i in rows])
    ours, theirs = (x.astype(np.float32) for x in (embed[rows], theirs))
    distance = np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)
    if not distance < _FAR[base.format]:
        raise UserError(
            f"{path}: its copy of the embedding is another than that of the base {base.where} "
            f"({distance:.0%} apart): it was trained on another base of the same shapes"
        )


def _finite(file: TorchFile, name: str, array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{file.path}: tensor {name} holds NaN or infinity; the file is damaged")
    return array
