"""Ids and labels against the PyTorch release's own, and the layouts by themselves."""

import dataclasses
import json
import re

import numpy as np
import pytest

from clara_jax.config import Prompts
from clara_jax.data import prompts as prompts_lib
from clara_jax.data.prompts import TextLayout
from clara_jax.data.records import ScpRecord
from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError
from clara_jax.models.config import ExtraTokens

SETTINGS = [("tiny", 64, 16), ("full", 256, 32), ("full", 64, 16)]


class Golden:
    """One setting of the golden numbers: arrays by `stage/name`, and the release's texts."""

    def __init__(self, shared, which: str, length: int, rate: int):
        golden = shared / "golden"
        file, folder = {
            "tiny": ("golden_mistral.npz", "base_mistral"),
            "full": ("tokens_full.npz", "tokenizer_full"),
        }[which]
        self.arrays = np.load(golden / file)
        self.prefix = "" if which == "tiny" else f"{length}_{rate}/"
        self.length = length
        self.tokenizer = load_tokenizer(str(golden / folder))
        self.extra = ExtraTokens(self.tokenizer.size, length // rate)
        self.examples = json.loads((golden / "texts.json").read_text())["examples"]
        self.prompts, self.instructions = release_prompts(golden)

    def rows(self, stage: str, name: str, mask: str) -> list[np.ndarray]:
        """Rows of an array without their padding."""
        values = self.arrays[f"{self.prefix}{stage}/{name}"]
        masks = self.arrays[f"{self.prefix}{stage}/{mask}"]
        return [value[m.astype(bool)] for value, m in zip(values, masks, strict=True)]

    def record(self, i: int, data_type: str) -> ScpRecord:
        row = self.examples[i]
        if data_type == "qa":
            questions, answers = row["qa_questions"], row["qa_answers"]
        else:
            questions, answers = [], [row["paraphrase"]]
        return ScpRecord(data_type, tuple(questions), tuple(answers), row["docs"][0], f"x:{i}")

    def example(self, i: int, data_type: str, prompts: Prompts):
        return self.layout(prompts).scp_example(self.record(i, data_type), decoder_row=2048)

    def layout(self, prompts: Prompts | None = None) -> TextLayout:
        return TextLayout(self.tokenizer, self.extra, prompts or self.prompts, self.length)


def release_prompts(golden) -> tuple[Prompts, tuple[str, ...]]:
    """The release's texts, read off its rendered prompts, and its instructions."""
    numbers = json.loads((golden / "golden_mistral.json").read_text())

    def turns(text: str) -> tuple[str, str]:
        system, user = re.findall(
            r"<\|im_start\|>(?:system|user)\n(.*?)<\|im_end\|>", text, re.DOTALL
        )
        return system, re.sub(r"(<MEM0>.*<SEP>)", "{docs}", user)

    qa_system, qa_user = turns(numbers["stage1_qa_prompts"][0][1])
    shown = [turns(row["text"]) for row in numbers["paraphrase_prompts"]]
    answer_system, _ = turns(numbers["stage1_2_prompts"][0][1])
    assert len({system for system, _ in shown}) == 1
    users = tuple(dict.fromkeys(user for _, user in shown))
    assert len(users) == len({row["instruction"] for row in numbers["paraphrase_prompts"]})
    prompts = Prompts(
        qa_system=qa_system, qa_user=qa_user, paraphrase_system=shown[0][0],
        paraphrase_users=users, answer_system=answer_system,
    )  # fmt: skip
    return prompts, users


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda s: f"{s[0]}-{s[1]}-{s[2]}")
def golden(request, shared) -> Golden:
    return Golden(shared, *request.param)


def assert_row(example, tokens: np.ndarray, labels: np.ndarray) -> None:
    np.testing.assert_array_equal(example.turns.tokens, tokens)
    np.testing.assert_array_equal(example.turns.targets[:-1], labels[1:])
    assert example.turns.targets[-1] == prompts_lib.NO_LABEL


