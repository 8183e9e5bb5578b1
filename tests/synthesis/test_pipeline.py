import asyncio

import pytest

from clara_jax.config import Synthesis
from clara_jax.endpoint.asker import Asker
from clara_jax.endpoint.client import Failed, Reply, Unavailable
from clara_jax.endpoint.prompts import Prompts
from clara_jax.endpoint.replies import Replies
from clara_jax.synthesis import pipeline
from clara_jax.synthesis.pipeline import instruct, plain, scp
from clara_jax.synthesis.prompts import KINDS, OWN

JOB = {"id": "d", "title": "Ada", "text": "Ada wrote. Bob read.", "source": "f:1"}
GOOD = {"supported": True, "complete": True, "nothing_added": True, "reason": ""}
FAITHFUL = {"nothing_lost": True, "nothing_added": True, "restructured": True, "problems": []}
SCRIPT = {
    "0.simple": {"questions": ["Who wrote?"]},
    "0.complex": {"questions": ["Who did what?"]},
    "0.answers": {"answers": [{"number": 2, "answer": "both"}, {"number": 1, "answer": "Ada"}]},
    "0.validate": {"verdicts": [{"number": 1, **GOOD}, {"number": 2, **GOOD}]},
    "0.coverage": {"covered": True, "missing": [], "simple": [], "complex": []},
    "0.paraphrase": {"paraphrase": "Bob read what Ada wrote."},
    "0.check_paraphrase": FAITHFUL,
}
MORE = {"covered": False, "missing": ["Bob"], "simple": ["who WROTE", "Who read?"], "complex": []}


def run(script, **options):
    """The result of a job whose replies are written down, by step; and what was asked."""
    asked = {}

    async def ask(step, name, greedy=True, **places):
        asked[step] = places | {"greedy": greedy}
        assert step.endswith(name)
        if isinstance(script[step], Exception):
            raise script[step]
        return script[step]

    return asyncio.run(scp(JOB, ask, Synthesis(**options))), asked


def test_a_document_that_passes_at_once():
    result, asked = run(SCRIPT)
    qa, paraphrase = result["records"]
    assert qa | {"checks": 0} == {
        "data_type": "qa", "question": ["Who wrote?", "Who did what?"], "answers": ["Ada", "both"],
        "docs": ["Ada\nAda wrote. Bob read."], "kinds": ["simple", "complex"], "rounds": [0, 0],
        "checks": 0, "id": "d",
    }  # fmt: skip
    assert paraphrase["data_type"] == "paraphrase" and paraphrase["question"] == []
    assert paraphrase["answers"] == ["Bob read what Ada wrote."]
    assert set(qa["checks"]) >= {"flags", "coverage"}
    assert result["excluded"] == [] and result["qa"]["rounds"] == 1
    assert asked["0.answers"]["questions"] == "1. Who wrote?\n2. Who did what?"
    assert "1. Question: Who wrote? Answer: Ada" in asked["0.coverage"]["pairs"]
    drawn = {step for step, places in asked.items() if not places["greedy"]}
    assert drawn == {"0.simple", "0.complex", "0.paraphrase"}


def test_supplementary_questions_until_all_is_covered():
    script = SCRIPT | {
        "0.coverage": MORE,
        "1.answers": {"answers": [{"number": 1, "answer": "Bob"}]},
        "1.validate": {"verdicts": [{"number": 1, **GOOD}]},
        "1.coverage": SCRIPT["0.coverage"],
    }
    result, asked = run(script)
    assert result["records"][0]["question"] == ["Who wrote?", "Who did what?", "Who read?"]
    assert result["records"][0]["rounds"] == [0, 0, 1]
    assert result["qa"] == {"rounds": 2, "dropped": {"duplicate": 1}} | result["qa"]
    assert asked["1.answers"]["questions"] == "1. Who read?"


@pytest.mark.parametrize("need", ["supported", "complete", "nothing_added"])
def test_pairs_that_fail_the_check_are_dropped(need):
    verdicts = [{"number": 1, **GOOD}, {"number": 2, **GOOD, need: False}]
    result, asked = run(SCRIPT | {"0.validate": {"verdicts": verdicts}})
    assert result["records"][0]["question"] == ["Who wrote?"]
    assert result["qa"]["dropped"][f"not {need}".replace("_", " ")] == 1
    assert "Who did what?" not in asked["0.coverage"]["pairs"]
    assert "Who did what?" in asked["0.coverage"]["questions"]


