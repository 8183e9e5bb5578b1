"""Base models in the Hugging Face layout, safetensors read without torch; see hf_config.py too."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import huggingface_hub
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors then returns)
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from clara_jax import files
from clara_jax.errors import UserError
from clara_jax.interop.hf_config import read_json
from clara_jax.models.config import ModelConfig

_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_DOWNLOAD = ("*.json", "*.safetensors", "tokenizer*", "*.jinja", "merges.txt", "*.tiktoken")
# The original weights that some repositories hold beside the converted ones.
_LEAVE = ("consolidated*", "original/*")


def download(hub_id: str) -> pathlib.Path:
    """Fetches config, tokenizer and safetensors of a hub model, or finds them in its cache.

    Raises:
        UserError: no such model, no access, or no network.
    """
    folder = ask_hub(
        huggingface_hub.snapshot_download,
        hub_id,
        allow_patterns=list(_DOWNLOAD),
        ignore_patterns=list(_LEAVE),
    )
    return pathlib.Path(folder)


def ask_hub(function: Callable[..., Any], repo: str, **kwargs: Any) -> Any:
    """Calls a function of the hub's client about a repository.

    Raises:
        UserError: no such repository, no access, or no network.
    """
    try:
        return function(repo, **kwargs)
    except Exception as e:  # its own errors and those of its HTTP library have no common base
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"cannot download {repo} from the Hugging Face hub: {reason}") from e


class Safetensors:
    """The tensors of a model directory (`weights.Checkpoint`)."""

    format = "hf"

    def __init__(self, directory: pathlib.Path, config: ModelConfig) -> None:
        self.where = str(directory)
        self._files = {}
        self.shapes = {}
        head = None
        for file in _files(directory):
            for name, view in _open(file).items():
                if name.endswith("rotary_emb.inv_freq"):
                    continue
                if name == "lm_head.weight" and config.tied_embeddings:
                    head = view
                    continue  # a copy of the embedding
                if name in self.shapes:
                    raise UserError(f"{file}: tensor {name} is also in {self._files[name][0]}")
                if view.get_dtype() not in _FLOAT_DTYPES:
                    raise UserError(
                        f"{file}: tensor {name} has dtype {view.get_dtype()}; "
                        f"supported: {', '.join(_FLOAT_DTYPES)}"
                    )
                self._files[name] = (file, view)
                self.shapes[name] = tuple(view.get_shape())
        _, embedding = self._files.get("model.embed_tokens.weight", (None, None))
        if head is not None and embedding is not None and not _same(head, embedding):
            raise UserError(
                f"{directory}: lm_head.weight differs from the embedding, though config.json says "
                "that they are tied; set tie_word_embeddings to false there"
            )

    @property
    def is_bfloat16(self) -> bool:
        """Whether the weights are stored in bfloat16, most of them or all."""
        kinds = [view.get_dtype() for _, view in self._files.values()]
        return 2 * kinds.count("BF16") > len(kinds)

    @property
    def kind(self) -> str:
        """What numbers are rounded to, if it is more than to bfloat16."""
        return "F16" if any(view.get_dtype() == "F16" for _, view in self._files.values()) else ""

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads tensor[index] from its file."""
        return self._files[name][1][index]


def save(
    path: str | os.PathLike[str],
    arrays: dict[str, np.ndarray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes arrays, which must be contiguous, by name to a safetensors file.

    Raises:
        UserError: it cannot be written, for the disk is full or the like.
    """
    try:
        safetensors.numpy.save_file(arrays, path, metadata or {"format": "pt"})
        os.chmod(path, 0o666 & ~files.UMASK)  # safetensors lets nobody else read
    except (safetensors.SafetensorError, OSError) as e:
        raise UserError(f"{path}: cannot be written ({e})") from e


def _same(first: Any, second: Any) -> bool:
    """Whether two matrices in files hold the same numbers."""
    rows, width = first.get_shape()
    if [rows, width] != list(second.get_shape()):
        return False
    step = max(1, 2**24 // width)
    parts = (slice(start, min(start + step, rows)) for start in range(0, rows, step))
    return all(np.array_equal(first[part], second[part]) for part in parts)


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    single = (directory / SINGLE).is_file()
    if single and (directory / INDEX).is_file():  # as transformers does
        logging.warning("%s: %s is read, not the files of %s beside it", directory, SINGLE, INDEX)
    if not single and (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{directory / INDEX}: has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
    elif single:
        names = [SINGLE]
    else:
        raise UserError(
            f"{directory}: neither {SINGLE} nor {INDEX}; save the model with safe_serialization"
        )
    return [directory / name for name in names]


def _open(file: pathlib.Path) -> dict[str, Any]:
    try:
        tensors = safetensors.safe_open(str(file), framework="numpy")
        return {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  (no dict)
    except FileNotFoundError as e:
        raise UserError(f"{file}: no such file, though {INDEX} names it") from e
    except (safetensors.SafetensorError, OSError) as e:
        raise UserError(f"{file}: not a readable safetensors file ({e})") from e
