"""What requests and responses hold."""

import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from clara_jax.inference.sampling import GenerationOptions, Sampling
from clara_jax.serving.live_corpus import MOST

MOST_TEXTS = 64  # documents of one request
MOST_CHARACTERS = 100_000  # of one text

# Not blank; JSON may hold halves of characters, which pydantic refuses.
Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS, pattern=r"\S")]
LONGEST_QUESTION = 8_000  # characters
Question = Annotated[
    str, StringConstraints(min_length=1, max_length=LONGEST_QUESTION, pattern=r"\S")
]
Id = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=100)]
MOST_STOPS = 4

T = TypeVar("T")
# A list whose first wrong item is reported alone: a million of them would hold up all others.
Few = Annotated[list[T], FailFast()]
_MOST_FIELDS = 100  # of a request, for the same reason


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > _MOST_FIELDS:
            raise ValueError(f"a request may have {_MOST_FIELDS} fields")
        return data


class Search(_Strict):
    """A question to find documents for."""

    question: Question
    top_k: int | None = Field(None, ge=1, le=MOST, description="By default as in training.")
    words: bool = Field(False, description="Also read the query by the logit lens.")


_RATE = Field(None, ge=1, le=10**6, description="Of the memories read; by default as kept.")


class Ask(Search):
    """A question to answer."""

    rate: int | None = _RATE
    max_new_tokens: int | None = Field(None, ge=1, le=10**6)
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**32)
    stop: Few[Stop] = Field([], max_length=MOST_STOPS)
    stream: bool = False

    def options(self, most: int) -> GenerationOptions:
        """Of the answer, which has at most `most` tokens."""
        return _options(self, self.max_new_tokens, most)


class Compress(_Strict):
    """Texts to compress."""

    documents: Few[Text] = Field(min_length=1, max_length=MOST_TEXTS)


class NewDocument(_Strict):
    """A document for the store; long ones become several."""

    id: Id
    title: str = Field("", max_length=1_000)
    text: Text


class Add(_Strict):
    """Documents for the store."""

    documents: Few[NewDocument] = Field(min_length=1, max_length=MOST_TEXTS)


class Delete(_Strict):
    """Documents of the store by their ids."""

    ids: Few[Id] = Field(min_length=1, max_length=1_000)


class Document(BaseModel):
    """A document that was found."""

    id: str
    parent: str
    title: str
    text: str
    score: float
    by: str
    tokens: int


class Word(BaseModel):
    """A word of the query's vectors."""

    model_config = ConfigDict(from_attributes=True)

    text: str
    score: float
    in_documents: bool


class Compression(BaseModel):
    """Tokens of the documents that were found, and the vectors that stand for them."""

    tokens: int
    vectors: int
    rate: float


class Found(BaseModel):
    """Result of a search."""

    documents: list[Document]
    words: list[Word]
    compression: Compression


class Usage(BaseModel):
    """Tokens and seconds of an answer."""

    prompt_tokens: int
    completion_tokens: int
    first_token_seconds: float | None
    seconds: float


class Answer(Found):
    """An answer and what it was read from."""

    answer: str
    finish_reason: str
    usage: Usage


class Compressed(BaseModel):
    """Memories [n, M, D] of texts."""

    memories: list[list[list[float]]]
    rate: float
    cut: int


class Changed(BaseModel):
    """The store after a change."""

    documents: int


class Message(BaseModel):
    """A message of a chat; only the user's last one is read, as text or parts of text."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Any] | None = None


class StreamOptions(BaseModel):
    """Of OpenAI."""

    include_usage: bool = False


# Fields of OpenAI's that would change the answer and are not served, and values that would not.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}


class Chat(BaseModel):
    """OpenAI's request; what changes no answer and is not named here is ignored."""

    model_config = ConfigDict(allow_inf_nan=False)

    messages: Few[Message] = Field(min_length=1, max_length=1_000)
    model: str = Field("clara", max_length=256)
    max_tokens: int | None = Field(None, ge=1, le=10**6)
    max_completion_tokens: int | None = Field(None, ge=1, le=10**6)
    temperature: float | None = Field(0.0, ge=0, le=100)
    top_p: float | None = Field(1.0, ge=0, le=1)
    seed: int | None = Field(0, ge=-(2**63), lt=2**63)
    stop: Few[Stop] = Field([], max_length=MOST_STOPS)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    rate: int | None = _RATE  # ours

    @model_validator(mode="before")
    @classmethod
    def _served(cls, data: Any) -> Any:
        for name, harmless in _NOT_SERVED.items() if isinstance(data, dict) else ():
            value = data.get(name)
            if value is not None and value not in harmless:
                raise ValueError(f"{name} is not served here; leave it out")
        return data

    @field_validator("stop", mode="before")
    @classmethod
    def _list_of_stops(cls, stop: Any) -> Any:
        """One text or several; empty ones, and null, stop nothing."""
        stop = [stop] if isinstance(stop, str) else [] if stop is None else stop
        return [text for text in stop if text != ""] if isinstance(stop, list) else stop

    def question(self) -> str:
        """The last message of the user.

        Raises:
            ValueError: there is none, it is empty or too long, or has parts that are no text.
        """
        last = next((m.content for m in reversed(self.messages) if m.role == "user"), None)
        parts = last if isinstance(last, list) else [{"type": "text", "text": last or ""}]
        texts: list[Any] = [part.get("text") for part in parts if isinstance(part, dict)]
        if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
            raise ValueError("the last message of the user has parts that are no text")
        text = "\n".join(texts).strip()
        if not text:
            raise ValueError("the last message of the user is no question")
        if len(text) > LONGEST_QUESTION:
            raise ValueError(
                f"the question is too long: it has {len(text)} characters, {LONGEST_QUESTION} are "
                "read here"
            )
        return text

    def options(self, most: int) -> GenerationOptions:
        """Of the answer, which has at most `most` tokens."""
        return _options(self, self.max_completion_tokens or self.max_tokens, most)


def _options(request: Ask | Chat, tokens: int | None, most: int) -> GenerationOptions:
    """A wish beyond the server's limit ends there, as OpenAI's do."""
    seed = request.seed or 0
    seed = secrets.randbelow(2**32) if seed < 0 else seed % 2**32  # -1 is random to many servers
    # A share of 0 leaves the likeliest token alone.
    temperature = 0.0 if request.top_p == 0 else request.temperature or 0.0
    sampling = Sampling(temperature, request.top_p or 1.0, seed)
    return GenerationOptions(min(tokens or 32, most), sampling, request.stop)
