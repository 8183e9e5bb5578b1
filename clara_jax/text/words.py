"""Lists of words by which texts are read, by their names in words.json."""

import json
import pathlib

_TEXT = pathlib.Path(__file__).with_name("words.json").read_text(encoding="utf-8")
WORDS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split()) for name, words in json.loads(_TEXT).items()
}
