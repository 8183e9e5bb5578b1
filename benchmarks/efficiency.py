"""Time and memory of answering by compression rate, beside the full text (the paper's Table 15).

    python -m benchmarks.efficiency --preset=smollm2_135m --rate 4 16 64

A question over k documents of 256 tokens costs: compressing them, once and for all questions;
encoding the question, to rank them; reading the prompt, with memories or with the texts; and
decoding the answer. Tokens are random and no token ends an answer. Every row is measured in a
process of its own (measure.py), on the devices at hand.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.measure import Program, measured
from benchmarks.programs import DOCUMENT, QUESTION, Options, make_setup
from benchmarks.speed import alone
from clara_jax import files
from clara_jax.data.prompts import FRAME
from clara_jax.errors import UserError, command
from clara_jax.evaluation.efficiency_table import HEAD, PAPER, Row, cells
from clara_jax.evaluation.paper import paper
from clara_jax.inference import encode, generate
from clara_jax.models.clara import Trees
from clara_jax.models.config import PRESETS
from clara_jax.models.decoder import Cache
from clara_jax.runs.setup import Model
from clara_jax.text.markdown import table

TEMPLATE = 47  # tokens of the default prompt with SmolLM2's tokenizer, without documents, question


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured."""

    documents: int = 5  # k, in a prompt
    new_tokens: int = 64  # of an answer
    batch: int = 4  # documents compressed, or questions answered, at once


def measure(options: Options, work: Work, rate: int | None) -> Row:
    """Measures one rate, or the full text for None."""
    model, trees = make_setup(options, stage="e2e", rate=rate or DOCUMENT)
    M, D = len(model.extra.memory), model.architecture.d_model
    asked, role = _asked(model, work, rate is None)
    ((_, arrays),) = generate.prompt_batches(asked, model.extra, work.batch)
    batch, read = generate.put(model, arrays), generate.needed(trees, role)
    never_V = np.zeros(model.architecture.vocab_size, bool)

    def answers(name: str, new_tokens: int) -> Program:
        compiled = generate.decode.lower(
            model.decoder, read, batch, never_V, role=role, max_new_tokens=new_tokens
        ).compile()
        run = functools.partial(compiled, read, batch, never_V)
        return Program(name, compiled, run, arrays.tokens_BT.size)

    programs = [answers("prompt", 1), answers("answer", work.new_tokens)]
    if rate is not None:
        programs += [
            _encoding(model, trees, "compressor", work.batch, DOCUMENT),
            _encoding(model, trees, "reasoner", work.batch, QUESTION),
        ]
    results = measured(*programs)
    each = [result.seconds / work.batch for result in results] + [0.0, 0.0]
    length = arrays.tokens_BT.shape[1] + work.new_tokens - 1
    cache = Cache.create(model.architecture, 1, length)
    return Row(
        "full text" if rate is None else f"{rate}x",
        compress=each[2],
        query=each[3],
        prompt=each[0],
        whole=each[1],
        program_gib=max(result.program_gib for result in results),
        peak_gib=results[0].peak_gib,
        stored=4 * DOCUMENT if rate is None else 2 * M * D,
        cache=sum(x.nbytes for x in jax.tree.leaves(cache)),
    )


def _asked(model: Model, work: Work, as_text: bool) -> tuple[list[generate.Prompt], str | None]:
    """Prompts of random tokens, and the adapter that reads them."""
    rng, extra, k = np.random.default_rng(0), model.extra, work.documents
    length = TEMPLATE + QUESTION + k * DOCUMENT * as_text
    tokens = rng.integers(0, extra.vocab_size, (work.batch, length)).tolist()
    if as_text:
        return [generate.Prompt(row) for row in tokens], None
    shape = (k * len(extra.memory), model.architecture.d_model)
    slots = model.layout.slots(k)
    return [
        generate.Prompt(row[:TEMPLATE] + slots + row[TEMPLATE:], rng.standard_normal(shape, "f4"))
        for row in tokens
    ], "generator"


def _encoding(model: Model, trees: Trees, role: str, rows: int, text: int) -> Program:
    """Memories of texts by an adapter."""
    rng, extra = np.random.default_rng(0), model.extra
    tail = model.layout.tail
    tokens = rng.integers(0, extra.vocab_size, (rows, text + FRAME + len(tail)), np.int32)
    tokens[:, 0], tokens[:, tokens.shape[1] - len(tail) :] = extra.enc, tail
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape).copy()
    places = np.tile(model.layout.places(tokens.shape[1]), (rows, 1))
    parts = tokens, positions, np.ones_like(tokens), places
    arrays = [generate.put(model, x) for x in parts]
    trees = generate.needed(trees, role)
    compiled = encode.encode_rows.lower(model.decoder, role, model.memory, trees, *arrays).compile()
    return Program(role, compiled, functools.partial(compiled, trees, *arrays), tokens.size)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.efficiency", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--base", default="", help="base model; default: random weights")
    parser.add_argument("--preset", default="smollm2_135m", help="shape of the random weights")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rate", type=int, nargs="+", default=[4, 16, 32, 64, 128])
    parser.add_argument("--documents", type=int, default=5, help="in a prompt")
    parser.add_argument("--new_tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--batch", type=int, default=4, help="questions, or documents, at once")
    parser.add_argument("--output", default="", help="also NAME.md and NAME.json")
    args = parser.parse_args(argv)
    for rate in args.rate:
        if not 1 <= rate <= DOCUMENT:
            parser.error(f"--rate must be from 1 to {DOCUMENT}")
    if min(args.documents, args.batch) < 1 or args.new_tokens < 2:
        parser.error("--documents and --batch must be at least 1, --new_tokens at least 2")
    if not args.base and args.preset not in PRESETS:
        raise UserError(f"--preset={args.preset} is unknown; known: {', '.join(PRESETS)}")
    options = Options(args.base, args.preset, args.dtype)
    work = Work(args.documents, args.new_tokens, args.batch)
    rows = []
    for rate in (None, *args.rate):  # minutes each, for a large model
        rows.append(alone(measure, options, work, rate))
        print(f"{rows[-1].name}: {rows[-1].answer:.3g} s an answer", file=sys.stderr, flush=True)
    text = table(HEAD, cells(rows))
    text += f"\n\n{PAPER}\n\n{table(*paper.seconds(args.rate))}"
    print(text)
    if args.output:
        files.write(f"{args.output}.md", text + "\n")
        content = {"options": vars(args), "rows": [dataclasses.asdict(row) for row in rows]}
        files.write(f"{args.output}.json", json.dumps(content, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
