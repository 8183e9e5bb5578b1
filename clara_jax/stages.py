"""What each stage of training is (paper, section 3): one row a stage, which all other code asks."""

import dataclasses

ADAPTERS = ("compressor", "reasoner", "generator")

RECALL_AT = (1, 3, 5)

# What the sum of a loss or of a ranking's measure is divided by; any other is per question.
PER = {
    "ce_loss": "labels",
    "ce_loss_others": "labels",
    "mse_loss": "documents",
    "contrastive_loss": "with_gold",
    "teacher_loss": "with_teacher",
    "mrr": "with_gold",
    **{f"recall@{k}": "with_gold" for k in RECALL_AT},
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training."""

    # form of its records: `scp`, a document and what is asked about it, or `qa`, a question with
    # its documents
    records: str
    # of a batch, beside the documents: `qry`, the question by itself, which the reasoner reads, and
    # `dec`, prompt and answer, which the generator reads
    sides: tuple[str, ...]
    # trees that it trains. Everything else is frozen, and has neither gradient nor optimizer state.
    trained: tuple[str, ...]
    # weight of each mean in the loss, a number or the dotted name of an option
    losses: dict[str, float | str]

    @property
    def compresses(self) -> bool:
        """The compressor is trained, so that documents are compressed in each step."""
        return "compressor" in self.trained

    @property
    def ranks(self) -> bool:
        """The reasoner ranks candidates, whose memories are constants."""
        return "reasoner" in self.trained

    @property
    def answers(self) -> bool:
        """The generator answers, and its cross-entropy is part of the loss."""
        return "dec" in self.sides

    @property
    def selects(self) -> bool:
        """The answer's loss reaches the reasoner through the differentiable top-k."""
        return self.ranks and self.answers

    @property
    def instructs(self) -> bool:
        """A question is answered from all documents that are taken of it, without a ranking."""
        return self.records == "qa" and self.compresses


STAGES = {
    "scp": Stage(
        records="scp",
        sides=("dec",),
        trained=("compressor", "generator", "memory"),
        losses={"ce_loss": 1.0, "mse_loss": "train.mse_weight"},
    ),
    "instruct": Stage(
        records="qa",
        sides=("dec",),
        trained=("compressor", "generator"),
        losses={"ce_loss": 1.0, "mse_loss": "train.mse_weight"},
    ),
    "e2e": Stage(
        records="qa",
        sides=("qry", "dec"),
        trained=("reasoner", "generator"),
        losses={"ce_loss": 1.0, "contrastive_loss": "aux_contrastive"},
    ),
    "contrastive": Stage(
        records="qa",
        sides=("qry",),
        trained=("reasoner",),
        losses={"contrastive_loss": 1.0, "teacher_loss": "select.teacher_weight"},
    ),
}
