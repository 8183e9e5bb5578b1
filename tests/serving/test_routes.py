"""HTTP: what is answered, what is refused and how, and who leaves."""

import concurrent.futures
import contextlib
import json
import socket
import threading
import time

import openai
import pytest

from clara_jax.errors import UserError
from clara_jax.serving.run import _is_unread, read_token

QUESTION = "who is bedda daba ?"


def events(text):
    found = []
    for part in text.split("\n\n")[:-1]:
        kind, data = part.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_ask_and_its_stream(http):
    status, _, whole = http("/v1/ask", {"question": QUESTION, "top_k": 3, "words": True})
    assert status == 200 and whole["answer"] and whole["finish_reason"] in ("stop", "length")
    assert len(whole["documents"]) == 3 and whole["words"]
    assert whole["documents"][0]["score"] >= whole["documents"][2]["score"]
    usage = whole["usage"]
    assert 0 < usage["first_token_seconds"] <= usage["seconds"]
    assert 0 < usage["completion_tokens"] <= 24 < usage["prompt_tokens"]
    compression = whole["compression"]
    assert compression["vectors"] == 12
    assert compression["rate"] == pytest.approx(compression["tokens"] / 12)
    _, headers, text = http("/v1/ask", {"question": QUESTION, "top_k": 3, "stream": True})
    assert headers["content-type"].startswith("text/event-stream")
    told = events(text)
    assert [kind for kind, _ in told[:2]] == ["found", "text"] and told[-1][0] == "done"
    assert told[0][1]["documents"] == whole["documents"]
    assert "".join(data["text"] for kind, data in told if kind == "text") == whole["answer"]
    assert len(told) > 4 and told[-1][1]["answer"] == whole["answer"]


def test_search_compress_and_documents(http, service):
    status, _, found = http("/v1/search", {"question": QUESTION, "top_k": 5})
    assert status == 200 and len(found["documents"]) == 5
    status, _, made = http("/v1/compress", {"documents": ["a red fox", "b"]})
    assert status == 200 and len(made["memories"]) == 2 and len(made["memories"][0]) == 4
    document = {"id": "new", "title": "A title", "text": QUESTION}
    assert http("/v1/documents", {"documents": [document]})[::2] == (200, {"documents": 7})
    status, _, error = http("/v1/documents", {"documents": [document]})
    assert status == 422 and "new: there already" in error["error"]["message"]
    _, _, found = http("/v1/search", {"question": QUESTION, "top_k": 1})
    assert found["documents"][0]["id"] == "new"  # its vectors are the question's own
    assert http("/v1/documents", {"ids": ["new"]}, "DELETE")[::2] == (200, {"documents": 6})
    assert http("/v1/documents", {"ids": ["new"]}, "DELETE")[0] == 422
    _, _, found = http("/v1/search", {"question": QUESTION, "top_k": 1})
    assert found["documents"][0]["id"] != "new"
    assert "clara_documents 6.0" in http("/metrics")[2]


