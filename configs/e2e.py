"""Retrieval and generation trained jointly with the paper's hyperparameters, after instruct or SCP.

configs/e2e.py:mistral_7b, with --config.init_from=WORKDIR, --config.model.base=… and
--config.data.sources=train.jsonl. `--config.data.memories=FOLDER` computes the candidates' memories
once, which gives the same losses for a fraction of the time.
"""

from clara_jax import config as clara_config


def get_config(model: str = "smollm2_135m"):
    """Paper, appendix: batch 32, learning rate 5e-6, top 5 of 20 candidates, tau 0.02."""
    config = clara_config.default()
    config.stage = "e2e"
    config.model.preset = model
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.model.remat = "dots"
    config.data.document_length = 256
    config.data.rate = 16
    config.train.batch_rows = 32
    config.train.loss_chunks = 4
    config.optim.learning_rate = 5e-6
    return config
