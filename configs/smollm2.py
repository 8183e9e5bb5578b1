"""SCP of SmolLM2-135M-Instruct on two CPU cores within an hour: launch/smollm2.sh.

Differs from configs/scp.py in what a small budget of rows asks for. What short runs chose: memory
tokens that start apart and lie spread over the document; a learning rate 20 times the paper's; and
an alignment loss that moves the memories alone. Without these the generator learns to do without
the memories before anything can be read from them, and the compressor's gradient vanishes.
"""

from clara_jax import config as clara_config


def get_config(model: str = "smollm2_135m"):
    """About 11 documents a step at 16x, 8 at 4x."""
    config = clara_config.default()
    config.model.preset = model
    config.model.remat = "dots"
    config.data.holdout = 0.05
    config.data.encoder_row = 832
    config.data.decoder_row = 704
    config.memory.init = "tokens"
    config.memory.positions = "spread"
    config.train.steps = 150
    config.train.batch_rows = 2
    config.train.loss_chunks = 4
    config.train.mse_into = "memory"
    config.train.checkpoint_every = 50
    config.train.eval_every = 50
    config.train.log_every = 5
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.05
    config.eval.records = 64  # while training; launch/smollm2.sh evaluates on 150
    return config
