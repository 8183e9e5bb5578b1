"""The config.json of Hugging Face models, read and written: a family is a row of FAMILIES."""

import dataclasses
import json
import math
import os
import pathlib
import sys
from typing import Any, Literal

from clara_jax.errors import UserError
from clara_jax.models.config import LongRope, ModelConfig, RopeScaling


@dataclasses.dataclass(frozen=True)
class Family:
    """What transformers' classes of one model_type assume where a config.json leaves a key out."""

    architecture: str  # class of the model
    # what `sliding_window` means: nothing, the window of every layer, or of those layers that
    # `use_sliding_window`, `layer_types` and `max_window_layers` name
    windows: Literal["none", "all", "layers"]
    context_length: int  # `max_position_embeddings`
    kv_heads: int | None = None  # `num_key_value_heads`; None: as many as query heads
    head_dim: int | None = None  # None: the model's width over the query heads
    norm_eps: float = 1e-6  # `rms_norm_eps`
    window: int | None = None  # `sliding_window`
    qkv_bias: bool = False  # as in ModelConfig; `attention_bias` says nothing then
    qk_norm: bool = False  # as in ModelConfig
    # `original_max_position_embeddings` of a family that has it beside the rotary settings, and may
    # rotate a part of each head; None of any other
    original_length: int | None = None


FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", "none", 2048),
    "mistral": Family("MistralForCausalLM", "all", 131072, kv_heads=8, window=4096),
    "qwen2": Family("Qwen2ForCausalLM", "layers", 32768, kv_heads=32, window=4096, qkv_bias=True),
    "qwen3": Family(
        "Qwen3ForCausalLM", "layers", 32768, kv_heads=32, head_dim=128, window=4096, qk_norm=True
    ),
    "phi3": Family("Phi3ForCausalLM", "all", 4096, norm_eps=1e-5, original_length=4096),
}

# Whole numbers: those that every config.json has, by our name, from 1; and the least of those that
# null may stand for.
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}
_LEAST = {
    "num_key_value_heads": 1,
    "head_dim": 1,
    "sliding_window": 1,
    "max_position_embeddings": 1,
    "max_window_layers": 0,
}

# Settings that change the computation, with the only values that the decoder implements.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "lm_head_bias": (False, None),
    "quantization_config": (None,),
}

_LENGTH = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"
_WINDOW_LAYERS = 28  # Qwen's `max_window_layers`


