"""What an evaluation ran on: hardware and versions, without names of machines."""

import os
import platform
from importlib import metadata

import jax

PACKAGES = ("clara-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment() -> dict[str, str]:
    """Hardware and versions by what to call them."""
    device = jax.devices()[0]
    found = {
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "processes": str(jax.process_count()),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its folder
            continue
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
