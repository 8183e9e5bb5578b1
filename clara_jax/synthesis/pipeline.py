"""From one document to verified records: the rounds of the paper's section 2.1 and appendix I.

Questions, simple and complex, are answered from the document; a check drops pairs that it does not
support; a second check names what no pair holds yet and asks for it, round by round. A paraphrase
is checked in the same way. What does not pass in the last round is excluded, with the reason.
"""

import asyncio
import collections
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from clara_jax.config import Synthesis
from clara_jax.data.documents import Document
from clara_jax.endpoint.asker import Asker
from clara_jax.endpoint.client import Failed
from clara_jax.endpoint.prompts import numbered
from clara_jax.synthesis import checks
from clara_jax.synthesis.checks import Pair

Result = dict[str, Any]
_NUMBER = re.compile(r"^\s*(\d{1,2}[.)]|[-*•])\s+")  # that a model put before a question


async def scp(job: dict[str, Any], ask: Asker, options: Synthesis) -> Result:
    """Questions and a paraphrase of one document."""
    document = Document(job["id"], job["title"], job["text"], job["source"])
    parts: dict[str, Callable[..., Awaitable[Result]]] = {"qa": _questions}
    if options.paraphrase:
        parts["paraphrase"] = _paraphrase
    results = await together(*(_guarded(part, document, ask, options) for part in parts.values()))
    combined: Result = {"records": [], "excluded": []}
    for name, result in zip(parts, results, strict=True):
        if "reason" in result:
            combined["excluded"].append({"part": name, "reason": result.pop("reason")})
        else:
            combined["records"].append(result.pop("record"))
        combined[name] = result
    return combined


async def instruct(job: dict[str, Any], ask: Asker, options: Synthesis) -> Result:
    """The teacher's answer to a question over documents."""
    try:
        documents = "\n\n".join(f"[{i}] {text}" for i, text in enumerate(job["docs"], 1))
        reply = await ask("0.instruct", "instruct", documents=documents, question=job["question"])
        if not reply["answer"]:
            raise Failed("not answered by the documents")
    except Failed as e:
        return {"records": [], "excluded": [{"part": "instruct", "reason": str(e)}]}
    record = {key: job[key] for key in ("question", "docs", "pos_index") if key in job}
    return {"records": [record | {"answer": reply["answer"]}], "excluded": []}


async def together(*work: Awaitable[Any]) -> list[Any]:
    """Results of all, at the same time; all end before an error is raised, a grave one first."""
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, Failed)):
        raise error
    return results


def plain(question: str) -> str:
    """What a question is compared by: its words alone."""
    return " ".join(re.findall(r"\w+", question.casefold()))


async def _guarded(part: Any, document: Document, ask: Asker, options: Synthesis) -> Result:
    """What a part gives, or the reason why it is excluded, with its counts in either case."""
    counts: Result = {"rounds": 0, "dropped": collections.Counter()}
    try:
        record = await part(document, ask, options, counts)
    except Failed as e:
        return counts | {"reason": str(e)}
    return counts | {"record": record | {"id": document.id}}


async def _questions(
    document: Document, ask: Asker, options: Synthesis, counts: Result
) -> dict[str, Any]:
    """The qa record of a document."""
    whole, pairs, asked = document.whole, [], {}
    check: dict[str, Any] = {}
    simple, complex_ = await together(
        ask("0.simple", "simple", False, document=whole),
        ask("0.complex", "complex", False, document=whole),
    )
    wanted = {"simple": simple["questions"], "complex": complex_["questions"]}
    for number in range(options.rounds + 1):
        counts["rounds"] = number + 1
        fresh = _fresh(wanted, asked, number, counts["dropped"])
        if number and not fresh:
            break
        try:
            if fresh:
                pairs += await _answered(fresh, whole, ask, counts["dropped"])
            places = {"pairs": shown(pairs), "questions": numbered(list(asked.values()))}
            check = await ask(f"{number}.coverage", "coverage", document=whole, **places)
        except Failed as e:
            if options.uncovered == "exclude" or not pairs:
                raise
            check = {"covered": False, "missing": [str(e)]}
            break
        if check["covered"]:
            break
        wanted = {kind: check[kind] for kind in ("simple", "complex")}
    if not check["covered"]:
        missing = "; ".join(check["missing"])[:300] or "nothing named"
        if options.uncovered == "exclude":
            raise Failed(f"not covered: {missing}")
        counts["missing"] = missing
    if not pairs:
        raise Failed("no valid pair")
    return {
        "data_type": "qa",
        "question": [pair.question for pair in pairs],
        "answers": [pair.answer for pair in pairs],
        "docs": [whole],
        "kinds": [pair.kind for pair in pairs],
        "rounds": [pair.round for pair in pairs],
        "checks": checks.check(document, pairs, options.language).as_json(),
    }


