"""Every option once, with its default and a comment.

`configs/*.py` build a ConfigDict with `default()` and override a few lines. `freeze()` turns it
into the frozen dataclasses below, so that an unknown key or a wrong type fails at the border and
inner code never sees a ConfigDict. A workdir's `config.json` holds the same tree.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from clara_jax import files
from clara_jax.config_checks import (
    ALPHA,
    AT_LEAST_1,
    BELOW_1,
    DAY,
    DRAW,
    FOLDER,
    METHOD,
    NOT_NEGATIVE,
    NOTHING,
    ONE_OR_TWO,
    PORT,
    PRESET,
    PROCESSES,
    RATES,
    REMAT,
    SCALE,
    SCALE_OR_0,
    SCHEDULE,
    SEED,
    SHARE,
    SIZE,
    SIZE_OR_0,
    VOCABULARY,
    Option,
    build,
    choice,
    get,
    option,
    options,
    validate,
)
from clara_jax.errors import UserError
from clara_jax.models.config import LoraConfig
from clara_jax.stages import ADAPTERS, STAGES


@dataclasses.dataclass(frozen=True)
class Model:
    """The base LLM."""

    # architecture (models/config.py) when there is no `base`
    preset: str = option("smollm2_135m", PRESET)
    base: str = ""  # HF directory, hub id or .gguf file; empty: random weights of `preset`
    base_hash: str = option("", ties=NOTHING)  # of its weights, which a run finds out and keeps
    tokenizer: str = ""  # HF directory or hub id, or `facts`; empty: the base's own
    # overrides the preset's for random weights; 0: the preset's own
    vocab_size: int = option(0, VOCABULARY)
    dtype: str = choice("float32", "bfloat16")  # of activations and matmuls: float32 or bfloat16
    # of the base weights: float32, bfloat16, or int8 (matrices only)
    param_dtype: str = choice("float32", "bfloat16", "int8")
    # What the forward pass keeps for the backward one: none of it is computed twice; dots, outputs
    # of matmuls; q,k,v,gate or so, those of these linear layers alone; full, the layers' inputs.
    remat: str = option("none", REMAT, ties=NOTHING)
    # xla, splash (TPU kernel), cudnn (GPU kernel); auto: splash on TPUs
    attention: str = choice("auto", "xla", "splash", "cudnn", ties=NOTHING)


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on and how it is laid out in rows."""

    # with commas: file.jsonl, tfds:name/split, reconstruct:file.jsonl, continue:file.jsonl, text:…,
    # 3*file.jsonl
    sources: str = ""
    records: int = option(0, NOT_NEGATIVE)  # number of records, sampled by seed; 0 = all
    # to train on in instruct: gold, or teacher (the base, from full texts)
    answers: str = choice("gold", "teacher")
    teacher_tokens: int = option(64, SIZE)  # most new tokens of a teacher's answer
    # folder of memories computed once (e2e, contrastive); empty: in each step
    memories: str = option("", FOLDER, ties=NOTHING)
    split: str = choice("train", "dev")  # train or dev: which side of `holdout` the sources give
    holdout: float = option(0.0, BELOW_1)  # share of the documents (by title) that belong to dev
    tfds_dir: str = option("", ties=NOTHING)  # where TFDS keeps its data; empty: its default
    # tokens of a document's text; longer ones are cut and counted
    document_length: int = option(256, SIZE, inherited=True)
    # compression rate; M = document_length // rate memory vectors
    rate: int = option(16, SIZE, inherited=True)
    # train at several rates at once, such as (8, 16, 32), by the mean of their losses; memories are
    # then kept at the finest one, in place of `rate`, and coarser ones are means of neighbours
    rates: tuple[int, ...] = option((), RATES, inherited=True)
    pack: bool = True  # several examples a row; false: one example a row, padded
    # tokens a row of the compressor's batch; 0: measured on the data
    encoder_row: int = option(0, SIZE_OR_0)
    # tokens a row of the generator's batch; 0: measured on the data
    decoder_row: int = option(0, SIZE_OR_0)
    row_examples: int = option(16, SIZE)  # most examples packed into one row
    packing_bins: int = option(64, SIZE)  # rows that are filled at the same time
    epochs: int = option(0, NOT_NEGATIVE)  # passes over the data; 0: as many as the steps need
    # processes that prepare a stream's data; 0: in the main one
    workers: int = option(0, PROCESSES)
    # streams the records are shared out to, each read by one process; a batch has equal rows of
    # each; 0: as many as there are processes when the run starts
    shards: int = option(0, SIZE_OR_0, ties=DRAW)


