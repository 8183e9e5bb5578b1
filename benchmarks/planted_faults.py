"""How many planted faults the checks find, and how many sound pairs they flag.

    python -m benchmarks.planted_faults --data a.jsonl b.jsonl --seeds 0 1 2 --half held

draws 200 pairs from scp records, spoils 100 of them in five ways, and prints for each kind the
share that is flagged with its 95 % interval (Wilson). The documents are in two halves by a hash of
their text, so that rules can be tuned on one and reported on the other.
"""

import argparse
import collections
import random
import re
import sys
from collections.abc import Callable, Sequence

from scipy import stats

from clara_jax.data import records
from clara_jax.data.documents import Document
from clara_jax.data.sources import open_sources
from clara_jax.errors import UserError, command
from clara_jax.synthesis import checks
from clara_jax.synthesis.checks import Pair
from clara_jax.text import markdown, mentions, sentences

CLEAN = "clean"
HALVES = ("tune", "held")

Example = tuple[Document, Pair]
Fault = Callable[[Example, "Sequence[Example]", random.Random], str | None]


def read(paths: Sequence[str], half: str = "") -> list[Example]:
    """The pairs of scp records, of one half of the documents or of all.

    Raises:
        UserError: a file cannot be read, or there is no pair.
    """
    source = open_sources(",".join(paths))
    examples = []
    for i in range(len(source)):
        record = source[i]
        key = records.digest(record.document)
        if record.data_type != "qa" or (half and HALVES[key[0] % 2] != half):
            continue
        title, newline, text = record.document.partition("\n")
        document = Document(key.hex(), title if newline else "", text if newline else title, "")
        examples += [
            (document, Pair(question, answer))
            for question, answer in zip(record.questions, record.answers, strict=True)
        ]
    if not examples:
        raise UserError(f"{', '.join(paths)}: no question with an answer")
    return examples


