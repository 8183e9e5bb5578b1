"""Names, numbers and dates that a text mentions, by rules, in a form in which they compare."""

import dataclasses
import functools
import re

from clara_jax.text import sentences
from clara_jax.text.words import WORDS

_TENS = dict(zip(WORDS["tens"], range(20, 100, 10), strict=True))
SMALL = {
    **dict(zip(WORDS["units"], range(20), strict=True)),
    **_TENS,
    **dict(zip(WORDS["ordinals"], range(1, 20), strict=True)),
    **{word[:-1] + "ieth": value for word, value in _TENS.items()},
    **{"twice": 2, "thrice": 3, "dozen": 12},
}
_LARGE = dict(zip(WORDS["large"], (10**2, 10**3, 10**6, 10**9, 10**12), strict=True))

_NUMBER = re.compile(
    r"(?<![\w.,])(?P<digits>\d{1,3}(?:[,\u202f\u00a0]\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?)"
    r"(?:st|nd|rd|th|s)?(?![\d])"
    r"|(?<!\w)(?P<word>" + "|".join(sorted(SMALL | _LARGE, key=len, reverse=True)) + r")s?(?!\w)",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\b(\d\d)(\d\d)\s?[-–—/]\s?(\d\d)\b(?![-–—/\d])")

_MONTHS = {
    name[:n]: month for month, name in enumerate(WORDS["months"], 1) for n in (3, 4, len(name))
}
_MONTH = r"(?P<month>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\b\.?"
_DAY = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>1\d{3}|20\d{2})"
# The usual forms, the longest first: what one has taken is not read again by the next.
_DATES = [
    re.compile(rf"(?<!\d){form}(?!\d)", re.IGNORECASE)
    for form in (
        rf"{_DAY}(?:\s+of)?\s+{_MONTH},?\s+{_YEAR}",
        rf"\b{_MONTH}\s+{_DAY},?\s+{_YEAR}",
        rf"{_YEAR}-(?P<month>\d\d)-{_DAY}",
        rf"{_DAY}\.(?P<month>\d\d?)\.{_YEAR}",
        rf"\b{_MONTH},?\s+(?:of\s+)?{_YEAR}",
        rf"{_DAY}(?:\s+of)?\s+{_MONTH}",
        rf"\b{_MONTH}\s+{_DAY}(?!\w)",
        r"\b(?P<year>1[5-9]\d\d|20\d\d)(?:s\b)?",  # an earlier one alone may be any number
    )
]

# A name: capitalised words, perhaps with small ones between; or letters and digits in capitals.
_CAPITAL = r"[^\W\d_a-zß-öø-ÿ][\w&-]*(?:['’.](?!s\b)[\w&-]+)*\.?"
_NAME = re.compile(
    rf"(?<![\w]){_CAPITAL}(?:\s+(?:(?:of|the|de|la|le|du|van|von|der|del|da|di|al)\s+){{0,2}}"
    rf"{_CAPITAL})*"
)
_TITLES = frozenset(WORDS["titles"])
# Capitalised words that are no names: beginnings of sentences, the calendar.
_COMMON = frozenset(WORDS["common"]) | _MONTHS.keys()

Date = tuple[int | None, int | None, int | None]  # year, month, day


@dataclasses.dataclass(frozen=True)
class Mentions:
    """What a text mentions."""

    entities: tuple[str, ...]  # names as they stand there, the same name once
    numbers: frozenset[float]  # their values; years are numbers too
    dates: frozenset[Date]  # year, month and day, each None where it is left open


@functools.lru_cache(maxsize=4096)
def find(text: str) -> Mentions:
    """All that a text mentions."""
    return Mentions(entities(text), frozenset(numbers(text)), frozenset(dates(text)))