KINDS = {
    "stage1_qa": ["qa"] * 4,
    "stage1_paraphrase": ["paraphrase"] * 4,
    "stage1_mixed": ["qa", "paraphrase"] * 2,
}


@pytest.mark.parametrize("stage", ["stage1_qa", "stage1_paraphrase"])
def test_scp_rows_equal_the_release(golden, stage):
    check_scp_rows(golden, stage)


def test_mixed_rows_equal_the_release(shared):
    check_scp_rows(Golden(shared, *SETTINGS[0]), "stage1_mixed")


def check_scp_rows(golden: Golden, stage: str) -> None:
    encoder = golden.rows(stage, "enc_input_ids", "enc_attention_mask")
    decoder = golden.rows(stage, "dec_input_ids", "dec_attention_mask")
    labels = golden.rows(stage, "labels", "dec_attention_mask")
    for i, kind in enumerate(KINDS[stage]):
        # The release draws instructions from a global generator: find the one it drew.
        options = golden.instructions if kind == "paraphrase" else [golden.instructions[0]]
        variants = [
            golden.example(
                i, kind, Prompts(**{**vars(golden.prompts), "paraphrase_users": (user,)})
            )
            for user in options
        ]
        np.testing.assert_array_equal(variants[0].enc_tokens, encoder[i])
        matches = [v for v in variants if np.array_equal(v.turns.tokens, decoder[i])]
        assert len(matches) == 1, f"row {i} equals {len(matches)} of the instructions"
        assert_row(matches[0], decoder[i], labels[i])


def test_some_golden_document_is_cut(shared):
    golden = Golden(shared, "tiny", 64, 16)
    cuts = [golden.example(i, "qa", golden.prompts).document_cut for i in range(4)]
    assert any(cuts)


@pytest.mark.parametrize("stage", ["stage1_2", "stage2"])
def test_answer_rows_equal_the_release(golden, stage):
    decoder = golden.rows(stage, "dec_input_ids", "dec_attention_mask")
    labels = golden.rows(stage, "labels", "dec_attention_mask")
    encoder = golden.rows(stage, "enc_input_ids", "enc_attention_mask")
    documents = len(encoder) // 4
    for i, row in enumerate(golden.examples):
        layout = golden.layout()
        ids, start = layout.answer_prompt(layout.slots(2), row["question"], row["answer"])
        np.testing.assert_array_equal(ids, decoder[i])
        expected = np.where(np.arange(len(ids)) < start, prompts_lib.NO_LABEL, ids)
        np.testing.assert_array_equal(expected, labels[i])
        opened, length = layout.answer_prompt(layout.slots(2), row["question"])
        assert opened == ids[:start] and length == start
        if stage == "stage2":
            for j, document in enumerate(row["docs"]):
                enc, _ = layout.document_ids(document)
                np.testing.assert_array_equal(enc, encoder[i * documents + j])


def test_questions_encode_as_documents(shared):
    golden = Golden(shared, "tiny", 64, 16)
    queries = golden.rows("stage2", "query_input_ids", "query_attention_mask")
    for row, query in zip(golden.examples, queries, strict=True):
        enc, _ = golden.layout().document_ids(row["question"])
        np.testing.assert_array_equal(enc, query)


@pytest.fixture
def extra(words: Tokenizer) -> ExtraTokens:
    return ExtraTokens(words.size, 2)


def qa(document="one two three", questions=("who ?",), answers=("one",), origin="file:7"):
    return ScpRecord("qa", tuple(questions), tuple(answers), document, origin)


def make(words, extra, record, length=8, row=400, index=0):
    return TextLayout(words, extra, Prompts(), length).scp_example(record, row, index)


