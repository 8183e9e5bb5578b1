"""Trained trees in one safetensors file: what `--mode=import` makes and `--mode=export` writes.

A directory holds `config.json`, a run's config, and `weights.safetensors`, every leaf by its path
such as `generator/layers/mlp/up/a`. An adapter may be a PEFT directory of its name instead
(`--format=peft`). Unlike a workdir it needs no earlier run; the base stays where it is.
"""

import math
import os
from typing import Any

import flax.traverse_util
import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors then returns)
import numpy as np
import safetensors

from clara_jax import checksums, files
from clara_jax.errors import UserError, reason
from clara_jax.interop import adapters, hf, peft
from clara_jax.models.config import LoraConfig, ModelConfig
from clara_jax.models.lora import init_adapter
from clara_jax.stages import ADAPTERS

WEIGHTS = "weights.safetensors"
# A base that no hub holds, in the Hugging Face layout; how a config.json names it from beside it.
BASE = "base"
OWN_BASE = f"./{BASE}"
# A tokenizer that is not the base's.
TOKENIZER = "tokenizer"
OWN_TOKENIZER = f"./{TOKENIZER}"


def is_native(directory: str | os.PathLike[str]) -> bool:
    """Whether the weights of a directory are in this form."""
    return (files.path(directory) / WEIGHTS).exists()


def write(directory: str | os.PathLike[str], trees: dict[str, Any], step: int) -> None:
    """Writes trees (compressor, reasoner, generator, memory, added) of host arrays.

    `step` is the number of training steps that they have seen; 0 if that is unknown.
    """
    flat = flax.traverse_util.flatten_dict(trees, sep="/")
    path = os.path.join(directory, WEIGHTS)
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flat.items()}
    hf.save(path, arrays, {"format": "clara_jax", "step": str(step)})


def names(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the trees that a directory holds.

    Raises:
        UserError: the file is broken.
    """
    with _open(directory) as file:
        trees = {path.split("/")[0] for path in file.keys()}  # noqa: SIM118  (no dict)
    beside = {n for n in ADAPTERS if peft.is_adapter(os.path.join(directory, n))}
    return tuple(sorted(trees | beside))


def step(directory: str | os.PathLike[str]) -> int:
    """Training steps that the weights have seen; 0 if that is unknown."""
    with _open(directory) as file:
        text = (file.metadata() or {}).get("step", "0")
    return int(text) if text.isdecimal() else 0


def read(
    directory: str | os.PathLike[str],
    expected: dict[str, Any],
    config: ModelConfig,
    lora: LoraConfig,
) -> dict[str, Any]:
    """Reads trees.

    `expected` has the wanted trees by name, with leaves that have a shape. `added` may hold a
    `head` that is not among them: only the release's checkpoints have one.

    Returns:
        Trees of numpy arrays.

    Raises:
        UserError: the file is broken, or a leaf is missing, unknown or of another shape.
    """
    checksums.check(directory, "export or import it again")
    where = f"{directory}/{WEIGHTS}"
    wanted: dict[str, Any] = flax.traverse_util.flatten_dict(expected, sep="/")
    flat = {}
    with _open(directory) as file:
        for path in file.keys():  # noqa: SIM118
            if path.split("/")[0] not in expected:
                continue
            if path not in wanted and path != "added/head":
                raise UserError(f"{where}: {path} is unknown to this model; is it the right base?")
            flat[path] = file.get_tensor(path)
    for name in set(expected) & set(ADAPTERS):
        if peft.is_adapter(folder := os.path.join(directory, name)):
            tree, there = peft.read(folder, config)
            if not math.isclose(there.scale, lora.scale, rel_tol=1e-6):
                raise UserError(
                    f"{folder}: lora_alpha / r is {there.scale:g}, but {directory}/config.json has "
                    f"{lora.scale:g}; make them the same"
                )
            rank = next(iter(jax.tree.leaves(expected[name]))).shape[1]
            tree = adapters.widen(tree, rank)  # not all of them have it where they are fused
            flat |= flax.traverse_util.flatten_dict({name: tree}, sep="/")
    for path, leaf in wanted.items():
        if path not in flat:
            raise UserError(f"{where}: {path} is missing")
        if flat[path].shape != leaf.shape:
            raise UserError(
                f"{where}: {path} has shape {list(flat[path].shape)}, but config.json and base ask "
                f"for {list(leaf.shape)}; is it the right base?"
            )
    for path, array in flat.items():
        if not np.isfinite(array).all():
            raise UserError(f"{where}: {path} holds NaN or infinity; the file is damaged")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def expected(
    config: ModelConfig, lora: LoraConfig, memory_tokens: int, pools: bool = False
) -> dict[str, Any]:
    """Shapes of all trees that there may be, for `read`."""
    adapter = jax.eval_shape(lambda: init_adapter(config, lora, jax.random.key(0)))
    memory, added = (
        jax.ShapeDtypeStruct((n, config.d_model), np.float32) for n in (memory_tokens, 3)
    )
    trees = {**dict.fromkeys(ADAPTERS, adapter), "memory": memory, "added": {"embed": added}}
    if pools:
        trees["pool"] = jax.ShapeDtypeStruct((config.d_model,) * 2, np.float32)
    return trees


def seal(directory: str | os.PathLike[str]) -> None:
    """Puts checksums into a directory that is written: of all that nobody edits.

    A base in it has its own.
    """
    own = ("config.json", "README.md")
    checksums.seal(directory, lambda name: name not in own and not name.startswith(f"{BASE}/"))


def _open(directory: str | os.PathLike[str]) -> Any:
    path = files.local(os.path.join(directory, WEIGHTS))
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a readable safetensors file ({reason(e)})") from e
