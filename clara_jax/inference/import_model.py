"""`--mode=import`: a checkpoint of the PyTorch release, or PISCO's, becomes one that we start from.

The base is looked at and stays where it is: shapes, tokenizer and some rows of its embedding tell
whether the checkpoint was trained on it.
"""

import dataclasses
import os
import pathlib
import shlex
import shutil
from collections.abc import Sequence

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Config, Data, Model, Select
from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError
from clara_jax.inference import checks
from clara_jax.interop import base as base_lib
from clara_jax.interop import clara_release, hub, layout, native, release_config
from clara_jax.interop.clara_release import Release
from clara_jax.models.config import LoraConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint with all that is needed to use it on its base.

    Attributes:
        config: as of a run that made it.
        model: the base's architecture.
        tokenizer: the base's.
        release: the checkpoint's trees.
    """

    config: Config
    model: ModelConfig
    tokenizer: Tokenizer
    release: Release


def read(directory: str | os.PathLike[str], base: str | None, dtype: str | None = None) -> Imported:
    """Reads a checkpoint for a base.

    Args:
        directory: of the checkpoint.
        base: directory, hub id or .gguf file of the base model.
        dtype: of activations and weights; by default the base's own, float32 or bfloat16.

    Raises:
        UserError: there is no base, or the checkpoint is broken or not of this base.
    """
    settings = release_config.read_settings(directory)
    if not base:
        like = " or ".join(clara_release.looks_like(directory))
        raise UserError(
            f"{directory}: holds no base model; give its directory, hub id or .gguf file as "
            f"base=…, or --base=… on the command line; config.json calls it {settings.base!r}"
            + (f", and it has the shapes of {like}" if like else "")
        )
    model = base_lib.read_config(base)
    weights = base_lib.open_tensors(base, model)
    template = release_config.read_chat_template(directory)
    tokenizer = load_tokenizer(base, template, where=directory if template else None)
    try:
        release = clara_release.read(directory, model, weights, tokenizer.size)
    except UserError as e:
        like = " or ".join(clara_release.looks_like(directory))
        raise UserError(f"{e} (the checkpoint has the shapes of {like})" if like else e) from e
    dtype = dtype or ("bfloat16" if weights.is_bfloat16 else "float32")
    config = Config(
        stage=settings.stage,
        model=Model(
            base=os.fspath(base),
            tokenizer=os.fspath(directory) if template else "",  # the base's with that template
            dtype=dtype,
            param_dtype=dtype,
        ),
        lora=release.lora,
        data=Data(document_length=settings.document_length, rate=settings.rate),
        select=Select(k=settings.top_k),
    )
    return Imported(config_lib.freeze(dataclasses.asdict(config)), model, tokenizer, release)


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
                config = _with(config, tokenizer=native.OWN_TOKENIZER)
        if base:
            here = os.path.abspath(base) if os.path.exists(base) else base
            config = _with(config, base=here)
        config_lib.save(config, os.path.join(folder, "config.json"))
    print(summary(config, names, source, workdir))
    return 0


def _copy(directory: pathlib.Path, folder: str, base: str | None) -> tuple[Config, tuple[str, ...]]:
    """Copies what was exported here and checks it on its base; its config and trees' names."""
    config = config_lib.load(directory / "config.json")
    shutil.copytree(directory, folder, dirs_exist_ok=True)
    names = native.names(folder)
    if not base and config.model.base == native.OWN_BASE:
        base = os.path.join(folder, native.BASE)
    if not base and base_lib.is_hub_id(config.model.base):
        return config, names  # only a base that the user names is fetched
    model = base_lib.read_config(base or config.model.base)
    layout.stored(base_lib.open_tensors(base or config.model.base, model), model)
    expected = native.expected(model, config.lora, config.memory_tokens)
    native.read(folder, {name: expected[name] for name in names}, model, config.lora)
    return config, names


def _with(config: Config, **options: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **options))


def summary(config: Config, names: Sequence[str], source: str, workdir: str) -> str:
    """What was imported, what it can do, and the commands that go on from it."""
    data, lora = config.data, config.lora
    adapters = [name for name in config_lib.ADAPTERS if name in names]
    missing = [name for name in config_lib.ADAPTERS if name not in names]

    own_base = config.model.base == native.OWN_BASE
    options = {
        "init_from": workdir,
        "model.base": os.path.join(workdir, native.BASE) if own_base else config.model.base,
        "data.document_length": data.document_length,
        "data.rate": data.rate,
    }
    for name, value in (("rank", lora.rank), ("alpha", lora.alpha)):
        if value != getattr(LoraConfig(), name):
            options[f"lora.{name}"] = value
    if config.memory.positions != "after":
        options["memory.positions"] = config.memory.positions
    rows = {
        "imported": f"{source}, stage {config.stage}",
        "base": f"{config.model.base}, in {config.model.param_dtype}",
        "adapters": ", ".join(adapters) + (f" (no {', '.join(missing)})" if missing else ""),
        "LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}",
        "memory": f"{config.memory_tokens} vectors of a document of {data.document_length} tokens "
        f"(rate {data.rate}), top {config.select.k}",
        "serves": checks.possible(checks.CALLS, names),
        "starts": checks.possible(checks.STAGES, names),
        "ask": f"python -m clara_jax.main --mode=ask {shlex.quote(f'--workdir={workdir}')} "
        "--documents=FILE",
        "train on": "python -m clara_jax.main --config=configs/e2e.py --workdir=NEW "
        + " ".join(shlex.quote(f"--config.{name}={value}") for name, value in options.items())
        + " --config.data.sources=FILE",
    }
    return "\n".join(f"{name:9} {text}" for name, text in rows.items())
