"""`--mode=import`: a checkpoint of the PyTorch release, or PISCO's, becomes one that we start from.

The base is looked at and stays where it is: shapes, tokenizer and some rows of its embedding tell
whether the checkpoint was trained on it.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence

from clara_jax import config as config_lib
from clara_jax import files
from clara_jax.config import Config, Data, Model, Select
from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError
from clara_jax.inference import checks
from clara_jax.interop import base as base_lib
from clara_jax.interop import clara_release, hub, native, release_config
from clara_jax.interop.clara_release import Release
from clara_jax.models.config import ModelConfig


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
    tokenizer = load_tokenizer(base, template)
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
    with files.whole_folder(workdir) as folder:
        directory = hub.resolve_source(source)
        if native.is_native(directory):
            config = config_lib.load(directory / "config.json")
            shutil.copytree(directory, folder, dirs_exist_ok=True)
            names = native.names(directory)
        else:
            imported = read(directory, base)
            config, names = imported.config, tuple(imported.release.trees)
            native.write(folder, imported.release.trees, step=0)
            if config.model.tokenizer:
                imported.tokenizer.save(os.path.join(folder, native.TOKENIZER))
                model = dataclasses.replace(config.model, tokenizer=native.OWN_TOKENIZER)
                config = dataclasses.replace(config, model=model)
        if base:
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, base=base))
        config_lib.save(config_lib.absolute(config), os.path.join(folder, "config.json"))
    print(summary(config, names, source, workdir))
    return 0


def summary(config: Config, names: Sequence[str], source: str, workdir: str) -> str:
    """What was imported, what it can do, and the commands that go on from it."""
    data, lora = config.data, config.lora
    adapters = [name for name in config_lib.ADAPTERS if name in names]
    missing = [name for name in config_lib.ADAPTERS if name not in names]

    rows = {
        "imported": f"{source}, stage {config.stage}",
        "base": f"{config.model.base}, in {config.model.param_dtype}",
        "adapters": ", ".join(adapters) + (f" (no {', '.join(missing)})" if missing else ""),
        "LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}",
        "memory": f"{config.memory_tokens} vectors of a document of {data.document_length} tokens "
        f"(rate {data.rate}), top {config.select.k}",
        "serves": checks.possible(checks.CALLS, names),
        "starts": checks.possible(checks.STAGES, names),
        "ask": f"python -m clara_jax.main --mode=ask --workdir={workdir} --documents=FILE",
        "train on": "python -m clara_jax.main --config=configs/e2e.py --workdir=NEW "
        f"--config.init_from={workdir} --config.model.base={config.model.base} "
        f"--config.data.document_length={data.document_length} --config.data.rate={data.rate} "
        "--config.data.sources=FILE",
    }
    return "\n".join(f"{name:9} {text}" for name, text in rows.items())
