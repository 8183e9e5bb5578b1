"""The Python interface against what the PyTorch release gave for its checkpoints.

They are loaded as they are, imported, and in every form that they are exported to.
"""

import dataclasses
import json
import re

import numpy as np
import pytest

import clara_jax
from clara_jax.api import Clara
from clara_jax.config import Prompts
from clara_jax.data import prompts as prompts_lib
from clara_jax.errors import UserError
from clara_jax.exchange import export_model, import_model
from clara_jax.inference.answers import answer_prompts
from clara_jax.inference.generate import Prompt, generate, prompt_batches
from clara_jax.inference.sampling import GenerationOptions

NEW = GenerationOptions(16)


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden"
    texts = json.loads((folder / "texts.json").read_text())["examples"]
    with np.load(folder / "golden_mistral.npz") as file:
        arrays = {k: file[k] for k in file.files if "grad" not in k}
    scalars = json.loads((folder / "golden_mistral.json").read_text())
    return folder, texts, arrays, scalars


WAYS = ["as it is", "imported", "native", "peft", "release"]


@pytest.fixture(scope="module", params=WAYS)
def load_release(golden, request, tmp_path_factory):
    """Loads the checkpoint of a stage by way of an import or an export."""
    made = {}

    def load(stage):
        if stage not in made:
            source, base = golden[0] / f"ckpt_mistral_{stage}", golden[0] / "base_mistral"
            if request.param != "as it is":
                folder = tmp_path_factory.mktemp(stage)
                import_model.run(str(source), str(folder / "imported"), str(base))
                source, base = folder / "imported", None
            if request.param not in ("as it is", "imported"):
                export_model.run(str(source), request.param, str(folder / "exported"))
                source, base = folder / "exported", golden[0] / "base_mistral"
            made[stage] = clara_jax.load(source, base=base)
        return made[stage]

    return load


def test_release_needs_its_base(release):
    with pytest.raises(UserError, match=r"as base=.*tiny-mistral-from-the-author"):
        clara_jax.load(release / "ckpt_mistral_stage1")


def test_release_memories(golden, load_release):
    _, texts, arrays, _ = golden
    clara = load_release("stage1")
    memories = clara.compress([example["docs"][0] for example in texts])
    np.testing.assert_allclose(memories, arrays["stage1_qa/memory"], atol=1e-4)
    clara = load_release("stage2")
    memories = clara.compress([document for example in texts for document in example["docs"]])
    np.testing.assert_allclose(memories, arrays["stage2/memory"], atol=1e-4)


def embeddings(setup, prompts):
    """Input embeddings of each prompt, in order, without padding."""
    out = [None] * len(prompts)
    for index, batch in prompt_batches(prompts, setup.model.extra, 2):
        x_BTD = np.asarray(batch.embed(setup.model.architecture, setup.trees))
        for i, x, length in zip(index, x_BTD, batch.lengths_B, strict=False):
            out[i] = x[:length]
    return out


def golden_embeddings(arrays, name):
    """The release pads on the left."""
    rows = zip(arrays[f"{name}/inputs_embeds"], arrays[f"{name}/attention_mask"], strict=True)
    return [x[mask > 0] for x, mask in rows]


