"""`--mode=export`: what was trained here, for the PyTorch release, PEFT, transformers, or anywhere.

    release  adapters.pth, decoder_first_last_layers.pth, config.json; for apple/ml-clara's code
    peft     one PEFT directory an adapter, and the memory tokens beside them
    merged   base and generator as one Hugging Face model, for vLLM and the like
    native   all trained weights in one file, for `clara_jax.load` on any machine
    faiss    of a store that the model made the search keys, for other engines (search/faiss.py)

Of the base no more than embedding and head is held in memory, unless it was trained itself; a
merged model is written a file at a time.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from clara_jax import checksums, files
from clara_jax import config as config_lib
from clara_jax.config import Config, Mesh, with_options
from clara_jax.corpus.search import faiss
from clara_jax.corpus.store import open_store
from clara_jax.data.tokenizer import NAMED
from clara_jax.errors import UserError
from clara_jax.interop import base as base_lib
from clara_jax.interop import hf_config, hf_write, hub_ids, native, peft, release_write, weights
from clara_jax.interop.release_config import STAGES, Settings, theirs
from clara_jax.models.clara import Trees
from clara_jax.runs.load import load_setup
from clara_jax.runs.setup import Model
from clara_jax.stages import ADAPTERS

_PARTS = ("embed", "head")
_NOTES = pathlib.Path(__file__).parent / "notes"  # README.md of each format, after head.md
# By `config.memory.positions`.
_HOW = {
    "after": "",
    "pool": "This model reads no memory tokens: of L tokens of ENC, bos, text and eos vector j is "
    "the mean of the states t with floor(t {M} / L) = j (of fewer than {M} tokens the nearest "
    "state), times `pool` [D, D]. ",
    "spread": "This model's memory tokens do not have the rotary positions after the text, but lie "
    "evenly over it: token j of {M} at (2 j + 1) T // (2 {M}) of T tokens before it. ",
}
_SEEN = {
    "before": "",
    "memories": "Its compressor's and reasoner's memory tokens see each other both ways. ",
    "all": "Its compressor's and reasoner's tokens see their whole text both ways. ",
}


# What the release's own code can compute (`config.memory`).
RELEASED = {"kind": "tokens", "sees": "before", "positions": "after"}


def run(
    workdir: str, format: str, output: str, base: str | None = None, store: str | None = None
) -> int:
    """Writes a model, or the search keys of a store, in another form.

    Args:
        workdir: of a run or an import, or a directory in the release's layout.
        format: one of FORMATS.
        output: folder that is made; must not be there yet.
        base: the base model, as for `api.load`.
        store: of which `faiss` writes the keys.

    Returns:
        The exit code, 0.

    Raises:
        UserError: there is no such model or store, the format cannot hold it, or it cannot be
            written; nothing is left of the output then.
    """
    if (format == "faiss") != (store is not None):
        raise UserError("--format=faiss writes the keys of a --store: give both, or neither")
    if store is not None:
        return _keys(*load_setup(workdir, base), store, output)
    with files.whole_folder(output, workdir) as folder:
        model, trees = load_setup(workdir, base, parts=_PARTS)
        if not model.config.model.base and not model.base_trained:  # random: no file has it
            model, trees = load_setup(workdir, base)
        name, is_hub_id = hub_ids.name_of(model.config.model.base)
        FORMATS[format](model, trees, folder, name)
        title = os.path.basename(files.absolute(output))
        files.write(os.path.join(folder, "README.md"), _note(model.config, format, title, name))
        native.seal(folder)
    if name and not is_hub_id and format != "merged":
        logging.warning(
            "%s: its config.json calls the base %r, which is no hub id; put that there",
            output,
            name,
        )
    sizes = (os.path.getsize(os.path.join(f, n)) for f, _, names in os.walk(output) for n in names)
    print(f"{output}: {format}, {sum(sizes) / 1e6:.1f} MB; its README.md says how to use it")
    return 0


def _note(config: Config, format: str, title: str, base: str) -> str:
    parts = [(_NOTES / f"{name}.md").read_text(encoding="utf-8") for name in ("head", format)]
    data, M = config.data, config.memory_tokens
    values = {"title": title, "base": base, "tokens": data.document_length, "rate": config.rate}
    memory = config.memory
    how = "pool" if config.pools else memory.positions
    positions = (_HOW[how] + _SEEN[memory.sees]).format(M=M)
    return "\n".join(parts).format(**values, M=M, positions=positions)


def _keys(model: Model, trees: Trees, store: str, output: str) -> int:
    opened = open_store(store)
    opened.check(model, trees)
    faiss.export(opened, model.config.search, model.config.select.score, output)
    print(f"{output}: keys.faiss, their ids in ids.jsonl, and basis.npz for keys of queries")
    return 0


def _native(model: Model, trees: Trees, folder: str, base: str) -> None:
    native.write(folder, _trees(trees), model.step)
    config = portable(model, folder, base)
    if model.base_trained or not base:
        own = os.path.join(folder, native.BASE)
        _write_base(model, trees, own)
        checksums.seal(own)
        own_parts = {"model.base": native.OWN_BASE, "model.tokenizer": "", "model.base_hash": ""}
        config = with_options(config, own_parts)
    config_lib.save(config, os.path.join(folder, "config.json"))


def _peft(model: Model, trees: Trees, folder: str, base: str) -> None:
    _needs_base(model, base, "peft")
    trees, lora = _trees(trees), model.config.lora
    rank = lora.rank
    for name in set(ADAPTERS) & set(trees):
        own = os.path.join(folder, name)
        peft.write(own, trees.pop(name), lora, model.architecture, base)
        own_rank = peft.read_settings(own, model.architecture).rank
        rank = max(rank, own_rank)  # larger for fused projections
    native.write(folder, trees, model.step)
    lora = dataclasses.replace(lora, rank=rank, alpha=lora.scale * rank)
    config = dataclasses.replace(portable(model, folder, base), lora=lora)
    config_lib.save(config, os.path.join(folder, "config.json"))


def _release(model: Model, trees: Trees, folder: str, base: str) -> None:
    _needs_base(model, base, "release")
    config, own = model.config, _trees(trees)
    for name, value in RELEASED.items():
        given = getattr(config.memory, name)
        if given != value:
            raise UserError(
                f"config.memory.{name}={given}: the release knows {value} alone; use "
                "--format=native"
            )
    adapters = STAGES[theirs(config.stage)][1]
    for name in adapters:
        if name not in own:
            raise UserError(f"this model has no {name}, which the release's stage needs")
    if config.select.score != "cosine":
        logging.warning("the release ranks by cosines, not by select.score=%s", config.select.score)
    # The release's alpha is always twice the rank.
    factor = config.lora.scale / 2
    for name in set(ADAPTERS) & set(own):
        own[name] = jax.tree.map_with_path(
            lambda path, x: x * np.float32(factor) if path[-1].key == "b" else x, own[name]
        )
    settings = Settings(
        stage=config.stage,
        adapters=adapters,
        document_length=config.data.document_length,
        rate=config.rate,
        top_k=config.select.k,
        rank=config.lora.rank,
        base=base,
    )
    embed = trees["base"]["embed"]["embedding"]
    head = trees["base"].get("head")
    release_write.write(
        folder,
        settings,
        own,
        model.architecture,
        lambda first, last: np.asarray(embed[first:last]),
        None if head is None else lambda first, last: np.asarray(head["kernel"][:, first:last]).T,
        model.tokenizer.size,
    )


def _merged(model: Model, trees: Trees, folder: str, base: str) -> None:
    generator = trees.get("generator")
    if generator is None and not model.base_trained:
        raise UserError("this model has no generator to fold into its base; use --format=native")
    _write_base(model, trees, folder, generator)


def _write_base(model: Model, trees: Trees, folder: str, adapter: Any = None) -> None:
    """Writes the base as a Hugging Face model in its own dtype, with an adapter folded in."""
    architecture, params, ids = model.architecture, trees["base"], {}
    dtype, base = architecture.held_dtype, model.config.model.base
    if "layers" not in params:  # it was not trained: a file has it, and is read tensor by tensor
        tensors = base_lib.open_tensors(base, architecture)
        params = weights.stored(tensors, architecture)
        dtype = "bfloat16" if tensors.is_bfloat16 else "float32"
        ids = base_lib.generation_settings(base, folder)
    lora = model.config.lora
    hf_write.save_params(folder, params, architecture, adapter=adapter, lora=lora, dtype=dtype)
    tokenizer = model.tokenizer
    tokenizer.save(folder)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id} | ids
    text = json.dumps(hf_config.hf_config(architecture, dtype) | ids, indent=2)
    files.write(os.path.join(folder, "config.json"), text)


FORMATS = {"release": _release, "peft": _peft, "merged": _merged, "native": _native}


def portable(model: Model, folder: str, base: str) -> Config:
    """A model's config with nothing of this machine in it; `base` is what to call the base.

    The folder gets its tokenizer if that is a local one that is not the base's.
    """
    config, tokenizer = model.config, model.config.model.tokenizer
    if tokenizer and tokenizer not in NAMED and not base_lib.is_hub_id(tokenizer):
        model.tokenizer.save(os.path.join(folder, native.TOKENIZER))
        tokenizer = native.OWN_TOKENIZER
    here = ("init_from", "data.sources", "data.tfds_dir", "data.memories", "eval.sources")
    values = {"model.base": base, "model.tokenizer": tokenizer, "mesh": Mesh()}
    return with_options(config, {**dict.fromkeys(here, ""), **values})


def _trees(trees: Trees) -> dict[str, Any]:
    """All that was trained but the base, on the host."""
    names = (*ADAPTERS, "memory", "pool", "added")
    return {
        name: jax.tree.map(np.asarray, trees[name]) for name in names if trees.get(name) is not None
    }


def _needs_base(model: Model, base: str, format: str) -> None:
    """Refuses a model whose base is in no file of its own."""
    if model.base_trained or not base:
        raise UserError(
            f"--format={format} holds adapters for a base that is known elsewhere, but this run's "
            "base was trained or drawn here; use --format=native"
        )
