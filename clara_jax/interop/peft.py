"""One adapter as a PEFT directory: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import math
import os
import pathlib
import re
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors then returns)
import numpy as np
import safetensors.numpy

from clara_jax.errors import UserError
from clara_jax.interop import adapters, hf
from clara_jax.interop.torch_zip import TorchFile
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.lora import Adapter

_CONFIG, _SAFE, _TORCH = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

_PREFIX = "base_model.model."  # before the names that tensors have in transformers

_FLOATS = ("float64", "float32", "float16", "bfloat16")

# Settings that change the computation, with the only values that are supported. Of PEFT's newer
# ones there are those that it writes into every file, empty where unused.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None,),
    "use_dora": (False,),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "exclude_modules": (None,),
    "target_parameters": (None,),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    # Others take something off the base's weights, of which the files say nothing.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
_EMPTY = (None, False, [], {}, "")

# What taking apart the settings of a bad file raises.
_WRONG = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    re.error,
)


def is_adapter(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (pathlib.Path(directory) / _CONFIG).is_file()


def write(
    directory: str | os.PathLike[str],
    adapter: Adapter,
    lora: LoraConfig,
    config: ModelConfig,
    base: str = "",
) -> None:
    """Writes an adapter, in its dtype, so that PEFT loads it onto the base.

    The directory is made if it is not there. `adapter` is a `lora` tree, a [L, R, in] and
    b [L, R, out]; `base` is the hub id or directory by which PEFT is to find the base.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = adapters.to_tensors(adapter, config)
    rank = adapters.rank_of(tensors)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _whole(lora.scale * rank),
        "lora_dropout": lora.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }
    text = json.dumps(settings, indent=2) + "\n"
    (directory / _CONFIG).write_text(text, encoding="utf-8")
    hf.save(directory / _SAFE, {_PREFIX + name: x for name, x in tensors.items()})


def read(directory: str | os.PathLike[str], config: ModelConfig) -> tuple[Adapter, LoraConfig]:
    """Reads a PEFT directory for a base of the given architecture.

    Returns:
        The `lora` tree in float32, a [L, R, in] and b [L, R, out] of the targets; and its settings,
        alpha such that alpha / rank is the scale (also of an adapter with rank-stabilised scale).

    Raises:
        UserError: a file is missing or damaged, a setting is not supported, a tensor is missing,
            unknown, mis-shaped or not of finite numbers; the base does not fit.
    """
    directory = pathlib.Path(directory)
    lora = read_settings(directory, config)
    path, tensors = _tensors(directory)
    return adapters.to_tree(tensors, str(path), lora, config, prefix=_PREFIX), lora


def read_settings(directory: str | os.PathLike[str], config: ModelConfig) -> LoraConfig:
    """Reads an adapter_config.json for a base of the given architecture.

    Raises:
        UserError: it is missing, no adapter's, or asks for what is not supported.
    """
    path = pathlib.Path(directory) / _CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise UserError(f"{path}: not a JSON object")
        for key, values in _ONLY.items():
            value = data.get(key, values[0])
            if value not in values and not (value in _EMPTY and values[0] in _EMPTY):
                raise UserError(f"{path}: {key}={value!r} is not supported, only {values[0]!r}")
        rank, alpha = data["r"], data["lora_alpha"]
        if type(rank) is not int or not 1 <= rank <= adapters.MOST_RANK:
            raise UserError(
                f"{path}: r={rank!r} is not a whole number from 1 to {adapters.MOST_RANK}"
            )
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise UserError(f"{path}: lora_alpha={alpha!r} is not a number")
        for key, common in (("rank_pattern", rank), ("alpha_pattern", alpha)):
            for name, value in (data.get(key) or {}).items():
                if value != common:
                    raise UserError(
                        f"{path}: {key} gives {name} {value!r}, the others have {common!r}; only "
                        "one for all modules is supported"
                    )
        return LoraConfig(
            rank=rank,
            alpha=float(alpha) * (math.sqrt(rank) if data.get("use_rslora") else 1.0),
            dropout=data.get("lora_dropout", 0.0),
            targets=_targets(data["target_modules"], path, config),
        )
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; is this a PEFT adapter's directory?") from e
    except KeyError as e:
        raise UserError(f"{path}: {e} is missing; is this a PEFT adapter's directory?") from e
    except _WRONG as e:
        raise UserError(f"{path}: not a PEFT adapter's settings ({e})") from e


def _targets(wanted: Any, path: pathlib.Path, config: ModelConfig) -> tuple[str, ...]:
    """Our names of the linear layers that `target_modules`, ends of names or a regex, means."""
    ours = adapters.modules(config)
    if wanted == "all-linear":
        return tuple(ours)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)

    def hits(module: str) -> list[str]:
        if isinstance(wanted, str):
            return patterns if re.fullmatch(wanted, module) else []
        return [pattern for pattern in patterns if f".{module}".endswith(f".{pattern}")]

    targets, used = [], set()
    for name, of_layers in ours.items():
        hit = [hits(module) for module in of_layers]
        used.update(*hit)
        if all(hit):
            targets.append(name)
        elif any(hit):
            raise UserError(
                f"{path}: target_modules has {of_layers[hit.index([])].rpartition('.')[2]} of some "
                "layers only; that is not supported"
            )
    unknown = [pattern for pattern in patterns if pattern not in used]
    if unknown:
        known = sorted({of_layers[0].rpartition(".")[2] for of_layers in ours.values()})
        raise UserError(
            f"{path}: target module {unknown[0]!r} is not supported; this base's are "
            f"{', '.join(known)}"
        )
    return tuple(targets)


def _tensors(directory: pathlib.Path) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    path = directory / _SAFE
    if path.is_file():
        try:
            tensors = safetensors.numpy.load_file(path)
        except Exception as e:  # a damaged file, or a dtype that numpy has not
            raise UserError(f"{path}: not a readable safetensors file ({e})") from e
    elif (directory / _TORCH).is_file():
        path = directory / _TORCH
        file = TorchFile(path)
        tensors = {name: file.array(name, x) for name, x in file.named(file.content).items()}
    else:
        raise UserError(f"{directory}: neither {_SAFE} nor {_TORCH}")
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _FLOATS:
            raise UserError(
                f"{path}: tensor {name} has dtype {tensor.dtype}; supported: {', '.join(_FLOATS)}"
            )
    return path, tensors


def _whole(number: float) -> float | int:
    """The same as JSON has it where it is a whole number: 32, not 32.0."""
    return int(number) if number == int(number) else number
