"""Cross-entropy of whole assistant turns and of single answers, teacher-forced."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from clara_jax.data import prompts
from clara_jax.data.records import ScpRecord
from clara_jax.data.tokenizer import Parts
from clara_jax.inference import generate
from clara_jax.inference.generate import Prompt, PromptBatch
from clara_jax.models import clara
from clara_jax.models.clara import Trees
from clara_jax.models.decoder import Decoder
from clara_jax.runs.setup import Model
from clara_jax.training.losses import IGNORE, cross_entropy_sum


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A row for the losses: where the whole turn begins and where the answer lies, if there is one.

    Attributes:
        prompt: prompt and answer.
        turn: labels of the assistant's turn, as `slice` of the tokens; None: not counted.
        answer: labels of one answer; None: not counted.
    """

    prompt: Prompt
    turn: slice | None = None
    answer: slice | None = None


def labelled_rows(
    model: Model, record: ScpRecord, docs: Parts, vectors: np.ndarray | None
) -> list[Labelled]:
    """Rows of one record: its turn with all questions, and each question with its answer alone.

    Where the turn begins with the row of a question, as with a single question, one row does for
    both.
    """
    tokenizer, layout = model.tokenizer, model.layout
    system, user = layout.scp_turns(record, docs)
    turn = prompts.qa_text(record.questions, record.answers)
    whole, start = prompts.dialogue(tokenizer, system, user, turn)
    rows = [Labelled(Prompt(whole, vectors), turn=slice(start, len(whole)))]
    opened = tokenizer.chat(system, user)
    for question, answer in zip(record.questions, record.answers, strict=True):
        asked = layout.scp_question(docs, question)
        ids = tokenizer.encode([*opened, prompts.qa_text([question], [answer])])
        place = slice(prompts.common(asked, ids), len(ids))
        if rows[0].answer is None and whole[: len(ids)] == ids:
            rows[0] = dataclasses.replace(rows[0], answer=place)
        else:
            rows.append(Labelled(Prompt(ids, vectors), answer=place))
    return rows


def mean(totals: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Nats a token of turns and of answers; NaN where no token is labelled."""
    pairs = zip(totals, counts, strict=True)
    return [float(total / count) if count else math.nan for total, count in pairs]


def cross_entropies(
    model: Model,
    trees: Trees,
    rows: Sequence[Labelled],
    role: str | None,
    report: Callable[[int], None],
) -> tuple[list[float], list[int]]:
    """Sums in nats over the labelled tokens of turns and of answers, and how many these are."""
    trees = generate.needed(trees, role)
    totals, counts = np.zeros(2), np.zeros(2, int)
    batch = model.config.eval.batch
    for index, arrays in generate.prompt_batches([r.prompt for r in rows], model.extra, batch):
        targets = np.full((2, *arrays.tokens_BT.shape), IGNORE, np.int32)
        for row, i in enumerate(index):
            ids = np.asarray(rows[i].prompt.tokens, np.int32)
            for kind, place in enumerate((rows[i].turn, rows[i].answer)):
                if place is not None:
                    targets[kind, row, place.start - 1 : place.stop - 1] = ids[place]
        on_mesh = [generate.put(model, x) for x in (arrays, *targets)]
        totals += np.array(_loss_sums(model.decoder, trees, *on_mesh, role=role), float)
        counts += (targets != IGNORE).sum((1, 2))
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
