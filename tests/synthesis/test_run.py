import asyncio
import json
import pathlib
import sys

import pytest

from benchmarks import synthesis
from clara_jax.data import sources
from clara_jax.endpoint import client as endpoint_lib
from clara_jax.endpoint.prompts import Prompts
from clara_jax.errors import UserError
from clara_jax.synthesis import run
from clara_jax.synthesis.prompts import KINDS, OWN

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus, url):
    """Output of a run that nothing disturbed."""
    from clara_jax.config import Config, Synthesis

    output = tmp_path_factory.mktemp("run") / "whole"
    options = Synthesis(base_url=url, model="none", input_price=2.0, output_price=8.0)
    assert run.run(corpus, str(output), Config(synthesis=options)) == 0
    return output


def test_records_train_unchanged_and_keep_the_order(undisturbed, corpus, lines):
    source = sources.JsonlSource(str(undisturbed / "train.jsonl"))
    titles = [line["title"] for line in lines(corpus)]
    found = [source[i] for i in range(len(source))]
    assert {record.data_type for record in found} == {"qa", "paraphrase"}
    order = [titles.index(record.document.split("\n")[0]) for record in found]
    assert order == sorted(order) and len(set(order)) == len(titles)


def test_excluded_parts_have_reasons(undisturbed, lines):
    train, excluded = lines(undisturbed / "train.jsonl"), lines(undisturbed / "excluded.jsonl")
    assert len(train) + len(excluded) == 120 and excluded
    assert all(line["reason"] and line["id"] and line["source"] for line in excluded)


def test_manifest(undisturbed, corpus):
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    from clara_jax.config import Synthesis

    prompts = Prompts(Synthesis(), KINDS, OWN)
    assert manifest["prompts"] == {"version": "v2", "sha256": prompts.hash}
    assert manifest["model"] == "none" and manifest["seed"] == 0
    assert manifest["endpoint"].startswith("127.0.0.1:") and "base_url" not in str(manifest)
    assert manifest["options"]["rounds"] == 10 and manifest["left_undone"] == 0
    assert manifest["corpus"]["documents"] == manifest["corpus"]["kept"] == 60
    assert manifest["corpus"]["near"] == manifest["corpus"]["leaked"] == 0
    counts, tokens = manifest["counts"], manifest["tokens"]
    assert counts["jobs"] == counts["jobs done"] == 60
    assert tokens["in"] > 60 * 5 * 300 and tokens["out"] > 60 * 5 * 10
    expected = (2 * tokens["in"] + 8 * tokens["out"]) / 1e6
    assert tokens["estimated_cost"] == pytest.approx(expected, abs=1e-6)


def test_summary(undisturbed):
    text = (undisturbed / "summary.md").read_text()
    for wanted in ("simple pairs", "rounds of questions", "not supported", "by reason"):
        assert wanted in text
    assert (undisturbed / "summary.png").read_bytes()[:4] == b"\x89PNG"


def test_a_rerun_asks_nothing_and_gives_the_same(undisturbed, corpus, config, url):
    before = synthesis.fingerprint(str(undisturbed)), synthesis.counts(url)["requests"]
    assert run.run(corpus, str(undisturbed), config(url)) == 0
    assert (synthesis.fingerprint(str(undisturbed)), synthesis.counts(url)["requests"]) == before


def test_faults_lose_and_double_nothing(undisturbed, corpus, config, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_lib, "_FIRST", 0.02)
    address = serve("--faults=0.2", "--retry_after=0.05")
    options = config(address, timeout=0.5, repairs=8, retries=8)
    assert run.run(corpus, str(tmp_path / "o"), options) == 0
    assert synthesis.fingerprint(str(tmp_path / "o")) == synthesis.fingerprint(str(undisturbed))
    told = synthesis.counts(address)
    assert all(told[kind] for kind in ("malformed", "cut", "length", "429", "500", "timeout"))
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["counts"]["malformed replies"] > 0


