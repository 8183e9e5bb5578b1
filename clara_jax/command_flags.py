"""The flags of all modes, for absl; which mode takes which stands in main.py."""

from absl import flags
from ml_collections import config_flags

config_flags.DEFINE_config_file(
    "config", None, "Config file, with a model as argument (a stage for quickstart.py and "
    "smollm2.py): configs/scp.py:mistral_7b. --config.group.option=value overrides; "
    "clara_jax/config.py lists all options.",
)  # fmt: skip
flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints.")
flags.DEFINE_string("source", None, "Checkpoint to import: a directory or owner/name[/subfolder].")
flags.DEFINE_string("output", None, "Folder that is made.")
_FORMATS = ["release", "peft", "merged", "native", "faiss"]
flags.DEFINE_enum("format", None, _FORMATS, "What to export to. faiss: search keys of a --store.")
flags.DEFINE_string("documents", None, "Documents: .jsonl, .parquet, or paragraphs of text.")
flags.DEFINE_string("store", None, "Folder of documents compressed once (--mode=compress).")
flags.DEFINE_string("delete", None, "Ids of documents, with commas, or a file of ids, one a line.")
flags.DEFINE_bool("compact", None, "Write a store anew without what was deleted.")
flags.DEFINE_string("base", None, "The base model, if it is not where the run found it.")
flags.DEFINE_string("question", None, "What to ask. Without it, standard input is read.")
flags.DEFINE_integer("top_k", None, "Documents to answer from. By default as in training.")
flags.DEFINE_integer("max_new_tokens", None, "Most tokens of an answer. 32 by default.")
flags.DEFINE_float("temperature", None, "Of the draws of tokens. 0, the default, is greedy.")
flags.DEFINE_float("top_p", None, "Share of probability that tokens are drawn from. 1 by default.")
flags.DEFINE_string("topology", None, "TPUs to compile for, as v5e:4x4. By default these devices.")
flags.DEFINE_bool("dry_run", None, "Only count documents, and estimate requests and cost.")
flags.DEFINE_integer("preview", None, "Only make the records of so many documents, and print.")
_PROGRAMS = ["train", "prefill", "decode", "compress", "search"]
flags.DEFINE_enum("program", None, _PROGRAMS, "What to compile.")
