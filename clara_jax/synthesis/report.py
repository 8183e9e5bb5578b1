"""What a run made, as the paper's Table 8 has it: in numbers, Markdown and a picture."""

import os
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from absl import logging

from clara_jax import files
from clara_jax.errors import UserError
from clara_jax.plotting import pyplot, save
from clara_jax.text.markdown import table

KINDS = ("simple", "complex")
_HISTOGRAMS = {
    "pairs, simple": "simple pairs of a document",
    "pairs, complex": "complex pairs of a document",
    "words of a question": "words of a question",
    "words of an answer": "words of an answer",
    "words of a document": "words of a document",
    "words of a paraphrase": "words of a paraphrase",
    "rounds of questions": "rounds of questions",
    "rounds of paraphrases": "rounds of paraphrases",
    "coverage": "share of the document's names, numbers and dates, percent",
}
_PLOTTED = (*list(_HISTOGRAMS)[:4], "rounds of questions", "words of a paraphrase")


class Report:
    """Adds up results; keeps counts, no texts.

    Attributes:
        counts: of documents, records, pairs and what was excluded.
        reasons: of exclusions, with what differs between documents left out.
        dropped: pairs and paraphrases, by why.
        flags: of the heuristic checks.
        histograms: how often which number occurs, by what it is of.
    """

    def __init__(self) -> None:
        self.counts, self.reasons, self.dropped, self.flags = (Counter() for _ in range(4))
        self.histograms: dict[str, Counter[int]] = defaultdict(Counter)

    def add(self, result: dict[str, Any]) -> None:
        """Counts the result of one job."""
        self.counts["jobs done"] += 1
        self.counts["jobs without any record"] += not result["records"]
        self.counts["malformed replies"] += result.get("malformed", 0)
        for part, name in (("qa", "questions"), ("paraphrase", "paraphrases")):
            if part in result:
                self.histograms[f"rounds of {name}"][result[part]["rounds"]] += 1
                self.dropped.update(result[part]["dropped"])
                self.counts["documents not covered, kept"] += "missing" in result[part]
        for excluded in result["excluded"]:
            self.counts["excluded parts"] += 1
            self.reasons[f"{excluded['part']}: {excluded['reason'].split(':')[0]}"] += 1
        for record in result["records"]:
            self._record(record)

    def _record(self, record: dict[str, Any]) -> None:
        kind = record.get("data_type", "instruct")
        self.counts[f"{kind} records"] += 1
        self._checks(record.get("checks", {}))
        if kind == "instruct":
            self._words("a question", [record["question"]])
            self._words("an answer", [record["answer"]])
            return
        self._words("a document", record["docs"])
        if kind == "paraphrase":
            self._words("a paraphrase", record["answers"])
            return
        self.counts["pairs"] += len(record["question"])
        self._words("a question", record["question"])
        self._words("an answer", record["answers"])
        for name in KINDS:
            self.histograms[f"pairs, {name}"][record["kinds"].count(name)] += 1

    def _words(self, what: str, texts: list[str]) -> None:
        self.histograms[f"words of {what}"].update(len(text.split()) for text in texts)

    def _checks(self, checks: dict[str, Any]) -> None:
        for flags in checks.get("flags", []):
            for flag in [flags] if isinstance(flags, str) else flags:
                self.flags[flag.split(":")[0]] += 1
        shares = (checks.get("coverage") or {}).values()
        self.histograms["coverage"].update(
            round(100 * share) for share in shares if isinstance(share, int | float)
        )

    def markdown(self, manifest: dict[str, Any]) -> str:
        """The summary for people."""
        rows = []
        for name, label in _HISTOGRAMS.items():
            histogram = self.histograms.get(name)
            if histogram:
                numbers, weights = map(np.array, zip(*histogram.items(), strict=True))
                mean = f"{np.average(numbers, weights=weights):.1f}"
                shares = (0.5, 0.1, 0.9)
                at = np.quantile(numbers, shares, weights=weights, method="inverted_cdf")
                rows.append((label, mean, *at, max(histogram)))
        sizes = ("", "mean", "median", "10 %", "90 %", "most")
        tables = {
            "Corpus": (("", "number"), manifest.get("corpus", {}).items()),
            "Counts": (("", "number"), self.counts.items()),
            "Per document, question, answer": (sizes, rows),
            "Excluded, by reason": (("reason", "parts"), self.reasons.most_common(20)),
            "Dropped on the way": (("reason", "number"), self.dropped.most_common()),
            "Heuristic flags": (("flag", "number"), self.flags.most_common()),
        }
        parts = [
            f"# Synthesis: {manifest['task']}\n\nModel {manifest['model']} at "
            f"{manifest['endpoint']}, prompts {manifest['prompts']['version']}, tokens "
            f"{manifest['tokens']['in']:,} in and {manifest['tokens']['out']:,} out."
        ]
        for title, (head, body) in tables.items():
            body = [row for row in body if row[1] not in (0, "")]
            if body:
                parts.append(f"## {title}\n\n{table(head, body)}")
        return "\n\n".join(parts) + "\n"

    def plot(self, path: str) -> None:
        """Draws histograms, if matplotlib is there."""
        try:
            plots = pyplot()
        except UserError as e:
            logging.info("no picture: %s", e)
            return
        names = [name for name in _PLOTTED if self.histograms.get(name)]
        if not names:
            return
        figure, axes = plots.subplots(2, 3, figsize=(11, 6), layout="constrained")
        for axis, name in zip(axes.flat, names, strict=False):
            numbers, weights = zip(*sorted(self.histograms[name].items()), strict=True)
            wide = -(-(numbers[-1] - numbers[0] + 1) // 30)  # of a bar, whole numbers in its middle
            edges = [n - 0.5 for n in range(numbers[0], numbers[-1] + wide + 1, wide)]
            axis.hist(numbers, weights=weights, bins=edges, color="tab:blue")
            axis.set(title=_HISTOGRAMS[name])
            for scale in (axis.xaxis, axis.yaxis):
                scale.get_major_locator().set_params(integer=True, min_n_ticks=1)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        save(figure, path)


def write(folder: str, report: Report, manifest: dict[str, Any]) -> None:
    """Writes summary.md and summary.png."""
    files.write(os.path.join(folder, "summary.md"), report.markdown(manifest))
    report.plot(os.path.join(folder, "summary.png"))
