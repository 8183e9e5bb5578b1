"""The prompts of synthesis, files in `prompts/v2`, and the shapes of their replies.

They say in words what to reply with: small models repeat a form or an example that they are shown.
A changed wording is a new folder, so that a manifest's version says what was asked.
"""

import pathlib

from clara_jax.endpoint.prompts import Kind

OWN = pathlib.Path(__file__).parent / "prompts" / "v2"

_NEEDS = dict.fromkeys(("supported", "complete", "nothing_added"), bool)
_VERDICT = {"number": int, **_NEEDS, "reason": str}
KINDS = {
    "simple": Kind(("document", "demonstrations", "language"), {"questions": [str]}),
    "complex": Kind(("document", "demonstrations", "language"), {"questions": [str]}),
    "answers": Kind(
        ("document", "questions", "demonstrations", "language"),
        {"answers": [{"number": int, "answer": str}]},
    ),
    "validate": Kind(("document", "pairs"), {"verdicts": [_VERDICT]}),
    "coverage": Kind(
        ("document", "pairs", "questions", "language"),
        {"covered": bool, "missing": [str], "simple": [str], "complex": [str]},
    ),
    "paraphrase": Kind(("document", "problems", "demonstrations", "language"), {"paraphrase": str}),
    "check_paraphrase": Kind(
        ("document", "paraphrase"),
        {"nothing_lost": bool, "nothing_added": bool, "restructured": bool, "problems": [str]},
    ),
    "instruct": Kind(("documents", "question", "demonstrations", "language"), {"answer": str}),
}
