import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clara_jax
from clara_jax import config as config_lib
from clara_jax.api import Clara, compress
from clara_jax.config import Data
from clara_jax.data.facts import FactsSource
from clara_jax.data.prompts import TextLayout
from clara_jax.errors import UserError
from clara_jax.inference import rank
from clara_jax.inference.answers import answer_prompts, answers
from clara_jax.inference.generate import Prompt, generate
from clara_jax.inference.sampling import GenerationOptions
from clara_jax.models import clara as model_lib
from clara_jax.models import scores as scores_lib
from clara_jax.models import topk
from clara_jax.runs import setup as setup_lib
from clara_jax.runs.checkpoint import Checkpoints
from tests.fixtures.models import altered

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
    together = compress(*setup, DOCUMENTS, batch=4)
    assert together.memories.shape == (9, 4, 128)
    assert together.memories.dtype == np.float32
    assert together.cut == 1
    lengths = [min(len(setup.model.tokenizer.encode(d)), 40) for d in DOCUMENTS]
    # A document that is cut keeps its limit of 40 + 3 tokens, of which eos is none.
    assert together.rate == pytest.approx(sum(lengths) / 36)

    @jax.jit
    def encode(trees, ids):
        positions = jnp.arange(ids.shape[1])[None]
        row = ids, positions, jnp.ones_like(ids)
        return model_lib.encode(setup.model.decoder, trees, *row, setup.model.memory)

    for document, memory in zip(DOCUMENTS, together.memories, strict=True):
        ids, _ = setup.model.layout.document_ids(document)
        hidden = np.asarray(encode(setup.trees, jnp.asarray(ids)[None]))
        np.testing.assert_allclose(memory, hidden[0, -4:], atol=1e-4)
    assert Clara(*setup).compress([]).shape == (0, 4, 128)


def test_memories_stand_for_their_texts(setup):
    clara = Clara(*setup, batch=4)
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
    clara = Clara(*setup)
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
    clara = Clara(*setup)
    for use in (clara.compress, clara.paraphrase, lambda x: clara.answer_scp(["who ?"], x)):
        with pytest.raises(UserError, match=message):
            use(documents)


def test_other_mistakes_of_a_call(setup):
    clara = Clara(*setup)
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
    config_lib.save(setup.model.config, tmp_path / "config.json")
    trained = {name: setup.trees[name] for name in ("compressor", "generator", "memory")}
    with Checkpoints(str(tmp_path), 1) as checkpoints:
        checkpoints.save(3, trained, {"count": jnp.zeros(())}, {"position": 0})
    clara = clara_jax.load(tmp_path)
    # Only what is trained is in a checkpoint: the others are drawn again from the seed.
    fresh = setup_lib.create(setup.model.config, setup.model.mesh)
    expected = altered(setup, trees={**fresh.trees, **trained})
    np.testing.assert_allclose(
        clara.compress(DOCUMENTS[:3]), Clara(*expected).compress(DOCUMENTS[:3]), atol=1e-4
    )


# --- Ranking and answering -----------------------------------------------------------------------

QUESTIONS = ["who is this ?", "where does he live ?", "what is his job ?"]
CANDIDATES = [DOCUMENTS[:5], DOCUMENTS[3:4], DOCUMENTS[2:9]]


@pytest.fixture(scope="module")
def joint(random_setup):
    """A random model with a query reasoner."""
    setup = random_setup(Data(document_length=40, rate=10), 5)
    reasoner = random_setup(Data(document_length=40, rate=10), 6).trees["compressor"]
    return altered(setup, trees={**setup.trees, "reasoner": reasoner})


def test_questions_are_read_by_the_reasoner(setup, joint, caplog):
    queries = Clara(*joint, batch=2).encode_query(QUESTIONS)
    assert queries.shape == (3, 4, 128) and queries.dtype == np.float32
    as_compressor = {**joint.trees, "compressor": joint.trees["reasoner"]}
    expected = Clara(*altered(joint, trees=as_compressor)).compress(QUESTIONS)
    np.testing.assert_allclose(queries, expected, atol=1e-4)
    # Without reasoner, as after scp, the compressor serves.
    early = Clara(*setup).encode_query(QUESTIONS)
    np.testing.assert_allclose(early, Clara(*setup).compress(QUESTIONS), atol=1e-5)
    assert np.abs(early - queries).max() > 0.1
    Clara(*joint).encode_query([DOCUMENTS[4]])
    assert "1 of 1 questions cut to 40 tokens" in caplog.text


