import pytest

from clara_jax.text import sentences


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("He met Dr. Fox. She left.", ["He met Dr. Fox.", "She left."]),
        ("It cost 3.5 marks. J. K. Gray paid.", ["It cost 3.5 marks.", "J. K. Gray paid."]),
        ('"Why?" he said. "Go!" It went.', ['"Why?" he said.', '"Go!"', "It went."]),
        ("In the U.S. The law held.", ["In the U.S.", "The law held."]),
        ("晴れです。「はい。」次", ["晴れです。", "「はい。」", "次"]),
        ("See No. 5 there.", ["See No. 5 there."]),
        ("No stop", ["No stop"]),
        ("यह एक है। वह दो है।", ["यह एक है।", "वह दो है।"]),
        ("هل هذا؟ نعم.", ["هل هذا؟", "نعم."]),
    ],
)
def test_sentences(text, parts):
    assert sentences.split(text) == parts