def _fresh(
    wanted: dict[str, list[str]], asked: dict[str, str], number: int, dropped: dict[str, int]
) -> list[Pair]:
    """Pairs, without answers yet, of the questions that nobody asked before; they join `asked`."""
    fresh = []
    for kind, questions in wanted.items():
        for question in filter(plain, questions):
            question = _NUMBER.sub("", question)
            if plain(question) in asked:
                dropped["duplicate"] += 1
                continue
            asked[plain(question)] = question
            fresh.append(Pair(question, "", kind, number))
    return fresh


async def _answered(
    fresh: Sequence[Pair], whole: str, ask: Asker, dropped: dict[str, int]
) -> list[Pair]:
    """The pairs that have an answer and pass the check of it."""
    number = fresh[0].round
    questions = numbered([pair.question for pair in fresh])
    reply = await ask(f"{number}.answers", "answers", document=whole, questions=questions)
    answers = {item["number"]: item["answer"] for item in reply["answers"]}
    pairs = [
        Pair(pair.question, answers[i], pair.kind, pair.round)
        for i, pair in enumerate(fresh, 1)
        if answers.get(i)
    ]
    dropped["unanswered"] += len(fresh) - len(pairs)
    if not pairs:
        return []
    reply = await ask(f"{number}.validate", "validate", document=whole, pairs=shown(pairs))
    needs = ("supported", "complete", "nothing_added")
    # A pair that is judged twice must pass twice.
    verdicts = collections.defaultdict(list)
    for item in reply["verdicts"]:
        verdicts[item["number"]].append([need for need in needs if not item[need]])
    valid = []
    for i, pair in enumerate(pairs, 1):
        if verdicts[i] and not any(verdicts[i]):
            valid.append(pair)
        else:
            dropped[f"not {sum(verdicts[i], ['judged'])[-1]}".replace("_", " ")] += 1
    return valid


async def _paraphrase(
    document: Document, ask: Asker, options: Synthesis, counts: Result
) -> dict[str, Any]:
    """The paraphrase record of a document."""
    whole, problems = document.whole, []
    for number in range(options.rounds + 1):
        counts["rounds"] = number + 1
        reply = await ask(
            f"{number}.paraphrase", "paraphrase", False, document=whole, problems=numbered(problems)
        )
        text = reply["paraphrase"]
        check = await ask(
            f"{number}.check_paraphrase", "check_paraphrase", document=whole, paraphrase=text
        )
        needs = ("nothing_lost", "nothing_added", "restructured")
        failed = [need for need in needs if not check[need]]
        if text and not failed:
            break
        counts["dropped"]["paraphrase"] += 1
        problems = check["problems"] or [f"not true: {need.replace('_', ' ')}" for need in failed]
    else:
        raise Failed(f"paraphrase not faithful: {'; '.join(problems)[:300]}")
    return {
        "data_type": "paraphrase",
        "question": [],
        "answers": [text],
        "docs": [whole],
        "checks": checks.check_paraphrase(document, text, options.language).as_json(),
    }


def shown(pairs: Sequence[Pair]) -> str:
    """Pairs as prompts show them."""
    return numbered([f"Question: {pair.question} Answer: {pair.answer}" for pair in pairs])
