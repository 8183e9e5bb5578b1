"""Two processes, each with half of a model, write what it was read from."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from benchmarks.import_memory import write_checkpoint
from clara_jax import distributed, sharding
from clara_jax.config import Config, Mesh, Model
from clara_jax.interop import hf_write
from clara_jax.models.config import ModelConfig
from clara_jax.runs import weights as weights_lib

ROOT = pathlib.Path(__file__).parent.parent.parent
MODEL = ModelConfig(
    vocab_size=96, d_model=64, d_ff=128, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16
)


@pytest.mark.parametrize("mesh", [pytest.param((1, 4, 2), marks=pytest.mark.slow), (2, 2, 2)])
def test_two_processes_write_one_model(tmp_path, mesh):
    (tmp_path / "from").mkdir()
    write_checkpoint(tmp_path / "from", MODEL, file_bytes=10**9)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), *map(str, mesh)],
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
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert not (tmp_path / "to1").exists(), "the first process alone writes"
    wanted, found = {}, {}
    for folder, tensors in (("from", wanted), ("to0", found)):
        files = sorted((tmp_path / folder).glob("*.safetensors"))
        for file in files:
            tensors |= safetensors.numpy.load_file(file)
    assert len(files) > 2 and set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


if __name__ == "__main__":  # one of the processes
    with distributed.joined():
        folder = pathlib.Path(sys.argv[1])
        config = Config(model=Model(base=str(folder / "from"), param_dtype="bfloat16"))
        mesh = sharding.make_mesh(Mesh(*map(int, sys.argv[2:])))
        model = weights_lib.model_config(config)
        params = weights_lib.load_base(config, model, mesh)
        assert not all(x.is_fully_addressable for x in jax.tree.leaves(params))
        to = folder / f"to{jax.process_index()}"
        hf_write.save_params(to, params, model, dtype="bfloat16", shard_bytes=40_000)
