"""Every option once, with its default and a comment.

`configs/*.py` build a ConfigDict with `default()` and override a few lines. `freeze()` turns it
into the frozen dataclasses below, so that an unknown key or a wrong type fails at the border and
inner code never sees a ConfigDict. A workdir's `config.json` holds the same tree.
"""

import dataclasses
import json
import os
import types
import typing
from typing import Any

import ml_collections

from clara_jax import files
from clara_jax.config_checks import get, validate
from clara_jax.errors import UserError
from clara_jax.models.config import LoraConfig

# What each stage trains; everything else is frozen, gets no gradient and no optimizer state.
TRAINED: dict[str, tuple[str, ...]] = {
    "scp": ("compressor", "generator", "memory"),
    "instruct": ("compressor", "generator"),
    "e2e": ("reasoner", "generator"),
    "contrastive": ("reasoner",),
}
ADAPTERS = ("compressor", "reasoner", "generator")


@dataclasses.dataclass(frozen=True)
class Model:
    """The base LLM."""

    preset: str = "smollm2_135m"  # architecture (models/config.py) when there is no `base`
    base: str = ""  # HF directory, hub id or .gguf file; empty: random weights of `preset`
    tokenizer: str = ""  # HF directory or hub id, or `facts`; empty: the base's own
    vocab_size: int = 0  # overrides the preset's for random weights; 0: the preset's own
    dtype: str = "float32"  # of activations and matmuls: float32 or bfloat16
    param_dtype: str = "float32"  # of the base weights: float32, bfloat16, or int8 (matrices only)
    # What the forward pass keeps for the backward one: none of it is computed twice; dots, outputs
    # of matmuls; q,k,v,gate or so, those of these linear layers alone; full, the layers' inputs.
    remat: str = "none"
    attention: str = "auto"  # xla, splash (TPU kernel), cudnn (GPU kernel); auto: splash on TPUs


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on and how it is laid out in rows."""

    sources: str = (
        ""  # with commas: file.jsonl, tfds:name/split, reconstruct:file.jsonl, text:…, 3*file.jsonl
    )
    records: int = 0  # train on so many of them, chosen by the seed; 0: all
    answers: str = "gold"  # to train on in instruct: gold, or teacher (the base, from full texts)
    teacher_tokens: int = 64  # most new tokens of a teacher's answer
    memories: str = ""  # folder of memories computed once (e2e, contrastive); empty: in each step
    split: str = "train"  # train or dev: which side of `holdout` the sources give
    holdout: float = 0.0  # share of the documents (by title) that belong to dev
    tfds_dir: str = ""  # where TFDS keeps its data; empty: its default
    document_length: int = 256  # tokens of a document's text; longer ones are cut and counted
    rate: int = 16  # compression rate; M = document_length // rate memory tokens
    pack: bool = True  # several examples a row; false: one example a row, padded
    encoder_row: int = 0  # tokens a row of the compressor's batch; 0: measured on the data
    decoder_row: int = 0  # tokens a row of the generator's batch; 0: measured on the data
    row_examples: int = 16  # most examples packed into one row
    packing_bins: int = 64  # rows that are filled at the same time
    epochs: int = 0  # passes over the data; 0: as many as the steps need
    workers: int = 0  # processes that prepare a stream's data; 0: in the main one
    shards: int = 0  # streams the records are shared out to, each read by one process; a batch has
    # equal rows of each; 0: as many as processes when the run starts


@dataclasses.dataclass(frozen=True)
class Train:
    """The training loop."""

    steps: int = 1000  # optimizer steps
    batch_rows: int = 16  # rows a step, over all hosts and micro-batches
    accumulate: int = 1  # micro-batches a step
    only: str = ""  # train these of the stage's trees alone, as `generator`; empty: all
    full: bool = False  # train the base itself instead of adapters (from scratch, quickstart)
    mse_weight: float = 0.1  # lambda of the alignment loss (paper, eq. of section 3.1)
    mse_into: str = "both"  # its gradient: both (paper, release) or memory (text states fixed)
    loss_chunks: int = 1  # blocks of the cross-entropy over tokens; 1: all logits at once
    log_every: int = 10  # steps between lines of metrics.jsonl
    checkpoint_every: int = 500  # steps between checkpoints; the last step is always saved
    keep_checkpoints: int = 2  # newest checkpoints kept
    eval_every: int = 0  # steps between evaluations of the held-out CE; 0: never
    tensorboard: bool = False  # also write TensorBoard events (needs tensorboardX)


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW and its learning rate."""

    learning_rate: float = 1e-4  # peak
    schedule: str = "cosine"  # cosine (to `final_fraction`) or constant, after the warm-up
    warmup: float = 0.03  # share of the steps
    final_fraction: float = 0.1  # of the peak, at the last step of the cosine
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip: float = 1.0  # global gradient norm
    memory_lr_scale: float = 1.0  # learning rate of the memory embeddings over that of the rest


