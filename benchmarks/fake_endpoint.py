"""An OpenAI-compatible endpoint without a model, to test and measure what talks to one.

    python -m benchmarks.fake_endpoint [--port=8123] [--faults=0.2] [--seed=0]

The same prompt always gets the same reply, made of the document's words. Some documents need
another round, some never pass, some pairs and paraphrases are refused. As a judge (prompts of
evaluation/judge.py) it goes by the words: what stands in the other text is right. A share of
requests gets a fault, of all kinds in turn: broken JSON, cut text (with and without saying so),
status 429 with Retry-After, status 500, a closed connection, and silence until the client's
patience ends.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import zlib
from collections.abc import Sequence
from typing import Any

FAULTS = ("malformed", "cut", "length", "429", "500", "closed", "timeout")
KEY = {  # of the reply's shape that a prompt states, in the order in which they are looked for
    '"support"': "support",
    '"equivalence"': "equivalence",
    '"faithfulness"': "faithfulness",
    '"verdicts"': "validate",
    '"answers"': "answers",
    '"covered"': "coverage",
    '"nothing_lost"': "check_paraphrase",
    '"paraphrase"': "paraphrase",
    '"answer"': "instruct",
    "two or more facts": "complex",
    '"questions"': "simple",
}


def luck(text: str, one_in: int) -> bool:
    """Whether a text is among the chosen ones, always the same."""
    return zlib.crc32(text.encode()) % one_in == 0


def between(name: str, prompt: str) -> str:
    """What a prompt holds between two marks."""
    return prompt.split(f"<{name}>\n", 1)[1].split(f"\n</{name}>", 1)[0]


def items(name: str, prompt: str) -> list[str]:
    """The numbered texts between two marks."""
    return re.findall(r"^\d+\. (.*)$", between(name, prompt), re.MULTILINE)


def reply(prompt: str) -> dict[str, Any]:
    """What the model that there is not would say."""
    kind = next(kind for mark, kind in KEY.items() if mark in prompt)
    if kind in JUDGED:
        return JUDGED[kind](prompt)
    if kind == "instruct":
        return {"answer": " ".join(between("documents", prompt).split()[2:5])}
    document = between("document", prompt)
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", document) if len(s.split()) > 2]
    names = [" ".join(s.split()[:3]) for s in sentences] or ["it"]
    if kind == "simple":
        return {"questions": [f"What is said of {name}?" for name in names[:5]]}
    if kind == "complex":
        pairs = zip(names, reversed(names), strict=True)
        return {"questions": [f"What joins {a} and {b}?" for a, b in list(pairs)[:2]]}
    if kind == "answers":
        words = document.split()
        asked = enumerate(items("questions", prompt), 1)
        return {
            "answers": [
                {"number": i, "answer": words[zlib.crc32(question.encode()) % len(words)]}
                for i, question in asked
            ]
        }
    if kind == "validate":
        return {
            "verdicts": [
                {
                    "number": i,
                    "supported": not luck(pair, 20),
                    "complete": True,
                    "nothing_added": True,
                    "reason": "x" if luck(pair, 20) else "",
                }
                for i, pair in enumerate(items("pairs", prompt), 1)
            ]
        }
    if kind == "coverage":
        round_ = prompt.count("What more is said of")
        covered = not luck(f"never {document}", 50) and (luck(document, 2) or round_ > 0)
        more = [] if covered else [f"What more is said of {names[0]} ({round_})?"]
        return {"covered": covered, "missing": names[:1], "simple": more, "complex": []}
    if kind == "paraphrase":
        # The second attempt, which is told of problems, is another text.
        again = "none" not in between("problems_of_the_last_attempt", prompt)
        turned = sentences[1:] + sentences[:1] if again else sentences[::-1]
        return {"paraphrase": " ".join(turned) or document}
    good = not luck(f"bad {document}", 60) and not luck(between("paraphrase", prompt), 10)
    return {
        "nothing_lost": good,
        "nothing_added": True,
        "restructured": True,
        "problems": [] if good else ["something is lost"],
    }


def support(prompt: str) -> dict[str, Any]:
    """Whether an answer stands in the documents."""
    answer, documents = (between(name, prompt).casefold() for name in ("answer", "documents"))
    word = "contradicted" if luck(answer, 2) else "absent"
    return {"support": "supported" if answer in documents else word, "reason": "x"}


def equivalence(prompt: str) -> dict[str, Any]:
    """Whether an answer holds one that is accepted."""
    answer = between("answer", prompt).casefold()
    same = any(text.casefold() in answer for text in items("accepted", prompt))
    return {"equivalence": "equivalent" if same else "different", "reason": "x"}


def faithfulness(prompt: str) -> dict[str, Any]:
    """Which sentences two texts do not share."""
    texts = [re.split(r"(?<=[.!?])\s+", between(name, prompt)) for name in ("reference", "text")]
    left_out, wrong = ([s for s in a if s not in b] for a, b in (texts, texts[::-1]))
    return {
        "faithfulness": "unfaithful" if wrong else "faithful",
        "completeness": "incomplete" if left_out else "complete",
        "wrong": wrong,
        "left_out": left_out,
    }


JUDGED = {"support": support, "equivalence": equivalence, "faithfulness": faithfulness}


class Server(asyncio.Protocol):
    """One connection."""

    def __init__(self, state: "State"):
        self._state, self._buffer = state, b""

    def connection_made(self, transport: Any) -> None:
        """Keeps what to write to."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers every whole request that has come."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int((re.search(rb"content-length: (\d+)", head) or [b"", b"0"])[1])
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._state.answer(self, head, body)

    def send(self, status: str, value: Any, head: str = "") -> None:
        """Writes a reply."""
        body = json.dumps(value).encode()
        lines = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{head}"
        lines += f"Content-Length: {len(body)}\r\n\r\n"
        if not self._transport.is_closing():
            self._transport.write(lines.encode() + body)

    def close(self) -> None:
        """Ends the connection in the middle of a reply."""
        self._transport.abort()


