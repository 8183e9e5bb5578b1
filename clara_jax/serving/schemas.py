"""What requests and responses hold."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from clara_jax.inference.sampling import GenerationOptions, Sampling
from clara_jax.serving.live_corpus import MOST

MOST_TEXTS = 64  # documents of one request
MOST_CHARACTERS = 100_000  # of one text

# Not blank; JSON may hold halves of characters, which pydantic refuses.
Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS, pattern=r"\S")]
Question = Annotated[str, StringConstraints(min_length=1, max_length=8_000, pattern=r"\S")]
Id = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Search(_Strict):
    """A question to find documents for."""

    question: Question
    top_k: int | None = Field(None, ge=1, le=MOST, description="By default as in training.")
    words: bool = Field(False, description="Also read the query by the logit lens.")


class Ask(Search):
    """A question to answer."""

    max_new_tokens: int | None = Field(None, ge=1, le=10**6)
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**32)
    stop: list[Stop] = Field([], max_length=4)
    stream: bool = False

    def options(self, most: int) -> GenerationOptions:
        """Of the answer, which has at most `most` tokens."""
        return _options(self, self.max_new_tokens, most)


class Compress(_Strict):
    """Texts to compress."""

    documents: list[Text] = Field(min_length=1, max_length=MOST_TEXTS)


class NewDocument(_Strict):
    """A document for the store; long ones become several."""

    id: Id
    title: str = Field("", max_length=1_000)
    text: Text


class Add(_Strict):
    """Documents for the store."""

    documents: list[NewDocument] = Field(min_length=1, max_length=MOST_TEXTS)


class Delete(_Strict):
    """Documents of the store by their ids."""

    ids: list[Id] = Field(min_length=1, max_length=1_000)


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


class Part(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: str = Field(max_length=8_000)


class Message(BaseModel):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """Of OpenAI."""

    include_usage: bool = False


class Chat(BaseModel):
    """OpenAI's request; what is not named here is ignored."""

    model_config = ConfigDict(allow_inf_nan=False)

    messages: list[Message] = Field(min_length=1, max_length=1_000)
    model: str = "clara"
    max_tokens: int | None = Field(None, ge=1, le=10**6)
    max_completion_tokens: int | None = Field(None, ge=1, le=10**6)
    temperature: float | None = Field(0.0, ge=0, le=100)
    top_p: float | None = Field(1.0, gt=0, le=1)
    seed: int | None = Field(0, ge=0, lt=2**32)
    stop: Stop | list[Stop] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1

    def question(self) -> str:
        """The last message of the user; empty if there is none."""
        for message in reversed(self.messages):
            if message.role == "user":
                content = message.content or ""
                return content if isinstance(content, str) else "\n".join(p.text for p in content)
        return ""

    def options(self, most: int) -> GenerationOptions:
        """Of the answer, which has at most `most` tokens."""
        return _options(self, self.max_completion_tokens or self.max_tokens, most)


def _options(request: Ask | Chat, tokens: int | None, most: int) -> GenerationOptions:
    """A wish beyond the server's limit ends there, as OpenAI's do."""
    sampling = Sampling(request.temperature or 0.0, request.top_p or 1.0, request.seed or 0)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return GenerationOptions(min(tokens or 32, most), sampling, stop[:4])
