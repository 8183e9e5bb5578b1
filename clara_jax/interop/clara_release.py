"""Checkpoints in the layout of the PyTorch release of CLaRa, read without torch.

A directory holds `config.json`, `adapters.pth` ({adapter: {parameter: tensor}}) and
`decoder_first_last_layers.pth` (embedding and head with rows for the added tokens). The base model
itself is not in it.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np

from clara_jax.errors import UserError
from clara_jax.interop.layout import TABLE, tensor_names
from clara_jax.interop.torch_zip import Tensor, TorchFile
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.decoder import abstract_params

_CONFIG, _ADAPTERS, _LAYERS = "config.json", "adapters.pth", "decoder_first_last_layers.pth"

_ADDED_TOKENS = 3  # AE, ENC, SEP, after the memory tokens

_ADAPTER_NAMES = {
    "encoder_adapter": "compressor",
    "query_reasoner_adapter": "reasoner",
    "decoder_adapter": "generator",
}

# Our name of each training stage, and the adapters that it leaves behind.
_STAGES = {
    "stage1": ("scp", ("compressor", "generator")),
    "stage1_2": ("instruct", ("compressor", "generator")),
    "stage2": ("e2e", ("compressor", "reasoner", "generator")),
    "stage2_pretrain_retrieval": ("contrastive", ("compressor", "reasoner")),
}

# Settings that change the computation, with the only value that is supported.
_ONLY = {
    "lora": True,
    "different_mem_tokens": True,
    "sep": True,
    "compr_use_mlp": False,
    "compr_model_name": None,  # a compressor of another architecture
    "kbtc_training": False,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The part of a release's config.json that matters here.

    Attributes:
        stage: the last stage it was trained in, by our name.
        adapters: names of those that a checkpoint of this stage must have.
        document_length: longest document in tokens.
        rate: compression rate.
        memory_tokens: M, document_length // rate.
        top_k: documents in a prompt.
        lora: rank and scale of its adapters; the release has alpha = 2 rank and dropout 0.1.
        base: what it calls its base model, often a path of its authors' machine.
    """

    stage: str
    adapters: tuple[str, ...]
    document_length: int
    rate: int
    memory_tokens: int
    top_k: int
    lora: LoraConfig
    base: str


@dataclasses.dataclass(frozen=True)
class Release:
    """A release's trained parts, as float32 numpy arrays.

    Attributes:
        settings: how it was trained.
        adapters: `lora` trees by name (compressor, reasoner, generator).
        memory: [M, D] embeddings of the memory tokens.
        added: {"embed": [3, D] embeddings of AE, ENC, SEP, "head": [D, M + 3] head columns of the
            memory tokens and these three}.
    """

    settings: Settings
    adapters: dict[str, Any]
    memory: np.ndarray
    added: dict[str, np.ndarray]


