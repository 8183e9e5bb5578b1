"""How true memories are to their documents, of one run or of several at other rates.

    python -m clara_jax.evaluation.fidelity runs/rate4 runs/rate16 --documents=dev.jsonl

writes OUTPUT.md, OUTPUT.json and pictures of what --parts name:

    facts       what becomes of the facts that questions ask for, by rate, place and piece
    order       whether answers follow the order of sentences
    text        paraphrases read back: ROUGE, and which names, numbers and dates are kept
    similarity  documents against changed copies of them, and with --pairs against people's scores

Documents longer than the limit are read in pieces, as in a store. `unseen` are the documents of
--documents, or those that the run evaluates on; `seen` are some that it was trained on.
The same command after a kill resumes where it stopped, and comes to the same numbers.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clara_jax import api, files
from clara_jax.api import Clara
from clara_jax.config import Config, with_options
from clara_jax.data import scp_rows, sources
from clara_jax.data.records import ScpRecord, names_of
from clara_jax.errors import UserError, command
from clara_jax.evaluation.fidelity import draw as draw_lib
from clara_jax.evaluation.fidelity import facts as facts_lib
from clara_jax.evaluation.fidelity import order as order_lib
from clara_jax.evaluation.fidelity import similarity, tables
from clara_jax.evaluation.fidelity import spacy as spacy_lib
from clara_jax.evaluation.fidelity import text as text_lib
from clara_jax.evaluation.fidelity.pieces import Pieces
from clara_jax.evaluation.journal import Journal
from clara_jax.models.clara import Trees
from clara_jax.runs import abilities
from clara_jax.runs.setup import Loaded, Model
from clara_jax.runs.workdir import labels
from clara_jax.text import wording

PARTS = ("facts", "order", "text", "similarity")


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    parts: tuple[str, ...] = PARTS  # of PARTS
    documents: str = ""  # names of sources, as config.data.sources has them; empty: the run's own
    count: int = 100  # most documents of each side
    pairs: str = ""  # of texts with people's scores, see `similarity.read_pairs`; empty: none
    encoder: str = ""  # folder of an encoder for BERTScore; empty: none
    # name or folder of a spaCy pipeline that finds names, numbers and dates; empty: rules
    spacy: str = ""
    tokens: int = 256  # most tokens of a paraphrase


def unseen(config: Config, options: Options) -> list[ScpRecord]:
    """Records of documents that the run was not trained on.

    Raises:
        UserError: it has none of its own, or the source cannot be opened.
    """
    scp = with_options(config, {"stage": "scp"})
    if not options.documents:
        return _some(scp_rows.open_dev(scp), options.count)
    source = sources.open_sources(options.documents, tfds_dir=config.data.tfds_dir)
    return _some(source, options.count)


def seen(config: Config, options: Options) -> list[ScpRecord]:
    """Records that the run was trained on; none where its sources are no longer to be had."""
    # `each:` draws questions of another form from the same documents.
    names = [n for n in names_of(config.data.sources) if not n.startswith("each:")]
    scp = with_options(config, {"stage": "scp", "data.sources": ",".join(names)})
    try:
        source = scp_rows.open_data(scp)
    except UserError as e:
        print(f"no seen documents: {e}", file=sys.stderr)
        return []
    return _some(source, options.count)


def measure(
    clara: Clara, options: Options, pieces: Pieces | None = None, strict: bool = True
) -> dict[str, Any]:
    """All that --parts name, of one run.

    Args:
        clara: the run's model.
        options: what to measure.
        pieces: keep what is finished, for a command that is killed.
        strict: a part that this model or these documents do not serve is an error; else it is left
            out, with a line that says why.

    Returns:
        `step`, `stage`, `memory_tokens`, `rate` (realised) and an entry for each part.

    Raises:
        UserError: there is nothing to measure on, or the model cannot do it.
    """
    model, trees = clara.model, clara.trees
    abilities.can(model, trees, "compress")
    # Before the long work: what is missing is reported.
    compare = spacy_lib.comparer(options.spacy) if options.spacy else wording.compare
    if "text" in options.parts and model.config.model.tokenizer == "facts":
        why = "text: the made-up facts' words do not make up an instruction to paraphrase"
        options = _without("text", options, strict, why)
    similar = None
    if "text" in options.parts:
        text_lib.rouge_scorer()
        similar = text_lib.bert_scores(options.encoder) if options.encoder else None
    elif options.encoder:
        why = "no paraphrases are read back"
        print(f"--encoder={options.encoder} is not used: {why}", file=sys.stderr)
    sides = {"unseen": unseen(model.config, options)}
    if {"facts", "text"} & set(options.parts):
        sides["seen"] = seen(model.config, options)
    asked = {name: [r for r in side if r.data_type == "qa"] for name, side in sides.items()}
    if {"facts", "order"} & set(options.parts) and not asked["unseen"]:
        raise UserError(
            f"{options.documents or model.config.data.sources}: no qa record; ask for "
            "--parts=text,similarity alone"
        )
    if "similarity" in options.parts:
        try:
            similarity.changed(sides["unseen"])
        except UserError as e:
            options = _without("similarity", options, strict, str(e))
    pairs = similarity.read_pairs(options.pairs, options.count) if options.pairs else []
    found: dict[str, Any] = {
        "step": model.step,
        "stage": model.config.stage,
        "memory_tokens": len(model.extra.memory),
        "rate": model.config.data.document_length / len(model.extra.memory),
    }
    if "facts" in options.parts:
        found |= _facts(model, trees, asked, pieces)
    if "order" in options.parts:
        found["order"] = order_lib.shuffled(model, trees, asked["unseen"], pieces)
        found["which_first"] = order_lib.which_first(model, trees, asked["unseen"], pieces)
    if "text" in options.parts:
        found["text"] = {}
        for name, records in sides.items():
            if records:
                part = f"paraphrases, {name}"
                read_back = text_lib.read_back(
                    clara, records, options.tokens, similar, compare, pieces, part
                )
                found["text"][name] = read_back | {"mentions": options.spacy or "rules"}
    if "similarity" in options.parts:
        found["similarity"] = similarity.changed_copies(model, trees, sides["unseen"], pieces)
    if options.pairs:
        found["human_scores"] = similarity.human_scores(model, trees, pairs, pieces)
    return found


def _facts(
    model: Model, trees: Trees, asked: Mapping[str, list[ScpRecord]], pieces: Pieces | None
) -> dict[str, Any]:
    """What became of the facts of each side, and the rate of the unseen documents."""
    facts = {
        name: facts_lib.ask(model, trees, records, pieces, f"facts, {name}")
        for name, records in asked.items()
        if records
    }
    return {
        "rate": facts["unseen"][1],
        "facts": {name: facts_lib.summary(each) for name, (each, _) in facts.items()},
        "answers": {name: [*map(dataclasses.asdict, each)] for name, (each, _) in facts.items()},
    }


def _without(part: str, options: Options, strict: bool, why: str) -> Options:
    if strict:
        raise UserError(f"{why}; leave it out of --parts")
    print(f"left out: {why}", file=sys.stderr)
    return dataclasses.replace(options, parts=tuple(p for p in options.parts if p != part))


def draw(runs: Mapping[str, Mapping[str, Any]], output: str) -> list[str]:
    """The pictures; returns their paths."""
    paths = []
    for name, part in (("facts", "facts"), ("places", "facts"), ("similarity", "similarity")):
        if all(part in run for run in runs.values()):
            paths.append(f"{output}_{name}.png")
            getattr(draw_lib, name)(runs, paths[-1])
    return paths


def _some(source: sources.Source[ScpRecord], count: int) -> list[ScpRecord]:
    """Compressed records of a source, drawn from all of it, in its order."""
    order = np.random.default_rng(0).permutation(len(source))
    found: dict[int, ScpRecord] = {}
    for i in order.tolist():
        if len(found) == count:
            break
        if (record := source[i]).compress:
            found[i] = record
    return [found[i] for i in sorted(found)]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clara_jax.evaluation.fidelity", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("workdirs", nargs="+", metavar="WORKDIR", help="of training runs, or releases")
    add("--documents", default="", help="sources, as config.data.sources; default: the run's own")
    add("--count", type=int, default=100, help="most documents of a side (default %(default)s)")
    every = ",".join(PARTS)
    add("--parts", help=f"which parts; by default those of {every} that the run serves")
    add("--pairs", default="", help="JSONL or tfds:NAME/SPLIT of pairs with people's scores")
    add("--encoder", default="", help="folder of an encoder for BERTScore of --parts=text")
    add("--spacy", default="", help="pipeline that finds names and numbers in place of rules")
    add("--tokens", type=int, default=256, help="most of a paraphrase (default %(default)s)")
    add("--base", default=None, help="where the base model is now, if elsewhere")
    add("--output", default="fidelity", help="start of the files' names (default %(default)s)")
    args = parser.parse_args(argv)
    parts = tuple(filter(None, (every if args.parts is None else args.parts).split(",")))
    if strange := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: no part {strange[0]!r}; there are {', '.join(PARTS)}")
    if min(args.count, args.tokens) < 1 or not parts:
        parser.error("--count and --tokens must be at least 1, --parts not empty")
    options = Options(
        parts, args.documents, args.count, args.pairs, args.encoder, args.spacy, args.tokens
    )
    workdirs = [files.normal(workdir) for workdir in args.workdirs]
    if len(set(workdirs)) < len(workdirs):
        raise UserError("fidelity: a workdir is named twice; name each once")
    # Beside the output: a release's folder need not be one that can be written.
    basis = {"fidelity": dataclasses.asdict(options), "base": args.base}
    journal = Journal(os.path.dirname(args.output) or ".", basis)
    runs = {}
    for label, workdir in zip(labels(workdirs), workdirs, strict=True):
        clara = api.load(workdir, args.base)
        pieces = Pieces(journal, Loaded(clara.model, clara.trees), files.absolute(workdir), label)
        runs[label] = {"workdir": workdir} | measure(
            clara, options, pieces, strict=args.parts is not None
        )
    text = tables.markdown(runs)
    print(text)
    try:
        result = {"settings": dataclasses.asdict(options), "runs": runs}
        files.write(f"{args.output}.json", json.dumps(result, indent=2, ensure_ascii=False))
        files.write(f"{args.output}.md", text + "\n")
    except OSError as e:
        raise UserError(f"{args.output}: cannot be written ({e.strerror})") from e
    journal.close()
    try:
        pictures = draw(runs, args.output)
    except UserError as e:
        pictures = []
        print(f"no pictures: {e}", file=sys.stderr)
    print("written:", ", ".join([f"{args.output}.md", f"{args.output}.json", *pictures]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
