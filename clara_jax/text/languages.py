"""Whether a text is of a language, by its script and its small words: a light rule."""

import re

# Small words that are frequent in one of these languages and rare in the others.
_SMALL_WORDS = {
    "english": "the of and to is was what which who how when where did does that "
    "with for are were by "
    "his her from this",
    "german": "der die das und ist wer wie wann wo nicht ein eine den dem von "
    "mit für auf wurde welche "
    "welcher zu im auch",
    "french": "le les des et est qui quel quelle où comment dans une pour par "
    "sur avec aux du ce cette "
    "quand était",
    "spanish": "el los las y es quién qué cuál cuándo dónde cómo una del por con "
    "para fue en se al son "
    "cuántos",
    "italian": "il gli che è chi quale quando dove come una di per con nel della "
    "sono stato fu alla dei "
    "quanti",
    "portuguese": "os as e é quem qual quando onde como uma do da em por com "
    "para foi não dos ao são "
    "quantos",
    "dutch": "het een van en is wie wat welke wanneer waar hoe niet op met voor "
    "door werd zijn aan bij "
    "de hoeveel",
}
_SETS = {name: frozenset(words.split()) for name, words in _SMALL_WORDS.items()}
_LATIN = "A-Za-z\u00c0-\u024f"
_SCRIPTS = {
    **dict.fromkeys((*_SETS, "latin"), _LATIN),
    "chinese": "\u3400-\u9fff",
    "japanese": "\u3040-\u30ff\u3400-\u9fff",
    "korean": "\uac00-\ud7af\u1100-\u11ff",
    "russian": "\u0400-\u04ff",
    "ukrainian": "\u0400-\u04ff",
    "greek": "\u0370-\u03ff",
    "arabic": "\u0600-\u06ff",
    "hebrew": "\u0590-\u05ff",
    "hindi": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
_LETTER = re.compile(r"[^\W\d_]")
_ENOUGH = 5  # words from which small words tell a language


def is_other(text: str, language: str) -> bool:
    """Whether a text is plainly not of the language; never of a language that has no rule."""
    language = language.strip().lower()
    letters = _LETTER.findall(text)
    script = _SCRIPTS.get(language)
    if not script or len(letters) < 4:
        return False
    own = sum(bool(re.match(f"[{script}]", letter)) for letter in letters)
    # A name in Latin letters may take up much of a question in another script.
    if own < len(letters) * (0.5 if script == _LATIN else 0.2):
        return True
    words = re.findall(r"[^\W\d_]+", text.lower())
    if language not in _SETS or len(words) < _ENOUGH:
        return False
    hits = {name: sum(word in known for word in words) for name, known in _SETS.items()}
    best = max(hits.values())
    return hits[language] == 0 and best >= 2


def has_names_by_case(language: str) -> bool:
    """Whether capitals tell names in this language: not in German, nor without cases."""
    language = language.strip().lower()
    return language != "german" and _SCRIPTS.get(language, _LATIN) in (_LATIN, "\u0400-\u04ff")
