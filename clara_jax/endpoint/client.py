"""Requests to an OpenAI-compatible endpoint: many at a time, tried again, replies as JSON."""

import asyncio
import collections
import dataclasses
import email.utils
import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from absl import logging

from clara_jax.config import Synthesis
from clara_jax.endpoint import prompts as prompts_lib
from clara_jax.errors import UserError

_URL = "config.synthesis.base_url"
# The client of openai could retry, but it does not count errors by kind, stops at a Retry-After of
# two minutes, and takes a body that is no JSON for a reply.
_FIRST, _LONGEST = 0.5, 60.0  # seconds of backoff; a server's own Retry-After may be longer
_PATIENCE = 600.0  # seconds of Retry-After that are waited at most
_AGAIN = (408, 409, 425, 429)  # and all from 500 on: worth another try
_REQUEST = (400, 413, 422)  # about one request, or about a parameter that a server does not know
# What not every server takes is left out step by step when the first requests are refused.
_FORMS = (("schema", "seed"), ("grammar", "seed"), ("object", "seed"), ("seed",), ())


class Failed(Exception):
    """A request that will not succeed: the model or the server refuses; says why."""


class Unavailable(Exception):
    """Errors of the network or the server that outlasted all retries."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came back."""

    value: dict[str, Any] | None  # the JSON in its shape; None where it is not that
    error: str  # why not
    tokens_in: int  # of the request, as the server counts
    tokens_out: int  # of the reply


class Endpoint:
    """An endpoint, to be used inside `async with` in one event loop.

    Args:
        options: of them all that the requests depend on.
        kinds: the prompts by name.

    Attributes:
        counts: requests sent, and errors by kind.

    Raises:
        UserError: the options name no endpoint or model.
    """

    def __init__(self, options: Synthesis, kinds: Mapping[str, prompts_lib.Kind]):
        self._options, self._kinds = options, kinds
        self.url, key = address(options), os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):  # never shown: it is a secret
            raise UserError("OPENAI_API_KEY has a character that no key has; set it anew")
        try:
            import openai  # 0.7 s that other modes need not wait for
        except ImportError as e:
            raise UserError("synthesis needs openai: pip install 'clara-jax[synthesis]'") from e
        self._errors = openai
        self._client = openai.AsyncOpenAI(
            base_url=self.url, api_key=key or "none", max_retries=0, timeout=options.timeout
        )
        self._slots = asyncio.Semaphore(options.concurrency)
        self._form, self._answered, self._lost = 0, False, 0
        self._random = random.Random()
        self.counts: collections.Counter[str] = collections.Counter()

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *unused: Any) -> None:
        await self._client.close()

    async def ask(
        self, name: str, messages: list[dict[str, str]], temperature: float, seed: int
    ) -> Reply:
        """One request for a reply in the shape of the prompt `name`.

        Raises:
            Failed: the server refuses this request, though it took others.
            Unavailable: it gave errors until the retries were over.
            UserError: it refuses all requests, or is not there at all.
        """
        async with self._slots:  # kept while waiting: a server in trouble gets fewer requests
            body = await self._persist(name, messages, temperature, seed)
        return read_reply(body, self._kinds[name].shape)

    async def _persist(self, name: str, messages: Any, temperature: float, seed: int) -> Any:
        request = {"model": self._options.model, "messages": messages, "temperature": temperature}
        request["max_tokens"] = self._options.max_tokens
        tries = 0
        while True:
            form, delay = self._form, 0.0
            self.counts["requests"] += 1
            try:
                more = _parameters(_FORMS[form], name, self._kinds[name].shape, seed)
                body = await self._client.post(
                    "/chat/completions", cast_to=object, body=request | more
                )
                if _is_completion(body):
                    self._answered, self._lost = True, 0
                    return body
                what, said = "body", f"no completion but {_told(body)}, see {_URL}"
            except self._errors.APIStatusError as e:
                what, delay = str(e.status_code), _retry_after(e.response.headers)
                said = f"status {what}: {_told(e.body or e.message)}"
                if e.status_code in _REQUEST:
                    self._refused(said, form)
                    continue
                if e.status_code == 500 and tries and not self._answered:
                    self._simplify(said, form)  # some servers fail at a parameter
                if e.status_code < 500 and e.status_code not in _AGAIN:
                    raise UserError(
                        f"{shown(self.url)}: refuses ({said}); see {_URL} and model, and "
                        "OPENAI_API_KEY"
                    ) from e
            except self._errors.APITimeoutError:
                what, said = "timeout", "no reply in time, config.synthesis.timeout"
            except (self._errors.APIConnectionError, self._errors.APIResponseValidationError) as e:
                what, said = "connection", f"no connection ({e.__cause__ or e})"
            except (json.JSONDecodeError, UnicodeDecodeError):
                what, said = "body", "a body that is not JSON"
            self.counts[what] += 1
            if tries == self._options.retries:
                self._give_up(said)
            backoff = min(_FIRST * 2**tries, _LONGEST) * self._random.uniform(0.5, 1.5)
            await asyncio.sleep(max(backoff, delay))
            tries += 1

    def _refused(self, said: str, form: int) -> None:
        """Continues with fewer parameters where no request was taken yet; else raises."""
        if self._answered:
            raise Failed(f"refused by the endpoint: {said}")
        if form + 1 == len(_FORMS):
            raise UserError(f"{shown(self.url)}: refuses every request ({said})")
        self._simplify(said, form)

    def _simplify(self, said: str, form: int) -> None:
        """Leaves out what the server may not know, unless another request just did."""
        if form == self._form and form + 1 < len(_FORMS):
            self._form += 1
            left = ", ".join(_FORMS[self._form]) or "messages"
            logging.info("leaving out all but %s, as the endpoint said %s", left, said)

    def _give_up(self, what: str) -> None:
        self._lost += 1
        tries = f"{self._options.retries + 1} tries of a request"
        if not self._answered:
            raise UserError(f"{shown(self.url)}: no answer after {tries} ({what})")
        if self._lost > 2 * self._options.concurrency:
            raise UserError(
                f"{shown(self.url)}: answers no more, last error: {what}; what is done is kept, "
                "run the same command again to go on"
            )
        raise Unavailable(what)


