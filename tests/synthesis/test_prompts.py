import re
import shutil

import pytest

from clara_jax.config import Synthesis
from clara_jax.endpoint import prompts as prompts_lib
from clara_jax.endpoint.prompts import Prompts, conform, schema
from clara_jax.errors import UserError
from clara_jax.synthesis.prompts import KINDS, OWN


def own(tmp_path, **changes):
    folder = tmp_path / "mine"
    shutil.copytree(OWN, folder)
    for name, text in changes.items():
        path = folder / f"{name}.txt"
        path.unlink() if text is None else path.write_text(text)
    return Synthesis(prompts=str(folder))


def keys(shape):
    """All keys of a shape."""
    if isinstance(shape, dict):
        return set(shape).union(*map(keys, shape.values()))
    return keys(shape[0]) if isinstance(shape, list) else set()


def test_every_kind_has_a_prompt_that_states_its_shape():
    assert {path.stem for path in OWN.glob("*.txt")} == set(KINDS)
    for name, kind in KINDS.items():
        _, form = (OWN / f"{name}.txt").read_text().split("Reply with one JSON object")
        assert set(re.findall(r'"(\w+)"', form)) == keys(kind.shape), name


def test_places_are_filled_once_and_braces_in_texts_stay():
    system, user = Prompts(Synthesis(language="Greek"), KINDS, OWN).messages(
        "answers", document="a {questions} of {x}", questions="1. {document}?"
    )
    assert (system["role"], user["role"]) == ("system", "user")
    assert "in Greek" in system["content"]
    assert "a {questions} of {x}" in user["content"] and "1. {document}?" in user["content"]
    assert user["content"].endswith('"answer", a text.')


def test_demonstrations_are_shown_and_change_the_hash(tmp_path):
    path = tmp_path / "shown.txt"
    path.write_text("Example: {a}\n")
    plain = Prompts(Synthesis(), KINDS, OWN)
    shown = Prompts(Synthesis(demonstrations=str(path)), KINDS, OWN)
    for name in ("simple", "complex", "answers", "paraphrase", "instruct"):
        places = dict.fromkeys(KINDS[name].places, "-")
        del places["demonstrations"], places["language"]
        assert "Example: {a}" in shown.messages(name, **places)[1]["content"]
    assert plain.hash != shown.hash and plain.version == "v2"
    assert (
        plain.hash
        == Prompts(Synthesis(), KINDS, OWN).hash
        != Prompts(Synthesis(language="Greek"), KINDS, OWN).hash
    )


def test_prompts_of_ones_own(tmp_path):
    options = own(tmp_path, validate="Mine\n===\n{document} {pairs}")
    found = Prompts(options, KINDS, OWN)
    assert found.version == "mine" and found.hash != Prompts(Synthesis(), KINDS, OWN).hash
    assert found.messages("validate", document="D", pairs="P")[1]["content"] == "D P"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "validate.txt: no such prompt"),
        ("a\n===\n{document}", "{pairs} is missing"),
        ("a\n===\n{document} {pairs} {paires}", "nothing fills {paires}"),
        ("{document} {pairs}", "one line ==="),
    ],
)
def test_mistakes_in_prompts_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        Prompts(own(tmp_path, validate=text), KINDS, OWN)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        Prompts(Synthesis(prompts=str(tmp_path / "none")), KINDS, OWN)
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        Prompts(Synthesis(demonstrations=str(tmp_path / "none.txt")), KINDS, OWN)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("simple", {"questions": [" a ", {"question": "b"}, 7]}, {"questions": ["a", "b", "7"]}),
        ("answers", {"answers": [{"number": "2.", "answer": None}]},
         {"answers": [{"number": 2, "answer": ""}]}),
        ("coverage", {"covered": "Yes"},
         {"covered": True, "missing": [], "simple": [], "complex": []}),
        ("instruct", {"answer": "a\ud800b"}, {"answer": "ab"}),
        ("simple", {"question": ["a"]}, None),
        ("simple", {"questions": "a"}, None),
        ("simple", {"questions": [["a"]]}, None),
        ("simple", ["a"], None),
        ("simple", {"questions": ["..."]}, None),
        ("simple", {"questions": [True]}, None),
        ("coverage", {"missing": []}, None),
        ("coverage", {"covered": 1}, None),
        ("validate", {"verdicts": [{"number": 1, "supported": True}]}, None),
        ("answers", {"answers": [{"number": True, "answer": "a"}]}, None),
    ],
)  # fmt: skip
def test_replies_are_held_to_their_shape(name, value, expected):
    if expected is None:
        with pytest.raises(ValueError):
            conform(value, KINDS[name].shape)
    else:
        assert conform(value, KINDS[name].shape) == expected


def test_schema():
    found = schema(KINDS["answers"].shape)
    assert found["required"] == ["answers"]
    item = found["properties"]["answers"]["items"]
    assert item["properties"] == {"number": {"type": "integer"}, "answer": {"type": "string"}}
    assert item["additionalProperties"] is False


def test_lists_are_numbered_one_a_line():
    assert prompts_lib.numbered(["a\nb", "c"]) == "1. a b\n2. c"
    assert prompts_lib.numbered([]) == "none"
