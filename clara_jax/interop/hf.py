"""Base models in the Hugging Face layout: config.json and safetensors, read without torch."""

import json
import os
import pathlib
import sys
from typing import Any

import huggingface_hub
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors then returns)
import numpy as np
import safetensors

from clara_jax.errors import UserError
from clara_jax.interop import layout
from clara_jax.models.config import ModelConfig, RopeScaling

# Values that transformers assumes where a config.json of that model_type leaves a key out.
# `num_key_value_heads` None: as many as query heads.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": None, "sliding_window": None},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
}

# Whole numbers; those that null may stand for come last.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
          "num_attention_heads")  # fmt: skip
_OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")

# Settings that change the computation, with the only values that the decoder implements.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
}

_LENGTH = "original_max_position_embeddings"

_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_DOWNLOAD = ("*.json", "*.safetensors", "tokenizer*", "*.jinja", "merges.txt", "*.tiktoken")
# The original weights that some repositories hold beside the converted ones.
_LEAVE = ("consolidated*", "original/*")


def read_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """Reads a model's config.json; both layouts of the rotary settings are understood.

    Raises:
        UserError: no config.json, or an architecture that the decoder does not implement.
    """
    path = pathlib.Path(directory) / "config.json"
    data = _read_json(path)
    family = data.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise UserError(
            f"{path}: model_type {family!r} is not supported; supported: {', '.join(_FAMILIES)}"
        )
    for key, values in _ONLY.items():
        if data.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key}={data[key]!r} is not supported, only {values[0]!r}")
    for key in (*_SIZES, *_OPTIONAL):
        value = data.get(key)
        if key not in data or (value is None and key in _OPTIONAL):
            continue
        if type(value) is not int or not 0 < value < 2**31:
            raise UserError(f"{path}: {key}={value!r} is not a whole number from 1 to 2**31 - 1")
    try:
        n_heads = data["num_attention_heads"]
        theta, scaling = _rope(data, path)
        return ModelConfig(
            vocab_size=data["vocab_size"],
            d_model=data["hidden_size"],
            d_ff=data["intermediate_size"],
            n_layers=data["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=data.get("num_key_value_heads", _FAMILIES[family]["num_key_value_heads"])
            or n_heads,
            head_dim=data.get("head_dim") or data["hidden_size"] // n_heads,
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=_number(data.get("rms_norm_eps", 1e-6), "rms_norm_eps", path),
            tied_embeddings=bool(data.get("tie_word_embeddings", False)),
            sliding_window=data.get("sliding_window", _FAMILIES[family]["sliding_window"]),
        )
    except KeyError as e:
        raise UserError(f"{path}: {e} is missing") from e
    except (TypeError, ValueError) as e:
        raise UserError(f"{path}: {e}") from e


def load_params(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    sharding_of: layout.ShardingOf | None = None,
) -> Any:
    """Loads the weights of a model directory: one safetensors file, or several with an index.

    Args:
        directory: holds model.safetensors or model.safetensors.index.json.
        config: the architecture, as `read_config` gives it; `param_dtype` is the result's dtype.
        sharding_of: gives the sharding of a parameter from its path and shape.

    Returns:
        The `params` tree of the decoder.

    Raises:
        UserError: a file or tensor is missing, unknown, mis-shaped or broken.
    """
    return layout.load(_Safetensors(pathlib.Path(directory), config), config, sharding_of)


def download(hub_id: str) -> pathlib.Path:
    """Fetches config, tokenizer and safetensors of a hub model, or finds them in its cache.

    Raises:
        UserError: no such model, no access, or no network.
    """
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id, allow_patterns=list(_DOWNLOAD), ignore_patterns=list(_LEAVE)
        )
    except Exception as e:  # its own errors and those of its HTTP library have no common base
        reason = " ".join(str(e).split()) or type(e).__name__
        raise UserError(f"cannot download {hub_id} from the Hugging Face hub: {reason}") from e
    return pathlib.Path(folder)


class _Safetensors:
    """The tensors of a model directory (`layout.Checkpoint`)."""

    format = "hf"

    def __init__(self, directory: pathlib.Path, config: ModelConfig) -> None:
        self.where = str(directory)
        self._files = {}
        self.shapes = {}
        for file in _files(directory):
            for name, view in _open(file).items():
                if name.endswith("rotary_emb.inv_freq"):
                    continue
                if name == "lm_head.weight" and config.tied_embeddings:
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

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads tensor[index] from its file."""
        return self._files[name][1][index]


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
    if (directory / _INDEX).is_file():
        weight_map = _read_json(directory / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{directory / _INDEX}: has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
    elif (directory / _SINGLE).is_file():
        names = [_SINGLE]
    else:
        raise UserError(
            f"{directory}: neither {_SINGLE} nor {_INDEX}; save the model with safe_serialization"
        )
    return [directory / name for name in names]


def _open(file: pathlib.Path) -> dict[str, Any]:
    try:
        tensors = safetensors.safe_open(str(file), framework="numpy")
        return {name: tensors.get_slice(name) for name in tensors.keys()}
    except FileNotFoundError as e:
        raise UserError(f"{file}: no such file, though {_INDEX} names it") from e
    except (safetensors.SafetensorError, OSError) as e:
        raise UserError(f"{file}: not a readable safetensors file ({e})") from e


def _rope(data: dict[str, Any], path: pathlib.Path) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling: transformers 5 has them in one group, older configs in two."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters or rope_scaling is {rope!r}, not an object")
    theta = rope.get("rope_theta", data.get("rope_theta", 10_000.0))
    theta = _number(theta, "rope_theta", path)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{path}: rope type {kind!r} is not supported; supported: default, llama3")
    return theta, RopeScaling(
        factor=_number(rope["factor"], "factor", path),
        low_freq_factor=_number(rope["low_freq_factor"], "low_freq_factor", path),
        high_freq_factor=_number(rope["high_freq_factor"], "high_freq_factor", path),
        original_length=int(_number(rope[_LENGTH], _LENGTH, path)),
    )


def _number(value: Any, key: str, path: pathlib.Path) -> float:
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise UserError(f"{path}: {key}={value!r} is not a number above 0")
    return float(value)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; is this a Hugging Face model directory?") from e
    except (ValueError, RecursionError, OSError) as e:
        raise UserError(f"{path}: not readable as JSON ({e})") from e
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a JSON object")
    return data
