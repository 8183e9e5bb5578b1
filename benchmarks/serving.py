"""Speed of serving: a server under load, and answers from memories against full texts.

python -m benchmarks.serving load --url=http://127.0.0.1:8000 --questions=dev.jsonl
    [--clients=64] [--seconds=120] [--max_new_tokens=16], against a server that runs; its token is
    that of CLARA_TOKEN. Prints one JSON object; exit code 1 if there was any error but 429.
python -m benchmarks.serving answering --workdir=runs/instruct --questions=dev.jsonl
    [--base=…] [--documents=5] [--count=12] [--max_new_tokens=32]: the same model reads the same
    documents of each question as memories and as texts, one question at a time in turns.

Questions are records of the later stages (clara_jax/data/records.py).
"""

import argparse
import asyncio
import collections
import itertools
import json
import os
import statistics
import sys
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from clara_jax.data.prompts import common
from clara_jax.data.records import QaRecord
from clara_jax.data.sources import Source, open_source
from clara_jax.errors import UserError, command
from clara_jax.inference.answers import answer_prompts
from clara_jax.inference.encode import compress, encode_query
from clara_jax.models.clara import Trees
from clara_jax.runs.load import load_setup
from clara_jax.runs.setup import Model
from clara_jax.serving.device_rows import DeviceRows
from clara_jax.serving.run import TOKEN
from clara_jax.serving.slots import Slots, common_prefix, prompt_ids


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99, 0 where there is nothing."""
    if not seconds:
        return {"p50": 0.0, "p99": 0.0}
    return {name: float(np.percentile(seconds, q)) for name, q in (("p50", 50), ("p99", 99))}


# --- Load ----------------------------------------------------------------------------------------


async def load(
    url: str, questions: Sequence[str], clients: int, seconds: float, max_new_tokens: int
) -> dict[str, Any]:
    """Clients that ask one question after the other, streamed, for a time.

    A client that gets 429 comes again after the time that the server names.

    Returns:
        Counts of statuses and of errors, seconds to the first text and in all of those answered,
        answers and tokens a second, and the server's memory and compilations at start, middle, end.
    """
    place = urllib.parse.urlsplit(url)
    turn, until = itertools.cycle(questions), time.monotonic() + seconds
    statuses, first, whole = collections.Counter(), [], []
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        while time.monotonic() < until:
            body = {"question": next(turn), "stream": True, "max_new_tokens": max_new_tokens}
            begun, status = time.monotonic(), "no answer"
            try:
                async with asyncio.timeout(120):
                    status, headers, events = await _post(place, body, begun)
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as e:
                status, headers, events = type(e).__name__, {}, {}
            if status == "200":
                if "done" not in events:
                    status = events.get("error", "200 cut short")
                else:
                    first.append(events["text"])
                    whole.append(events["done"])
                    tokens += events["tokens"]
            statuses[status] += 1
            if status == "429":
                await asyncio.sleep(float(headers.get("retry-after", 1)))

    async def watch() -> list[dict[str, float]]:
        gauges = []
        for i in range(3):
            await asyncio.sleep(max(0.0, until - seconds + i * seconds / 2 - time.monotonic()))
            gauges.append(await _gauges(place))
        return gauges

    watched, *_ = await asyncio.gather(watch(), *(client() for _ in range(clients)))
    return {
        "clients": clients,
        "seconds": seconds,
        "statuses": dict(statuses),
        "first_text_seconds": percentiles(first),
        "answer_seconds": percentiles(whole),
        "answers_per_second": len(whole) / seconds,
        "tokens_per_second": tokens / seconds,
        "server": watched,
    }


async def _request(place: Any, method: str, path: str, body: bytes = b"") -> Any:
    """Status, headers, and the reader of what follows."""
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    token = os.environ.get(TOKEN, "")
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return lines[0].split(" ")[1], headers, reader, writer


async def _post(place: Any, body: dict[str, Any], begun: float) -> Any:
    """Status, headers, and when which event came."""
    data = json.dumps(body).encode()
    status, headers, reader, writer = await _request(place, "POST", "/v1/ask", data)
    events: dict[str, Any] = {}
    try:
        kind = ""
        async for line in reader:
            if line.startswith(b"event: "):
                kind = line[7:].strip().decode()
                events.setdefault(kind, time.monotonic() - begun)
            elif line.startswith(b"data: ") and kind == "done":
                usage = json.loads(line[6:])["usage"]
                events["tokens"] = usage["completion_tokens"]
                events.setdefault("text", events["done"])  # an answer of no words
            elif line.startswith(b"data: ") and kind == "error":
                events["error"] = str(json.loads(line[6:])["status"])
    finally:
        writer.close()
    return status, headers, events


async def _gauges(place: Any) -> dict[str, float]:
    """What the server reports of itself."""
    _, _, reader, writer = await _request(place, "GET", "/metrics")
    text = (await reader.read()).decode()
    writer.close()
    wanted = {
        "process_resident_memory_bytes": "rss_bytes",
        'clara_compilations{when="serving"}': "compilations",
        "clara_slots_busy": "slots_busy",
        "clara_queue_depth": "queue_depth",
    }
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if " " in line)
    return {wanted[name]: float(value) for name, value in pairs if name in wanted}


# --- Memories against texts ----------------------------------------------------------------------


def answering(
    model: Model,
    trees: Trees,
    records: Source[QaRecord],
    documents: int,
    count: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Seconds to the first token and to the last, from memories and from full texts.

    Both have the common start of their prompts cached, and read in the server's own programs.
    Every answer has `max_new_tokens`. What memories need before, compression, was done when they
    were stored; what a search needs, the question's vectors, is reported apart.

    Raises:
        UserError: there are no two records with `documents` documents.
    """
    every = (records[i] for i in range(len(records)))
    enough = (record for record in every if len(record.documents) >= documents)
    records = list(itertools.islice(enough, count + 1))
    if len(records) < 2:
        raise UserError(f"no two records of --questions have {documents} documents")
    given = [list(record.documents[:documents]) for record in records]
    questions = [record.question for record in records]
    texts = [list(prompt.tokens) for prompt in answer_prompts(model, questions, given)]
    start = texts[0][: min(common(texts[0], other) for other in texts[1:])]
    compressed = compress(model, trees, [text for docs in given for text in docs])
    memories = compressed.memories
    rows = DeviceRows(
        model, len(memories), lambda missing: memories[list(missing)], lambda hits, misses: None
    )
    own = [prompt_ids(model, question, documents) for question in questions]

    def slots(prompts: list[list[int]], prefix: list[int]) -> Slots:
        longest = max(map(len, prompts)) - len(prefix)
        made = Slots(model, trees, prefix, 1, longest, max_new_tokens)
        made.warm_up(rows.table_RMD)
        return made

    readers = {
        "memories": (slots(own, common_prefix(model)), own),
        "texts": (slots(texts, start), texts),
    }
    encode_query(model, trees, questions[:1], 1)
    seconds = collections.defaultdict(list)
    for i in range(len(records)):
        begun = time.perf_counter()
        encode_query(model, trees, [questions[i]], 1)
        seconds["query"].append(time.perf_counter() - begun)
        for name, (reader, prompts) in readers.items():
            begun = time.perf_counter()
            places = []
            if name == "memories":
                wanted = list(range(i * documents, (i + 1) * documents))
                places = rows.place(wanted, {})
            np.asarray(reader.prefill(0, prompts[i], places, rows.table_RMD))
            seconds[f"{name} first"].append(time.perf_counter() - begun)
            for _ in range(max_new_tokens - 1):
                np.asarray(reader.step())
            seconds[f"{name} whole"].append(time.perf_counter() - begun)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "questions": len(records) - 1,
        "documents": documents,
        "new_tokens": max_new_tokens,
        "realised_compression": compressed.rate,
        "prompt_tokens": {
            name: statistics.median(map(len, prompts)) for name, (_, prompts) in readers.items()
        },
        "median_seconds": median,
        "first_token_ratio": median["texts first"] / median["memories first"],
        "first_token_ratio_with_query": median["texts first"]
        / (median["memories first"] + median["query"]),
        "whole_ratio": median["texts whole"] / median["memories whole"],
        "whole_ratio_with_query": median["texts whole"]
        / (median["memories whole"] + median["query"]),
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("what", choices=["load", "answering"])
    parser.add_argument("--questions", required=True, help="file of records")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--clients", type=int, default=64, help="that ask at the same time")
    parser.add_argument("--seconds", type=float, default=120.0, help="of load")
    parser.add_argument("--workdir", help="of the model")
    parser.add_argument("--base", help="of the model, if it is not where the run found it")
    parser.add_argument("--documents", type=int, default=5, help="of a question")
    parser.add_argument("--count", type=int, default=12, help="questions, after one to warm up")
    args = parser.parse_args(argv)
    records = open_source(args.questions, form="qa")
    if args.what == "load":
        questions = [records[i].question for i in range(len(records))]
        report = asyncio.run(
            load(args.url, questions, args.clients, args.seconds, args.max_new_tokens)
        )
    elif args.workdir is None:
        raise UserError("answering needs --workdir, of the model")
    else:
        model, trees = load_setup(args.workdir, args.base)
        report = answering(model, trees, records, args.documents, args.count, args.max_new_tokens)
    print(json.dumps(report, indent=2))
    return int(args.what == "load" and not set(report["statuses"]) <= {"200", "429"})


if __name__ == "__main__":
    sys.exit(main())
