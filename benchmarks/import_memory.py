"""Memory of importing a base model: a checkpoint of random weights, read onto eight CPU devices.

The arrays of CPU devices are anonymous memory of the process as well, so they are subtracted; pages
of the mapped files do not count, the system takes them back at will. Linux only: the numbers are
those of `/proc/self/status`.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterator

import jax
import ml_dtypes
import numpy as np

from clara_jax import config as config_lib
from clara_jax import sharding
from clara_jax.interop import hf_config, hf_write
from clara_jax.models.config import PRESETS, ModelConfig
from clara_jax.models.decoder import abstract_params
from clara_jax.runs import weights as weights_lib

DEVICES = 8
# How the measured runs hold the weights, and the mesh: (param_dtype, fsdp, tensor).
RUNS = [(dtype, *mesh) for dtype in ("float32", "bfloat16", "int8") for mesh in ((8, 1), (4, 2))]

_BLOCK = 2**22  # elements that are drawn at a time
_SECONDS = 0.005  # between two looks at the memory


@dataclasses.dataclass(frozen=True)
class Import:
    """One import."""

    param_dtype: str  # in which the weights are held
    fsdp: int  # devices on this axis of the mesh
    tensor: int  # devices on this one
    destination: int  # bytes of all devices' arrays
    excess: int  # most bytes of anonymous memory, less those before the import and the destination
    peak: int  # most bytes of anonymous memory
    baseline: int  # bytes of anonymous memory before the import
    high_water: int  # most bytes of memory that the process ever held, mapped files included
    seconds: float  # wall-clock

    def __str__(self) -> str:
        return (
            f"{self.param_dtype:<9} fsdp={self.fsdp} tensor={self.tensor}   "
            f"{self.destination / 1e6:8.0f} MB on {DEVICES} devices, "
            f"{self.excess / 1e6:6.0f} MB beside them, {self.seconds:5.1f} s\n"
            f"{json.dumps(dataclasses.asdict(self))}"
        )


def model_of(gigabytes: float) -> ModelConfig:
    """Mistral 7B with as many layers, one at least, as make about `gigabytes` GB in bfloat16."""
    one, two = (
        sum(x.size for x in jax.tree.leaves(abstract_params(model)))
        for model in (dataclasses.replace(PRESETS["mistral_7b"], n_layers=n) for n in (1, 2))
    )
    extra = (gigabytes * 1e9 / 2 - one) / (two - one)
    return dataclasses.replace(PRESETS["mistral_7b"], n_layers=1 + max(0, round(extra)))


def write_checkpoint(
    folder: pathlib.Path, model: ModelConfig, file_bytes: int = hf_write.SHARD
) -> None:
    """Writes random bfloat16 weights in the Hugging Face layout, a block at a time.

    Args:
        folder: an empty folder, for config.json, the safetensors files and their index.
        model: the architecture.
        file_bytes: most bytes of a file's tensors, unless one alone has more.
    """
    (folder / "config.json").write_text(json.dumps(hf_config.hf_config(model)))
    files = hf_write.plan(model, 2, file_bytes)
    rng = np.random.default_rng(0)
    for name, tensors in files.items():
        _write_file(folder / name, {tensor.name: tensor.shape for tensor in tensors}, rng)
    hf_write.write_index(folder, files, 2)


def _write_file(
    path: pathlib.Path, tensors: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> None:
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end // 2, _BLOCK):
            block = rng.standard_normal(min(_BLOCK, end // 2 - start), np.float32)
            f.write((0.02 * block).astype(ml_dtypes.bfloat16).tobytes())


def measure(folder: str, param_dtype: str, fsdp: int, tensor: int) -> Import:
    """Imports a base model; to be called in a fresh process, whose devices it makes.

    Raises:
        UserError: the model cannot be read, or does not fit the mesh.
    """
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    )
    jax.config.update("jax_platforms", "cpu")
    config = config_lib.Config(
        model=config_lib.Model(base=folder, param_dtype=param_dtype),
        mesh=config_lib.Mesh(data=1, fsdp=fsdp, tensor=tensor),
    )
    model = weights_lib.model_config(config)
    mesh = sharding.make_mesh(config.mesh)
    baseline = memory("RssAnon")
    start = time.perf_counter()
    with sampled() as seen:
        base = jax.block_until_ready(weights_lib.load_base(config, model, mesh))
    seconds = time.perf_counter() - start
    destination = sum(
        shard.data.nbytes for x in jax.tree.leaves(base) for shard in x.addressable_shards
    )
    peak = max(seen)
    excess = peak - baseline - destination
    return Import(
        param_dtype, fsdp, tensor, destination, excess, peak, baseline, memory("VmHWM"), seconds
    )


def memory(key: str) -> int:
    """Bytes that this process has of a kind."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", status)[1])


@contextlib.contextmanager
def sampled() -> Iterator[list[int]]:
    """Bytes of anonymous memory, of every few milliseconds of the block."""
    seen, done = [memory("RssAnon")], threading.Event()

    def look() -> None:
        while not done.wait(_SECONDS):
            seen.append(memory("RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen.append(memory("RssAnon"))
