"""Compressing a corpus once, asking and serving it: config.store, config.search, config.serve.

python -m clara_jax.main --mode=serve --store=stores/docs --workdir=runs/e2e
    --config=configs/serve.py --config.serve.port=8080
"""

from clara_jax import config as clara_config


def get_config():
    """The defaults; everything else is the run's own."""
    return clara_config.default()
