"""SmolLM2-135M-Instruct on two CPU cores: launch/smollm2.sh (scp), launch/smollm2_joint.sh (after).

The argument is the stage: configs/smollm2.py:e2e.

Differs from configs/scp.py, instruct.py and e2e.py in what a small budget of rows asks for. What
short runs of scp chose: memory tokens that start apart and lie spread over the document; a learning
rate 20 times the paper's; and an alignment loss that moves the memories alone. Without these the
generator learns to do without the memories before anything can be read from them, and the
compressor's gradient vanishes.
"""

from clara_jax import config as clara_config


def get_config(stage: str = "scp"):
    """Rows of about 11 documents a step at 16x, 8 at 4x; then 8 questions a step."""
    config = clara_config.default()
    config.stage = stage
    config.model.preset = "smollm2_135m"
    config.model.remat = "dots"
    config.memory.init = "tokens"
    config.memory.positions = "spread"
    config.train.loss_chunks = 4
    config.train.mse_into = "memory"
    config.train.checkpoint_every = 50
    config.train.log_every = 5
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.05
    STAGES[stage](config)
    return config


def scp(config) -> None:
    """150 steps of two rows."""
    config.data.holdout = 0.05
    config.data.encoder_row = 832
    config.data.decoder_row = 704
    config.train.steps = 150
    config.train.batch_rows = 2
    config.train.eval_every = 50
    config.eval.records = 64  # while training; launch/smollm2.sh evaluates on 150


def instruct(config) -> None:
    """Questions over three documents, with the data's answers: this base's own are worse."""
    config.select.k = 3
    config.train.steps = 50
    config.train.batch_rows = 4
    config.optim.learning_rate = 1e-3


def e2e(config) -> None:
    """Three of about ten candidates; tau follows the spread of the scores."""
    config.select.k = 3
    config.select.relative = True
    config.select.temperature = 0.5
    config.train.steps = 150
    config.train.batch_rows = 8
    config.optim.learning_rate = 1e-3


def contrastive(config) -> None:
    """As e2e, from labels."""
    e2e(config)


STAGES = {"scp": scp, "instruct": instruct, "e2e": e2e, "contrastive": contrastive}