@pytest.mark.parametrize(
    "load_release",
    ["as it is", *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:])],
    indirect=True,
    scope="module",
)
def test_release_paraphrases(golden, load_release):
    _, texts, arrays, scalars = golden
    clara = load_release("stage1")
    documents = [example["docs"][0] for example in texts]
    memories = clara.compress(documents)
    expected_x = golden_embeddings(arrays, "gen_paraphrase")
    # The release draws an instruction for each row; all of them are in the recorded prompts.
    slots = "".join(f"<MEM{i}>" for i in range(4)) + "<SEP>"
    turns = {
        re.match(
            r".*?system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\n(.*?)<\|im_end\|>",
            row["text"].replace(slots, "{docs}"),
            re.DOTALL,
        ).groups()
        for row in scalars["paraphrase_prompts"]
    }
    found = set()
    for system, user in sorted(turns):
        prompts = Prompts(paraphrase_system=system, paraphrase_users=(user,))
        config = dataclasses.replace(clara.model.config, prompts=prompts)
        asked = Clara(dataclasses.replace(clara.model, config=config), clara.trees, batch=2)
        layout = asked.model.layout
        record = prompts_lib.ScpRecord("paraphrase", (), ("",), "", "")
        ids = layout.scp_prompt(record, layout.slots())
        x = embeddings(asked, [Prompt(ids, memory) for memory in memories])
        rows = [
            i
            for i in range(4)
            if x[i].shape == expected_x[i].shape and np.abs(x[i] - expected_x[i]).max() < 1e-4
        ]
        if not rows:
            continue
        found |= set(rows)
        generations = generate(
            asked.model, asked.trees, [Prompt(ids, m) for m in memories], NEW, batch=2
        )
        by_text = asked.paraphrase(documents, max_new_tokens=16)
        by_memory = asked.paraphrase(memories, max_new_tokens=16)
        for i in rows:
            assert generations[i].tokens == arrays["gen_paraphrase/output_ids"][i].tolist()
            expected = scalars["gen_paraphrase/texts"][i].strip()
            assert by_text[i] == by_memory[i] == expected
    assert found == {0, 1, 2, 3}, "no recorded instruction gives the release's input embeddings"


def test_release_answers_from_text(golden, load_release):
    _, texts, arrays, scalars = golden
    setup = load_release("stage2")
    asked = []
    for i, example in enumerate(texts):
        layout = setup.model.layout
        ids, _ = layout.answer_prompt(layout.slots(2), example["question"])
        vectors = arrays["stage1_2/memory"][2 * i : 2 * i + 2].reshape(8, -1)
        asked.append(Prompt(ids, vectors))
    for ours, theirs in zip(
        embeddings(setup, asked), golden_embeddings(arrays, "gen_from_text"), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    generations = generate(setup.model, setup.trees, asked, NEW, batch=4)
    for i, generation in enumerate(generations):
        assert generation.tokens == arrays["gen_from_text/output_ids"][i].tolist()
        assert generation.text == scalars["gen_from_text/texts"][i]
    # The same through the interface: the documents are the first two of each question.
    clara = Clara(setup.model, setup.trees)
    found = clara.answer(
        [example["question"] for example in texts],
        [example["docs"][:2] for example in texts],
        max_new_tokens=16,
    )
    assert found == [text.strip() for text in scalars["gen_from_text/texts"]]


def test_release_ranks_and_answers(golden, load_release):
    _, texts, arrays, scalars = golden
    clara = load_release("stage2")
    questions = [example["question"] for example in texts]
    candidates = [example["docs"] for example in texts]
    queries = clara.encode_query(questions).reshape(4, -1)
    for name in ("query_reps", "query_reps_inference_padding"):
        np.testing.assert_allclose(queries, arrays[f"stage2/{name}"], atol=1e-4)
    np.testing.assert_allclose(
        clara.rank(questions, candidates), arrays["stage2/scores"], atol=1e-4
    )
    assert clara.model.config.select.k == 2  # the release's own
    found = clara.ask(questions, candidates, max_new_tokens=16)
    indices = np.array([answer.indices for answer in found])
    np.testing.assert_array_equal(indices, arrays["stage2/topk_idx"])
    np.testing.assert_array_equal(indices, arrays["gen_from_questions/topk_idx"])
    selected = np.take_along_axis(arrays["stage2/scores"], indices, 1)
    np.testing.assert_allclose([answer.scores for answer in found], selected, atol=1e-4)
    assert [a.text for a in found] == [t.strip() for t in scalars["gen_from_questions/texts"]]
    # Token for token, from the recorded memories and selection.
    memories = arrays["stage2/memory"].reshape(4, 5, 4, -1)
    chosen = [memory[row] for memory, row in zip(memories, indices, strict=True)]
    asked = answer_prompts(clara.model, questions, chosen)
    for ours, theirs in zip(
        embeddings(clara, asked),
        golden_embeddings(arrays, "gen_from_questions"),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    generations = generate(clara.model, clara.trees, asked, NEW)
    expected = arrays["gen_from_questions/output_ids"].tolist()
    assert [generation.tokens for generation in generations] == expected
