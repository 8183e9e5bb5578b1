"""Answers as SQuAD compares them."""

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, without punctuation and articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
