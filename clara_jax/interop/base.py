"""Base models in any format: a Hugging Face directory, a hub id or a GGUF file."""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any

from clara_jax import checksums
from clara_jax.errors import UserError
from clara_jax.interop import gguf, hf, hf_config, weights
from clara_jax.models.config import ModelConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class Base:
    """A base model on this machine: its `format` is "hf" (a directory) or "gguf" (a file)."""

    format: str
    path: pathlib.Path


GENERATION = "generation_config.json"

# How the architecture and the weights of each format are read.
_READERS = {
    "hf": (hf_config.read_config, hf.Safetensors),
    "gguf": (gguf.read_config, gguf.Tensors),
}


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name and stands for nothing on this machine."""
    path = pathlib.Path(name)
    if path.exists() or path.suffix == ".gguf" or (path.parent.is_dir() and path.parent.name):
        return False  # where the first part is a folder here, the second is a slip
    return bool(_HUB_ID.fullmatch(name))


def resolve(base: str | os.PathLike[str]) -> Base:
    """Finds out what a base model's name stands for: first a path, then a hub id, downloaded.

    Raises:
        UserError: neither a model directory, nor a .gguf file, nor a hub id that can be had.
    """
    path = pathlib.Path(base)
    if path.is_dir():
        return Base("hf", path)
    if path.is_file() and path.suffix == ".gguf":
        return Base("gguf", path)
    if is_hub_id(str(base)):
        return Base("hf", hf.download(str(base)))
    raise UserError(
        f"base {str(base)!r} is neither a model directory, nor a .gguf file, nor a hub id; say "
        "where it is: with --config.model.base to train, else with --base"
    )


def is_model(directory: str | os.PathLike[str]) -> bool:
    """Whether a local directory holds the weights of a whole Hugging Face model."""
    return any((pathlib.Path(directory) / name).is_file() for name in (hf.SINGLE, hf.INDEX))


def read_config(base: str | os.PathLike[str]) -> ModelConfig:
    """Reads a base model's architecture.

    Raises:
        UserError: it cannot be found, or is not supported.
    """
    model = resolve(base)
    read, _ = _READERS[model.format]
    return read(model.path)


def open_tensors(
    base: str | os.PathLike[str], config: ModelConfig, verify: bool = True
) -> weights.Checkpoint:
    """A base model's weights, to be read in parts.

    Args:
        base: as of `resolve`.
        config: the architecture.
        verify: whether the checksums of one that was exported here are looked at.

    Raises:
        UserError: they cannot be found or are broken.
    """
    model = resolve(base)
    if verify and model.path.is_dir():
        checksums.check(model.path, "export it again")
    _, tensors = _READERS[model.format]
    return tensors(model.path, config)


def generation_settings(base: str | os.PathLike[str], folder: str) -> dict[str, Any]:
    """Copies a base's generation_config.json, if it has one, to a folder.

    Returns:
        Ids of special tokens that its config.json names. Models may end a turn with several.
    """
    model = resolve(base)
    if model.format != "hf":
        return {}
    if (model.path / GENERATION).is_file():
        shutil.copyfile(model.path / GENERATION, os.path.join(folder, GENERATION))
    data = hf_config.read_json(model.path / "config.json")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: data[name] for name in names if data.get(name) is not None}


def load_params(
    base: str | os.PathLike[str],
    config: ModelConfig,
    sharding_of: weights.ShardingOf | None = None,
    parts: Sequence[str] = (),
) -> Any:
    """Loads a base model's weights into `config.param_dtype`, each shard straight to its device.

    `config` is the architecture, from `read_config`; its dtypes may have been replaced. The rest is
    as of `weights.load`.

    Raises:
        UserError: a file or tensor is missing, unknown, mis-shaped or broken.
    """
    return weights.load(open_tensors(base, config), config, sharding_of, parts)
