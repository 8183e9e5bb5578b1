"""The paper's numbers on the report page."""

from collections.abc import Sequence

from clara_jax.evaluation.evaluated import Run
from clara_jax.evaluation.page.blocks import Block, Heading, Table, Text
from clara_jax.evaluation.paper import paper
from clara_jax.evaluation.results import COLUMNS


def blocks(found: Sequence[Run]) -> list[Block]:
    """What the paper has at the runs' rates after the first run's stage; empty: nothing."""
    configs = [run.config for run in found if run.config is not None]
    if not configs:
        return []
    given = found[0].result.get("settings", {}).get("setting", "given")
    setting = "normal" if given == "normal" else "oracle"  # files' candidates have the gold ones
    rates = [config.data.rate for config in configs]
    head, cells = paper.beside(configs[0].stage, setting, rates)
    told = (
        f"Not comparable: {paper.NAME}, candidates {setting}, means over NaturalQuestions, "
        "HotpotQA, MuSiQue and 2Wiki. Data are others, and most likely the base model and k."
    )
    table = Table([COLUMNS.get(name, name) for name in head], cells)
    return [Heading("The paper at these rates"), Text(told), table] if cells else []