@dataclasses.dataclass(frozen=True)
class Train:
    """The training loop."""

    steps: int = option(1000, AT_LEAST_1)  # optimizer steps
    batch_rows: int = option(16, SIZE)  # rows a step, over all hosts and micro-batches
    accumulate: int = option(1, SIZE)  # micro-batches a step
    # train these of the stage's trees alone, as `generator`; empty: all
    only: str = option("", ties=METHOD)
    # train the base itself instead of adapters (from scratch, quickstart)
    full: bool = option(False, ties=METHOD)
    # lambda of the alignment loss (paper, eq. of section 3.1)
    mse_weight: float = option(0.1, NOT_NEGATIVE)
    # its gradient: both (paper, release) or memory (text states fixed)
    mse_into: str = choice("both", "memory")
    # blocks of the cross-entropy over tokens; 1: all logits at once
    loss_chunks: int = option(1, SIZE)
    log_every: int = option(10, AT_LEAST_1)  # steps between lines of metrics.jsonl
    # steps between checkpoints; the last step is always saved
    checkpoint_every: int = option(500, AT_LEAST_1)
    keep_checkpoints: int = option(2, SIZE)  # newest checkpoints kept
    # steps between evaluations of the held-out CE; 0: never
    eval_every: int = option(0, NOT_NEGATIVE)
    tensorboard: bool = False  # also write TensorBoard events (needs tensorboardX)


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW and its learning rate."""

    learning_rate: float = option(1e-4, NOT_NEGATIVE)  # peak
    # cosine (to `final_fraction`) or constant, after the warm-up
    schedule: str = choice("cosine", "constant")
    warmup: float = option(0.03, BELOW_1)  # share of the steps
    final_fraction: float = option(0.1, SHARE)  # of the peak, at the last step of the cosine
    b1: float = option(0.9, BELOW_1)
    b2: float = option(0.95, BELOW_1)
    weight_decay: float = option(0.0, NOT_NEGATIVE)
    clip: float = option(1.0, SCALE)  # global gradient norm
    # learning rate of the memory embeddings over that of the rest
    memory_lr_scale: float = option(1.0, NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Where the memory vectors come from."""

    # states at memory tokens after the text (paper), or means of the text's own states
    kind: str = choice("tokens", "pool", inherited=True)
    # whom tokens of compressor and reasoner attend to: those before them (paper); or memory tokens
    # each other as well, or all tokens their whole document
    sees: str = choice("before", "memories", "all", inherited=True)
    # memory embeddings start at the mean of all (release), or at `tokens`
    init: str = choice("mean", "tokens")
    # standard deviation added, in units of the embeddings' own
    init_noise: float = option(0.0, NOT_NEGATIVE)
    # rotary positions of memory tokens: after the text, or spread over it
    positions: str = choice("after", "spread", inherited=True)


@dataclasses.dataclass(frozen=True)
class Select:
    """Ranking of a question's candidates, and the differentiable top-k (models/topk.py)."""

    # documents in a prompt; instruct takes that number of a record's, gold ones first
    k: int = option(5, SIZE)
    # Most candidates of a question in training, where gold ones are kept first, and as many as are
    # retrieved by eval.setting.
    candidates: int = option(20, SIZE)
    # of flattened memories (paper), or maxsim, mean (models/scores.py)
    score: str = choice("cosine", "maxsim", "mean")
    # see models/topk.py; `hard` gives the reasoner no gradient
    method: str = choice("straight_through", "gumbel", "softsort", "neuralsort", "lapsum", "hard")
    temperature: float = option(0.02, SCALE)  # tau of the relaxation, where the training starts
    # tau at its end, reached geometrically; 0: constant
    final_temperature: float = option(0.0, SCALE_OR_0)
    relative: bool = False  # tau in units of the scores' spread, of each micro-batch
    compat: bool = False  # taken candidates keep a factor of 1e-8 of the softmax (release)
    contrastive_temperature: float = option(0.02, SCALE)  # of InfoNCE
    # contrastive: of the KL to `teacher_scores` of the records
    teacher_weight: float = option(1.0, SCALE_OR_0)
    teacher_temperature: float = option(1.0, SCALE)  # of the softmax of those scores


