import asyncio

from benchmarks import serving
from clara_jax.data.sources import open_source


def test_load_counts_what_clients_see(http):
    questions = ["who is this ?", "what is his job ?"]
    found = asyncio.run(serving.load(http.url, questions, 12, 1.0, 4))
    assert set(found["statuses"]) == {"200", "429"}  # a queue of 8 and 3 slots
    assert 0 < found["first_text_seconds"]["p50"] <= found["answer_seconds"]["p50"]
    assert found["tokens_per_second"] > found["answers_per_second"] > 0
    assert [set(gauges) for gauges in found["server"]] == [
        {"rss_bytes", "compilations", "slots_busy", "queue_depth"}
    ] * 3


def test_answering_from_memories_and_from_texts(setup):
    found = serving.answering(*setup, open_source("facts:20", form="qa"), 1, 2, 3)
    assert found["questions"] == 2 and found["prompt_tokens"]["texts"] > 20
    assert all(seconds > 0 for seconds in found["median_seconds"].values())
    assert found["whole_ratio"] > 0