def test_pairs_without_verdict_or_answer_are_dropped():
    result, _ = run(SCRIPT | {"0.validate": {"verdicts": [{"number": 2, **GOOD}]}})
    assert result["records"][0]["question"] == ["Who did what?"]
    assert result["qa"]["dropped"]["not judged"] == 1
    answers = {"answers": [{"number": 1, "answer": ""}, {"number": 2, "answer": "both"}]}
    result, _ = run(SCRIPT | {"0.answers": answers})
    assert result["records"][0]["question"] == ["Who did what?"]
    assert result["qa"]["dropped"]["unanswered"] == 1


@pytest.mark.parametrize(
    ("changes", "options", "reason"),
    [
        ({"0.coverage": MORE}, {"rounds": 0}, "not covered: Bob"),
        ({"0.coverage": MORE | {"simple": ["Who wrote?"]}}, {}, "not covered: Bob"),
        ({"0.coverage": MORE | {"missing": [], "simple": []}}, {}, "not covered: nothing named"),
        ({"0.validate": {"verdicts": []}}, {}, "no valid pair"),
        ({"0.simple": Failed("simple: malformed")}, {}, "simple: malformed"),
        ({"0.complex": {"questions": []}, "0.simple": {"questions": []}}, {}, "no valid pair"),
    ],
)
def test_questions_that_fail_are_excluded_with_the_reason(changes, options, reason):
    result, _ = run(SCRIPT | changes, **options)
    assert [record["data_type"] for record in result["records"]] == ["paraphrase"]
    assert result["excluded"] == [{"part": "qa", "reason": reason}]
    assert "dropped" in result["qa"]


@pytest.mark.parametrize(
    ("coverage", "missing"),
    [(MORE | {"missing": ["b", "c"], "simple": []}, "b; c"), (Failed("no JSON"), "no JSON")],
)
def test_valid_pairs_are_kept_on_request_though_facts_are_missing(coverage, missing):
    result, _ = run(SCRIPT | {"0.coverage": coverage}, uncovered="keep")
    assert result["records"][0]["question"] == ["Who wrote?", "Who did what?"]
    assert result["excluded"] == [] and result["qa"]["missing"] == missing
    result, _ = run(SCRIPT | {"0.coverage": coverage})
    assert missing in result["excluded"][0]["reason"] and "missing" not in result["qa"]


@pytest.mark.parametrize("step", ["1.answers", "1.validate"])
def test_a_later_round_that_fails_leaves_the_pairs_of_earlier_ones_on_request(step):
    script = SCRIPT | {"0.coverage": MORE, step: Failed("no JSON")}
    script.setdefault("1.answers", {"answers": [{"number": 1, "answer": "Bob"}]})
    result, _ = run(script, uncovered="keep")
    assert result["records"][0]["answers"] == ["Ada", "both"]
    assert result["qa"]["missing"] == "no JSON"
    result, _ = run(script)
    assert result["excluded"] == [{"part": "qa", "reason": "no JSON"}]


def test_numbers_before_questions_are_left_out():
    script = SCRIPT | {"0.simple": {"questions": ["1. Who wrote?", "- 3.5 of what is 7?"]}}
    script["0.complex"] = {"questions": []}
    _, asked = run(script)
    assert asked["0.answers"]["questions"] == "1. Who wrote?\n2. 3.5 of what is 7?"


def test_a_paraphrase_is_tried_again_with_its_problems():
    bad = FAITHFUL | {"nothing_lost": False, "problems": ["Bob is lost"]}
    script = SCRIPT | {
        "0.check_paraphrase": bad,
        "1.paraphrase": {"paraphrase": "Read by Bob, written by Ada."},
        "1.check_paraphrase": FAITHFUL,
    }
    result, asked = run(script)
    assert result["records"][1]["answers"] == ["Read by Bob, written by Ada."]
    assert asked["0.paraphrase"]["problems"] == "none"
    assert asked["1.paraphrase"]["problems"] == "1. Bob is lost"
    result, _ = run(script, rounds=0)
    assert result["excluded"] == [
        {"part": "paraphrase", "reason": "paraphrase not faithful: Bob is lost"}
    ]
    assert len(run(SCRIPT, paraphrase=False)[0]["records"]) == 1


