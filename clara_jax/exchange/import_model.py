"""`--mode=import`: a checkpoint of the PyTorch release, or PISCO's, becomes one that we start from.

The base is looked at and stays where it is: shapes, tokenizer and some rows of its embedding tell
whether the checkpoint was trained on it.
"""

import os
import pathlib
import shlex
import shutil
from collections.abc import Sequence
from typing import Any

import huggingface_hub

from clara_jax import checksums, files
from clara_jax import config as config_lib
from clara_jax.config import OPTIONS, Config, with_options
from clara_jax.config_checks import get
from clara_jax.errors import UserError
from clara_jax.interop import base as base_lib
from clara_jax.interop import hub, native
from clara_jax.interop import weights as weights_lib
from clara_jax.models.config import LoraConfig
from clara_jax.runs import abilities, weights
from clara_jax.runs.release import read
from clara_jax.stages import ADAPTERS


def run(source: str, workdir: str, base: str | None = None) -> int:
    """Writes a directory that `ask`, `evaluate`, `export`, `init_from` and `load` take.

    Args:
        source: a directory in the release's layout or exported here, or such an
            `owner/name[/subfolder]` on the hub.
        workdir: what is made; must not be there yet.
        base: the base model: directory, hub id or .gguf file.

    Returns:
        The exit code, 0.

    Raises:
        UserError: source, base or workdir cannot be used; nothing is left of the workdir then.
    """
    with files.whole_folder(workdir, source) as folder:
        directory = hub.resolve_source(source)
        if native.is_native(directory):
            config, names = _copy(directory, folder, base)
        elif (directory / "checkpoints").is_dir():
            raise UserError(
                f"{source}: a run that was trained here; use it as it is, or --mode=export it"
            )
        else:
            imported = read(directory, base)
            config, names = imported.config, tuple(imported.release.trees)
            native.write(folder, imported.release.trees, step=0)
            if config.model.tokenizer:
                imported.tokenizer.save(os.path.join(folder, native.TOKENIZER))
                config = with_options(config, {"model.tokenizer": native.OWN_TOKENIZER})
            base_hash = weights.base_hash(config, imported.model, {})
            config = with_options(config, {"model.base_hash": base_hash})
        if base:
            here = os.path.abspath(base) if os.path.exists(base) else base
            config = with_options(config, {"model.base": here})
        config_lib.save(config, os.path.join(folder, "config.json"))
        if native.is_native(directory):
            shutil.copymode(directory / "config.json", os.path.join(folder, "config.json"))
        native.seal(folder)
    print(summary(config, names, source, workdir))
    return 0


def _copy(directory: pathlib.Path, folder: str, base: str | None) -> tuple[Config, tuple[str, ...]]:
    """Copies what was exported here and checks it on its base; its config and trees' names."""
    config = config_lib.load(directory / "config.json")
    # The hub's cache is made of links; another's may lead to files that are not to be copied.
    roots = directory.resolve(), pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE).resolve()
    for path in directory.rglob("*"):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
            raise UserError(f"{path}: is a link to a file elsewhere; put the file itself there")
    checksums.check(directory, "export it again")
    shutil.copytree(directory, folder, dirs_exist_ok=True)
    names = native.names(folder)
    if not base and config.model.base == native.OWN_BASE:
        base = os.path.join(folder, native.BASE)
    if not base and base_lib.is_hub_id(config.model.base):
        return config, names  # only a base that the user names is fetched
    model = base_lib.read_config(base := base or config.model.base)
    weights_lib.stored(base_lib.open_tensors(base, model), model)
    on_base = with_options(config, {"model.base": base})
    weights.base_hash(on_base, model, {str(directory): config.model.base_hash})
    expected = native.expected(model, config.lora, config.memory_tokens, config.pools)
    native.read(folder, {name: expected[name] for name in names}, model, config.lora)
    return config, names


def summary(config: Config, names: Sequence[str], source: str, workdir: str) -> str:
    """What was imported, what it can do, and the commands that continue from it."""
    data, lora = config.data, config.lora
    adapters = [name for name in ADAPTERS if name in names]
    missing = [name for name in ADAPTERS if name not in names]

    own_base = config.model.base == native.OWN_BASE
    options: dict[str, Any] = {
        "init_from": workdir,
        "model.base": os.path.join(workdir, native.BASE) if own_base else config.model.base,
        "data.document_length": data.document_length,
        "data.rate": data.rate,
    }
    for name, value in (("rank", lora.rank), ("alpha", lora.alpha)):
        if value != getattr(LoraConfig(), name):
            options[f"lora.{name}"] = value
    for name, one in OPTIONS.items():
        if one.inherited and get(config, name) != one.default:
            options[name] = get(config, name)
    rows = {
        "imported": f"{source}, stage {config.stage}",
        "base": f"{config.model.base}, in {config.model.param_dtype}",
        "adapters": ", ".join(adapters) + (f" (no {', '.join(missing)})" if missing else ""),
        "LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}",
        "memory": f"{config.memory_tokens} vectors of a document of {data.document_length} tokens "
        f"(rate {config.rate}), top {config.select.k}",
        "serves": abilities.possible(abilities.CALLS, names),
        "starts": abilities.possible(abilities.STARTS, names),
        "ask": f"python -m clara_jax.main --mode=ask {shlex.quote(f'--workdir={workdir}')} "
        "--documents=FILE",
        "train on": "python -m clara_jax.main --config=configs/e2e.py --workdir=NEW "
        + " ".join(shlex.quote(f"--config.{name}={value}") for name, value in options.items())
        + " --config.data.sources=FILE",
    }
    return "\n".join(f"{name:9} {text}" for name, text in rows.items())