def test_cut_document_loses_its_eos(words, extra):
    fits = "one two three one two three one two"
    layout = TextLayout(words, extra, Prompts(), 8)
    ids, cut = layout.document_ids(fits)
    assert not cut and ids[-3] == words.eos_id and len(ids) == 8 + 3 + 2
    ids, cut = layout.document_ids(fits + " three one")
    assert cut and words.eos_id not in ids and len(ids) == 8 + 3 + 2
    assert tuple(ids[-2:]) == extra.memory


def test_prompt_that_fills_the_row_names_the_record(words, extra):
    with pytest.raises(UserError, match=r"^file:7: the prompt has (\d+) tokens") as error:
        make(words, extra, qa(), row=10)
    smallest = int(str(error.value).split()[-3])
    assert make(words, extra, qa(), row=smallest).turns.targets[-1] == prompts_lib.NO_LABEL
    assert (make(words, extra, qa(), row=smallest).turns.targets >= 0).sum() == 1
    with pytest.raises(UserError):
        make(words, extra, qa(), row=smallest - 1)


def test_long_answer_is_cut_to_the_row(words, extra):
    record = qa(answers=("one two " * 100,))
    example = make(words, extra, record, row=200)
    assert example.turns.cut and len(example.turns.tokens) == 200
    assert not make(words, extra, record, row=1000).turns.cut


def test_reconstruction_is_cut_to_what_is_seen(words, extra):
    document = " ".join(["one", "two", "three"] * 5)
    record = ScpRecord("reconstruction", (), (document,), document, "f:1")
    example = make(words, extra, record, length=4)
    answer = words.decode(example.turns.targets[example.turns.targets >= 0])
    assert answer.split() == ["one", "two", "three", "one"]


def test_text_in_place_of_memories(words, extra):
    record = dataclasses.replace(qa("one two three one"), compress=False)
    example = make(words, extra, record, length=3)
    assert example.enc_tokens.size == 0 and example.document_cut
    assert not set(example.turns.tokens.tolist()) & {*extra.memory, extra.sep}
    prompt = TextLayout(words, extra, Prompts(), 3).scp_prompt(record, ["one two three"])
    assert example.turns.tokens[: len(prompt)].tolist() == prompt
    compressed = make(words, extra, qa("one two three one"), length=3)
    labels = [e.turns.targets[e.turns.targets >= 0].tolist() for e in (example, compressed)]
    assert labels[0] == labels[1]


def test_paraphrase_instruction_depends_on_seed_and_index_alone(words, extra):
    record = ScpRecord("paraphrase", (), ("two",), "one", "f:1")
    rows = [make(words, extra, record, index=i).turns.tokens for i in range(30)]
    again = [make(words, extra, record, index=i).turns.tokens for i in range(30)]
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))
    assert len({tuple(row) for row in rows}) == len(Prompts().paraphrase_users)


def test_scp_question_continues_the_training_row(words, extra):
    example = make(words, extra, qa(questions=("who ?",), answers=("one",)))
    layout = TextLayout(words, extra, Prompts(), 8)
    prompt = layout.scp_question(layout.slots(), "who ?")
    assert list(example.turns.tokens[: len(prompt)]) == prompt
    full = layout.scp_question("one two", "who ?")
    none = layout.scp_question("", "who ?")
    assert not set(extra.memory) & set(full) and len(none) < len(full)


def test_scp_prompt_is_what_precedes_the_labels(words, extra):
    example = make(words, extra, qa())
    layout = TextLayout(words, extra, Prompts(), 8)
    prompt = layout.scp_prompt(qa(), layout.slots())
    assert list(example.turns.tokens[: len(prompt)]) == prompt
    assert (example.turns.targets[: len(prompt) - 1] == prompts_lib.NO_LABEL).all()
    assert (example.turns.targets[len(prompt) - 1 : -1] >= 0).all()


def test_braces_in_texts_mean_nothing(words, extra):
    parts = prompts_lib.fill("a {docs} b {question}", docs=[1, 2], question="{docs} {x}")
    assert parts == ["a ", 1, 2, " b ", "{docs} {x}", ""]
