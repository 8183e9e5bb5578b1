import asyncio
import time

import pytest

from benchmarks import synthesis
from clara_jax.config import Synthesis
from clara_jax.endpoint import client
from clara_jax.endpoint.client import Endpoint, Failed, Unavailable, read_json, read_reply
from clara_jax.endpoint.prompts import Prompts
from clara_jax.errors import UserError
from clara_jax.synthesis.prompts import KINDS, OWN


def ask(options, times=1, prepare=lambda endpoint: None):
    """Replies to so many requests at once, or their errors, and the endpoint."""
    messages = Prompts(options, KINDS, OWN).messages(
        "simple", document="Title\nOne two three four. Five six."
    )

    async def go():
        async with Endpoint(options, KINDS) as found:
            prepare(found)
            work = (found.ask("simple", messages, 0.0, i) for i in range(times))
            return await asyncio.gather(*work, return_exceptions=True), found

    return asyncio.run(go())


@pytest.fixture
def quick(monkeypatch):
    """Hardly any backoff."""
    monkeypatch.setattr(client, "_FIRST", 0.01)


def answered(found):
    found._answered = True


def test_a_reply_with_its_tokens(config, url):
    (reply,), found = ask(config(url).synthesis)
    assert reply.value["questions"] and reply.error == ""
    assert reply.tokens_in > 100 and reply.tokens_out > 5
    assert found.counts == {"requests": 1}


@pytest.mark.parametrize(
    ("kind", "counted"),
    [("429", "429"), ("500", "500"), ("closed", "connection"), ("timeout", "timeout")],
)
def test_errors_are_tried_again(config, serve, quick, kind, counted):
    address = serve("--faults=0.3", f"--kinds={kind}", "--retry_after=0.01")
    options = config(address, timeout=0.3, retries=12).synthesis
    replies, found = ask(options, times=20, prepare=answered)
    assert all(reply.value for reply in replies)
    told = synthesis.counts(address)
    assert found.counts[counted] >= told[kind] > 0  # closed ones may be sent again
    assert found.counts["requests"] == 20 + found.counts[counted]


@pytest.mark.parametrize("kind", ["malformed", "cut", "length"])
def test_replies_that_are_no_json_have_no_value_but_tokens(config, serve, kind):
    (reply,), _ = ask(config(serve("--faults=1", f"--kinds={kind}")).synthesis)
    assert reply.value is None and reply.error and reply.tokens_in > 0


def test_retry_after_is_waited_for(config, serve, quick):
    options = config(serve("--faults=1", "--kinds=429", "--retry_after=1"), retries=1).synthesis
    begun = time.monotonic()
    (error,), _ = ask(options, prepare=answered)
    assert isinstance(error, Unavailable) and time.monotonic() - begun > 1


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("3", 3, 3), ("0.5", 0.5, 0.5), ("", 0, 0), ("soon", 0, 0), ("99999", 600, 600), ("-4", 0, 0),
     ("date", 20, 31)],
)  # fmt: skip
def test_retry_after_forms(value, low, high):
    if value == "date":
        value = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert low <= client._retry_after({"retry-after": value}) <= high


def test_no_more_requests_in_flight_than_allowed(config, serve):
    options = config(serve("--delay=0.1"), concurrency=2).synthesis
    begun = time.monotonic()
    ask(options, times=6)
    assert 0.3 <= time.monotonic() - begun < 2


def test_parameters_that_a_server_does_not_know_are_left_out(config, serve):
    replies, found = ask(config(serve("--plain")).synthesis, times=3)
    assert all(reply.value for reply in replies)
    assert found._form == len(client._FORMS) - 1


def test_a_refusal_after_answers_is_about_the_request(config, serve):
    (error,), _ = ask(config(serve("--plain")).synthesis, prepare=answered)
    assert isinstance(error, Failed) and "unknown parameter" in str(error)


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"model": "missing"}, "right", "status 404: no such model"),
        ({}, "wrong", "status 401: wrong key"),
    ],
)
def test_what_will_never_work_stops_at_once(config, serve, monkeypatch, options, key, message):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    (error,), found = ask(config(serve("--key=right"), **options).synthesis)
    assert isinstance(error, UserError) and message in str(error)
    assert "\n" not in str(error) and found.counts["requests"] == 1


