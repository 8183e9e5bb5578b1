"""A tiny decoder trained from scratch on made-up facts, on a laptop, with no download.

The base itself is trained (`train.full`), since there is no pretrained one to adapt. Half of the
documents are given to the generator as plain text: so it soon learns to look an answer up, as a
pretrained LLM can, and from then on tells the compressor what to keep. With compressed documents
alone, neither side learns much from the other in as many steps.
"""

from clara_jax import config as clara_config


def get_config(model: str = "tiny"):
    """4 layers of width 128; 25-token documents in 3 memory vectors, 8.3x."""
    config = clara_config.default()
    config.model.preset = model
    config.model.tokenizer = "facts"
    config.model.vocab_size = 128  # the words of the facts, rounded up
    config.data.sources = "facts:100000,text:facts:100000:2"
    config.data.document_length = 25
    config.data.rate = 8
    config.data.encoder_row = 32
    config.data.decoder_row = 120  # one document compressed and one as text
    config.memory.init = "tokens"
    config.model.remat = "dots"
    config.train.full = True
    # From scratch the alignment loss can be met by making all states alike: it is for LLMs.
    config.train.mse_weight = 0.0
    config.train.steps = 700
    config.train.batch_rows = 32
    config.train.checkpoint_every = 350
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.1
    config.eval.sources = "facts:200:1"  # another seed: documents never seen in training
    config.eval.max_new_tokens = 8
    config.prompts.qa_system = ""
    config.prompts.qa_user = "{docs}"
    return config
