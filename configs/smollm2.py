"""SCP of SmolLM2-135M-Instruct on two CPU cores within an hour: launch/smollm2.sh.

Differs from configs/scp.py in what a small budget of rows asks for. Short runs of 40 steps chose:
memory tokens that start apart and lie spread over the document, or nothing is read from them so
soon; a learning rate 20 times the paper's; and a tenth of its alignment loss, whose gradient, as
long as nothing is read from the memories yet, would make all states alike.
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
    config.train.steps = 200
    config.train.batch_rows = 2
    config.train.loss_chunks = 4
    config.train.mse_weight = 0.01
    config.train.checkpoint_every = 50
    config.train.eval_every = 50
    config.train.log_every = 5
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.05
    config.eval.records = 64  # while training; launch/smollm2.sh evaluates on all of dev
    return config