@pytest.mark.parametrize("kind", scores_lib.KINDS)
def test_rank_is_the_score_of_the_config(joint, kind):
    select = dataclasses.replace(joint.model.config.select, score=kind)
    config = dataclasses.replace(joint.model.config, select=select)
    clara = Clara(*altered(joint, config=config))
    found = clara.rank(QUESTIONS, CANDIDATES)
    assert found.shape == (3, 7) and found.dtype == np.float32
    queries = clara.encode_query(QUESTIONS)
    for query, documents, row in zip(queries, CANDIDATES, found, strict=True):
        memories = clara.compress(documents)
        expected = scores_lib.score(query[None], memories[None], kind)[0]
        np.testing.assert_allclose(row[: len(documents)], expected, atol=1e-4)
        assert (row[len(documents) :] == -np.inf).all()
    memories = [clara.compress(documents) for documents in CANDIDATES]
    for given in (memories, [list(m) for m in memories], [CANDIDATES[0], *memories[1:]]):
        np.testing.assert_allclose(clara.rank(QUESTIONS, given), found, atol=1e-4)
    assert clara.rank([], []).shape == (0, 0)


def test_a_shared_text_is_compressed_once(joint, monkeypatch):
    read, original = [], TextLayout.document_ids

    def counted(layout, text):
        read.append(text)
        return original(layout, text)

    monkeypatch.setattr(TextLayout, "document_ids", counted)
    Clara(*joint).ask(QUESTIONS, CANDIDATES, max_new_tokens=1)
    assert sorted(read) == sorted([*QUESTIONS, *DOCUMENTS])


def test_best_is_the_order_of_select():
    rng, select = np.random.default_rng(0), jax.jit(topk.select, static_argnums=1)
    for count in (1, 2, 8, 9, 100):
        scores = rng.integers(0, 5, count).astype(np.float32) - 7  # with ties, all below 0
        for k in (1, 3, 200):
            _, expected = select(jnp.asarray(scores)[None], k)
            assert rank.best(scores, k) == [i for i in expected[0].tolist() if i >= 0]
    assert rank.best(np.array([1.0, 3.0, 3.0, 2.0], np.float32), 3) == [1, 2, 3]


def test_answer_reads_all_documents_in_order(joint):
    clara = Clara(*joint, batch=2)
    texts, options = clara.answer(QUESTIONS, CANDIDATES, max_new_tokens=6), GenerationOptions(6)
    for question, documents, text in zip(QUESTIONS, CANDIDATES, texts, strict=True):
        layout = joint.model.layout
        ids, _ = layout.answer_prompt(layout.slots(len(documents)), question)
        vectors = clara.compress(documents).reshape(-1, 128)
        assert generate(*joint, [Prompt(ids, vectors)], options)[0].text.strip() == text
    reversed_ = [documents[::-1] for documents in CANDIDATES]
    assert clara.answer(QUESTIONS, reversed_, max_new_tokens=6) != texts
    memories = [clara.compress(documents) for documents in CANDIDATES]
    assert clara.answer(QUESTIONS, memories, max_new_tokens=6) == texts
    assert clara.answer([], []) == []


def test_ask_answers_from_the_best(joint):
    clara = Clara(*joint, batch=2)
    scores = clara.rank(QUESTIONS, CANDIDATES)
    found = clara.ask(QUESTIONS, CANDIDATES, top_k=3, max_new_tokens=6)
    chosen = []
    for documents, row, answer in zip(CANDIDATES, scores, found, strict=True):
        expected = np.argsort(-row[: len(documents)], kind="stable")[:3]
        assert answer.indices == tuple(expected.tolist())
        np.testing.assert_allclose(answer.scores, row[expected], atol=1e-6)
        chosen.append([documents[i] for i in answer.indices])
    assert [len(answer.indices) for answer in found] == [3, 1, 3]
    assert clara.answer(QUESTIONS, chosen, max_new_tokens=6) == [answer.text for answer in found]
    default = clara.ask(iter(QUESTIONS), CANDIDATES, max_new_tokens=1)
    assert [len(answer.indices) for answer in default] == [5, 1, 5]  # config.select.k
    assert clara.ask([], []) == []


