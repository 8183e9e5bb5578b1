"""What requests may hold, without a server."""

import time

import pytest
from pydantic import ValidationError

from clara_jax.serving import schemas

USER = {"role": "user", "content": "Who wrote it?"}
IMAGE = {
    "role": "user",
    "content": [{"type": "text", "text": "This?"}, {"type": "image_url", "image_url": {}}],
}


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"functions": [{}]},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
        {"logit_bias": {"5": 1}},
        {"presence_penalty": 0.5},
        {"stop": list("abcde")},
        {"model": "m" * 300},
        {"seed": 2**63},
    ],
)
def test_what_would_change_the_answer_is_refused(more):
    with pytest.raises(ValidationError, match=next(iter(more))):
        schemas.Chat.model_validate({"messages": [USER], **more})


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [IMAGE, {"role": "assistant", "content": [{"refusal": "no"}]}, USER]},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "logprobs": None},
        {"logit_bias": {}, "presence_penalty": 0.0, "frequency_penalty": 0, "no_such_field": 1},
        {"stop": ""},
        {"stop": ["", "a"]},
        {"stop": None},
        {"seed": -1},
        {"seed": None},
        {"top_p": None},
    ],
)
def test_what_has_no_effect_is_taken(more):
    chat = schemas.Chat.model_validate({"messages": [USER], **more})
    assert chat.question() == "Who wrote it?"
    options = chat.options(9)
    assert 0 <= options.sampling.seed < 2**32 and "" not in options.stop


def test_top_p_of_0_is_greedy():
    chat = schemas.Chat.model_validate({"messages": [USER], "top_p": 0, "temperature": 1})
    assert chat.options(9).sampling.temperature == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a" * 8_001, "too long: it has 8001 characters, 8000"),
        ("  ", "no question"),
        (None, "no question"),
        (IMAGE["content"], "parts that are no text"),
        (["text"], "parts that are no text"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(content, message):
    chat = schemas.Chat.model_validate({"messages": [{"role": "user", "content": content}]})
    with pytest.raises(ValueError, match=message):
        chat.question()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (schemas.Chat, {"messages": [USER], "stop": [1] * 500_000}),
        (schemas.Chat, {"messages": [1] * 500_000}),
        (schemas.Ask, {"question": "a", "stop": [1] * 500_000}),
        (schemas.Ask, {"question": "a"} | {f"f{i}": 1 for i in range(100_000)}),
        (schemas.Add, {"documents": [1] * 500_000}),
        (schemas.Delete, {"ids": [1] * 500_000}),
        (schemas.Compress, {"documents": [1] * 500_000}),
    ],
)
def test_many_mistakes_hold_nobody_up(kind, body):
    begun = time.process_time()
    with pytest.raises(ValidationError) as told:
        kind.model_validate(body)
    assert len(told.value.errors()) < 10 and time.process_time() - begun < 0.5
