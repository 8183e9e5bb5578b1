"""Importing on many devices: memory beside the arrays, and what each of two processes reads."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import export_memory as releasing
from benchmarks.import_memory import measure, write_checkpoint
from benchmarks.speed import alone
from clara_jax import distributed, sharding
from clara_jax.config import Config, Mesh, Model
from clara_jax.interop import hf
from clara_jax.models.config import ModelConfig
from clara_jax.models.quantize import quantize_params
from clara_jax.runs import weights as weights_lib

ROOT = pathlib.Path(__file__).parent.parent.parent
# 184 MB, of which each of the mlp's three parameters has 50, and a layer of it 2.
MODEL = ModelConfig(
    vocab_size=512, d_model=512, d_ff=2048, n_layers=24, n_heads=8, n_kv_heads=2, head_dim=64
)
MATRICES = 2 * (2 * 512 * 512 + 24 * (2 * 512 * 512 + 2 * 512 * 128 + 3 * 512 * 2048))
NORMS = 2 * (2 * 24 + 1) * 512


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, MODEL, file_bytes=30 * 10**6)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert sum(f.stat().st_size for f in folder.glob("*.safetensors")) > MATRICES + NORMS
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("param_dtype", [pytest.param("float32", marks=pytest.mark.slow), "int8"])
def test_memory_does_not_hold_a_parameter_twice(checkpoint, monkeypatch, param_dtype):
    # What is freed goes back at once, so that it does not count.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**17))
    found = alone(measure, str(checkpoint), param_dtype, 4, 2)
    held = {"float32": 2, "int8": 0.5}[param_dtype] * MATRICES
    assert found.destination == pytest.approx(held, rel=0.05)
    # 28 MB in float32 and 47 in int8, of which 20 are programs; 100 and 170 with a whole parameter.
    assert found.excess < 65e6, found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_importing_a_release_does_not_read_the_base(checkpoint, tmp_path):
    releasing.write_tokenizer(checkpoint, MODEL.vocab_size)
    releasing.write_release(tmp_path / "source", checkpoint, MODEL)
    paths = (str(tmp_path / "source"), str(checkpoint), str(tmp_path / "workdir"))
    found = {conversion.what: conversion for conversion in alone(releasing.measure, *paths)}
    assert found["import"].destination > 20e6
    assert found["import"].excess < 60e6, found  # the base has 184 MB
    merged = sum(f.stat().st_size for f in tmp_path.glob("workdir-merged/*.safetensors"))
    assert merged > 180e6


def reads(checkpoint: pathlib.Path, **mesh: int) -> int:
    """Bytes that this process reads of a checkpoint."""
    read, count = hf.Safetensors.read, 0

    def counting(self, name, index):
        nonlocal count
        values = read(self, name, index)
        count += values.nbytes
        return values

    hf.Safetensors.read = counting
    try:
        config = Config(model=Model(base=str(checkpoint)))
        made = sharding.make_mesh(Mesh(**mesh))
        params = weights_lib.load_base(config, weights_lib.model_config(config), made)
    finally:
        hf.Safetensors.read = read
    for x in jax.tree.leaves(params):
        assert len(x.addressable_shards) == jax.local_device_count()
    return count


def test_int8_by_layers_equals_int8_of_the_whole(tmp_path):
    small = dataclasses.replace(MODEL, n_layers=3, d_model=64, d_ff=96, head_dim=8)
    write_checkpoint(tmp_path, small, file_bytes=10**5)

    def load(param_dtype: str):
        config = Config(model=Model(base=str(tmp_path), param_dtype=param_dtype))
        mesh = sharding.make_mesh(Mesh(data=1, fsdp=4, tensor=2))
        return weights_lib.load_base(config, weights_lib.model_config(config), mesh)

    found, wanted = load("int8"), jax.jit(quantize_params)(load("bfloat16"))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    specs = jax.tree.map(lambda x: x.sharding, found)
    assert specs == sharding.shardings(sharding.make_mesh(Mesh(1, 4, 2)), "base", found)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 8), (2, 4)])
def test_one_process_reads_everything_once(checkpoint, data, fsdp):
    assert reads(checkpoint, data=data, fsdp=fsdp, tensor=1) == MATRICES + NORMS


@pytest.mark.parametrize(
    ("mesh", "share"),
    # Data alone: each process has all.
    [((1, 4, 2), 2), pytest.param((2, 2, 2), 1, marks=pytest.mark.slow)],
)
def test_each_of_two_processes_reads_its_share(checkpoint, tmp_path, mesh, share):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(checkpoint), str(tmp_path / f"{i}"), *map(str, mesh)],
            cwd=ROOT,
            env=os.environ | {
                "PYTHONPATH": str(ROOT),
                "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
                "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
            },
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    found = [int((tmp_path / f"{i}").read_text()) for i in range(2)]
    assert found == [MATRICES // share + NORMS] * 2


if __name__ == "__main__":  # one of the processes
    with distributed.joined():
        data, fsdp, tensor = map(int, sys.argv[3:])
        count = reads(pathlib.Path(sys.argv[1]), data=data, fsdp=fsdp, tensor=tensor)
        pathlib.Path(sys.argv[2]).write_text(str(count))
