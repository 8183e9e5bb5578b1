"""What a run would cost, from the lengths of the documents and what replies usually are like."""

from typing import Any

from clara_jax.config import Synthesis
from clara_jax.endpoint.prompts import Prompts
from clara_jax.synthesis.jobs import Job
from clara_jax.synthesis.prompts import KINDS

CHARACTERS = 4  # of a token of English; other languages have fewer
ROUNDS = 2  # of questions that a document takes, where so many are allowed
# For each prompt what it shows beside the document, and what comes back, both in lengths of the
# document; and whether it is sent in every round.
_SCP = {
    "simple": (0.0, 0.8, False),
    "complex": (0.0, 0.5, False),
    "answers": (0.8, 0.4, True),
    "validate": (1.2, 1.2, True),
    "coverage": (2.4, 0.3, True),
    "paraphrase": (0.0, 1.0, False),
    "check_paraphrase": (1.0, 0.1, False),
}
_INSTRUCT_TOKENS = 24  # of a short answer in JSON


class Estimate:
    """Adds up jobs, the requests that they would take, and the tokens read and written."""

    def __init__(self, options: Synthesis, prompts: Prompts):
        self._options = options
        empty = {place: "" for kind in KINDS.values() for place in kind.places}
        for always in ("demonstrations", "language"):
            del empty[always]
        self._fixed = {
            name: sum(len(message["content"]) for message in prompts.messages(name, **empty))
            for name in KINDS
        }
        self.jobs, self.requests, self.tokens = 0, 0, [0.0, 0.0]

    def add(self, job: Job) -> None:
        """Counts one job."""
        self.jobs += 1
        if "question" in job:
            shown = sum(map(len, job["docs"])) + len(job["question"])
            self._count(1, self._fixed["instruct"] + shown, _INSTRUCT_TOKENS * CHARACTERS)
            return
        length = len(job["title"]) + len(job["text"])
        for name, (beside, out, every_round) in _SCP.items():
            if "paraphrase" in name and not self._options.paraphrase:
                continue
            times = min(ROUNDS, self._options.rounds + 1) if every_round else 1
            self._count(times, self._fixed[name] + length * (1 + beside), length * out)

    def _count(self, times: int, read: float, written: float) -> None:
        self.requests += times
        self.tokens[0] += times * read / CHARACTERS
        self.tokens[1] += times * written / CHARACTERS

    def __str__(self) -> str:
        read, written = map(round, self.tokens)
        spent = cost(self._options, read, written)
        price = f"{spent:,.2f}" if spent else "unknown (config.synthesis.input_price, output_price)"
        return (
            f"jobs                {self.jobs:>14,}\n"
            f"requests, about     {self.requests:>14,}\n"
            f"tokens in, about    {read:>14,}\n"
            f"tokens out, about   {written:>14,}\n"
            f"cost, about         {price:>14}\n"
            f"Assumed: {CHARACTERS} characters a token, {ROUNDS} rounds of questions at most, no "
            "repeated requests, no reasoning before a reply."
        )


def cost(options: Synthesis, read: int, written: int) -> float:
    """Price of tokens, in the currency of the options."""
    return (read * options.input_price + written * options.output_price) / 1e6


def describe(options: Synthesis, tokens: Any) -> dict[str, Any]:
    """Tokens and their price for the manifest."""
    read, written = tokens
    return {"in": read, "out": written, "estimated_cost": round(cost(options, read, written), 6)}
