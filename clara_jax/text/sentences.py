"""Where sentences end, how long a text is, and its words: rules that need no model.

The libraries for it that work offline are either large or no longer kept; the cases that matter
here (abbreviations, initials, decimals, quotes, full stops of Chinese and Japanese) fit a page.
"""

import itertools
import re

from clara_jax.text.words import WORDS

# A stop with the quotes and brackets that close behind it; blanks must follow, save in Chinese and
# Japanese, whose stops stand nowhere else. A row of stops is looked at once, however long.
_STOPS = ".!?…।॥؟۔።။។"
_STOP = re.compile(
    rf"(?<![{_STOPS}])(?P<latin>[{_STOPS}]++)[\"'”’»)\]]*+(?=\s)|[。！？]++[」』”’）]*+"
)
_LAST_WORD = re.compile(r"([\w.]+)\.$")
_INITIAL = re.compile(r"(?:^|[\s.(\"'“‘-])[^\W\d_]\.$")
_FIRST_WORD = re.compile(r"[\s\"'“‘«(\[]*([\w]+)?")

# Never the end of a sentence: what they belong to follows.
_OPEN = frozenset(WORDS["open_abbreviations"])
_BEFORE_NUMBER = frozenset(WORDS["before_number"])
# After an initial or an acronym ("the U.S. The") only these begin a sentence; a name does not.
_STARTERS = frozenset(WORDS["sentence_starters"])

# A word; Chinese, Japanese and Korean signs count one by one.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*")
_PIECE = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]{{1,12}}|[^\w\s]|_")


def ends(text: str) -> list[int]:
    """Positions behind each sentence of a text, the last of which is its length."""
    found = [match.end() for match in _STOP.finditer(text) if _is_end(text, match)]
    return found if found and found[-1] >= len(text.rstrip()) else [*found, len(text)]


def split(text: str) -> list[str]:
    """The sentences of a text without the blanks between them."""
    starts = [0, *ends(text)]
    parts = (text[a:b].strip() for a, b in itertools.pairwise(starts))
    return [part for part in parts if part]


def words(text: str) -> list[str]:
    """The words in lower case, without marks."""
    return WORD.findall(text.lower())


def estimate(text: str) -> int:
    """About how many tokens a text has: its words and marks, and a third more."""
    return -(-4 * len(_PIECE.findall(text)) // 3)


def _is_end(text: str, match: re.Match[str]) -> bool:
    following = _FIRST_WORD.match(text, match.end())
    word = (following and following[1]) or ""
    if word[:1].islower():
        return False
    if match["latin"] != ".":
        return True
    before = text[max(0, match.start() - 20) : match.start("latin") + 1]
    if _INITIAL.search(before):
        return word.lower() in _STARTERS
    last = _LAST_WORD.search(before)
    name = last[1].lower() if last else ""
    return name not in _OPEN and not (name in _BEFORE_NUMBER and word[:1].isdigit())
