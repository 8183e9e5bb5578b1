"""Paraphrases read back from the memories (paper, appendix G), against the documents' own text."""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clara_jax.data.records import ScpRecord
from clara_jax.errors import UserError, reason
from clara_jax.evaluation import statistics
from clara_jax.evaluation.fidelity_pieces import Pieces
from clara_jax.inference.engine import Clara
from clara_jax.synthesis import wording

Compare = Callable[[str, str], wording.Compared]
KINDS = ("entities", "numbers", "dates")

_WORD = re.compile(r"[a-z0-9]+")


def rouge_1(text: str, reference: str) -> float:
    """F1 of the words as multisets: rouge-score's `rouge1` without stemming."""
    ours, theirs = _words(text), _words(reference)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return _f1(common, len(ours), len(theirs))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words: rouge-score's `rougeL` without stemming."""
    ours, theirs = _words(text), _words(reference)
    row = np.zeros(len(theirs) + 1, int)
    for word in ours:
        same = np.array([other == word for other in theirs], bool)
        # Either a word of both ends it, or it is as long as without one of the two.
        step = np.maximum(row[1:], np.where(same, row[:-1] + 1, 0))
        row = np.concatenate([[0], np.maximum.accumulate(step)])
    return _f1(int(row[-1]), len(ours), len(theirs))


def scored(
    texts: Sequence[str], references: Sequence[str], compare: Compare = wording.compare
) -> dict[str, list[float]]:
    """Every measure of every text; of entities, numbers and dates where the reference has any.

    `<kind>_kept` is the share of the reference's that the text mentions too, `<kind>_own` the share
    of the text's that the reference does not mention: those are made up, or altered. `compare`
    finds them.
    """
    found: dict[str, list[float]] = {"rouge_1": [], "rouge_l": []}
    found |= {f"{kind}_{what}": [] for kind in KINDS for what in ("kept", "own")}
    for text, reference in zip(texts, references, strict=True):
        found["rouge_1"].append(rouge_1(text, reference))
        found["rouge_l"].append(rouge_l(text, reference))
        lost, own = compare(reference, text), compare(text, reference)
        for kind in KINDS:
            for name, (total, missing) in (("kept", lost[kind]), ("own", own[kind])):
                if total:
                    share = len(missing) / total
                    found[f"{kind}_{name}"].append(1 - share if name == "kept" else share)
    return {name: values for name, values in found.items() if values}


def read_back(
    clara: Clara,
    records: Sequence[ScpRecord],
    max_new_tokens: int,
    encoder: str = "",
    compare: Compare = wording.compare,
    pieces: Pieces | None = None,
    part: str = "paraphrases",
) -> dict[str, Any]:
    """Paraphrases documents from their memories and scores them against what was compressed.

    Args:
        clara: a model that was trained on paraphrases or reconstructions.
        records: with the documents; the reference is the document up to the model's limit, and for
            a paraphrase record its paraphrase.
        max_new_tokens: most tokens of a paraphrase.
        encoder: folder of a BERT-like model for BERTScore; empty: none.
        compare: what of a text's names, numbers and dates another has.
        pieces: keep what is finished.
        part: their name.

    Returns:
        `documents`, `means`, `intervals`, `samples`.
    """
    setup = clara.setup
    limit = setup.config.data.document_length
    read = [setup.tokenizer.head(record.document, limit) for record in records]
    wanted = [
        record.answers[0] if record.data_type == "paraphrase" else text
        for record, text in zip(records, read, strict=True)
    ]
    paraphrase = lambda given: {"texts": clara.paraphrase(given, max_new_tokens)}  # noqa: E731
    found = (pieces or Pieces()).each(part, read, paraphrase)
    texts = [text for piece in found for text in piece["texts"]]
    found = scored(texts, wanted, compare)
    if encoder:
        found["bert_score"] = bert_scores(encoder)(texts, wanted)
    samples = [
        {"origin": record.origin, "reference": reference, "read back": text}
        for record, reference, text in zip(records, wanted, texts, strict=True)
    ]
    return {
        "documents": len(records),
        "means": {name: float(np.mean(values)) for name, values in found.items()},
        "intervals": {name: list(statistics.interval(values)) for name, values in found.items()},
        "samples": samples,
    }


def bert_scores(encoder: str) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """BERTScore's F1 by a local encoder, all of its layers but the embeddings.

    Raises:
        UserError: the package is missing, or the encoder cannot be read.
    """
    try:
        import bert_score
    except ImportError as e:
        raise UserError("--encoder needs bert-score: pip install bert-score") from e
    try:
        from transformers import AutoConfig

        layers = AutoConfig.from_pretrained(encoder, local_files_only=True).num_hidden_layers
        scorer = bert_score.BERTScorer(model_type=encoder, num_layers=layers)
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(
            f"--encoder={encoder}: no encoder that bert-score reads ({reason(e)})"
        ) from e
    return lambda texts, wanted: scorer.score(list(texts), list(wanted))[2].tolist()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0
