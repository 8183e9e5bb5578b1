"""Embeddings and reranking over HTTP."""

import threading
import time

import numpy as np
import openai
import pytest

from clara_jax.inference import rank
from clara_jax.inference.encode import encode_query

QUESTION = "who is bedda daba ?"


def embedded(http, texts, **more):
    status, _, reply = http("/v1/embeddings", {"input": texts, **more})
    assert status == 200, reply
    assert [entry["index"] for entry in reply["data"]] == list(range(len(reply["data"])))
    return np.array([entry["embedding"] for entry in reply["data"]])


def trained(service):
    query = encode_query(service.model, service.trees, [QUESTION], 1)[0]
    return rank.scores(query, service.corpus.rows_MD[:6], "cosine")


def test_embeddings_are_search_keys_of_norm_1(http, service, texts, monkeypatch):
    before = service.metrics.compilations()
    documents = embedded(http, texts)
    short = embedded(http, texts, dimensions=2)
    (query,) = embedded(http, QUESTION, input_type="query")
    assert service.metrics.compilations() == before
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-5)
    keys = service.corpus.basis.queries(service.corpus.rows_MD[:6])
    np.testing.assert_allclose(
        documents, keys / np.linalg.norm(keys, axis=1, keepdims=True), atol=1e-4
    )
    encoded = encode_query(service.model, service.trees, [QUESTION] * 4, 4)
    key = service.corpus.basis.queries(encoded)[0]
    np.testing.assert_allclose(query, key / np.linalg.norm(key), atol=1e-4)
    expected = documents[:, :2] / np.linalg.norm(documents[:, :2], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-5)
    ids = [service.model.tokenizer.encode(text) for text in texts[:2]]
    for given, wanted in ((ids, documents[:2]), (ids[0], documents[:1])):
        np.testing.assert_allclose(embedded(http, given), wanted, atol=1e-5)
    # The model of these tests has no reasoner of its own.
    monkeypatch.setattr("clara_jax.serving.embedding.encode_query", lambda *a: -encode_query(*a))
    np.testing.assert_allclose(embedded(http, QUESTION, input_type="query")[0], -query, atol=1e-5)
    np.testing.assert_allclose(embedded(http, QUESTION)[0], query, atol=1e-5)


def test_the_openai_client_reads_embeddings(http, service, texts):
    client = openai.OpenAI(base_url=http.url + "/v1", api_key="any", max_retries=0)
    packed = client.embeddings.create(model="m", input=texts)  # base64
    plain = client.embeddings.create(model="m", input=texts[0], encoding_format="float")
    np.testing.assert_allclose(packed.data[0].embedding, plain.data[0].embedding, atol=1e-6)
    read = sum(len(service.model.tokenizer.encode(text)) for text in texts)
    assert packed.usage.total_tokens == read and packed.model == "m"
    assert client.models.retrieve("clara").id == "clara"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.models.retrieve("other/model")


def test_documents_are_ranked_by_the_trained_score(http, service, texts):
    scores = trained(service)
    order = np.argsort(-scores, kind="stable").tolist()
    before = service.metrics.compilations()
    given = [texts[0], {"text": texts[1]}, *({"id": f"d{i}"} for i in range(2, 6))]
    body = {"query": QUESTION, "documents": given, "return_documents": True}
    status, _, reply = http("/v1/rerank", body)
    assert status == 200 and [one["index"] for one in reply["results"]] == order
    found = [one["relevance_score"] for one in reply["results"]]
    np.testing.assert_allclose(found, scores[order], atol=1e-4)
    assert [one["document"]["text"] for one in reply["results"]] == [texts[i] for i in order]
    _, _, best = http("/v1/rerank", {"query": QUESTION, "documents": given, "top_n": 2})
    assert [set(one) for one in best["results"]] == [{"index", "relevance_score"}] * 2
    assert service.metrics.compilations() == before


def test_stored_documents_are_not_computed_again(http, monkeypatch):
    monkeypatch.setattr("clara_jax.serving.embedding.compress", None)
    body = {"query": QUESTION, "documents": [{"id": "d1"}, {"id": "d1"}]}
    status, _, reply = http("/v1/rerank", body)
    first, second = reply["results"]
    assert status == 200 and first["relevance_score"] == second["relevance_score"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("embeddings", {"input": ""}, "input"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": ["a"] * 257}, "input"),
        ("embeddings", {"input": [[]]}, "input"),
        ("embeddings", {"input": [10**6]}, "ids below 1"),
        ("embeddings", {"input": "a", "dimensions": 6}, "keys have 5 numbers"),
        ("embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("embeddings", {"input": "a", "input_type": "image"}, "input_type"),
        ("embeddings", {"input": "who ? " * 50}, "a text has 100 tokens, the model reads 40"),
        ("rerank", {"query": "a", "documents": ["who ? " * 50]}, "a text has 100 tokens"),
        ("rerank", {"query": "a", "documents": []}, "documents"),
        ("rerank", {"query": "a", "documents": [{}]}, "documents.0: give either text or id"),
        ("rerank", {"query": "a", "documents": [{"id": "none"}]}, "no such document"),
        ("rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(http, path, body, message):
    status, _, error = http(f"/v1/{path}", body)
    assert status == 422 and message in error["error"]["message"], error


def test_questions_pass_while_many_texts_are_embedded(http, service, texts, monkeypatch, settled):
    settled()
    begun, answered, passed = threading.Event(), threading.Event(), service.let_questions_pass

    def hold():
        begun.set()
        until = time.monotonic() + 20
        while not answered.is_set() and time.monotonic() < until:
            passed()
            time.sleep(0.01)

    monkeypatch.setattr(service, "let_questions_pass", hold)
    replies = []
    thread = threading.Thread(target=lambda: replies.append(embedded(http, texts)))
    thread.start()
    assert begun.wait(10)
    assert http("/v1/search", {"question": QUESTION})[0] == 200 and not replies
    answered.set()
    thread.join(20)
    assert len(replies[0]) == 6


def test_pages_of_named_sites_may_ask(http):
    def ask(site, **more):
        return http("/v1/search", headers={"Origin": f"https://{site}.example"}, **more)

    preflight = {"Access-Control-Request-Method": "POST", "Origin": "https://page.example"}
    status, headers, _ = http("/v1/search", method="OPTIONS", headers=preflight)
    assert status == 200 and headers["access-control-allow-origin"] == "https://page.example"
    status, headers, _ = ask("page", body={"question": QUESTION})
    assert status == 200 and headers["access-control-allow-origin"] == "https://page.example"
    status, headers, _ = ask("other", body={"question": QUESTION})
    assert status == 403 and headers["access-control-allow-origin"] is None


def test_without_the_option_no_schema_is_served_and_failures_have_openais_form(
    http, service, running, monkeypatch
):
    assert http("/docs")[0] == http("/openapi.json")[0] == 200
    monkeypatch.setattr(service, "options", type(service.options)(port=0))
    other = running(service)
    assert other("/docs")[0] == other("/openapi.json")[0] == 404
    monkeypatch.setattr(service.metrics, "text", lambda: 1 / 0)
    status, _, error = other("/metrics")
    assert status == 500 and error["error"]["type"] == "server_error"