def read_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """Reads a model's config.json; both layouts of the rotary settings are understood.

    Raises:
        UserError: no config.json, or an architecture that the decoder does not implement.
    """
    path = pathlib.Path(directory) / "config.json"
    data = read_json(path)
    name = data.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{path}: model_type {name!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    for key, values in _ONLY.items():
        if key == "attention_bias" and family.qkv_bias:
            continue
        if data.get(key, values[0]) not in values:
            raise UserError(f"{path}: {key}={data[key]!r} is not supported, only {values[0]!r}")
    for key, least in (dict.fromkeys(_SIZES.values(), 1) | _LEAST).items():
        value = data.get(key)
        if key not in data or (value is None and key in _LEAST):
            continue
        if type(value) is not int or not least <= value < 2**31:
            raise UserError(
                f"{path}: {key}={value!r} is not a whole number from {least} to 2**31 - 1"
            )
    try:
        n_heads = data["num_attention_heads"]
        head_dim = data.get("head_dim") or family.head_dim or data["hidden_size"] // n_heads
        context_length = data.get("max_position_embeddings") or family.context_length
        return ModelConfig(
            family=name,
            **{ours: data[key] for ours, key in _SIZES.items()},
            n_kv_heads=data.get("num_key_value_heads", family.kv_heads) or n_heads,
            head_dim=head_dim,
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            norm_eps=_number(data.get("rms_norm_eps", family.norm_eps), "rms_norm_eps", path),
            tied_embeddings=bool(data.get("tie_word_embeddings", False)),
            sliding_window=_window(data, family, path),
            context_length=context_length,
            **_rope(data, family, head_dim, context_length, path),
        )
    except KeyError as e:
        raise UserError(f"{path}: {e} is missing") from e
    except (TypeError, ValueError) as e:
        raise UserError(f"{path}: {e}") from e


def hf_config(config: ModelConfig, dtype: str | None = None) -> dict[str, Any]:
    """The config.json of a model, as transformers and `read_config` read it.

    A ModelConfig knows no special tokens: their ids are null, for whoever has the tokenizer to fill
    in. Left out, they would be those of the family's first model.

    Args:
        config: the architecture.
        dtype: of the weights beside it; that in which the base is held by default.

    Raises:
        UserError: its family has no word for something that the model does.
    """
    name = config.family
    if name == "llama" and config.sliding_window is not None:
        name = "mistral"  # the same model with a window
    family = FAMILIES.get(name)
    if family is None:
        raise UserError(f"family {name!r} is not known; known: {', '.join(FAMILIES)}")
    partial = config.rotated != config.head_dim
    for what, wrong in (
        ("qkv_bias", config.qkv_bias != family.qkv_bias),
        ("qk_norm", config.qk_norm != family.qk_norm),
        ("rotary_dim", partial and family.original_length is None),
    ):
        if wrong:
            raise UserError(f"a {name} model has no {what}={getattr(config, what)}")
    context_length = config.context_length or family.context_length
    data = {
        "architectures": [family.architecture],
        "model_type": name,
        **{key: getattr(config, ours) for ours, key in _SIZES.items()},
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": context_length,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config.rope_scaling, family, context_length),
        "torch_dtype": dtype or config.held_dtype,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if family.windows != "none":
        data["sliding_window"] = config.sliding_window
    if family.windows == "layers":
        windowed = config.sliding_window is not None
        data["use_sliding_window"] = windowed
        data["max_window_layers"] = 0 if windowed else config.n_layers
    if partial:
        part = config.rotated / config.head_dim
        if int(config.head_dim * part) < config.rotated:  # 78 * (62 / 78) is
            part = math.nextafter(part, 1)
        data[_PARTIAL] = part
    if family.original_length is not None:
        data[_LENGTH] = getattr(config.rope_scaling, "original_length", context_length)
    return data


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: there is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; is this a Hugging Face model directory?") from e
    except (ValueError, RecursionError, OSError) as e:
        raise UserError(f"{path}: not readable as JSON ({e})") from e
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a JSON object")
    return data


def _window(data: dict[str, Any], family: Family, path: pathlib.Path) -> int | None:
    """The window of all layers, or None."""
    window = data.get("sliding_window", family.window)
    if family.windows == "all" or window is None:
        return window
    if family.windows == "none" or not data.get("use_sliding_window", False):
        return None
    n_layers, first = data["num_hidden_layers"], data.get("max_window_layers", _WINDOW_LAYERS)
    types = data.get("layer_types")
    if types is None:
        types = ["full_attention"] * first + ["sliding_attention"] * (n_layers - first)
    windowed = types[:n_layers].count("sliding_attention")
    if windowed not in (0, n_layers):
        raise UserError(
            f"{path}: {windowed} of {n_layers} layers have a sliding window (use_sliding_window, "
            "max_window_layers, layer_types); supported: all or none"
        )
    return window if windowed else None


def _rope(
    data: dict[str, Any], family: Family, head_dim: int, context_length: int, path: pathlib.Path
) -> dict[str, Any]:
    """The rotary fields of ModelConfig: transformers 5 has them in one group, earlier in two."""
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{path}: rope_parameters or rope_scaling is {rope!r}, not an object")
    if groups := [group for group in rope.values() if isinstance(group, dict)]:  # by layer type
        used = [rope[kind] for kind in data.get("layer_types") or () if kind in rope] or groups
        if any(group != used[0] for group in used):
            raise UserError(f"{path}: rotary settings that differ between layers are not supported")
        rope = used[0]

    def get(key: str, default: Any = None) -> Any:
        return rope.get(key, data.get(key, default))

    fields: dict[str, Any] = {"rope_theta": _number(get("rope_theta", 1e4), "rope_theta", path)}
    part = get(_PARTIAL)
    part = 1.0 if part is None else _number(part, _PARTIAL, path)
    if part != 1 and family.original_length is None:
        raise UserError(f"{path}: {_PARTIAL}={part} is not supported for this model_type")
    if part != 1:
        fields["rotary_dim"] = int(head_dim * part)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if family.original_length is not None and kind in ("su", "yarn"):
        kind = "longrope"  # as early configs of Phi-3 call it
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        numbers = {name: _number(rope[name], name, path) for name in names}
        original = int(_number(rope[_LENGTH], _LENGTH, path))
        fields["rope_scaling"] = RopeScaling(original_length=original, **numbers)
    elif kind == "longrope":
        if family.original_length is not None:  # this is the one of both that transformers heeds
            original = data.get(_LENGTH, family.original_length)
        else:
            original = get(_LENGTH, context_length)
        original = int(_number(original, _LENGTH, path))
        factor = rope.get("factor") or context_length / original
        factor = LongRope.default_attention_factor(_number(factor, "factor", path), original)
        fields["rope_scaling"] = LongRope(
            short_factor=_numbers(rope["short_factor"], "short_factor", path),
            long_factor=_numbers(rope["long_factor"], "long_factor", path),
            original_length=original,
            attention_factor=_number(
                rope.get("attention_factor") or factor, "attention_factor", path
            ),
        )
    elif kind != "default":
        raise UserError(
            f"{path}: rope type {kind!r} is not supported; supported: default, llama3, longrope"
        )
    return fields


def _rope_scaling(
    scaling: RopeScaling | LongRope | None, family: Family, context_length: int
) -> dict[str, Any] | None:
    """The group `rope_scaling` of a config.json."""
    if scaling is None:
        return None
    fields = dataclasses.asdict(scaling)
    original = fields.pop("original_length")
    if isinstance(scaling, RopeScaling):
        return {"rope_type": "llama3", _LENGTH: original, **fields}
    factor = fields.pop("attention_factor")
    data = {name: list(numbers) for name, numbers in fields.items()}
    if factor != LongRope.default_attention_factor(context_length / original, original):
        data["attention_factor"] = factor
    if family.original_length is None:
        return {"rope_type": "longrope", _LENGTH: original, **data}
    return {"type": "longrope", **data}  # transformers 4 takes no more than it has in Phi's own


def _numbers(values: Any, key: str, path: pathlib.Path) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise UserError(f"{path}: {key} is not a list of numbers")
    return tuple(_number(value, key, path) for value in values)


def _number(value: Any, key: str, path: pathlib.Path) -> float:
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
        raise UserError(f"{path}: {key}={value!r} is not a number above 0")
    return float(value)
