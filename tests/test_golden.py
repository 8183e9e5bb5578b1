"""Golden numbers: what each stage makes of a tiny model, from records to gradients and answers.

Everything goes the way of a user: a base in the Hugging Face layout, adapters in a native folder
and records in files, all made here by formulas that no random generator has a part in; `train`, and
`clara_jax.load` of what it leaves. Tokens are characters, so that prompts are guarded to the letter
and a text says which tokens were generated.

    python tests/test_golden.py    writes tests/golden/*.json again, to be looked at with git diff
"""

import dataclasses
import json
import pathlib
import tempfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import clara_jax
from clara_jax import config as config_lib
from clara_jax.config import Config, Data, Eval, Mesh, Model, Optim, Select, Train
from clara_jax.models import scores, topk
from clara_jax.models.config import LoraConfig
from clara_jax.training.inputs import open_inputs
from clara_jax.training.train import train

FOLDER = pathlib.Path(__file__).parent / "golden"
RENEW = (
    "numbers of the method differ from tests/golden. If no change of them is meant, this is a "
    "fault. Else renew them with `python tests/test_golden.py`, look at the difference, and say in "
    "the commit why the numbers change."
)
NAMES = ("scp", "instruct", "e2e", "contrastive", "choice")

D, F, LAYERS, HEADS, KV_HEADS, HEAD, RANK, M = 32, 48, 2, 4, 2, 8, 4, 4
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHARACTERS = ["\n", *map(chr, range(32, 127))]
VOCABULARY = len(CHARACTERS) + len(SPECIALS)
WORDS = ("red", "a grey goat", "seventeen", "Kelton", "honey and figs", "(none)", "at sea", "x")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Linear layers: part and name in the base, part and name in adapters, sizes of input and output.
LINEARS = [
    *(("self_attn", f"{x}_proj", "attention", x, D, KV_HEADS * HEAD) for x in "kv"),
    *(("self_attn", f"{x}_proj", "attention", x, D, D) for x in "qo"),
    *(("mlp", f"{x}_proj", "mlp", x, D, F) for x in ("gate", "up")),
    ("mlp", "down_proj", "mlp", "down", F, D),
]


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of mean 0 and deviation 1 that look random: a hash of name and position."""
    x = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 20)
    for factor, shift in ((0x9E3779B97F4A7C15, 30), (0xBF58476D1CE4E5B9, 27), (1, 31)):
        x = x * np.uint64(factor)
        x ^= x >> np.uint64(shift)
    return ((x / 2.0**64 - 0.5) * 12**0.5).reshape(shape).astype(np.float32)


def write_base(folder: pathlib.Path) -> None:
    """A llama of two layers with fewer heads of keys than of queries, and its tokenizer."""
    settings = {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": D, "intermediate_size": F,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "head_dim": HEAD,
        "num_key_value_heads": KV_HEADS, "rope_theta": 500.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }  # fmt: skip
    shapes = {"model.embed_tokens": (VOCABULARY, D), "lm_head": (VOCABULARY, D), "model.norm": (D,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {layer + f"{part}.{name}": (n, m) for part, name, _, _, m, n in LINEARS}
        shapes |= {layer + f"{x}_layernorm": (D,) for x in ("input", "post_attention")}
    tensors = {}
    for name, shape in shapes.items():
        x = drawn(name, shape)
        is_scale = len(shape) == 1
        tensors[f"{name}.weight"] = 1 + 0.1 * x if is_scale else x * shape[1] ** -0.5
    tensors["lm_head.weight"] *= 4  # one token is clearly the likeliest
    tensors["model.embed_tokens.weight"] *= D**0.5
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *CHARACTERS])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"(?m)."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(SPECIALS)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=CHATML
    ).save_pretrained(folder)


def write_start(folder: pathlib.Path, config: Config) -> None:
    """All that stages start from: three adapters that do something, and the memory tokens."""
    trees = {"memory": drawn("memory", (M, D)), "added/embed": drawn("added", (3, D))}
    for adapter in ("compressor", "reasoner", "generator"):
        for _, _, part, name, n_in, n_out in LINEARS:
            path = f"{adapter}/layers/{part}/{name}"
            trees[f"{path}/a"] = drawn(f"{path}/a", (LAYERS, RANK, n_in)) * n_in**-0.5
            trees[f"{path}/b"] = drawn(f"{path}/b", (LAYERS, RANK, n_out)) * 0.3
    folder.mkdir()
    save_file(trees, folder / "weights.safetensors", {"format": "clara_jax", "step": "0"})
    config_lib.save(config, folder / "config.json")


def word(*key: int | str) -> str:
    return WORDS[zlib.crc32(repr(key).encode()) % len(WORDS)]


def document(i: int) -> str:
    facts = [f"Its {part} is {word(i, part)}." for part in ("colour", "port", "price")[: 1 + i % 3]]
    return f"Ship {i}\n{' '.join(facts)}"


def question(i: int) -> str:
    return f"What is the colour of ship {i}?"


def write_records(folder: pathlib.Path) -> None:
    """Documents of 30 to 90 characters, some of them cut; some questions know no gold document."""
    scp, questions = [], []
    for i in range(12):
        record = {"data_type": "paraphrase", "question": [], "answers": [f"{word(i)}: ship {i}."]}
        if i % 4 < 3:
            record = {"data_type": "qa", "question": ["Which ship?", "Which colour?"]}
            record["answers"] = [f"{i}", word(i, "colour")]
        scp.append({"docs": [document(i)], **record})
        n = 3 + i % 4
        record = {
            "question": question(i),
            "docs": [document((i + 5 * j) % 12) for j in range(n)],
            "answer": word(i, "colour"),
        }
        record["docs"].insert(i % n, record["docs"].pop(0))
        if i % 5:
            record["pos_index"] = [i % n, (i + 1) % n] if i % 3 == 0 else [i % n]
        if i % 2:
            record["teacher_scores"] = [float(zlib.crc32(d.encode()) % 7) for d in record["docs"]]
        questions.append(record)
    for name, records in (("scp", scp), ("questions", questions)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)


def make(folder: pathlib.Path) -> pathlib.Path:
    write_base(folder / "base")
    write_records(folder)
    write_start(folder / "start", dataclasses.replace(config_of("e2e", folder), init_from=""))
    return folder


def config_of(stage: str, folder: pathlib.Path) -> Config:
    return Config(
        stage=stage,
        init_from=str(folder / "start"),
        model=Model(base=str(folder / "base")),
        lora=LoraConfig(rank=RANK, alpha=8.0, dropout=0.0),
        data=Data(
            sources=str(folder / ("scp.jsonl" if stage == "scp" else "questions.jsonl")),
            document_length=64,
            rate=64 // M,
            decoder_row=480 if stage == "scp" else 0,  # two or three examples; 0: measured
            packing_bins=4,
        ),
        select=Select(k=2, candidates=5),
        train=Train(steps=3, batch_rows=4, log_every=1, checkpoint_every=3),
        optim=Optim(learning_rate=1e-3),
        eval=Eval(batch=4),
        mesh=Mesh(fsdp=1),
    )


def summary(array: np.ndarray) -> str | list[float]:
    """Shape and checksum of ids; of other numbers the norm and the first four."""
    array = np.asarray(array)
    if array.dtype.kind in "iu":
        shape = "x".join(map(str, array.shape))
        return f"{shape} {zlib.crc32(array.astype('<i4').tobytes()):08x}"
    return [float(np.linalg.norm(array)), *array.ravel()[:4].tolist()]


def measure_stage(stage: str, folder: pathlib.Path) -> dict[str, Any]:
    """Trains three steps: what they read and log, and what the model does afterwards."""
    workdir = folder / stage
    assert train(config_of(stage, folder), str(workdir)) == 0
    clara = clara_jax.load(workdir)
    batch = next(open_inputs(clara.model, clara.trees, str(workdir)).train)
    values = {f"batch/{name}": summary(array) for name, array in batch.items()}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        names = [name for name in line if "_per_s" not in name and not name.startswith("time/")]
        values |= {f"step {line['step']}/{name}": line[name] for name in names if name != "step"}
    questions = [question(i) for i in range(2)]
    memories_NMD = clara.compress([document(i) for i in range(6)])
    values |= {f"memory/{i}": summary(memory_MD) for i, memory_MD in enumerate(memories_NMD)}
    if stage == "scp":
        answers = clara.answer_scp(questions, memories_NMD[:2], max_new_tokens=8)
        return values | {f"answer/{i}": text for i, text in enumerate(answers)}
    for i, query_MD in enumerate(clara.encode_query(questions)):
        values[f"query/{i}"] = summary(query_MD)
    for i, answer in enumerate(
        clara.ask(questions, [memories_NMD, memories_NMD[1:4]], max_new_tokens=8)
    ):
        values |= {f"answer/{i}": answer.text, f"chosen/{i}": list(answer.indices)}
        values[f"scores/{i}"] = list(answer.scores)
    return values


def measure_choice() -> dict[str, Any]:
    """Scores of each kind; what each relaxation of the choice chooses, and its gradient."""
    query_BMD, memories_BNMD = drawn("query", (2, M, D)), drawn("memories", (2, 6, M, D))
    values = {}
    for kind in scores.KINDS:
        values[f"score/{kind}"] = scores.score(query_BMD, memories_BNMD, kind).ravel().tolist()
    scores_BN, pull_BKN = 0.05 * drawn("scores", (2, 6)), drawn("pull", (2, 3, 6))
    mask_BN = np.arange(6) < np.array([[6], [2]])
    ways = [(method, False) for method in topk.METHODS] + [("straight_through", True)]

    def pulled(scores_BN, method, compat):
        weights_BKN, indices_BK = topk.select(
            scores_BN, 3, method, 0.02, mask_BN=mask_BN, compat=compat
        )
        return jnp.sum(weights_BKN * pull_BKN), indices_BK

    @jax.jit
    def choose(scores_BN):
        return [jax.grad(pulled, has_aux=True)(scores_BN, *way) for way in ways]

    for (method, compat), (gradient_BN, indices_BK) in zip(ways, choose(scores_BN), strict=True):
        name = f"{method}, compat" if compat else method
        values[f"chosen/{name}"] = indices_BK.ravel().tolist()
        values[f"gradient/{name}"] = gradient_BN.ravel().tolist()
    return values


def measure(name: str, folder: pathlib.Path) -> dict[str, Any]:
    return measure_choice() if name == "choice" else measure_stage(name, folder)


def is_close(found: Any, expected: Any) -> bool:
    if isinstance(found, str) or isinstance(expected, str):
        return found == expected
    largest = np.max(np.abs(expected), initial=0) if isinstance(expected, list) else 0
    return found == pytest.approx(expected, rel=1e-4, abs=1e-5 * largest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return make(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_golden_ones(name, folder):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    found = measure(name, folder)
    differences = [
        f"{name}.json: {key} is {found.get(key)!r}, it was {expected.get(key)!r}"
        for key in sorted(expected.keys() | found.keys())
        if not is_close(found.get(key), expected.get(key))
    ]
    assert not differences, "\n".join([*differences, RENEW])


def shorter(text: str) -> float:
    return float(f"{float(text):.7g}")


def renew() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(pathlib.Path(folder))
        for name in NAMES:
            values = measure(name, pathlib.Path(folder))
            values = json.loads(json.dumps(values), parse_float=shorter)
            lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in values.items())
            (FOLDER / f"{name}.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    renew()