def test_nobody_there(config, quick):
    (error,), _ = ask(config("http://127.0.0.1:9/v1", retries=1).synthesis)
    assert isinstance(error, UserError) and "no answer after 2 tries" in str(error)


def test_an_endpoint_that_goes_away_stops_the_run(config, quick):
    options = config("http://127.0.0.1:9/v1", retries=0, concurrency=1).synthesis
    errors, _ = ask(options, times=3, prepare=answered)
    assert [type(error) for error in errors] == [Unavailable, Unavailable, UserError]
    assert "same command again" in str(errors[-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Sure:\n```json\n{"a": [1, 2]}\n```\nDone.', {"a": [1, 2]}),
        ('{"a": "line\nbreak"}', {"a": "line\nbreak"}),
        ("{'a': 'b', }", {"a": "b"}),
        ('{"a": [1, 2,], "b": True}', {"a": [1, 2], "b": True}),
        ('<think>{"b": 2}</think>{"a": 1}', {"a": 1}),
        ('{"a": ["b", "c', None),
        ('{"a": [{"b": 1}, {"b"', None),
        ("nothing", None),
        ("", None),
    ],
)
def test_json_is_mended_but_never_completed(text, expected):
    if expected is None:
        with pytest.raises(ValueError):
            read_json(text)
    else:
        assert read_json(text) == expected


@pytest.mark.parametrize("body", [None, "text", {}, {"choices": []}, {"choices": [{}], "usage": 3}])
def test_strange_bodies_are_malformed_replies(body):
    reply = read_reply(body, KINDS["simple"].shape)
    assert reply.value is None and "no text" in reply.error


def test_odd_counts_of_tokens_are_none():
    usage = {"prompt_tokens": "12", "completion_tokens": None}
    body = {"choices": [{"message": {"content": '{"questions": []}'}}], "usage": usage}
    reply = read_reply(body, KINDS["simple"].shape)
    assert reply.value == {"questions": []} and (reply.tokens_in, reply.tokens_out) == (0, 0)


@pytest.mark.parametrize(
    "text",
    [
        '{"answers": [{"number": 1e999, "answer": "x"}]}',
        '{"answers": ' + "[" * 9999 + "]" * 9999 + "}",
    ],
)
def test_numbers_and_depths_that_python_cannot_hold_are_malformed(text):
    body = {"choices": [{"message": {"content": text}}]}
    reply = read_reply(body, KINDS["answers"].shape)
    assert reply.value is None and reply.error


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<html>\nwelcome", "<html> welcome"),
        ({"error": {"message": "no quota"}}, "no quota"),
        ({"choices": []}, "choices"),
        ({"choices": ["x"]}, "choices"),
        ([], "[]"),
        (None, "None"),
    ],
)
def test_what_is_no_completion_is_an_error_of_the_endpoint(config, quick, monkeypatch, body, said):
    async def post(*unused, **options):
        return body

    def prepare(found):
        monkeypatch.setattr(found._client, "post", post)

    options = config("http://127.0.0.1:9/v1", retries=1).synthesis
    (error,), _ = ask(options, prepare=prepare)
    assert isinstance(error, UserError) and "no completion but" in str(error)
    assert said in str(error) and "base_url" in str(error) and "\n" not in str(error)
    (error,), found = ask(options, prepare=lambda found: (prepare(found), answered(found)))
    assert isinstance(error, Unavailable) and found.counts["body"] == 2


def test_a_key_that_cannot_be_sent_is_told_but_not_shown(config, monkeypatch):
    for key in ("schlüssel", "se\ncret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError, match="OPENAI_API_KEY has a character") as error:
            Endpoint(config("http://127.0.0.1:9/v1").synthesis, KINDS)
        assert key not in str(error.value)


def test_the_host_alone_is_told():
    assert client.host("https://user:secret@example.org/v1?key=1") == "example.org"
    assert client.host("http://127.0.0.1:80/v1") == "127.0.0.1:80"


def test_a_password_in_the_address_is_not_shown():
    assert client.shown("https://me:secret@host:80/v1") == "https://host:80/v1"
    assert client.shown("http://host/v1@2") == "http://host/v1@2"
    for url in ("me:secret@host/v1", "http://me:secret@[host/v1"):
        with pytest.raises(UserError) as told:
            client.address(Synthesis(model="m", base_url=url))
        assert "secret" not in str(told.value)