def plant(examples: Sequence[Example], count: int, seed: int) -> list[tuple[str, Document, Pair]]:
    """As many spoilt pairs as sound ones, `count` together, no pair twice.

    Args:
        examples: to draw from; a fault is planted where the answer admits of it.
        count: of pairs, half of them spoilt, by each kind of fault alike.
        seed: of the draw.

    Raises:
        UserError: too few pairs admit of a kind of fault.
    """
    rng = random.Random(seed)
    rest = list(examples)
    rng.shuffle(rest)
    planted = []
    for place, (kind, fault) in enumerate(FAULTS.items()):
        wanted = count // 2 * (place + 1) // len(FAULTS) - len(planted)
        kept = []
        for example in rest:
            answer = fault(example, examples, rng) if wanted else None
            if answer is None:
                kept.append(example)
                continue
            document, pair = example
            planted.append((kind, document, Pair(pair.question, answer)))
            wanted -= 1
        if wanted:
            raise UserError(f"{wanted} pairs too few with an answer for the fault: {kind}")
        rest = kept
    rng.shuffle(rest)
    if len(rest) < count - count // 2:
        raise UserError(f"{len(examples)} pairs are too few for {count}")
    return planted + [(CLEAN, *example) for example in rest[: count - count // 2]]


def measure(
    planted: Sequence[tuple[str, Document, Pair]], language: str = "English"
) -> dict[str, tuple[int, int]]:
    """For each kind of fault, and for sound pairs, how many are flagged, and of how many."""
    flagged: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    for kind, document, pair in planted:
        total[kind] += 1
        flagged[kind] += bool(checks.check(document, [pair], language).flags[0])
    return {kind: (flagged[kind], total[kind]) for kind in (*FAULTS, CLEAN) if total[kind]}


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share."""
    return stats.binomtest(hits, total).proportion_ci(method="wilson") if total else (0.0, 1.0)


def table(counts: dict[str, tuple[int, int]]) -> str:
    """The counts as Markdown."""
    spoilt = [count for kind, count in counts.items() if kind != CLEAN]
    rows = {
        **{kind: count for kind, count in counts.items() if kind != CLEAN},
        "**all faults**": tuple(map(sum, zip(*spoilt, strict=True))) if spoilt else (0, 0),
        "**clean**": counts.get(CLEAN, (0, 0)),
    }
    cells = []
    for kind, (hits, total) in rows.items():
        low, high = wilson(hits, total)
        share = f"{hits / max(total, 1):.1%}"
        cells.append((kind, str(total), str(hits), share, f"{low:.1%} to {high:.1%}"))
    return markdown.table(("kind", "pairs", "flagged", "share", "95 % interval"), cells)


def _entity(answer: str) -> str | None:
    """The answer's name, if it is little else."""
    names = mentions.entities(f"it is {answer}")
    return names[0] if names and len(names[0]) >= 0.5 * len(answer) else None


def _from_elsewhere(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """Another document's entity in the place of the answer's."""
    document, pair = example
    name = _entity(pair.answer)
    if name is None:
        return None
    for _ in range(20):
        other, _ = rng.choice(others)
        names = [
            n for n in mentions.entities(other.text) if n.lower() not in document.whole.lower()
        ]
        if names:
            return pair.answer.replace(name, rng.choice(names))
    return None


def _from_same(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """Another entity of the document, not one that the question already names."""
    document, pair = example
    name = _entity(pair.answer)
    if name is None:
        return None
    seen = f"{pair.question} {pair.answer}".lower()
    names = [
        n
        for n in mentions.entities(document.text)
        if n.lower() not in seen and not set(n.lower().split()) & set(pair.answer.lower().split())
    ]
    return pair.answer.replace(name, rng.choice(names)) if names else None


def _number(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """A digit of the answer's number changed, where it is no date."""
    _, pair = example
    places = [m.start() for m in re.finditer(r"\d", pair.answer)]
    if not places or mentions.dates(pair.answer):
        return None
    return _redigit(pair.answer, rng.choice(places), rng)


def _date(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """Another year, by up to twenty, or another day of the month."""
    _, pair = example
    if not mentions.dates(pair.answer):
        return None
    numbers = list(re.finditer(r"(?<!\d)\d{1,2}(?!\d)|(?<!\d)[12]\d{3}(?!\d)", pair.answer))
    if not numbers:
        return None
    match = rng.choice(numbers)
    old = int(match[0])
    choices = range(1, 29) if old < 100 else range(old - 20, old + 21)
    new = rng.choice([value for value in choices if value != old])
    return pair.answer[: match.start()] + str(new) + pair.answer[match.end() :]


def _claim(example: Example, others: Sequence[Example], rng: random.Random) -> str | None:
    """A claim added: what another document says, or a relation to an entity of this one."""
    document, pair = example
    answer = pair.answer.rstrip(". ")
    if rng.random() < 0.5:
        names = [n for n in mentions.entities(document.text) if n.lower() not in answer.lower()]
        if not names:
            return None
        claim = rng.choice(_CLAIMS).format(rng.choice(names))
        return f"{answer}, {claim}"
    for _ in range(20):
        other, _ = rng.choice(others)
        parts = [part.strip() for s in sentences.split(other.text) for part in re.split("[,;]", s)]
        parts = [part for part in parts if 4 <= len(part.split()) <= 12]
        if parts and other.text != document.text:
            return f"{answer}, {rng.choice(parts).rstrip('.')}"
    return None


def _redigit(text: str, place: int, rng: random.Random) -> str:
    digit = rng.choice([d for d in "123456789" if d != text[place]])
    return text[:place] + digit + text[place + 1 :]


# Relations that no document here states; the entity put in is the document's own.
_CLAIMS = (
    "which was later sold to {}",
    "despite strong opposition from {}",
    "who had studied together with {}",
    "mainly because of a dispute with {}",
    "and was paid for by {}",
    "shortly before {} was informed",
)

# The fewest pairs admit of the first.
FAULTS: dict[str, Fault] = {
    "changed number": _number,
    "changed date": _date,
    "entity of the same document": _from_same,
    "entity from elsewhere": _from_elsewhere,
    "unsupported claim": _claim,
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planted_faults", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", nargs="+", required=True, help="JSONL files of scp records")
    parser.add_argument("--seed", "--seeds", nargs="+", type=int, default=[0], dest="seeds")
    parser.add_argument("--count", type=int, default=200, help="pairs, half of them spoilt")
    parser.add_argument("--half", choices=HALVES, help="of the documents; all if not given")
    parser.add_argument("--language", default="English")
    args = parser.parse_args(argv)
    examples = read(args.data, args.half or "")
    total: dict[str, tuple[int, int]] = {}
    for seed in args.seeds:
        counts = measure(plant(examples, args.count, seed), args.language)
        total = {
            kind: tuple(map(sum, zip(count, total.get(kind, (0, 0)), strict=True)))
            for kind, count in counts.items()
        }
        print(f"seed {seed}\n\n{table(counts)}\n")
    if len(args.seeds) > 1:
        print(f"all {len(args.seeds)} seeds (their pairs overlap)\n\n{table(total)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
