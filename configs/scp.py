"""Salient compressor pretraining with the paper's hyperparameters.

The model is the argument: configs/scp.py:mistral_7b. Weights and data come from options:
--config.model.base=DIRECTORY_OR_HUB_ID --config.data.sources=train.jsonl
"""

from clara_jax import config as clara_config


def get_config(model: str = "smollm2_135m"):
    """Paper, appendix: batch 128, learning rate 1e-4, warm-up 3 %, cosine to 10 %, one epoch."""
    config = clara_config.default()
    config.model.preset = model
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.model.remat = "gate"  # what 16 GB a chip hold at 7B on v5e:4x4
    config.data.document_length = 256
    config.data.rate = 16
    config.train.batch_rows = 64  # packed rows of two examples and more: about 128 examples
    config.train.loss_chunks = 4
    return config
