"""Compression instruction tuning with the paper's hyperparameters, after SCP.

configs/instruct.py:mistral_7b, with --config.init_from=SCP_WORKDIR, --config.model.base=… and
--config.data.sources=train.jsonl. Compressor and generator learn to answer questions over k
documents as the plain base answers them from the full texts.
"""

from clara_jax import config as clara_config


def get_config(model: str = "smollm2_135m"):
    """Paper, appendix: batch 128, learning rate 1e-4, warm-up 3 %, cosine to 10 %, one epoch."""
    config = clara_config.default()
    config.stage = "instruct"
    config.model.preset = model
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.model.remat = "gate"  # what 16 GB a chip hold at 7B on v5e:4x4
    config.data.answers = "teacher"
    config.data.document_length = 256
    config.data.rate = 16
    config.train.batch_rows = 128
    config.train.loss_chunks = 4
    return config