@dataclasses.dataclass(frozen=True)
class Memory:
    """The memory tokens."""

    init: str = "mean"  # memory embeddings start at the mean of all (release), or at `tokens`
    init_noise: float = 0.0  # standard deviation added, in units of the embeddings' own
    positions: str = "after"  # rotary positions of memory tokens: after the text, or spread over it


@dataclasses.dataclass(frozen=True)
class Select:
    """Ranking of a question's candidates, and the differentiable top-k (models/topk.py)."""

    k: int = 5  # documents in a prompt; instruct takes so many of a record's, gold ones first
    # Most candidates of a question in training, where gold ones are kept first, and as many as are
    # searched for by eval.setting.
    candidates: int = 20
    score: str = "cosine"  # of flattened memories (paper), or maxsim, mean (models/scores.py)
    method: str = "straight_through"  # see models/topk.py; `hard` gives the reasoner no gradient
    temperature: float = 0.02  # tau of the relaxation, where the training starts
    final_temperature: float = 0.0  # tau at its end, reached geometrically; 0: constant
    relative: bool = False  # tau in units of the scores' spread, of each micro-batch
    compat: bool = False  # taken candidates keep a factor of 1e-8 of the softmax (release)
    contrastive_temperature: float = 0.02  # of InfoNCE
    teacher_weight: float = 1.0  # contrastive: of the KL to `teacher_scores` of the records
    teacher_temperature: float = 1.0  # of the softmax of those scores


@dataclasses.dataclass(frozen=True)
class Eval:
    """`--mode=evaluate`."""

    sources: str = ""  # records to evaluate on; empty: the dev side of data.sources
    records: int = 100  # at most so many, from the start; 0: all
    batch: int = 16  # records at once
    max_new_tokens: int = 32  # of an answer
    k: int = 0  # documents in a prompt, where there are candidates; 0: select.k, as trained
    untrained: bool = False  # evaluate the model as it starts, before any training
    baselines: bool = True  # also without any document, and with its full text
    # Of evaluation/joint.py or scp.py, with commas, or `every`; empty: the usual ones.
    conditions: str = ""
    # Candidates of a question: given by its record; normal, the select.candidates best of all
    # documents of the sources by BM25; oracle, these with the gold ones put among them.
    setting: str = "given"
    store: str = ""  # memories from a store (--mode=compress) of all documents; empty: made anew


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


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """`--mode=synthesize`: training data from documents by an OpenAI-compatible endpoint."""

    task: str = "scp"  # questions and paraphrases of each document; or instruct, teacher's answers
    base_url: str = ""  # of the endpoint, such as http://127.0.0.1:8000/v1; empty: OPENAI_BASE_URL
    model: str = ""  # its name there; the key is OPENAI_API_KEY
    temperature: float = 0.7  # of questions and paraphrases; checks are greedy
    max_tokens: int = 1024  # of a reply
    timeout: float = 120.0  # seconds for a reply
    retries: int = 5  # of a request, after errors of the network or the server, with backoff
    repairs: int = 2  # new requests for a reply that is not the JSON that was asked for
    concurrency: int = 32  # requests in flight
    rounds: int = 10  # of questions about what is not covered yet, at most
    # Documents whose questions still leave facts out then: exclude, as in the paper, or keep pairs.
    uncovered: str = "exclude"
    paraphrase: bool = True  # also one paraphrase of each document
    documents: int = 0  # at most so many, from the start; 0: all
    prompts: str = ""  # folder with prompts of your own; empty: those of the package
    demonstrations: str = ""  # file of worked examples that the prompts show
    language: str = "English"  # of questions, answers and paraphrases
    tokenizer: str = ""  # that documents are measured with; empty: words and marks, a third more
    exclude: str = ""  # evaluation files, with commas: passages that occur in them are left out
    near_duplicates: float = 0.8  # Jaccard similarity from which a document is a copy; 1: exact
    input_price: float = 0.0  # of a million tokens read, for the estimate of the cost
    output_price: float = 0.0  # of a million tokens written


@dataclasses.dataclass(frozen=True)
class Serve:
    """`--mode=serve`: answers over HTTP from a store."""

    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0: all of the machine's
    port: int = 8000
    token_file: str = ""  # file with the bearer token; empty: CLARA_TOKEN, and without it none
    slots: int = 8  # answers decoded at the same time
    queue: int = 64  # requests that may wait; more get 429
    deadline: float = 60.0  # seconds from a request to the end of its answer
    prompt_tokens: int = 512  # most tokens of a prompt after the start that all prompts share
    max_new_tokens: int = 128  # most tokens of an answer
    cached: int = 1024  # documents whose memories stay on the device
    body: int = 2**20  # most bytes of a request


