"""Memory of importing a checkpoint of the PyTorch release, and of exporting it to each format.

Random weights of Mistral 7B's shapes with few layers, in bfloat16 as published ones are. Anonymous
memory is counted as in import_memory.py.
"""

import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import ml_dtypes
import numpy as np
import safetensors
import tokenizers
import transformers

from benchmarks.import_memory import memory, sampled
from clara_jax.exchange import export_model, import_model
from clara_jax.interop import adapters, native, release_config, torch_zip_write
from clara_jax.interop.clara_release import (
    ADAPTER_NAMES,
    ADAPTERS_FILE,
    ADDED_TOKENS,
    EMBED,
    HEAD,
    TABLES_FILE,
)
from clara_jax.models.config import LoraConfig, ModelConfig

RANK, LENGTH, RATE = 16, 256, 16
_ROWS = 1000  # of a table that are drawn at a time


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One import or export."""

    what: str  # `import`, or the format
    excess: int  # most bytes of anonymous memory beyond those before it and the destination
    destination: int  # bytes of the trained arrays, all that an import makes; 0 for exports
    seconds: float  # wall-clock

    def __str__(self) -> str:
        made = f"{self.destination / 1e6:.0f} MB of arrays, " if self.destination else ""
        return f"{self.what:<8} {made}{self.excess / 1e6:.0f} MB beside, {self.seconds:.1f} s"


def write_release(folder: pathlib.Path, base: pathlib.Path, model: ModelConfig) -> None:
    """Writes a random checkpoint of all three adapters for a base in the Hugging Face layout."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    settings = release_config.Settings("e2e", (), LENGTH, RATE, 5, RANK, "/a/path/of/its/author")
    (folder / release_config.CONFIG).write_text(json.dumps(release_config.to_json(settings)))

    shapes = native.expected(model, LoraConfig(RANK), LENGTH // RATE)["compressor"]

    def adapter() -> dict[str, np.ndarray]:
        tree = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
        tree = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), tree)
        return adapters.to_tensors(tree, model)

    torch_zip_write.write(folder / ADAPTERS_FILE, {name: adapter() for name in ADAPTER_NAMES})
    added = LENGTH // RATE + ADDED_TOKENS
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]

    def table(name: str) -> torch_zip_write.Blocks:
        def rows() -> Iterator[np.ndarray]:
            with safetensors.safe_open(str(base / index[name]), framework="numpy") as file:
                view = file.get_slice(name)
                for start in range(0, model.vocab_size, _ROWS):
                    yield view[start : min(start + _ROWS, model.vocab_size)]
            yield rng.standard_normal((added, model.d_model), np.float32)

        shape = (model.vocab_size + added, model.d_model)
        return torch_zip_write.Blocks(shape, ml_dtypes.bfloat16, rows())

    torch_zip_write.write(folder / TABLES_FILE, {name: table(name) for name in (EMBED, HEAD)})


def write_tokenizer(folder: pathlib.Path, size: int) -> None:
    """A tokenizer of `size` words, for a base that has none."""
    words = {f"w{i}": i for i in range(size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(str(folder))


def measure(source: str, base: str, workdir: str) -> list[Conversion]:
    """Imports a checkpoint and exports it to every format; to be called in a fresh process."""
    jax.config.update("jax_platforms", "cpu")
    results = [_measured("import", lambda: import_model.run(source, workdir, base))]
    size = os.path.getsize(os.path.join(workdir, native.WEIGHTS))
    results[0] = dataclasses.replace(results[0], excess=results[0].excess - size, destination=size)
    for format in export_model.FORMATS:
        output = f"{workdir}-{format}"
        run = functools.partial(export_model.run, workdir, format, output)
        results.append(_measured(format, run))
    return results


def _measured(what: str, run: Callable[[], int]) -> Conversion:
    before, start = memory("RssAnon"), time.perf_counter()
    with sampled() as seen:
        run()
    return Conversion(what, max(seen) - before, 0, time.perf_counter() - start)
