"""A tiny decoder trained from scratch on made-up facts, on a laptop, with no download.

The base itself is trained (`train.full`), since there is no pretrained one to adapt.
"""

from clara_jax import config as clara_config


def get_config(model: str = "tiny"):
    """4 layers of width 128; 37-token documents in 4 memory vectors."""
    config = clara_config.default()
    config.model.preset = model
    config.model.tokenizer = "facts"
    config.model.vocab_size = 192  # the words of the facts, rounded up
    config.data.sources = "facts:100000"
    config.data.document_length = 40
    config.data.rate = 10
    config.data.encoder_row = 96
    config.data.decoder_row = 96
    config.memory.init = "tokens"
    config.model.remat = "dots"
    config.train.full = True
    # From scratch the alignment loss can be met by making all states alike: it is for LLMs.
    config.train.mse_weight = 0.0
    config.train.steps = 500
    config.train.batch_rows = 32
    config.train.checkpoint_every = 250
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.25
    config.eval.sources = "facts:200:1"  # another seed: documents never seen in training
    config.eval.max_new_tokens = 8
    config.prompts.qa_system = ""
    config.prompts.qa_user = "{docs}"
    return config
