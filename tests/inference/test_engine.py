import dataclasses
import json
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import clara_jax
from clara_jax import config as config_lib
from clara_jax.config import Data, Prompts
from clara_jax.data import prompts as prompts_lib
from clara_jax.data.facts import FactsSource
from clara_jax.errors import UserError
from clara_jax.inference.engine import Clara, compress
from clara_jax.inference.generate import Prompt, generate, prompt_batches
from clara_jax.models import clara as model_lib
from clara_jax.training import setup as setup_lib
from clara_jax.training.checkpoint import Checkpoints

DOCUMENTS = [FactsSource(9, seed=3)[i].document for i in range(9)]
DOCUMENTS[4] = " ".join(DOCUMENTS)  # too long
DOCUMENTS[6] = "red fox"


@pytest.fixture(scope="module")
def setup(random_setup):
    return random_setup(Data(document_length=40, rate=10), 5)


def test_import_is_cheap():
    code = "import sys, clara_jax; assert 'jax' not in sys.modules; assert callable(clara_jax.load)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="loud"):
        clara_jax.loud  # noqa: B018


def test_compress_keeps_order_and_shape(setup, caplog):
    together = compress(setup, DOCUMENTS, batch=4)
    assert together.memories.shape == (9, 4, 128)
    assert together.memories.dtype == np.float32
    assert together.cut == 1
    lengths = [min(len(setup.tokenizer.encode(d)), 40) for d in DOCUMENTS]
    # A document that is cut keeps its limit of 40 + 3 tokens, of which eos is none.
    assert together.rate == pytest.approx(sum(lengths) / 36)
    for document, memory in zip(DOCUMENTS, together.memories, strict=True):
        ids, _ = prompts_lib.document_ids(setup.tokenizer, setup.extra, document, 40)
        ids = jnp.asarray(ids)[None]
        ones = jnp.ones_like(ids)
        hidden = model_lib.encode(
            setup.decoder, setup.trees, ids, jnp.arange(ids.shape[1])[None], ones
        )
        np.testing.assert_allclose(memory, hidden[0, -4:], atol=1e-4)
    assert Clara(setup).compress([]).shape == (0, 4, 128)


def test_memories_stand_for_their_texts(setup):
    clara = Clara(setup, batch=4)
    memories = clara.compress(DOCUMENTS)
    texts = clara.paraphrase(DOCUMENTS, max_new_tokens=5)
    assert len(set(texts)) > 1
    assert clara.paraphrase(memories, max_new_tokens=5) == texts
    questions = ["who is this ?"] * len(DOCUMENTS)
    answers = clara.answer_scp(questions, DOCUMENTS, max_new_tokens=5)
    assert clara.answer_scp(questions, jnp.asarray(memories), max_new_tokens=5) == answers
    assert not any("\n" in answer for answer in answers)
    assert clara.paraphrase(list(memories), max_new_tokens=5) == texts


def test_user_mistakes(setup, tmp_path):
    clara = Clara(setup)
    with pytest.raises(UserError, match=r"\[2, 3, 128\].*\[n, 4, 128\]"):
        clara.paraphrase(np.zeros((2, 3, 128), np.float32))
    with pytest.raises(UserError, match="1 questions for 2 documents"):
        clara.answer_scp(["who ?"], DOCUMENTS[:2])
    with pytest.raises(UserError, match="neither a workdir nor a CLaRa release"):
        clara_jax.load(tmp_path)
    for path in (None, 3):
        with pytest.raises(UserError, match="path must be a path"):
            clara_jax.load(path)
    with pytest.raises(UserError, match="base must be a path"):
        clara_jax.load(tmp_path, base=3)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("a text", "documents must be a list of texts, not one str"),
        (None, "documents must be a list of texts, not one NoneType"),
        (["a", 1], r"documents\[1\] must be a text, not int"),
        ([None], r"documents\[0\] must be a text, not NoneType"),
        (["\ud800"], r"documents\[0\] holds half of a surrogate pair"),
        (["a", np.zeros((4, 128))], r"documents\[1\] must be a text, not ndarray"),
    ],
)
def test_what_is_no_list_of_texts(setup, documents, message):
    clara = Clara(setup)
    for use in (clara.compress, clara.paraphrase, lambda x: clara.answer_scp(["who ?"], x)):
        with pytest.raises(UserError, match=message):
            use(documents)


def test_other_mistakes_of_a_call(setup):
    clara = Clara(setup)
    with pytest.raises(UserError, match="questions must be a list of texts"):
        clara.answer_scp("who", ["a", "b", "c"])
    with pytest.raises(UserError, match=r"shapes \[\(3, 128\), \(4, 128\)\], .*\[4, 128\]"):
        clara.paraphrase([np.zeros((4, 128)), np.zeros((3, 128))])
    for most in (0, -1, 1.5, None):
        with pytest.raises(UserError, match="max_new_tokens="):
            clara.paraphrase(["a"], max_new_tokens=most)
        with pytest.raises(UserError, match="max_new_tokens="):
            clara.answer_scp(["who ?"], ["a"], max_new_tokens=most)


