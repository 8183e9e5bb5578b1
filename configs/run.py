"""The options of a run, as its workdir keeps them: configs/run.py:runs/scp.

For a run that continues, or is evaluated, with some of them changed; this file is what counts where
options are given without a --config:

    --mode=evaluate --workdir=runs/scp --config.eval.records=50
"""

import dataclasses
import os

import ml_collections

from clara_jax import config as clara_config


def get_config(workdir: str = ""):
    """The options in the workdir's config.json."""
    kept = clara_config.load(os.path.join(workdir, "config.json"))
    return ml_collections.ConfigDict(dataclasses.asdict(kept), convert_dict=True).lock()
