"""Paraphrases read back from the memories (paper, appendix G), against the documents' own text."""

from collections.abc import Callable, Sequence
from typing import Any

from clara_jax.api import Clara
from clara_jax.data.records import ScpRecord
from clara_jax.errors import UserError, reason
from clara_jax.evaluation import results
from clara_jax.evaluation.fidelity.pieces import Pieces
from clara_jax.evaluation.journal import Piece
from clara_jax.text import wording

Compare = Callable[[str, str], wording.Compared]
KINDS = ("entities", "numbers", "dates")
# A score of each text, given the texts and what was wanted in their place.
Similar = Callable[[Sequence[str], Sequence[str]], list[float]]


def rouge_scorer() -> Any:
    """Scorer of ROUGE-1 and ROUGE-L, of words without stemming.

    Raises:
        UserError: the package is missing.
    """
    try:
        from rouge_score import rouge_scorer
    except ImportError as e:
        raise UserError(
            "ROUGE of paraphrases needs rouge-score: pip install 'clara-jax[evaluation]', or leave "
            "text out of --parts"
        ) from e
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"])


def scored(
    texts: Sequence[str], references: Sequence[str], compare: Compare = wording.compare
) -> dict[str, list[float]]:
    """Every measure of every text; of entities, numbers and dates where the reference has any.

    `<kind>_kept` is the share of the reference's that the text mentions too, `<kind>_own` the share
    of the text's that the reference does not mention: those are made up, or altered. `compare`
    finds them.
    """
    rouge = rouge_scorer()
    found: dict[str, list[float]] = {"rouge_1": [], "rouge_l": []}
    found |= {f"{kind}_{what}": [] for kind in KINDS for what in ("kept", "own")}
    for text, reference in zip(texts, references, strict=True):
        scores = rouge.score(reference, text)
        found["rouge_1"].append(float(scores["rouge1"].fmeasure))
        found["rouge_l"].append(float(scores["rougeL"].fmeasure))
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
    similar: Similar | None = None,
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
        similar: of `bert_scores`, where BERTScore is wanted.
        compare: what of a text's names, numbers and dates another has.
        pieces: keep what is finished.
        part: their name.

    Returns:
        `documents`, `means`, `intervals`, `samples`.
    """
    model = clara.model
    read = [model.layout.head(record.document) for record in records]
    wanted = [
        record.answers[0] if record.data_type == "paraphrase" else text
        for record, text in zip(records, read, strict=True)
    ]

    def paraphrase(given: Sequence[str]) -> Piece:
        return {"texts": clara.paraphrase(given, max_new_tokens)}

    done = (pieces or Pieces()).each(part, read, paraphrase)
    texts = [text for piece in done for text in piece["texts"]]
    values = scored(texts, wanted, compare)
    if similar:
        values["bert_score"] = similar(texts, wanted)
    samples = [
        {"origin": record.origin, "reference": reference, "read back": text}
        for record, reference, text in zip(records, wanted, texts, strict=True)
    ]
    return {
        "documents": len(records),
        "means": results.means(values),
        "intervals": results.intervals(values),
        "samples": samples,
    }


def bert_scores(encoder: str) -> Similar:
    """BERTScore's F1 by a local encoder, of the states of its last layer.

    Texts count up to the encoder's longest input, and one without a word scores 0.

    Args:
        encoder: folder of a BERT-like model, such as one of sentence-transformers.

    Raises:
        UserError: the package is missing, or the encoder cannot be read.
    """
    try:
        import bert_score
    except ImportError as e:
        raise UserError("--encoder needs bert-score: pip install bert-score") from e
    try:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(encoder, local_files_only=True)
        scorer = bert_score.BERTScorer(model_type=encoder, num_layers=config.num_hidden_layers)
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(
            f"--encoder={encoder}: no encoder that bert-score reads ({reason(e)})"
        ) from e
    longest = getattr(config, "max_position_embeddings", 514)
    tokenizer = scorer._tokenizer  # noqa: SLF001
    if tokenizer.model_max_length > longest:
        # Many tell no limit, and bert-score cuts by it alone. RoBERTa's first two positions are
        # no token's.
        tokenizer.model_max_length = longest - 2

    def score(texts: Sequence[str], wanted: Sequence[str]) -> list[float]:
        # bert-score asks tokenizers for the frame of an empty text, which not all can give.
        pairs = list(zip(texts, wanted, strict=True))
        full = [i for i, pair in enumerate(pairs) if all(map(str.strip, pair))]
        found = [0.0] * len(texts)
        if full:
            ours, theirs = zip(*(pairs[i] for i in full), strict=True)
            scores = scorer.score(list(ours), list(theirs))[2].tolist()
            for i, value in zip(full, scores, strict=True):
                found[i] = value
        return found

    return score
