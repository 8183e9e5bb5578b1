"""Public question-answering sets, from the files that their authors publish, as our records.

hotpotqa  HotpotQA and 2WikiMultihopQA: question, answer, context, supporting_facts, in the
          authors' form or in that of hub copies
musique   MuSiQue: question, answer, answer_aliases, paragraphs
nq        Natural Questions and others in DPR's forms: question, answers, and ctxs, or
          positive_ctxs and (hard_)negative_ctxs
pubmedqa  PubMedQA: an object of abstracts by PMID, or JSONL; the answer is yes, no or maybe

Files are one JSON array, or JSONL. `pos_index` is left out of questions whose gold documents are
not all among their candidates: their answers are evaluated, their ranking is not.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clara_jax import files
from clara_jax.data import records
from clara_jax.errors import UserError
from clara_jax.text.chunks import whole

Row = tuple[dict[str, Any], str]

_GOLD = ("isgold", "hasanswer", "has_answer")  # of a passage in `ctxs`
_GROUPS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")


def hotpotqa(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """Paragraphs of sentences, and the titles of those that support the answer."""
    context, facts = value.get("context") or [], value.get("supporting_facts") or []
    if isinstance(context, dict):  # of columns, as copies on the hub have them
        context = list(zip(_each(context["title"]), _each(context["sentences"]), strict=True))
    if isinstance(facts, dict):
        facts = list(zip(_each(facts["title"]), facts["sent_id"], strict=True))
    supporting = {title for title, _ in facts}
    titles = [title for title, _ in context]
    gold = [i for i, title in enumerate(titles) if title in supporting]
    documents = [_document(title, " ".join(_texts(sentences))) for title, sentences in context]
    return {
        "question": value["question"],
        "docs": documents,
        "answer": value["answer"],
        **_gold(gold, supporting <= set(titles)),
    }


def musique(value: dict[str, Any], origin: str) -> dict[str, Any] | None:
    """Paragraphs that are marked as supporting; none of the questions that have no answer."""
    if not _true(value.get("answerable", True)):
        return None
    paragraphs = value["paragraphs"]
    return {
        "question": value["question"],
        "answer": value["answer"],
        "docs": [_document(p["title"], p["paragraph_text"]) for p in paragraphs],
        "aliases": _texts(value.get("answer_aliases")),
        **_gold([i for i, p in enumerate(paragraphs) if _true(p.get("is_supporting"))], True),
    }


def nq(value: dict[str, Any], origin: str) -> dict[str, Any] | None:
    """Passages retrieved, or gold passages and others, in an order that tells nothing."""
    answers = _texts(value["answers"])
    if not answers:
        return None
    passages = [(p, any(_true(p.get(k)) for k in _GOLD)) for p in value.get("ctxs") or ()]
    if not passages:
        passages = [(p, key == _GROUPS[0]) for key in _GROUPS for p in value.get(key) or ()]
        random.Random(value["question"]).shuffle(passages)
    return {
        "question": value["question"],
        "answer": answers[0],
        "aliases": answers[1:],
        "docs": [_document(p.get("title", ""), p["text"]) for p, _ in passages],
        **_gold([i for i, (_, is_gold) in enumerate(passages) if is_gold], True),
    }


def pubmedqa(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """An abstract without its conclusion, and whether it says yes, no or maybe; the scp form."""
    lower = {key.lower(): v for key, v in value.items()}
    contexts = lower.get("contexts") or lower["context"]
    contexts = contexts["contexts"] if isinstance(contexts, dict) else contexts
    name = lower.get("pubid", "")
    return {
        "data_type": "qa",
        "question": [lower["question"]],
        "answers": [lower["final_decision"]],
        "docs": [_document(f"PubMed {name}" if name else "", " ".join(_texts(contexts)))],
    }


KINDS: dict[str, Callable[[dict[str, Any], str], dict[str, Any] | None]] = {
    function.__name__: function for function in (hotpotqa, musique, nq, pubmedqa)
}


def read(kind: str, path: str) -> Iterator[Row | None]:
    """Records of a file with their origins; None for a question without an answer.

    Raises:
        UserError: a record is not of this kind, with its place.
    """
    for value, origin in _values(path):
        try:
            record = KINDS[kind](value, origin)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UserError(f"{origin}: is no record of {kind} ({type(e).__name__}: {e})") from e
        yield None if record is None else (record, origin)


def _values(path: str) -> Iterable[Row]:
    try:
        text = files.read(path).removeprefix("\ufeff").lstrip()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from e
    first, _, rest = text.partition("\n")
    if not _is_whole(text, first, rest):
        return records.lines(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON ({e})") from e
    if isinstance(value, dict):  # by name, as PubMedQA is
        value = [v | {"pubid": name} if isinstance(v, dict) else v for name, v in value.items()]
    rows = [(each, f"{path}: record {n}") for n, each in enumerate(value)]
    for each, origin in rows:
        if not isinstance(each, dict):
            raise UserError(f"{origin} must be a JSON object")
    return rows


def _is_whole(text: str, first: str, rest: str) -> bool:
    """Whether a file is one JSON value rather than one a line."""
    if text.startswith("["):
        return True
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return bool(rest.strip())  # an object over several lines
    by_name = isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values())
    return bool(by_name and not rest.strip())


def _each(value: Any) -> Any:
    """A text is one text, not its letters."""
    return [value] if isinstance(value, str) else value


def _texts(value: Any) -> list[str]:
    """Texts of a list, of one text, or of nothing."""
    texts = [] if value is None else list(_each(value))
    if isinstance(value, dict) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"no text or list of texts: {json.dumps(value)[:80]}")
    return texts


def _true(value: Any) -> bool:
    """Whether a mark is set, as JSON says it or in words."""
    known = {"true": True, "false": False, "1": True, "0": False, "none": False}
    if (word := str(value).lower()) not in known:
        raise ValueError(f"neither true nor false: {value!r}")
    return known[word]


def _document(title: str, text: str) -> str:
    return whole(*(" ".join(part.split()) for part in (title, text))).strip()


def _gold(positions: list[int], complete: bool) -> dict[str, list[int]]:
    return {"pos_index": positions} if positions and complete else {}