def numbers(text: str) -> set[float]:
    """Values of the numbers in digits and in words."""
    values: set[float] = set()
    value, end, is_word = 0.0, -9, False
    for match in _NUMBER.finditer(text):
        word = (match["word"] or "").lower()
        scale = _LARGE.get(word)
        here = float(scale or SMALL.get(word, 0)) if word else _value(match["digits"])
        # "twenty-five", "two hundred", "1.5 million": one number together.
        near = re.fullmatch(r"[\s-]+(?:and\s+)?", text[end : match.start()]) if end > 0 else None
        if near and scale:
            values.discard(value)
            here = value * scale
        elif near and is_word and word and _joins(value, here):
            values.discard(value)
            here = value + here
        value, end, is_word = here, match.end(), bool(word)
        values.add(value)
    return values | {float(century + last) for century, _, last in _RANGE.findall(text)}  # 1922–26


def dates(text: str) -> set[Date]:
    """Dates in the usual English forms, ISO form and with points."""
    found: set[Date] = set()
    for form in _DATES:
        text = form.sub(lambda match: _note(match, found), text)
    return found


def entities(text: str) -> tuple[str, ...]:
    """Names: capitalised words; a single one at a sentence's start if it is elsewhere too."""
    inside, starting = [], []
    for sentence in sentences.split(text):
        for match in _NAME.finditer(sentence):
            name = _trim(match[0])
            if not name:
                continue
            before = sentence[: match.start()].strip("\"'“‘«([ ")
            at_start = not before and match[0].startswith(name)
            plain = " " not in name and not re.search(r"[A-Z0-9].*[A-Z0-9]", name)
            (starting if at_start and plain else inside).append(name)
    names = dict.fromkeys(inside)
    known = {word for name in names for word in name.split()}
    names |= dict.fromkeys(name for name in starting if name in known)
    distinct: dict[str, str] = {}
    for name in names:
        distinct.setdefault(name.lower(), name)
    return tuple(distinct.values())


def has_number(value: float, known: frozenset[float]) -> bool:
    """Whether a number is known; 45.0 and 45 are one."""
    return any(abs(value - other) < 1e-9 * max(1.0, abs(value)) for other in known)


def has_date(date: Date, known: frozenset[Date]) -> bool:
    """Whether a date agrees with one that is known, or its year and its day with two."""
    year, month, day = date
    if _agrees(date, known):
        return True
    parts = (year, None, None), (None, month, day)
    return None not in (year, month) and all(_agrees(part, known) for part in parts)


def _agrees(date: Date, known: frozenset[Date]) -> bool:
    return any(
        all(ours in (None, theirs) for ours, theirs in zip(date, other, strict=True))
        for other in known
    )


def _joins(value: float, here: float) -> bool:
    """Whether two numbers in words are one: twenty-five, two hundred and five."""
    return 20 <= value < 100 > here < 10 or value % 100 == 0 < value


def _value(digits: str) -> float:
    if re.fullmatch(r"\d{1,3}(?:[,\u202f\u00a0]\d{3})+(?:\.\d+)?", digits):
        digits = re.sub(r"[,\u202f\u00a0]", "", digits)
    return float(digits.replace(",", "."))


def _note(match: re.Match[str], found: set[Date]) -> str:
    part = match.groupdict()
    month = (part.get("month") or "").lower()
    number = _MONTHS.get(month) or (int(month) if month.isdigit() else None)
    year, day = part.get("year"), part.get("day")
    if (day and not 1 <= int(day) <= 31) or (number and number > 12):
        return match[0]
    found.add((int(year) if year else None, number, int(day) if day else None))
    return " ; "


def _trim(name: str) -> str:
    """A name without words at its start that are none, possessive ends and marks."""
    parts = name.split()
    while parts and parts[0].lower().rstrip(".") in _COMMON | _TITLES:
        parts.pop(0)
    while parts and parts[-1].lower().rstrip(".,") in _COMMON:
        parts.pop()
    text = re.sub(r"['’]s?$", "", " ".join(parts)).rstrip(".-&'’")
    return text if len(text) > 1 else ""