def address(options: Synthesis) -> str:
    """The endpoint's URL.

    Raises:
        UserError: there is none, or it is no URL, or the options name no model.
    """
    if not options.model:
        raise UserError("config.synthesis.model is empty; give the model's name at the endpoint")
    url = options.base_url or os.environ.get("OPENAI_BASE_URL", "")
    if not url:
        raise UserError(
            f"{_URL} is empty; give the endpoint's, such as http://127.0.0.1:8000/v1, or set "
            "OPENAI_BASE_URL"
        )
    if not re.match(r"https?://[^/]", url):
        raise UserError(f"{_URL}={shown(url)!r} must begin with http:// or https://")
    try:
        valid = url.isprintable() and urllib.parse.urlsplit(url).port != 0
    except ValueError:  # of brackets, or the port
        valid = False
    if not valid:
        raise UserError(f"{_URL}={shown(url)!r} is no URL")
    return url.rstrip("/")


def shown(url: str) -> str:
    """A URL for messages: without user and password."""
    return re.sub(r"(//|^)[^/]*@", r"\1", url)


def host(url: str) -> str:
    """Host and port of a URL, without what may be secret in it."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def read_reply(body: Any, shape: dict[str, Any]) -> Reply:
    """Reads what a server sent."""
    usage = body.get("usage") if isinstance(body, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
    tokens = [n if type(n) is int else 0 for n in tokens]
    try:
        choice = body["choices"][0]
        text = choice["message"]["content"] or ""
        if choice.get("finish_reason") == "length":
            raise ValueError("cut at config.synthesis.max_tokens")
        return Reply(prompts_lib.conform(read_json(text), shape), "", *tokens)
    except (KeyError, IndexError, TypeError):
        return Reply(None, "no text in the reply", *tokens)
    except ValueError as e:
        return Reply(None, str(e), *tokens)


def read_json(text: str) -> Any:
    """The JSON object in a text, fixed where that loses nothing.

    Raises:
        ValueError: there is none, or its end is missing.
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    start, end = text.find("{"), text.rfind("}")
    if start < 0:
        raise ValueError("no JSON object")
    inner = text[start : end + 1]
    try:
        return json.loads(inner, strict=False)
    except (ValueError, RecursionError):
        pass
    # A reply that ends too early could be closed, but what it lacks would go unnoticed.
    rest = text[start:]
    if rest.count("{") > rest.count("}") or rest.count("[") > rest.count("]"):
        raise ValueError("JSON without an end")
    import json_repair  # as late as openai

    try:
        value = json_repair.loads(inner)
    except RecursionError as e:
        raise ValueError("JSON too deep") from e
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _parameters(form: tuple[str, ...], name: str, shape: Any, seed: int) -> dict[str, Any]:
    schema = prompts_lib.schema(shape)
    named = {"name": name, "strict": True, "schema": schema}
    table = {
        "schema": {"response_format": {"type": "json_schema", "json_schema": named}},
        "grammar": {"response_format": {"type": "json_object", "schema": schema}},  # llama.cpp's
        "object": {"response_format": {"type": "json_object"}},
        "seed": {"seed": seed},
    }
    return {key: value for part in form for key, value in table[part].items()}


def _retry_after(headers: Any) -> float:
    """Seconds that a server asks to wait: a number, or a date."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), _PATIENCE)


def _told(body: Any) -> str:
    """What a body says in place of a completion, or the message in an error's, in one line."""
    for key in ("error", "message"):
        body = body.get(key, body) if isinstance(body, dict) else body
    return " ".join(str(body).split())[:200] or "nothing"


def _is_completion(body: Any) -> bool:
    """Whether a model speaks; else it is a page, or an error in spite of status 200."""
    try:
        message = body["choices"][0]["message"]
        return isinstance(message.get("content"), str | None)
    except (AttributeError, IndexError, KeyError, TypeError):
        return False
