"""Hub ids of well-known base models: what a checkpoint's shapes look like, what a folder is called.

Configs that leave this machine name a base by its hub id, never by a path.
"""

import json
import os
import pathlib
import re

from clara_jax.interop.base import is_hub_id
from clara_jax.models.config import PRESETS, ModelConfig

# By preset (models/config.py), the instruction-tuned models that CLaRa is trained on.
HUB_IDS = {
    "mistral_7b": "mistralai/Mistral-7B-Instruct-v0.2",
    "llama2_7b": "meta-llama/Llama-2-7b-chat-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-chat-hf",
    "llama2_70b": "meta-llama/Llama-2-70b-chat-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3_1_8b": "meta-llama/Llama-3.1-8B-Instruct",
    "smollm2_135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2_360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2_1_7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "qwen2_5_0_5b": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2_5_7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3_0_6b": "Qwen/Qwen3-0.6B",
    "qwen3_4b": "Qwen/Qwen3-4B",
    "qwen3_8b": "Qwen/Qwen3-8B",
    "phi3_mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi4_mini": "microsoft/Phi-4-mini-instruct",
}

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots")
_QUANTISED = re.compile(r"[.-](I?Q\d\w*|B?F(16|32))\.gguf$", re.IGNORECASE)

# The release cuts a vocabulary to its tokenizer's size, which embedding tables may exceed so far.
_PADDING = 1024


def like(vocab: int, d_model: int, d_ff: int, n_layers: int, qkv: int) -> list[str]:
    """Hub ids of the models with these shapes.

    `vocab` are rows of the embedding without added tokens, the model's or the tokenizer's; `qkv` is
    the width of queries, keys and values of all heads, (H + 2 G) * C.
    """
    return [
        hub_id
        for preset, hub_id in HUB_IDS.items()
        if preset in PRESETS and _shapes(PRESETS[preset]) == (d_model, d_ff, n_layers, qkv)
        if 0 <= PRESETS[preset].vocab_size - vocab <= _PADDING
    ]


def _shapes(c: ModelConfig) -> tuple[int, ...]:
    return c.d_model, c.d_ff, c.n_layers, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim


def name_of(base: str) -> tuple[str, bool]:
    """What to call a base model elsewhere, and whether this is a hub id.

    A hub id is its own name. A folder's is looked for in the hub's cache path and in its
    config.json, a file's or folder's among the well-known ones; if there is none it is the last
    part of the path. That of no base is empty.
    """
    if not base or is_hub_id(base):
        return base, bool(base)
    path = pathlib.Path(os.path.realpath(base))
    if cached := _CACHED.search(path.as_posix()):
        return "/".join(cached.groups()), True
    own = _own_name(path / "config.json")
    if own and is_hub_id(own):
        return own, True
    called = _QUANTISED.sub("", path.name).lower()
    for hub_id in HUB_IDS.values():
        if called == hub_id.split("/")[1].lower():
            return hub_id, True
    return path.name, False


def _own_name(config: pathlib.Path) -> str:
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("_name_or_path") or "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
