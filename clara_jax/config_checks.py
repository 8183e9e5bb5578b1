"""What values options may have, beyond their types."""

import dataclasses
import math
import re
from typing import Any

from clara_jax.errors import UserError
from clara_jax.models.config import LINEAR_NAMES, is_remat

# Repeats the tables of models/scores.py and models/topk.py: to import those takes JAX.
CHOICES = {
    "stage": ("scp", "instruct", "e2e", "contrastive"),
    "generator_init": ("carry", "fresh"),
    "reasoner_init": ("copy", "random"),
    "data.answers": ("gold", "teacher"),
    "select.score": ("cosine", "maxsim", "mean"),
    "select.method": (
        "straight_through",
        "gumbel",
        "softsort",
        "neuralsort",
        "lapsum",
        "hard",
    ),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16", "int8"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "data.split": ("train", "dev"),
    "eval.setting": ("given", "normal", "oracle"),
    "train.mse_into": ("both", "memory"),
    "optim.schedule": ("cosine", "constant"),
    "memory.init": ("mean", "tokens"),
    "memory.positions": ("after", "spread"),
    "synthesis.task": ("scp", "instruct"),
    "synthesis.uncovered": ("exclude", "keep"),
    "store.dtype": ("bfloat16", "int8"),
    "search.by": ("fused", "keys", "bm25"),
}

POSITIVE = (
    "data.document_length", "data.rate", "data.row_examples", "data.packing_bins",
    "data.teacher_tokens", "train.steps",
    "train.batch_rows", "train.accumulate", "train.loss_chunks", "train.log_every",
    "train.checkpoint_every", "train.keep_checkpoints", "select.k", "select.candidates",
    "eval.batch", "eval.max_new_tokens", "synthesis.concurrency", "synthesis.max_tokens",
    "serve.slots", "serve.queue", "serve.prompt_tokens", "serve.max_new_tokens", "serve.cached",
    "serve.body",
    "store.part", "store.batch", "store.bucket",
    "search.key", "search.candidates", "search.hops",
)  # fmt: skip
NOT_NEGATIVE = (
    "data.records", "data.encoder_row", "data.decoder_row", "data.epochs", "data.workers",
    "data.shards",
    "train.mse_weight",
    "train.eval_every", "optim.learning_rate", "optim.weight_decay", "optim.memory_lr_scale",
    "memory.init_noise", "eval.records", "eval.k", "profile",
    "synthesis.temperature", "synthesis.retries", "synthesis.repairs", "synthesis.rounds",
    "synthesis.documents", "synthesis.input_price", "synthesis.output_price",
)  # fmt: skip
ABOVE_ZERO = (
    "optim.clip", "select.temperature", "select.contrastive_temperature",
    "select.teacher_temperature", "synthesis.timeout", "synthesis.near_duplicates",
    "serve.deadline",
)  # fmt: skip
ZERO_OR_MORE = ("select.final_temperature", "select.teacher_weight", "aux_contrastive")
BELOW_ONE = ("data.holdout", "optim.warmup", "optim.b1", "optim.b2")  # and not negative


def get(config: Any, dotted: str) -> Any:
    """The option of a dotted name, such as `data.rate`."""
    value: Any = config
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


def validate(config: Any) -> None:
    """Checks a frozen `config.Config`.

    Raises:
        UserError: an option has a value that cannot be meant; it names option and value.
    """
    for name, choices in CHOICES.items():
        if get(config, name) not in choices:
            raise UserError(
                f"config.{name}={get(config, name)!r} is not one of {', '.join(choices)}"
            )
    for name in POSITIVE:
        if get(config, name) < 1:
            raise UserError(f"config.{name}={get(config, name)} must be at least 1")
    for name in NOT_NEGATIVE:
        if not 0 <= get(config, name) < math.inf:  # NaN is neither
            raise UserError(f"config.{name}={get(config, name)} must be a number, not negative")
    for name in BELOW_ONE:
        if not 0 <= get(config, name) < 1:
            raise UserError(f"config.{name}={get(config, name)} must be at least 0 and below 1")
    for name in ("optim.final_fraction", "synthesis.near_duplicates"):
        if not 0 <= get(config, name) <= 1:
            raise UserError(f"config.{name}={get(config, name)} must be from 0 to 1")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"config.seed={config.seed} must be from 0 to 2**32 - 1")
    if not 0 <= config.serve.port < 2**16:  # 0 is a free one
        raise UserError(f"config.serve.port={config.serve.port} must be from 0 to {2**16 - 1}")
    _validate_prompts(config.prompts)
    if config.search.hops > 2:
        raise UserError(f"config.search.hops={config.search.hops} must be 1 or 2")
    if not is_remat(config.model.remat):
        raise UserError(
            f"config.model.remat={config.model.remat!r} is not one of none, dots, full, nor some "
            f"of {','.join(LINEAR_NAMES)}"
        )
    if config.train.full and config.model.param_dtype == "int8":
        raise UserError(
            "config.train.full trains the base, which config.model.param_dtype=int8 cannot hold; "
            "set float32 or bfloat16"
        )
    if config.model.attention == "cudnn" and config.model.dtype != "bfloat16":
        raise UserError("config.model.attention=cudnn needs config.model.dtype=bfloat16")
    for name in ABOVE_ZERO:
        # Beyond these bounds float32 would be zero or infinite somewhere.
        if not 1e-6 <= get(config, name) <= 1e6:
            raise UserError(f"config.{name}={get(config, name)} must be from 1e-6 to 1e6")
    for name in ZERO_OR_MORE:
        if not (get(config, name) == 0 or 1e-6 <= get(config, name) <= 1e6):
            raise UserError(f"config.{name}={get(config, name)} must be 0, or from 1e-6 to 1e6")
    if config.train.full and config.stage in ("e2e", "contrastive"):
        raise UserError(
            f"config.train.full is for scp and instruct: in {config.stage} the compressor stays as "
            "it is, and it is the base"
        )
    every = dataclasses.replace(config, train=dataclasses.replace(config.train, only="")).trained
    for name in filter(None, map(str.strip, config.train.only.split(","))):
        if name not in every:
            raise UserError(
                f"config.train.only={config.train.only!r}: {config.stage} trains "
                f"{', '.join(every)}, not {name!r}"
            )
    if "://" in config.data.memories:
        raise UserError(
            f"config.data.memories={config.data.memories!r} must be a local folder: vectors are "
            "read from it at any position"
        )
    if config.memory_tokens < 1:
        raise UserError(
            f"config.data.rate={config.data.rate} leaves no memory token for documents of "
            f"config.data.document_length={config.data.document_length}"
        )
    if config.train.batch_rows % config.train.accumulate:
        raise UserError(
            f"config.train.batch_rows={config.train.batch_rows} does not divide by "
            f"config.train.accumulate={config.train.accumulate}"
        )


def _validate_prompts(prompts: Any) -> None:
    """User turns must hold their places, each once; else slots and vectors would not match."""
    places = {
        "answer_user": ["docs", "question"],
        "qa_user": ["docs"],
        "paraphrase_users": ["docs"],
        "reconstruct_user": ["docs"],
    }
    for name, wanted in places.items():
        value = getattr(prompts, name)
        texts = (value,) if isinstance(value, str) else value
        if not texts or any(sorted(re.findall(r"\{(\w+)\}", text)) != wanted for text in texts):
            marks = " and ".join(f"{{{place}}}" for place in wanted)
            raise UserError(
                f"config.prompts.{name}={value!r} must hold {marks} once and no other place"
            )
