"""`--mode=compile`: compiles a config's program ahead of time, for a TPU topology or these devices.

Prints one JSON object to standard output, and a table for people to standard error.
"""

import json
import math
import re
import sys
import time
from typing import Any

import jax

from clara_jax import config as config_lib
from clara_jax import sharding
from clara_jax.aot import chips, cost, hlo, report
from clara_jax.aot.programs import PROGRAMS, Program, parameters
from clara_jax.config import Config
from clara_jax.config_checks import get
from clara_jax.errors import UserError
from clara_jax.progress import doing
from clara_jax.runs import setup as setup_lib


def run(config: Config, topology: str | None = None, program: str = "train") -> int:
    """Compiles one of PROGRAMS for a topology such as `v5e:4x4`, or the local devices, and prints.

    Of the run's weights and data only the config of `model.base` is read, if that is given.

    Returns:
        0, also where it does not fit: the JSON says so.

    Raises:
        UserError: the topology, the mesh or a dimension does not fit, or there is no libtpu.
    """
    result = compile_program(config, chips.target(topology), program)
    print(report.table(result), file=sys.stderr)
    print(json.dumps(result))
    return 0


def compile_program(config: Config, target: chips.Target, name: str) -> dict[str, Any]:
    """Compiles one program and says what it needs; see `report.table` for the keys.

    Raises:
        UserError: as `run`.
    """
    mesh = sharding.make_mesh(config.mesh, list(target.devices))
    if target.chip and mesh.size != len(target.devices):
        raise UserError(
            f"config.mesh has {mesh.size} devices, --topology={target.name} "
            f"{len(target.devices)}: a slice is used whole; set one axis to -1"
        )
    model, trees = setup_lib.abstract(config, mesh)
    program = PROGRAMS[name](model, trees)
    start = time.perf_counter()
    try:
        with doing(f"compiling {name} for {target.name}"):
            compiled, needed = program.function.lower(*program.arguments).compile(), 0
    except jax.errors.JaxRuntimeError as e:
        compiled, needed = None, _needed(str(e))
        if not needed:
            raise
    kinds = {kind: _bytes(tree) for kind, tree in program.kinds.items()}
    result = {
        "topology": target.name,
        "devices": mesh.size,
        "program": name,
        "stage": config.stage,
        "model": config.model.base or config.model.preset,
        "parameters": parameters(model),
        "mesh": dict(mesh.shape),
        "options": _options(config),
        "rows": program.rows,
        **_memory(kinds, compiled, needed, target),
        "model_flops_per_step": program.flops,
        **_time(compiled, program, target),
        "compile_seconds": round(time.perf_counter() - start, 1),
        "versions": chips.versions(),
    }
    return result | {"advice": report.advice(config, result)}


def _memory(
    kinds: dict[str, int], compiled: Any, needed: int, target: chips.Target
) -> dict[str, Any]:
    """HBM of one device by kind; `temporaries` are activations, gradients and scratch."""
    if compiled is None:
        total = needed  # of arguments as well
        kinds["temporaries"] = max(needed - sum(kinds.values()), 0)
    else:
        m = compiled.memory_analysis()
        new = m.output_size_in_bytes - m.alias_size_in_bytes
        total = m.argument_size_in_bytes + new + m.temp_size_in_bytes
        kinds["temporaries"] = m.temp_size_in_bytes
        kinds["outputs"] = new
        # Padding of shapes to the chip's tiles, and arguments that no kind names.
        kinds["other"] = total - sum(kinds.values())
    limit = target.chip.hbm if target.chip else _limit(target)
    return {
        "hbm_bytes_per_device": total,
        "hbm_limit_bytes": limit,
        "fits": None if limit is None else total <= limit,
        "hbm_by_kind": kinds,
    }


def _time(compiled: Any, program: Program, target: chips.Target) -> dict[str, Any]:
    chip = None if compiled is None else target.chip
    took = cost.predict(hlo.parse(compiled.as_text()), target) if chip else cost.Cost()
    peak = chip.flops * len(target.devices) if chip else 0
    times = {
        "predicted_step_seconds": took.seconds,
        "predicted_mfu": peak and program.flops / (took.seconds * peak),
        "compute_seconds": took.compute,
        "interconnect_seconds": took.interconnect,
        "collective_bytes": dict(took.moved),
        "pallas_calls": took.calls,
        "unpriced_parts": took.unpriced,
    }
    return times if chip else dict.fromkeys(times)


def _needed(message: str) -> int:
    """Bytes that the compiler's message says are too many, or 0; "temporaries" hold arguments."""
    match = re.search(r"RESOURCE_EXHAUSTED.*temporaries \(([\d.]+)([KMGT]?)\)", message, re.DOTALL)
    return int(float(match[1]) * 2 ** (10 * " KMGT".index(match[2] or " "))) if match else 0


def _limit(target: chips.Target) -> int | None:
    stats = target.devices[0].memory_stats()
    return stats.get("bytes_limit") if stats else None


def _bytes(tree: Any) -> int:
    """Of the part on one device."""
    shapes = [(x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(tree)]
    return sum(size * math.prod(shape) for shape, size in shapes)


def _options(config: Config) -> dict[str, Any]:
    """What was set otherwise than by default, of what changes the program."""
    groups = ("model", "lora", "data", "train", "select", "eval.batch", "search")
    names = config_lib.differences(Config(), config, groups)
    return {name: get(config, name) for name in names}
