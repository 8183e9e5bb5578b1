"""Whether a text is of a language, as py3langid's model sees it."""

import functools
import re
from typing import Any

from clara_jax.errors import UserError

# Names as in config.synthesis.language; of other languages nothing is said.
_CODES = {
    "arabic": "ar",
    "chinese": "zh",
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "hebrew": "he",
    "hindi": "hi",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "latin": "la",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "thai": "th",
    "ukrainian": "uk",
}
_NO_NAMES_BY_CASE = frozenset(
    "german greek arabic chinese hebrew hindi japanese korean thai".split()
)
_PLAINLY = 0.01  # probability below which a text is of another; 1 of 3,670 English questions is
_LETTER = re.compile(r"[^\W\d_]")


def is_other(text: str, language: str) -> bool:
    """Whether a text is plainly not of the language; never of one that is not in the table."""
    code = _CODES.get(language.strip().lower())
    if code is None or len(_LETTER.findall(text)) < 4:
        return False
    return dict(model().rank(text))[code] < _PLAINLY


def has_names_by_case(language: str) -> bool:
    """Whether capitals tell names in this language: not in German, nor without cases."""
    return language.strip().lower() not in _NO_NAMES_BY_CASE


@functools.cache
def model() -> Any:
    """What gives a text's probabilities by language.

    Raises:
        UserError: py3langid is not installed.
    """
    try:
        from py3langid import langid  # its model takes a second to load
    except ImportError as e:
        raise UserError("synthesis needs py3langid: pip install 'clara-jax[synthesis]'") from e
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