def test_load_a_workdir(setup, tmp_path):
    config_lib.save(setup.config, tmp_path / "config.json")
    trained = {name: setup.trees[name] for name in ("compressor", "generator", "memory")}
    with Checkpoints(str(tmp_path), 1) as checkpoints:
        checkpoints.save(3, trained, {"count": jnp.zeros(())}, {"position": 0})
    clara = clara_jax.load(tmp_path)
    # Only what is trained is in a checkpoint: the others are drawn again from the seed.
    fresh = setup_lib.create(setup.config, setup.mesh)
    expected = dataclasses.replace(setup, trees={**fresh.trees, **trained})
    np.testing.assert_allclose(
        clara.compress(DOCUMENTS[:3]), Clara(expected).compress(DOCUMENTS[:3]), atol=1e-4
    )


# --- Against what the PyTorch release gave -------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    texts = json.loads((folder / "texts.json").read_text())["examples"]
    with np.load(folder / "golden_mistral.npz") as file:
        arrays = {k: file[k] for k in file.files if "grad" not in k}
    scalars = json.loads((folder / "golden_mistral.json").read_text())
    return folder, texts, arrays, scalars


def load_release(folder, stage):
    return clara_jax.load(folder / f"ckpt_mistral_{stage}", base=folder / "base_mistral")


def test_release_needs_its_base(golden):
    with pytest.raises(UserError, match=r"give base=.*tiny-mistral-from-the-author"):
        clara_jax.load(golden[0] / "ckpt_mistral_stage1")


def test_release_memories(golden):
    folder, texts, arrays, _ = golden
    clara = load_release(folder, "stage1")
    memories = clara.compress([example["docs"][0] for example in texts])
    np.testing.assert_allclose(memories, arrays["stage1_qa/memory"], atol=1e-4)
    clara = load_release(folder, "stage2")
    memories = clara.compress([document for example in texts for document in example["docs"]])
    np.testing.assert_allclose(memories, arrays["stage2/memory"], atol=1e-4)


def embeddings(setup, prompts):
    """Input embeddings of each prompt, in order, without padding."""
    out = [None] * len(prompts)
    for index, batch in prompt_batches(prompts, setup.extra, 2):
        x_BTD = np.asarray(batch.embed(setup.model, setup.trees))
        for i, x, length in zip(index, x_BTD, batch.lengths_B, strict=False):
            out[i] = x[:length]
    return out


def golden_embeddings(arrays, name):
    """The release pads on the left."""
    rows = zip(arrays[f"{name}/inputs_embeds"], arrays[f"{name}/attention_mask"], strict=True)
    return [x[mask > 0] for x, mask in rows]


def test_release_paraphrases(golden):
    folder, texts, arrays, scalars = golden
    clara = load_release(folder, "stage1")
    documents = [example["docs"][0] for example in texts]
    memories = clara.compress(documents)
    expected_x = golden_embeddings(arrays, "gen_paraphrase")
    # The release draws an instruction for each row; all of them are in the recorded prompts.
    slots = "".join(f"<MEM{i}>" for i in range(4)) + "<SEP>"
    turns = {
        re.match(r".*?system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\n(.*?)<\|im_end\|>",
                 row["text"].replace(slots, "{docs}"), re.DOTALL).groups()
        for row in scalars["paraphrase_prompts"]
    }  # fmt: skip
    found = set()
    for system, user in sorted(turns):
        prompts = Prompts(paraphrase_system=system, paraphrase_users=(user,))
        config = dataclasses.replace(clara.setup.config, prompts=prompts)
        asked = Clara(dataclasses.replace(clara.setup, config=config), batch=2)
        ids = prompts_lib.scp_prompt(
            asked.setup.tokenizer,
            prompts,
            prompts_lib.ScpRecord("paraphrase", (), ("",), "", ""),
            prompts_lib.slots(asked.setup.extra),
        )
        x = embeddings(asked.setup, [Prompt(ids, memory) for memory in memories])
        rows = [
            i for i in range(4)
            if x[i].shape == expected_x[i].shape and np.abs(x[i] - expected_x[i]).max() < 1e-4
        ]  # fmt: skip
        if not rows:
            continue
        found |= set(rows)
        generations = generate(asked.setup, [Prompt(ids, m) for m in memories], 16, batch=2)
        by_text = asked.paraphrase(documents, max_new_tokens=16)
        by_memory = asked.paraphrase(memories, max_new_tokens=16)
        for i in rows:
            assert generations[i].tokens == arrays["gen_paraphrase/output_ids"][i].tolist()
            expected = scalars["gen_paraphrase/texts"][i].strip()
            assert by_text[i] == by_memory[i] == expected
    assert found == {0, 1, 2, 3}, "no recorded instruction gives the release's input embeddings"


def test_release_answers_from_text(golden):
    folder, texts, arrays, scalars = golden
    setup = load_release(folder, "stage2").setup
    asked = []
    for i, example in enumerate(texts):
        ids, _ = prompts_lib.answer_prompt(
            setup.tokenizer,
            setup.config.prompts,
            prompts_lib.slots(setup.extra, 2),
            example["question"],
        )
        vectors = arrays["stage1_2/memory"][2 * i : 2 * i + 2].reshape(8, -1)
        asked.append(Prompt(ids, vectors))
    for ours, theirs in zip(
        embeddings(setup, asked), golden_embeddings(arrays, "gen_from_text"), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    generations = generate(setup, asked, 16, batch=4)
    for i, generation in enumerate(generations):
        assert generation.tokens == arrays["gen_from_text/output_ids"][i].tolist()
        assert generation.text == scalars["gen_from_text/texts"][i]
