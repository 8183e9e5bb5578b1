import time

from hypothesis import given, settings
from hypothesis import strategies as st

from clara_jax.text import chunks, sentences


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from("ab .。!?Zé1\n"), max_size=300), st.integers(4, 40))
def test_pieces_fit_and_lose_nothing(text, limit):
    pieces = list(chunks.chunk(text, lambda t: sentences.estimate(t) <= limit))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < sentences.estimate(piece) <= limit for piece in pieces)


def test_pieces_are_as_the_text_has_them_and_room_is_left_beside_a_long_title():
    text = "One is  here.\n\nTwo is\there. Three is here."
    title, parts = chunks.pieces("a b c d e f", text, lambda t: len(t.split()), 6)
    assert (title, list(parts)) == ("a b c", ["One is  here.", "Two is\there.", "Three is here."])
    title, parts = chunks.pieces("", text, lambda t: len(t.split()), 6)
    assert list(parts) == ["One is  here.\n\nTwo is\there.", "Three is here."]


def test_time_grows_no_faster_than_a_text_without_ends():
    measured = 0

    def fits(text):
        nonlocal measured
        measured += len(text)
        return len(text) <= 1000

    text = "word " * 40_000
    assert " ".join(chunks.chunk(text, fits)) == text.strip()
    assert measured < 100 * len(text)
    begun = time.monotonic()
    assert sentences.split("." * 100_000 + "x") == ["." * 100_000 + "x"]
    assert time.monotonic() - begun < 5
