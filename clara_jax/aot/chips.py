"""Accelerators to compile for: what they can do, and their devices without having them."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from clara_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Figures are those that Google publishes for Cloud TPU, and of the interconnect those of the
    scaling book (jax-ml.github.io/scaling-book), one way.
    """

    flops: float  # of bfloat16 matmuls, a second
    hbm: int  # bytes that a program may use, as the compiler has it
    bandwidth: float  # of the HBM, bytes a second
    link: float  # of one link to a neighbour, bytes a second in one direction
    wraps: int  # an axis of at least this number of chips is a ring
    clock: float  # Hz, of the compiler's cycle estimates


CHIPS = {
    "v5e": Chip(197e12, int(15.75 * 2**30), 819e9, 45e9, 16, 1.5e9),
    "v5p": Chip(459e12, int(95.74 * 2**30), 2765e9, 90e9, 4, 1.75e9),
    "v6e": Chip(918e12, int(31.25 * 2**30), 1640e9, 90e9, 16, 1.75e9),
    "tpu7x": Chip(1153e12, int(94.75 * 2**30), 3690e9, 90e9, 4, 2.4e9),
}

# Keeps libtpu from looking for a TPU machine; the accelerator need not be the one compiled for.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for."""

    name: str  # of the topology, such as `v5e:4x4`, or `local`
    devices: Sequence[Any]  # to make a mesh of
    chip: Chip | None  # None where nothing is known about it
    axes: tuple[int, ...]  # chips along each axis of the interconnect


def target(topology: str | None) -> Target:
    """The devices of a TPU topology, or the local ones for None.

    Raises:
        UserError: no such topology, or libtpu is not installed.
    """
    if topology is None:
        devices = jax.devices()
        return Target("local", devices, None, (len(devices),))
    match = re.fullmatch(r"(\w+):([1-9]\d{0,3}(?:x[1-9]\d{0,3}){1,2})", topology)
    if not match or match[1] not in CHIPS:
        raise UserError(
            f"--topology={topology}: not a topology such as v5e:4x4, v6e:2x4 or v5p:2x2x1; "
            f"generations: {', '.join(CHIPS)}"
        )
    axes = tuple(int(size) for size in match[2].split("x"))
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", _ENVIRONMENT["JAX_PLATFORMS"])
    from jax.experimental import topologies

    # A host has 2 x 2 chips unless there are fewer.
    host = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(axes) < 4 else {}
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology, **host)
    except (RuntimeError, ValueError) as e:  # NotImplementedError and JaxRuntimeError as well
        text = str(e).splitlines()[0]
        if not importlib.util.find_spec("libtpu"):
            text = f"the TPU compiler is not installed ({text}): pip install 'clara-jax[tpu]'"
        raise UserError(f"--topology={topology}: {text}") from e
    return Target(topology, slice_.devices, CHIPS[match[1]], axes)


def versions() -> dict[str, str | None]:
    """Of the packages that decide what is compiled; None where one is not installed."""

    def of(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {package: of(package) for package in ("jax", "libtpu")}