@dataclasses.dataclass(frozen=True)
class Store:
    """A store of compressed documents (`--mode=compress`)."""

    dtype: str = "bfloat16"  # of a new store's memories: bfloat16, or int8 with a scale a vector
    part: int = 1024  # of a new store: documents, or pieces of long ones, that are written together
    batch: int = 16  # documents compressed at once
    bucket: int = 32  # lengths of rows are multiples of it: few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Search:
    """Search in a store of compressed documents (corpus/search)."""

    by: str = "fused"  # candidates by keys of the memories, by bm25 (words), or both, fused
    key: int = 512  # numbers of a document's key, principal components of its memory
    candidates: int = 200  # documents of a question that are scored exactly
    rescore: bool = True  # the trained score decides; else candidates keep their order
    hops: int = 1  # 2: search again with the question and the best document's text


@dataclasses.dataclass(frozen=True)
class Config:
    """All of a run."""

    stage: str = "scp"  # scp, instruct, e2e or contrastive
    seed: int = 0  # of initialisation, dropout and data order
    init_from: str = ""  # workdir of an earlier stage whose trained trees this one starts from
    generator_init: str = "carry"  # from there, or fresh (release, in instruct)
    reasoner_init: str = "copy"  # of the compressor (paper), or random; unless it is trained there
    profile: int = 0  # steps to trace for xprof into the workdir, after the first ten; 0: none
    aux_contrastive: float = 0.0  # weight of InfoNCE beside e2e's loss, where gold is known
    model: Model = Model()
    lora: LoraConfig = LoraConfig()
    data: Data = Data()
    memory: Memory = Memory()
    select: Select = Select()
    train: Train = Train()
    optim: Optim = Optim()
    eval: Eval = Eval()
    mesh: Mesh = Mesh()
    prompts: Prompts = Prompts()
    synthesis: Synthesis = Synthesis()
    serve: Serve = Serve()
    store: Store = Store()
    search: Search = Search()

    @property
    def memory_tokens(self) -> int:
        """M, memory vectors of one document."""
        return self.data.document_length // self.data.rate

    @property
    def places(self) -> int:
        """N, most documents of a question in training."""
        return self.select.k if self.stage == "instruct" else self.select.candidates

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the trees that this run trains.

        With `train.full` the base takes the place of the adapters.
        """
        names = TRAINED[self.stage]
        if self.train.full:
            names = ("base", *(name for name in names if name not in ADAPTERS))
        only = [name.strip() for name in self.train.only.split(",") if name.strip()]
        return tuple(name for name in names if name in only) if only else names


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
    frozen = _build(Config, tree, "config")
    validate(frozen)
    return frozen


def absolute(config: Config) -> Config:
    """The config with absolute paths for the model and run that it builds on, where they exist.

    So that what a workdir's config.json names is found from any folder.
    """

    def path(name: str) -> str:
        return os.path.abspath(name) if name and os.path.exists(name) else name

    model = dataclasses.replace(
        config.model, base=path(config.model.base), tokenizer=path(config.model.tokenizer)
    )
    data = config.data
    if data.memories:
        data = dataclasses.replace(data, memories=os.path.abspath(data.memories))
    return dataclasses.replace(config, model=model, data=data, init_from=path(config.init_from))


def save(config: Config, path: str | os.PathLike[str]) -> None:
    """Writes the config as JSON, all of it or nothing; `load` reads it back equal."""
    files.write(path, json.dumps(dataclasses.asdict(config), indent=2))


def differences(first: Config, second: Config, names: tuple[str, ...]) -> list[str]:
    """Dotted names of the options below `names` in which two configs differ."""
    found = []
    for name in names:
        one, other = get(first, name), get(second, name)
        if dataclasses.is_dataclass(one):
            below = tuple(f"{name}.{field.name}" for field in dataclasses.fields(one))
            found += differences(first, second, below)
        elif one != other:
            found.append(name)
    return found


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


def _build(cls: type, tree: Any, name: str) -> Any:
    if not isinstance(tree, dict):
        raise UserError(f"{name} must be a group of options, not {tree!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise UserError(f"unknown option {name}.{unknown[0]}; known: {', '.join(hints)}")
    values = {}
    for key, value in tree.items():
        values[key] = _convert(hints[key], value, f"{name}.{key}")
    try:
        return cls(**values)
    except ValueError as e:
        raise UserError(f"{name}: {e}") from e


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, name)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise UserError(f"{name} must be a list, not {value!r}")
        return tuple(_convert(typing.get_args(hint)[0], v, name) for v in value)
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{name} must be {hint.__name__}, not {value!r}")
    return value