def test_the_openai_client(http):
    client = openai.OpenAI(base_url=http.url + "/v1", api_key="any", max_retries=0)
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "?"},
        {"role": "user", "content": QUESTION},
    ]
    expected = http("/v1/ask", {"question": QUESTION, "max_new_tokens": 9})[2]["answer"]
    made = client.chat.completions.create(model="m", messages=messages, max_tokens=9)
    assert made.choices[0].message.content == expected and made.model == "m"
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    parts = [{"type": "text", "text": QUESTION}]
    chunks = list(
        client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": parts}],
            max_completion_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
            temperature=0,
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage == made.usage
    assert chunks[-2].choices[0].finish_reason == made.choices[0].finish_reason
    assert client.models.list().data[0].id == "clara"
    with pytest.raises(openai.UnprocessableEntityError, match="no question"):
        client.chat.completions.create(model="m", messages=messages[:1])


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/ask", b"{", 422, "JSON"),
        ("/v1/ask", b"\xff", 400, ""),
        ("/v1/ask", b"[" * 15_000, 400, ""),
        ("/v1/ask", {"question": "  "}, 422, "question"),
        ("/v1/ask", {"question": 3}, 422, "question"),
        ("/v1/ask", {}, 422, "question"),
        ("/v1/ask", {"question": "a", "no_such": 1}, 422, "no_such"),
        ("/v1/ask", {"question": "a", "top_k": 0}, 422, "top_k"),
        ("/v1/ask", {"question": "a", "top_k": 51}, 422, "top_k"),
        ("/v1/ask", b'{"question": "a", "temperature": NaN}', 422, "temperature"),
        ("/v1/ask", b'{"question": "\\ud800"}', 422, "question"),
        ("/v1/ask", {"question": "a", "top_p": 1.5}, 422, "top_p"),
        ("/v1/ask", {"question": "who ? " * 99}, 422, "tokens too long"),
        ("/v1/ask", {"question": "a" * 30_000}, 413, "20000 bytes"),
        ("/v1/compress", {"documents": []}, 422, "documents"),
        ("/v1/compress", {"documents": ["a"] * 65}, 422, "documents"),
        ("/v1/documents", {"documents": [{"id": "", "text": "a"}]}, 422, "id"),
        ("/v1/chat/completions", {"messages": []}, 422, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "n": 2}, 422, "n is not served"),
        ("/v1/nothing", {}, 404, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(http, path, body, status, message):
    found, _, error = http(path, body)
    assert (found, message in error["error"]["message"]) == (status, True), error


def test_a_full_queue_refuses_and_says_when_to_come_again(http, service, settled):
    settled()
    held, original = threading.Event(), service.corpus.find
    service.corpus.find = lambda *args: (held.wait(20), original(*args))[1]
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(http, "/v1/ask", {"question": QUESTION}) for _ in range(20)]
        until = time.monotonic() + 10
        while sum(future.done() for future in asked) < 20 - 8 and time.monotonic() < until:
            time.sleep(0.01)
        assert http("/healthz")[0] == 200  # the event loop is free
        held.set()
        found = [future.result() for future in asked]
    del service.corpus.find
    assert sorted(status for status, _, _ in found) == [200] * 8 + [429] * 12
    assert all(headers["retry-after"] for status, headers, _ in found if status == 429)


def connection(http, body, path="/v1/ask"):
    sock = socket.create_connection(("127.0.0.1", http.server.port), timeout=20)
    data = json.dumps(body).encode()
    sock.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return sock


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(http, service, stream, monkeypatch, settled):
    settled()
    original = service.batcher._slots.step
    monkeypatch.setattr(service.batcher._slots, "step", lambda: (time.sleep(0.2), original())[1])
    body = {"question": "who has a horse ?", "max_new_tokens": 24, "stream": stream}
    assert (
        http("/v1/ask", {**body, "stream": False, "max_new_tokens": 5})[2]["usage"][
            "completion_tokens"
        ]
        == 5
    )  # or there would be nothing to leave
    before = service.metrics.tokens._value.get()
    with connection(http, body):
        until = time.monotonic() + 10
        while not service.batcher.busy:
            assert time.monotonic() < until
            time.sleep(0.01)
    settled()
    assert service.metrics.tokens._value.get() - before < 12


def test_a_client_that_leaves_while_documents_change_harms_nobody(
    http, service, monkeypatch, settled
):
    settled()
    begun, original = threading.Event(), service.corpus.add

    def add(documents, report):
        begun.set()
        time.sleep(0.3)
        original(documents)

    monkeypatch.setattr(service.corpus, "add", add)
    document = {"id": "left", "title": "", "text": QUESTION}
    with connection(http, {"documents": [document]}, "/v1/documents"):
        assert begun.wait(10)
        with connection(http, {"documents": ["never begun"]}, "/v1/compress"):
            time.sleep(0.1)
    assert http("/v1/documents", {"ids": ["left"]}, "DELETE")[::2] == (200, {"documents": 6})
    assert http("/healthz")[2] == {"status": "ok"}


def test_slow_and_chunked_requests(http, service, monkeypatch):
    monkeypatch.setattr("clara_jax.serving.guard._BODY_SECONDS", 0.3)
    with connection(http, {"question": QUESTION}) as sock:
        sock.recv(10)
    sock = socket.create_connection(("127.0.0.1", http.server.port), timeout=20)
    head = "POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with sock:
        sock.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 408")
    sock = socket.create_connection(("127.0.0.1", http.server.port), timeout=20)
    with sock:
        sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        sock.sendall(b"ffff\r\n" + b" " * 0xFFFF + b"\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_connections_without_a_request_are_closed(http, monkeypatch):
    monkeypatch.setattr("clara_jax.serving.run._IDLE_SECONDS", 0.3)
    for begun in (b"", b"POST /v1/ask HTTP/1.1\r\nHost: "):
        with socket.create_connection(("127.0.0.1", http.server.port), timeout=20) as sock:
            sock.sendall(begun)
            assert not sock.recv(100)
    assert http("/healthz")[0] == 200


def test_tokens_and_names(service, running):
    http = running(service, "secret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        for path in ("/v1/ask", "/v1/models", "/metrics", "/openapi.json"):
            status, found, _ = http(path, headers=headers)
            assert status == 401 and found["www-authenticate"] == "Bearer"
    assert http("/healthz")[0] == http("/")[0] == 200
    good = {"Authorization": "bearer secret"}
    assert http("/v1/search", {"question": QUESTION}, headers=good)[0] == 200
    assert http("/healthz", headers={"Host": "evil.example"})[0] == 421
    assert http("/healthz", headers={"Host": "[::1]:80"})[0] == 200


def test_where_tokens_come_from(service, tmp_path, monkeypatch):
    options = type(service.options)
    monkeypatch.delenv("CLARA_TOKEN", raising=False)
    assert read_token(options()) is None
    monkeypatch.setenv("CLARA_TOKEN", "one")
    assert read_token(options()) == "one"
    (tmp_path / "token").write_text("two\n")
    assert read_token(options(token_file=str(tmp_path / "token"))) == "two"
    (tmp_path / "token").write_text("\n")
    for name, message in (("token", "not empty"), ("none", "No such file")):
        with pytest.raises(UserError, match=message):
            read_token(options(token_file=str(tmp_path / name)))


def test_the_first_signal_drains(service, running, monkeypatch):
    http = running(service)
    original = service.batcher._slots.step
    monkeypatch.setattr(service.batcher._slots, "step", lambda: (time.sleep(0.05), original())[1])
    body = {"question": "who has a horse ?", "max_new_tokens": 20}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http, "/v1/ask", body)
        while not service.batcher.busy:
            time.sleep(0.01)
        http.server.handle_exit(15, None)
        assert http("/healthz")[2] == {"status": "stopping"}
        status, headers, _ = http("/v1/search", {"question": QUESTION})
        assert status == 503 and headers["retry-after"]
        status, _, whole = asked.result()
    assert status == 200 and whole["answer"]
    http.thread.join(10)
    assert not http.thread.is_alive() and not http.server.failed


def test_who_does_not_read_does_not_hold_up_the_end(service, running, monkeypatch):
    http = running(service)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", http.server.port))
        while not any(map(_is_unread, list(http.server._wires.values()))):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            time.sleep(0.2)
        http.server.handle_exit(15, None)
        http.thread.join(0.5)
        assert http.thread.is_alive()
        monkeypatch.setattr("clara_jax.serving.run._IDLE_SECONDS", 0.3)
        http.thread.join(10)
        assert not http.thread.is_alive() and not http.server.failed


def test_an_address_that_is_taken_is_told(http, service, running, monkeypatch):
    options = type(service.options)(port=http.server.port)
    monkeypatch.setattr(service, "options", options)
    with pytest.raises(UserError, match=f"port={options.port}"):
        running(service)


def test_metrics(http, service):
    http("/v1/no_such_path")
    text = http("/metrics")[2]
    for name in (
        'clara_requests_total{path="/v1/ask",status="200"}',
        'path="other",status="404"',
        "clara_queue_depth 0.0",
        "clara_slots_busy",
        "clara_time_to_first_token_seconds_count",
        "clara_tokens_per_second",
        "clara_generated_tokens_total",
        "clara_compilations{when=",
        'clara_memory_cache_total{result="miss"}',
        "clara_documents 6.0",
    ):
        assert name in text, name


def test_messages_do_not_show_folders(http):
    status, _, error = http("/v1/documents", {"ids": ["none"]}, "DELETE")
    assert (status, error["error"]["message"]) == (422, "none: no such document")


def test_the_page_of_another_site_is_refused(http):
    body, own = {"question": QUESTION}, f"localhost:{http.server.port}"
    for origin, status in (("https://evil.example", 403), ("null", 403), (f"http://{own}", 200)):
        assert http("/v1/search", body, headers={"Origin": origin, "Host": own})[0] == status
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert http("/v1/search", body, headers={"Content-Type": kind})[0] == 415
    good = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert http("/v1/search", body, headers=good)[0] == 200


def test_a_long_change_lets_questions_pass_and_is_told_when_it_ends(
    http, service, monkeypatch, settled
):
    settled()
    begun, answered = threading.Event(), threading.Event()

    def add(documents, report):
        begun.set()
        until = time.monotonic() + 20
        while not answered.is_set():
            assert time.monotonic() < until
            report(1)
            time.sleep(0.01)

    monkeypatch.setattr(service.corpus, "add", add)
    document = {"id": "long", "title": "", "text": QUESTION}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        adding = pool.submit(http, "/v1/documents", {"documents": [document]})
        assert begun.wait(10)
        assert http("/v1/ask", {"question": QUESTION})[0] == 200
        answered.set()
        assert adding.result()[::2] == (200, {"documents": 6})


def test_half_sent_requests_keep_nobody_out_and_do_not_hold_up_the_end(service, running):
    http = running(service)
    half = b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with contextlib.ExitStack() as stack:
        for number in range(http.server.guard.most + 20):
            address = ("127.0.0.1", http.server.port)
            sock = stack.enter_context(socket.create_connection(address, timeout=20))
            sock.sendall(half + b"Content-Length: 9\r\n\r\n{" * (number % 2))
        assert http("/v1/search", {"question": QUESTION})[0] == 200
        assert len(http.server._wires) <= http.server.guard.most + 2
        http.server.handle_exit(15, None)
        http.thread.join(10)
        assert not http.thread.is_alive() and not http.server.failed


def test_draining_has_an_end(service, running, monkeypatch):
    http = running(service)
    monkeypatch.setattr("clara_jax.serving.run._DRAIN_SECONDS", -service.options.deadline)
    http.server.guard.active.append("a request that never ends")
    http.server.handle_exit(15, None)
    http.thread.join(10)
    assert not http.thread.is_alive()