@pytest.mark.parametrize("what", ["nothing_lost", "nothing_added", "restructured"])
def test_a_paraphrase_must_pass_in_everything(what):
    result, _ = run(SCRIPT | {"0.check_paraphrase": FAITHFUL | {what: False}}, rounds=0)
    assert what.replace("_", " ") in result["excluded"][0]["reason"]


def test_errors_of_the_endpoint_exclude_nothing():
    for step in ("0.simple", "0.validate", "0.paraphrase"):
        with pytest.raises(Unavailable):
            run(SCRIPT | {step: Unavailable("500"), "0.complex": Failed("no")} | (
                {"0.complex": SCRIPT["0.complex"]} if step == "0.validate" else {}
            ))  # fmt: skip


def test_instruct_takes_the_teachers_answer():
    job = {"id": "q", "source": "f:1", "question": "Who?", "docs": ["a", "b"], "pos_index": [1]}
    asked = {}

    def teacher(answer):
        async def ask(step, name, **places):
            asked.update(places)
            return {"answer": answer}

        return asyncio.run(instruct(job, ask, Synthesis()))

    assert teacher("Ada")["records"] == [
        {"question": "Who?", "docs": ["a", "b"], "pos_index": [1], "answer": "Ada"}
    ]
    assert asked == {"documents": "[1] a\n\n[2] b", "question": "Who?"}
    assert teacher("")["excluded"][0]["reason"] == "not answered by the documents"


def test_what_questions_are_compared_by():
    assert plain("Who  wrote, “it”?") == plain("who wrote it") != plain("who writes it")


class Endpoint:
    """Gives the replies of a list, and keeps what it was asked with."""

    def __init__(self, *values):
        self.values, self.asked = list(values), []

    async def ask(self, name, messages, temperature, seed):
        self.asked.append((temperature, seed))
        value = self.values.pop(0)
        if isinstance(value, Exception):
            raise value
        return Reply(value, "" if value else "no JSON", 2, 1)


def asker(endpoint, store, **options):
    options = Synthesis(**options)
    return Asker("ab" * 16, endpoint, store, Prompts(options, KINDS, OWN), options, seed=3)


def test_malformed_replies_are_asked_again_hotter_and_with_another_seed(tmp_path):
    endpoint = Endpoint(None, None, {"verdicts": []})
    with Replies(str(tmp_path), {}) as store:
        ask = asker(endpoint, store, temperature=0.5)
        assert asyncio.run(ask("0.validate", "validate", document="d", pairs="p"))
        assert ask.malformed == 2 and store.tokens == [6, 3]
    assert [temperature for temperature, _ in endpoint.asked] == [0.0, 0.5, 0.5]
    assert len({seed for _, seed in endpoint.asked}) == 3


def test_replies_are_never_asked_for_again_in_a_later_run(tmp_path):
    places = {"document": "d", "pairs": "p"}
    with Replies(str(tmp_path), {}) as store:
        ask = asker(Endpoint(None, None, Unavailable("500")), store)
        with pytest.raises(Unavailable):
            asyncio.run(ask("0.validate", "validate", **places))
    endpoint = Endpoint({"verdicts": [1]})
    with Replies(str(tmp_path), {}) as store:
        ask = asker(endpoint, store)
        assert asyncio.run(ask("0.validate", "validate", **places)) == {"verdicts": [1]}
        assert ask.malformed == 2
    assert len(endpoint.asked) == 1
    with Replies(str(tmp_path), {}) as store:
        ask = asker(Endpoint(), store)
        assert asyncio.run(ask("0.validate", "validate", **places)) == {"verdicts": [1]}


def test_malformed_to_the_end_fails_also_in_a_later_run(tmp_path):
    for endpoint in (Endpoint(None, None), Endpoint()):
        with Replies(str(tmp_path), {}) as store:
            ask = asker(endpoint, store, repairs=1)
            with pytest.raises(Failed, match="malformed reply"):
                asyncio.run(ask("0.validate", "validate", document="d", pairs="p"))


def test_grave_errors_come_first():
    async def fail(error):
        raise error

    with pytest.raises(Unavailable):
        asyncio.run(pipeline.together(fail(Failed("a")), fail(Unavailable("b"))))
