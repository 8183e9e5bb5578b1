"""The query reasoner trained with labels (the paper's Sup- baseline), or warmed up for e2e.

Differs from configs/e2e.py in the loss alone: InfoNCE over the gold documents, at tau 0.02. Records
need `pos_index`, or `teacher_scores` of a reranker to learn from.
"""

from clara_jax import config as clara_config


def get_config(model: str = "smollm2_135m"):
    """Paper, appendix: batch 32, 20 candidates; the learning rate is that of e2e."""
    config = clara_config.default()
    config.stage = "contrastive"
    config.model.preset = model
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "bfloat16"
    config.model.remat = "dots"
    config.data.document_length = 256
    config.data.rate = 16
    config.train.batch_rows = 32
    config.optim.learning_rate = 5e-6
    return config