@dataclasses.dataclass(frozen=True)
class Eval:
    """`--mode=evaluate`."""

    sources: str = ""  # records to evaluate on; empty: the dev side of data.sources
    records: int = option(100, NOT_NEGATIVE)  # the first ones; 0 = all
    batch: int = option(16, SIZE)  # records at once
    max_new_tokens: int = option(32, SIZE)  # of an answer
    # documents in a prompt, where there are candidates; 0: select.k, as trained
    k: int = option(0, SIZE_OR_0)
    rate: int = option(0, SIZE_OR_0)  # of the memories in a prompt; 0: the finest of training
    untrained: bool = False  # evaluate the model as it starts, before any training
    baselines: bool = True  # also without any document, and with its full text
    # Of evaluation/joint.py or scp.py, with commas, or `every`; empty: the usual ones.
    conditions: str = ""
    # Candidates of a question: given by its record; normal, the select.candidates best of all
    # documents of the sources by BM25; oracle, these with the gold ones put among them.
    setting: str = choice("given", "normal", "oracle")
    store: str = (
        ""  # memories from a store (--mode=compress) of all documents; empty: compressed again
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices: sizes of the three mesh axes."""

    data: int = 1  # replicas of the weights; -1: all devices left over
    fsdp: int = -1  # shards of weights and batch
    tensor: int = 1  # shards of heads and mlp


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Texts of the prompts; `{docs}` is where the memory slots go, `{question}` the question.

    `answer_system` is the release's own (golden/README.md, point 10): its weights need it. The
    others are ours; to continue from released SCP weights set the texts they were trained with.
    """

    answer_system: str = (
        "You are a helpful assistant. Your task is to extract relevant information from provided "
        "documents and to answer to questions as briefly as possible."
    )
    answer_user: str = "Background:\n{docs}\n\nQuestion:{question}"
    qa_system: str = (
        "You are a helpful assistant. Read the document, then write questions that cover what it "
        "says, each followed by its answer."
    )
    qa_user: str = "Background:\n{docs}"
    paraphrase_system: str = (
        "You are a helpful assistant. Follow the instruction about the background."
    )
    paraphrase_users: tuple[str, ...] = (
        "Background: {docs} Say the same in other words.",
        "Rewrite this background without changing its meaning: {docs}",
        "{docs} How else could this background be put?",
        "Express the content of the following in your own words: {docs}",
    )
    reconstruct_user: str = "Background: {docs} Repeat the background word for word."
    continue_user: str = "Background: {docs} Write what comes next."
    # that chat templates print as the day's, the same in training and in every question later; this
    # is the one that Llama's templates have where there is no clock
    date: str = option("2024-07-26", DAY)


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """`--mode=synthesize`: training data from documents by an OpenAI-compatible endpoint."""

    # questions and paraphrases of each document; or instruct, teacher's answers
    task: str = choice("scp", "instruct", ties=METHOD)
    base_url: str = ""  # of the endpoint, such as http://127.0.0.1:8000/v1; empty: OPENAI_BASE_URL
    model: str = option("", ties=METHOD)  # its name there; the key is OPENAI_API_KEY
    # of questions and paraphrases; checks are greedy
    temperature: float = option(0.7, NOT_NEGATIVE, ties=METHOD)
    max_tokens: int = option(1024, SIZE, ties=METHOD)  # of a reply
    timeout: float = option(120.0, SCALE)  # seconds for a reply
    # of a request, after errors of the network or the server, with backoff
    retries: int = option(5, NOT_NEGATIVE)
    # new requests for a reply that is not the JSON that was asked for
    repairs: int = option(2, NOT_NEGATIVE)
    concurrency: int = option(32, SIZE)  # requests in flight
    # of questions about what is not covered yet, at most
    rounds: int = option(10, NOT_NEGATIVE, ties=METHOD)
    # Documents whose questions still leave facts out then: exclude, as in the paper, or keep pairs.
    uncovered: str = choice("exclude", "keep", ties=METHOD)
    paraphrase: bool = option(True, ties=METHOD)  # also one paraphrase of each document
    documents: int = option(0, NOT_NEGATIVE)  # the first ones; 0 = all
    prompts: str = ""  # folder with prompts of your own; empty: those of the package
    demonstrations: str = ""  # file of worked examples that the prompts show
    language: str = option("English", ties=METHOD)  # of questions, answers and paraphrases
    tokenizer: str = ""  # that documents are measured with; empty: words and marks, a third more
    exclude: str = ""  # evaluation files, with commas: passages that occur in them are left out
    # Jaccard similarity from which a document is a copy; 1: exact
    near_duplicates: float = option(0.8, SHARE, SCALE)
    # of a million tokens read, for the estimate of the cost
    input_price: float = option(0.0, NOT_NEGATIVE)
    output_price: float = option(0.0, NOT_NEGATIVE)  # of a million tokens written


@dataclasses.dataclass(frozen=True)
class Serve:
    """`--mode=serve`: answers over HTTP from a store."""

    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0: all of the machine's
    port: int = option(8000, PORT)
    token_file: str = ""  # file with the bearer token; empty: CLARA_TOKEN, and without it none
    slots: int = option(8, SIZE)  # answers decoded at the same time
    queue: int = option(64, SIZE)  # requests that may wait; more get 429
    deadline: float = option(60.0, SCALE)  # seconds from a request to the end of its answer
    # most tokens of a prompt after the start that all prompts share
    prompt_tokens: int = option(512, SIZE)
    max_new_tokens: int = option(128, SIZE)  # most tokens of an answer
    cached: int = option(1024, SIZE)  # documents whose memories stay on the device
    body: int = option(2**20, AT_LEAST_1)  # most bytes of a request
    docs: bool = False  # also /docs and /openapi.json
    # of pages that may ask, with commas, such as https://example.com; empty: the server's own
    origins: str = ""


@dataclasses.dataclass(frozen=True)
class Store:
    """A store of compressed documents (`--mode=compress`)."""

    # of a new store's memories: bfloat16, or int8 with a scale a vector
    dtype: str = choice("bfloat16", "int8")
    # of a new store: documents, or pieces of long ones, that are written together
    part: int = option(1024, SIZE)
    batch: int = option(16, SIZE)  # documents compressed at once
    # lengths of rows are multiples of it: few shapes are compiled
    bucket: int = option(32, SIZE)


@dataclasses.dataclass(frozen=True)
class Search:
    """Search in a store of compressed documents (corpus/search)."""

    # candidates by keys of the memories, by bm25 (words), or both, fused
    by: str = choice("fused", "keys", "bm25")
    # numbers of a document's key, principal components of its memory
    key: int = option(512, SIZE)
    candidates: int = option(200, SIZE)  # documents of a question that are scored exactly
    # share of the trained score in the ranking of candidates, from 0, by BM25 alone, to 1; -1: as
    # fitted for the store (`--mode=compress --fit`), else 0.3, which leans on words
    alpha: float = option(-1.0, ALPHA)
    rescore: bool = True  # both scores order the candidates; else they keep their order
    # 2: search again with the question and the best document's text
    hops: int = option(1, ONE_OR_TWO)


@dataclasses.dataclass(frozen=True)
class Config:
    """All of a run."""

    # scp, instruct, e2e or contrastive
    stage: str = choice("scp", "instruct", "e2e", "contrastive")
    seed: int = option(0, SEED, ties=DRAW)  # of initialisation, dropout and data order
    # workdir of an earlier stage whose trained trees this one starts from
    init_from: str = option("", ties=DRAW)
    generator_init: str = choice("carry", "fresh")  # from there, or fresh (release, in instruct)
    # of the compressor (paper), or random; unless it is trained there
    reasoner_init: str = choice("copy", "random")
    # steps to trace for xprof into the workdir, after the first ten; 0: none
    profile: int = option(0, NOT_NEGATIVE, ties=NOTHING)
    # weight of InfoNCE beside e2e's loss, where gold is known
    aux_contrastive: float = option(0.0, SCALE_OR_0, ties=SCHEDULE)
    model: Model = option(Model(), ties=METHOD)
    lora: LoraConfig = option(LoraConfig(), ties=METHOD)
    data: Data = option(Data(), ties=METHOD)
    memory: Memory = option(Memory(), ties=METHOD)
    select: Select = option(Select(), ties=METHOD)
    train: Train = option(Train(), ties=SCHEDULE)
    optim: Optim = option(Optim(), ties=SCHEDULE)
    eval: Eval = option(Eval(), ties=NOTHING)
    mesh: Mesh = option(Mesh(), ties=NOTHING)
    prompts: Prompts = option(Prompts(), ties=METHOD)
    synthesis: Synthesis = option(Synthesis(), ties=NOTHING)
    serve: Serve = option(Serve(), ties=NOTHING)
    store: Store = option(Store(), ties=NOTHING)
    search: Search = option(Search(), ties=NOTHING)

    @property
    def rate(self) -> int:
        """The compression rate of memories, the finest that is trained."""
        return min(self.data.rates or (self.data.rate,))

    @property
    def memory_tokens(self) -> int:
        """M, memory vectors of one document."""
        return self.vectors_at(0)

    @property
    def vectors(self) -> tuple[int, ...]:
        """Memory vectors of a document in a prompt, at each rate of training; empty: all M."""
        return tuple(map(self.vectors_at, self.data.rates))

    def vectors_at(self, rate: int) -> int:
        """Memory vectors of a document in a prompt at a rate; 0: at the finest."""
        return self.data.document_length // (rate or self.rate)

    @property
    def pools(self) -> bool:
        """Whether memories are pooled from the text's states, without memory tokens."""
        return self.memory.kind == "pool"

    @property
    def spread(self) -> bool:
        """Whether the rotary positions of memory tokens are spread over their document."""
        return self.memory.positions == "spread"

    @property
    def places(self) -> int:
        """N, most documents of a question in training."""
        return self.select.k if STAGES[self.stage].instructs else self.select.candidates

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the trees that this run trains.

        With `train.full` the base takes the place of the adapters.
        """
        names = STAGES[self.stage].trained
        if self.pools and "compressor" in names:
            names = (*(name for name in names if name != "memory"), "pool")
        if self.train.full:
            names = ("base", *(name for name in names if name not in ADAPTERS))
        only = [name.strip() for name in self.train.only.split(",") if name.strip()]
        return tuple(name for name in names if name in only) if only else names


_PATHS = (
    "init_from",
    "model.base",
    "model.tokenizer",
    "data.memories",
    "data.tfds_dir",
    "eval.store",
    "synthesis.prompts",
    "synthesis.demonstrations",
    "serve.token_file",
)

# Every option by its dotted name.
OPTIONS: dict[str, Option] = dict(options(Config))


def tied(*ties: str) -> list[str]:
    """Dotted names of the options that are tied to one of METHOD, DRAW, SCHEDULE and NOTHING."""
    return [name for name, one in OPTIONS.items() if one.ties in ties]


def with_options(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values of some options, by their dotted names; nothing is checked."""
    for name, value in values.items():
        group, _, last = name.rpartition(".")
        if group:
            last, value = group, dataclasses.replace(getattr(config, group), **{last: value})
        config = dataclasses.replace(config, **{last: value})
    return config


def default() -> ml_collections.ConfigDict:
    """The defaults as a ConfigDict for `configs/*.py` to override; unknown keys raise there."""
    config = ml_collections.ConfigDict(dataclasses.asdict(Config()), convert_dict=True)
    return config.lock()


def freeze(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Checks a config tree and turns it into frozen dataclasses.

    Raises:
        UserError: an unknown key or a value of the wrong type, with its dotted name.
    """
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    frozen = build(Config, tree, "config")
    # After `=` shells leave a tilde as it is.
    frozen = with_options(frozen, {name: os.path.expanduser(get(frozen, name)) for name in _PATHS})
    validate(frozen, OPTIONS)
    return frozen


def absolute(config: Config) -> Config:
    """The config with absolute paths for the model and run that it builds on, where they exist.

    So that what a workdir's config.json names is found from any folder.
    """
    names = ["model.base", "model.tokenizer", "init_from"]
    paths = {name: get(config, name) for name in names}
    absolute_paths = {
        name: os.path.abspath(path) for name, path in paths.items() if os.path.exists(path)
    }
    if config.data.memories:
        absolute_paths["data.memories"] = os.path.abspath(config.data.memories)
    return with_options(config, absolute_paths)


def save(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes the config as JSON, all of it or nothing; `load` reads it back equal."""
    files.write(path, json.dumps(dataclasses.asdict(config), indent=2))


def differences(first: Config, second: Config, names: Iterable[str]) -> list[str]:
    """Dotted names of the options, or of those in groups, in which two configs differ."""
    below = tuple(f"{name}." for name in names)
    return [
        name
        for name in OPTIONS
        if f"{name}.".startswith(below) and get(first, name) != get(second, name)
    ]


def load(path: str | os.PathLike[str]) -> Config:
    """Reads a workdir's config.json.

    Raises:
        UserError: the file is missing or is no config of ours.
    """
    try:
        return freeze(json.loads(files.read(path)))
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file; is this a clara_jax workdir?") from e
    except (ValueError, RecursionError) as e:  # not JSON, or not even text
        raise UserError(f"{path}: not JSON ({e}); restore it from a copy") from e
