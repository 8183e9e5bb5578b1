"""A tiny decoder trained from scratch on made-up facts, on a laptop, with no download.

The argument is the stage: configs/quickstart.py:e2e. In `scp` the base itself is trained
(`train.full`), since there is no pretrained one to adapt; from then on it stays as it is, and
adapters learn to answer one question, and to choose the document that holds the answer.

Half of scp's documents are given to the generator as plain text: so it soon learns to look an
answer up, as a pretrained LLM can, and from then on tells the compressor what to keep. With
compressed documents alone, neither side learns much from the other in as many steps.
"""

from clara_jax import config as clara_config


def get_config(stage: str = "scp"):
    """4 layers of width 128; 25-token documents in 3 memory vectors, 8.3x."""
    config = clara_config.default()
    config.stage = stage
    config.model.preset = "tiny"
    config.model.tokenizer = "facts"
    config.model.vocab_size = 128  # the words of the facts, rounded up
    config.model.remat = "dots"
    config.data.document_length = 25
    config.data.rate = 8
    config.memory.init = "tokens"
    # From scratch the alignment loss can be met by making all states alike: it is for LLMs.
    config.train.mse_weight = 0.0
    config.train.batch_rows = 32
    config.eval.max_new_tokens = 8
    config.prompts.qa_system = config.prompts.answer_system = ""
    config.prompts.qa_user = "{docs}"
    config.prompts.answer_user = "{docs} {question}"
    STAGES[stage](config)
    config.train.checkpoint_every = config.train.steps // 2
    return config


def scp(config) -> None:
    """Every part of every document is asked for."""
    config.data.sources = "facts:100000,text:facts:100000:2"
    config.data.encoder_row = 32
    config.data.decoder_row = 120  # one document compressed and one as text
    config.train.full = True
    config.train.steps = 700
    config.optim.learning_rate = 2e-3
    config.optim.warmup = 0.1
    config.eval.sources = "facts:200:1"  # another seed: documents never seen in training


def instruct(config) -> None:
    """One question about one document; in half of them for any part of it, its subject included.

    For what no question asks for the compressor drops, and by its subject a document is found.
    """
    _questions(config)
    config.data.sources = "facts:20000,each:facts:4000"
    config.train.steps = 200


def e2e(config) -> None:
    """One of twenty candidates is chosen, and the answer alone says whether rightly."""
    _questions(config)
    config.train.steps = 600


def contrastive(config) -> None:
    """As e2e, but labels say which candidate is the right one."""
    e2e(config)


def _questions(config) -> None:
    config.lora.rank = 32
    config.lora.alpha = 64.0
    config.lora.dropout = 0.0
    config.select.k = 1
    config.optim.learning_rate = 1e-3
    config.data.sources = "facts:40000"
    config.eval.sources = "facts:500:1"
    config.eval.records = 0


STAGES = {"scp": scp, "instruct": instruct, "e2e": e2e, "contrastive": contrastive}