def is_release(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory looks like a checkpoint of the release."""
    return all((pathlib.Path(directory) / name).is_file() for name in (_CONFIG, _ADAPTERS, _LAYERS))


def read_settings(directory: str | os.PathLike[str]) -> Settings:
    """Reads a release's config.json.

    Raises:
        UserError: it is missing, incomplete, or asks for what is not supported.
    """
    path = pathlib.Path(directory) / _CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        for key, value in _ONLY.items():
            if data.get(key, value) != value:
                raise UserError(f"{path}: {key}={data[key]!r} is not supported, only {value!r}")
        stage, length, rate = data["training_stage"], data["doc_max_length"], data["compr_rate"]
        if stage not in _STAGES:
            raise UserError(
                f"{path}: training_stage {stage!r} is not supported; "
                f"supported: {', '.join(_STAGES)}"
            )
        if not length >= rate >= 1:
            raise UserError(f"{path}: doc_max_length={length}, compr_rate={rate} leave no memory")
        return Settings(
            stage=_STAGES[stage][0],
            adapters=_STAGES[stage][1],
            document_length=length,
            rate=rate,
            memory_tokens=length // rate,
            top_k=data.get("generation_top_k", 1),
            lora=LoraConfig(rank=data["lora_r"], alpha=2.0 * data["lora_r"]),
            base=str(data.get("decoder_model_name", "")),
        )
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; is this a CLaRa release directory?") from e
    except KeyError as e:
        raise UserError(f"{path}: {e} is missing; is this a CLaRa release directory?") from e
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: not a CLaRa config ({e})") from e


def read(directory: str | os.PathLike[str], config: ModelConfig) -> Release:
    """Reads a release checkpoint for a base of the given architecture.

    Tensors that are no adapter's (some checkpoints repeat embedding and head in every adapter) are
    left out.

    Raises:
        UserError: a file is missing, damaged or not plain tensors; a tensor is missing, unknown or
            mis-shaped; the base does not fit.
    """
    directory = pathlib.Path(directory)
    settings = read_settings(directory)
    memory, added = _added_tokens(directory / _LAYERS, settings.memory_tokens, config)
    return Release(
        settings=settings,
        adapters=_adapters(directory / _ADAPTERS, settings, config),
        memory=memory,
        added=added,
    )


def _adapters(path: pathlib.Path, settings: Settings, config: ModelConfig) -> dict[str, Any]:
    file = TorchFile(path)
    adapters = {}
    for name, tensors in _dict(file, file.content).items():
        if name not in _ADAPTER_NAMES:
            raise UserError(f"{path}: unknown adapter {name!r}; known: {', '.join(_ADAPTER_NAMES)}")
        tensors = {k: v for k, v in _dict(file, tensors).items() if "lora_" in k}
        adapters[_ADAPTER_NAMES[name]] = _adapter(file, name, tensors, settings.lora, config)
    for name, ours in _ADAPTER_NAMES.items():
        if ours in settings.adapters and ours not in adapters:
            raise UserError(f"{path}: adapter {name} is missing")
    return adapters


def _adapter(
    file: TorchFile, adapter: str, tensors: dict[str, Any], lora: LoraConfig, config: ModelConfig
) -> dict[str, Any]:
    """The `lora` tree of one adapter: a [L, R, in], b [L, R, out]."""
    kernels = flax.traverse_util.flatten_dict(abstract_params(config), sep="/")
    tree, used = {}, set()
    for row in TABLE:
        if not (row.stacked and row.transposed):
            continue
        n_layers, n_in, n_out = kernels[row.path].shape
        for leaf, torch_leaf, shape, axes in (
            ("a", "lora_A", (lora.rank, n_in), (0, 1)),
            ("b", "lora_B", (n_out, lora.rank), (1, 0)),
        ):
            names = [
                name.removesuffix("weight") + f"{torch_leaf}.weight"
                for name in tensor_names(row, "hf", n_layers)
            ]
            used.update(names)
            out = np.empty((n_layers, *(shape[axis] for axis in axes)), np.float32)
            for layer, name in enumerate(names):
                tensor = _array(file, f"{adapter}: {name}", tensors.get(name), shape)
                out[layer] = tensor.transpose(axes)
            tree[row.path.removesuffix("kernel") + leaf] = out
    unknown = sorted(set(tensors) - used)
    if unknown:
        raise UserError(
            f"{file.path}: unknown tensor {adapter}: {unknown[0]}; the base has no such layer"
        )
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def _added_tokens(
    path: pathlib.Path, memory_tokens: int, config: ModelConfig
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    file = TorchFile(path)
    tensors = _dict(file, file.content)
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    unknown = sorted(set(tensors) - {embed, head})
    if unknown:
        raise UserError(f"{path}: unknown tensor {unknown[0]}")
    n_added = memory_tokens + _ADDED_TOKENS
    shape = (config.vocab_size + n_added, config.d_model)

    def rows(name: str) -> np.ndarray:
        # Rows below the vocabulary are the base's own, which training never touches.
        table = _array(file, name, tensors.get(name), shape)
        return table[config.vocab_size :].astype(np.float32)

    embed_rows = rows(embed)
    head_rows = embed_rows if config.tied_embeddings else rows(head)
    added = {"embed": embed_rows[memory_tokens:], "head": np.ascontiguousarray(head_rows.T)}
    return embed_rows[:memory_tokens], added


def _array(file: TorchFile, name: str, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    if tensor is None:
        raise UserError(f"{file.path}: tensor {name} is missing")
    if not isinstance(tensor, Tensor):
        raise UserError(f"{file.path}: {name} is not a tensor")
    if tensor.shape != shape:
        raise UserError(
            f"{file.path}: tensor {name} has shape {list(tensor.shape)}, but this base and "
            f"{_CONFIG} ask for {list(shape)}; is it the right base?"
        )
    return file.array(name, tensor)


def _dict(file: TorchFile, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{file.path}: not a dict of tensors")
    return value