def test_kills_and_a_resume_give_the_same(undisturbed, corpus, serve, tmp_path):
    address = serve("--delay=0.05")
    output = str(tmp_path / "o")
    program = (sys.executable, "-m", "clara_jax.main")
    line = synthesis.synthesize(program, corpus, output, address, concurrency=8)
    killed = synthesis.kill_and_resume(line, str(tmp_path / "log"), [1.8, 2.3])
    assert killed == 2
    assert synthesis.fingerprint(output) == synthesis.fingerprint(str(undisturbed))
    once = json.loads((undisturbed / "manifest.json").read_text())["replies"]
    assert 0 <= synthesis.counts(address)["requests"] - once <= 2 * 8


def test_what_errors_left_undone_is_done_next_time(
    undisturbed, corpus, config, serve, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(endpoint_lib, "_FIRST", 0.0)
    output = str(tmp_path / "o")
    failing = config(serve("--faults=0.2", "--kinds=500"), retries=0)
    assert run.run(corpus, output, failing) == run.LEFT
    told = capsys.readouterr().err.splitlines()[-1]
    assert "left undone" in told and "run the same command again" in told
    left = json.loads((pathlib.Path(output) / "manifest.json").read_text())["left_undone"]
    assert 0 < left < 60
    excluded = (pathlib.Path(output) / "excluded.jsonl").read_text()
    assert "500" not in excluded
    healthy = config(serve(), retries=0)
    assert run.run(corpus, output, healthy) == 0
    assert synthesis.fingerprint(output) == synthesis.fingerprint(str(undisturbed))


def test_instruct_from_the_command_line(command, url, tmp_path, lines):
    path = tmp_path / "q.jsonl"
    rows = [
        {"question": f"Who is {i}?", "docs": ["one two three", "four five"], "pos_index": [1]}
        for i in (1, 2, 1)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    code = command(
        "--mode=synthesize", f"--documents={path}", f"--output={tmp_path / 'o'}",
        f"--config={ROOT / 'configs' / 'synthesize.py'}", f"--config.synthesis.base_url={url}",
        "--config.synthesis.model=none", "--config.synthesis.task=instruct",
    )  # fmt: skip
    assert code == 0
    found = lines(tmp_path / "o" / "train.jsonl")
    assert [line["question"] for line in found] == ["Who is 1?", "Who is 2?"]  # one is a copy
    assert found[0]["pos_index"] == [1] and found[0]["answer"] == "two three [2]"
    source = sources.JsonlSource(str(tmp_path / "o" / "train.jsonl"), sources.own_questions)
    assert source[0].answers == ("two three [2]",)


def test_dry_run_sends_and_writes_nothing(corpus, config, url, tmp_path, capsys):
    before = synthesis.counts(url)["requests"]
    options = config("", model="", input_price=1.0)
    assert run.run(corpus, str(tmp_path / "o"), options, dry_run=True) == 0
    told = capsys.readouterr().out
    assert "jobs" in told and "60" in told and "600" in told  # ten requests each
    assert not (tmp_path / "o").exists() and synthesis.counts(url)["requests"] == before


def test_dry_run_comes_near_what_is_used(undisturbed, corpus, config):
    from clara_jax.synthesis import estimate, jobs

    options = config("")
    found = estimate.Estimate(options.synthesis, Prompts(options.synthesis, KINDS, OWN))
    for job in jobs.collect(corpus, options):
        found.add(job)
    used = json.loads((undisturbed / "manifest.json").read_text())["tokens"]
    assert used["in"] / 2 < found.tokens[0] < used["in"] * 2


def test_preview_prints_and_keeps_nothing(corpus, config, url, tmp_path, capsys):
    assert run.run(corpus, str(tmp_path / "o"), config(url), preview=3) == 0
    told = capsys.readouterr().out
    assert told.count('"data_type"') + told.count('"reason"') == 6
    assert not (tmp_path / "o").exists()


def test_preview_of_texts_with_other_ends_of_lines(config, url, tmp_path, capsys):
    corpus = tmp_path / "questions.jsonl"
    corpus.write_text(json.dumps({"question": "a\u2028b\u0085c?", "docs": ["d e f g h i"]}))
    options = config(url, task="instruct")
    assert run.run(str(corpus), str(tmp_path / "o"), options, preview=1) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "a\u2028b\u0085c?"


def test_no_record_at_all_is_told(config, serve, corpus, tmp_path, capsys):
    options = config(serve("--faults=1", "--kinds=malformed"), documents=2, repairs=0)
    assert run.run(corpus, str(tmp_path / "o"), options) == 0
    told = capsys.readouterr().err
    assert "no record at all, mostly for the reason: qa: malformed reply to " in told


def test_results_of_documents_that_are_gone_are_told(config, url, corpus, tmp_path, capsys):
    for documents, told in ((3, 0), (2, 1), (3, 0)):
        assert run.run(corpus, str(tmp_path / "o"), config(url, documents=documents)) == 0
        assert capsys.readouterr().err.count("1 more done by earlier runs") == told


@pytest.mark.parametrize("place", ["jobs.save", "asyncio.run"])
def test_an_interrupt_is_one_line(config, url, corpus, tmp_path, capsys, monkeypatch, place):
    def interrupt(*unused):
        for work in unused:
            getattr(work, "close", lambda: None)()
        raise KeyboardInterrupt

    monkeypatch.setattr(f"clara_jax.synthesis.run.{place}", interrupt)
    assert run.run(corpus, str(tmp_path / "o"), config(url)) == run.INTERRUPTED
    assert run.run(corpus, str(tmp_path / "o"), config(url), preview=2) == run.INTERRUPTED
    assert capsys.readouterr().err.count("\n") == 2


def test_mistakes_are_one_line(corpus, config, url, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    cases = [
        (config(""), {}, "config.synthesis.base_url is empty"),
        (config("ftp://x"), {}, "must begin with http"),
        (config("http://127.0.0.1:abc/v1"), {}, "is no URL"),
        (config("http://[::1/v1"), {}, "is no URL"),
        (config(url, model=""), {}, "config.synthesis.model is empty"),
        (config(url, model="missing"), {}, "status 404: no such model"),
        (config(url), {"preview": 0}, "--preview=0"),
        (config(url), {"output": "gs://b/o"}, "must be a local folder"),
        (config(url, prompts="no/where"), {}, "no such folder"),
        (config(url), {"documents": "no.jsonl"}, "no.jsonl"),
        (config(url, task="instruct"), {}, "question must be a text"),
        (config(url, task="instruct"), {"documents": "no.jsonl"}, "no.jsonl: cannot be read"),
    ]
    for options, changes, message in cases:
        arguments = {"documents": corpus, "output": str(tmp_path / "o"), "config": options}
        with pytest.raises(UserError, match=message) as error:
            run.run(**arguments | changes)
        assert "\n" not in str(error.value)


def test_other_options_in_the_same_output_are_told(undisturbed, corpus, config, url):
    with pytest.raises(UserError, match=r"rounds=10 \(now 2\)"):
        run.run(corpus, str(undisturbed), config(url, rounds=2))


def test_mistakes_on_the_command_line(command, tmp_path, capsys):
    mode = ["--mode=synthesize", "--documents=d.jsonl"]
    assert command(*mode) == 2
    assert "--mode=synthesize needs --output" in capsys.readouterr().err
    assert command(*mode, f"--output={tmp_path}", "--workdir=w") == 2
    assert "does not use --workdir" in capsys.readouterr().err


def test_main_needs_no_jax_for_synthesis():
    import subprocess
    import sys

    code = "import sys, clara_jax.main, clara_jax.synthesis.run; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_progress_counts(corpus, config, url, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        run.Progress, "update", lambda self, done, extra="": told.append((done, extra))
    )
    assert run.run(corpus, str(tmp_path / "o"), config(url, documents=5)) == 0
    assert told[-1][0] == 5 and "requests, 0 failed" in told[-1][1]
    assert asyncio.iscoroutinefunction(run._Run._work)