def test_sampling_reaches_every_method(joint):
    clara = Clara(*joint)
    for use in (
        lambda **how: clara.paraphrase(DOCUMENTS[:3], 8, **how),
        lambda **how: clara.answer(QUESTIONS, CANDIDATES, 8, **how),
        lambda **how: [a.text for a in clara.ask(QUESTIONS, CANDIDATES, 2, 8, **how)],
    ):
        greedy = use()
        hot = use(temperature=2.0)
        assert hot != greedy and hot == use(temperature=2.0)
        assert hot != use(temperature=2.0, seed=1)
        assert use(temperature=2.0, top_p=1e-6) == greedy
        stop = max(greedy, key=len)[2:4]
        assert use(stop=["never", stop]) == [text.split(stop)[0].strip() for text in greedy]


def test_prompts_of_full_texts(joint):
    for documents, docs in ((["a b", "c"], "a b\n\nc"), ([], "")):
        ids, _ = joint.model.layout.answer_prompt(docs, "who ?")
        assert answer_prompts(joint.model, ["who ?"], [documents]) == [Prompt(ids)]
    (prompt,) = answer_prompts(joint.model, ["who ?"], [DOCUMENTS[:2]])
    plain = generate(*joint, [prompt], GenerationOptions(5), role=None)[0].text.strip()
    assert answers(*joint, [prompt], 5, role=None, stop="") == [plain]


MEMORY = np.zeros((2, 4, 128), np.float32)


@pytest.mark.parametrize(
    ("questions", "documents", "message"),
    [
        ("who ?", [["a"]], "questions must be a list of texts, not one str"),
        (["who ?", 3], [["a"]], r"questions\[1\] must be a text, not int"),
        (["who ?"], "a text", "must be a list with the documents of each question, not one str"),
        (["who ?"], None, "must be a list with the documents of each question, not one NoneType"),
        (["who ?"], [["a"], ["b"]], "1 questions, but .* for 2"),
        (["who ?"], [], "1 questions, but .* for 0"),
        (["who ?"], ["a text"], r"\[0\] must be a list of texts, not one str"),
        (["who ?", "where ?"], [["a"], []], r"\[1\] is empty"),
        (["who ?"], [MEMORY[:0]], r"\[0\] is empty"),
        (["who ?"], [["a", 3]], r"\[0\]\[1\] must be a text, not int"),
        (["who ?"], [["a", MEMORY[0]]], r"\[0\]\[1\] must be a text, not ndarray"),
        (["who ?"], [MEMORY[:, :3]], r"\[0\] have shape \[2, 3, 128\], .*\[n, 4, 128\]"),
        (["who ?"], MEMORY[:1], r"\[0\] have shape \[4, 128\], .*\[n, 4, 128\]"),
        (["who ?"], [[MEMORY[0], MEMORY[0, :1]]], r"\[0\] have shapes .*\[4, 128\] each"),
    ],
)
def test_mistakes_in_questions_and_documents(setup, questions, documents, message):
    clara = Clara(*setup)
    for name in ("rank", "ask", "answer"):
        with pytest.raises(UserError, match=message):
            getattr(clara, name)(questions, documents)


def test_mistakes_in_options(setup):
    clara = Clara(*setup)
    for use in (
        lambda **how: clara.paraphrase(["a"], **how),
        lambda **how: clara.answer(["who ?"], [["a"]], **how),
        lambda **how: clara.ask(["who ?"], [["a"]], **how),
        lambda **how: clara.ask([], [], **how),
    ):
        for how, message in (
            ({"temperature": -1}, "temperature=-1"),
            ({"top_p": 0}, "top_p=0"),
            ({"seed": "x"}, "seed='x'"),
            ({"stop": 3}, "stop=3"),
            ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ):
            with pytest.raises(UserError, match=message):
                use(**how)
    for k in (0, -1, 1.5, "2"):
        with pytest.raises(UserError, match="top_k="):
            clara.ask(["who ?"], [["a"]], top_k=k)
    with pytest.raises(UserError, match="questions must be a list of texts"):
        clara.encode_query("who ?")