class State:
    """What all connections share: the draws of faults, and counts."""

    def __init__(self, options: argparse.Namespace):
        self._options, self._random = options, random.Random(options.seed)
        self._counts = dict.fromkeys(("requests", "whole", *FAULTS), 0)

    def answer(self, server: Server, head: bytes, body: bytes) -> None:
        """Answers one request, now or after a delay."""
        if b"/counts" in head.split(b"\r\n", 1)[0]:
            server.send("200 OK", self._counts)
            return
        request = json.loads(body)
        self._counts["requests"] += 1
        if self._options.key and f"bearer {self._options.key}".encode() not in head:
            server.send("401 Unauthorized", {"error": {"message": "wrong key"}})
        elif self._options.plain and {"response_format", "seed"} & set(request):
            server.send("400 Bad Request", {"error": {"message": "unknown parameter"}})
        elif request["model"] == "missing":
            server.send("404 Not Found", {"error": {"message": "no such model"}})
        elif self._random.random() < self._options.faults:
            self._fail(server, request)
        else:
            self._counts["whole"] += 1
            asyncio.get_running_loop().call_later(
                self._options.delay, server.send, "200 OK", self._completion(request)
            )

    def _completion(self, request: dict[str, Any], cut: float = 1.0) -> dict[str, Any]:
        prompt = "\n".join(message["content"] for message in request["messages"])
        text = json.dumps(reply(prompt))
        text = text[: max(1, int(len(text) * cut))]
        return {
            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4},
        }

    def _fail(self, server: Server, request: dict[str, Any]) -> None:
        kinds = self._options.kinds.split(",")
        kind = kinds[self._random.randrange(len(kinds))]
        self._counts[kind] += 1
        if kind == "429":
            server.send(
                "429 Too Many Requests",
                {"error": {"message": "slower"}},
                f"Retry-After: {self._options.retry_after}\r\n",
            )
        elif kind == "500":
            server.send("500 Internal Server Error", {"error": {"message": "out of order"}})
        elif kind == "closed":
            server.close()
        elif kind in ("cut", "length", "malformed"):
            # Of `length` only the reason tells that it lacks something.
            value = self._completion(request, 0.6 if kind == "cut" else 1.0)
            choice = value["choices"][0]
            if kind == "malformed":
                choice["message"]["content"] = "Sure! Here is what you asked for: none of it."
            elif kind == "length":
                choice["finish_reason"] = "length"
            server.send("200 OK", value)


async def serve(options: argparse.Namespace) -> None:
    """Serves until it is ended; prints the address first."""
    state, loop = State(options), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Server(state), "127.0.0.1", options.port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    async with server:
        await server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--faults", type=float, default=0.0, help="share of the requests")
    parser.add_argument("--kinds", default=",".join(FAULTS), help="of faults, with commas")
    parser.add_argument("--retry_after", default="1", help="what status 429 tells")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds until a reply")
    parser.add_argument("--key", default="", help="the only key that is accepted")
    parser.add_argument("--plain", action="store_true", help="refuse response_format and seed")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    asyncio.run(serve(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
