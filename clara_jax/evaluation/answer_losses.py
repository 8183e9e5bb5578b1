"""Cross-entropy of whole assistant turns and of single answers, teacher-forced."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from clara_jax.data import prompts
from clara_jax.data.prompts import NO_LABEL
from clara_jax.data.records import ScpRecord
from clara_jax.evaluation import asking
from clara_jax.inference import generate
from clara_jax.inference.answers import laid_out
from clara_jax.inference.generate import Prompt, PromptBatch
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import Decoder
from clara_jax.runs.setup import Model
from clara_jax.training.losses import cross_entropy_sum


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A row for the losses."""

    prompt: Prompt  # prompt and answer
    turn: slice | None = None  # tokens of the assistant's whole turn; None: not counted
    answer: slice | None = None  # tokens of one answer; None: not counted


def labelled_rows(model: Model, record: ScpRecord, given: asking.Documents) -> list[Labelled]:
    """Rows of one record: its turn with all questions, and each question with its answer alone.

    Where the turn begins with the row of a question, as with a single question, one row does for
    both.
    """
    docs, vectors = laid_out(model, given)
    system, user = model.layout.scp_turns(record, docs)
    turn = prompts.qa_text(record.questions, record.answers)
    whole, start = prompts.dialogue(model.tokenizer, system, user, turn)
    rows = [Labelled(Prompt(whole, vectors), turn=slice(start, len(whole)))]
    for question, answer in zip(record.questions, record.answers, strict=True):
        prompt, place = asking.prompt(model, question, given, answer)
        if rows[0].answer is None and whole[: place.stop] == prompt.tokens:
            rows[0] = dataclasses.replace(rows[0], answer=place)
        else:
            rows.append(Labelled(prompt, answer=place))
    return rows


def cross_entropies(
    model: Model,
    trees: Trees,
    rows: Sequence[Labelled],
    role: str | None,
    report: Callable[[int], None],
) -> tuple[list[float], list[int]]:
    """Sums in nats over the labelled tokens of turns and answers, and their numbers."""
    trees = generate.needed(trees, role)
    totals, counts = np.zeros(2), np.zeros(2, int)
    batch = model.config.eval.batch
    for index, arrays in generate.prompt_batches([r.prompt for r in rows], model.extra, batch):
        targets = np.full((2, *arrays.tokens_BT.shape), NO_LABEL, np.int32)
        for row, i in enumerate(index):
            ids = np.asarray(rows[i].prompt.tokens, np.int32)
            for kind, place in enumerate((rows[i].turn, rows[i].answer)):
                if place is not None:
                    targets[kind, row, : len(ids)] = prompts.labels(ids, place.start, place.stop)
        on_mesh = [generate.put(model, x) for x in (arrays, *targets)]
        totals += np.array(_loss_sums(model.decoder, trees, *on_mesh, role=role), float)
        counts += (targets != NO_LABEL).sum((1, 2))
        report(len(index))
    return totals.tolist(), counts.tolist()


@functools.partial(jax.jit, static_argnames=("decoder", "role"))
def _loss_sums(
    decoder: Decoder,
    trees: Trees,
    batch: PromptBatch,
    turn_targets_BT: jax.Array,
    answer_targets_BT: jax.Array,
    *,
    role: str | None,
) -> tuple[jax.Array, jax.Array]:
    config = decoder.config
    x_BTD = batch.embed(config, trees)
    hidden_BTD, _ = clara.run(decoder, trees, role, x_BTD, batch.positions())
    # Blocks as wide as a bucket: few positions have labels, and full logits would be large.
    chunks = x_BTD.shape[1] // generate.BUCKET
    turn, answer = (
        cross_entropy_sum(config, trees, hidden_BTD, targets_BT, chunks)
        for targets_BT in (turn_targets_BT, answer_targets_BT)
    )
    return turn, answer
