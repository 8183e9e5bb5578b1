"""Text to ids, where the places of ids are chosen by the program and never by the text.

A prompt is a sequence of parts: a string is text in which nothing is special, an int is an id that
stands where it stands. Users can therefore write `<|im_end|>` or `<MEM0>` without effect, and
memory and separator ids need no entry in the tokenizer.
"""

import contextlib
import copy
import ctypes
import datetime
import hashlib
import itertools
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import tokenizers
from transformers import PreTrainedTokenizerFast

from clara_jax.config import Prompts
from clara_jax.data import facts
from clara_jax.errors import UserError, reason
from clara_jax.interop import base, gguf

Parts = str | Sequence[str | int]

# For base models without a chat template: turns apart by a blank line, the answer closed by eos.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + (eos_token or '') }}"
    "{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}"
)

# Characters that stand for something else inside this module. They are in the last private-use
# plane, mean nothing anywhere, and are removed from users' text.
_PRIVATE = range(0x100000, 0x10FFFE)
_SENTINELS = 0x100000  # each stands for an id put in by the program
_PLACEHOLDERS = 0x101000  # each stands for an int of the user turn while the template is rendered
_PROTECTED = 0x108000  # each stands for an added token's string in a user's text
_ANSWER = chr(_PRIVATE[-1])  # stands for the answer where the open turn is looked for
_REMOVE = re.compile(f"[{chr(_PRIVATE[0])}-{chr(_PRIVATE[-1])}]")

# What a template may ask the clock for, also without padding as in `%-d`.
_CLOCK = [f"%{padding}{kind}" for padding in ("-", "") for kind in "aAbBcdDeFHIjmMpSTuUwWxXyYZ"]
_SECONDS = 10.0  # for a template to render a few short texts

# Blanks, cases, numbers, marks, accents in both forms of Unicode, and several scripts.
_SAMPLE = (
    "The 3rd U.S. court, in 1,984.50 (No. 12): don't re-tokenise  two blanks,\ttabs\nor lines; "
    'uncharacteristically HTTPServer_error=0x1F {"a": [1, 2]} Œuvre naïve cafe\u0301 Straße '
    "Москва, Αθήνα, القاهرة, 東京は雨。 서울 🙂 <s> </s> <|im_end|>"
)

# Tokenizers that are code and not files; every other name is a file, a directory or a hub id.
NAMED: dict[str, Callable[[], PreTrainedTokenizerFast]] = {"facts": facts.load_tokenizer}


class Tokenizer:
    """Encodes parts and chat turns with a fast tokenizer of transformers, which stays unmodified.

    Attributes:
        bos_id: id that opens a text, or None.
        eos_id: id that closes a text, or None.
        size: one more than the largest id that the tokenizer itself knows.
    """

    def __init__(self, hf: PreTrainedTokenizerFast, date: str = Prompts().date):
        self._hf, self._date = hf, date
        self.bos_id: int | None = hf.bos_token_id
        self.eos_id: int | None = hf.eos_token_id
        self.size = max(hf.get_vocab().values()) + 1
        self._backend = tokenizers.Tokenizer.from_str(hf.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True  # special tokens in text are text
        added = self._backend.get_added_tokens_decoder()
        # Added tokens may swallow the blanks beside them: the sentinel of an id does as they do.
        self._kinds = {i: (token.lstrip, token.rstrip) for i, token in added.items()}
        kinds = list(itertools.product((False, True), repeat=2))
        self._sentinels = {kind: chr(_SENTINELS + n) for n, kind in enumerate(kinds)}
        for (left, right), character in self._sentinels.items():
            token = tokenizers.AddedToken(
                character, lstrip=left, rstrip=right, normalized=False, special=False
            )
            self._backend.add_tokens([token])
        self._sentinel_ids = {self._backend.token_to_id(c) for c in self._sentinels.values()}
        self._specials = {token.content: i for i, token in added.items() if token.special}
        self._special_pattern = _any_of(self._specials)
        # A template may look for any added token in a text: that of Qwen3 cuts answers at </think>.
        contents = sorted({token.content for token in added.values()})
        self._added_pattern = _any_of(contents)
        self._protection = {s: chr(_PROTECTED + i) for i, s in enumerate(contents)}
        self._restore = str.maketrans({c: s for s, c in self._protection.items()})
        self._template = _dated(_default(hf.chat_template) or PLAIN_TEMPLATE, date)
        with _in_time():
            self._try_template()

    def __reduce__(self):
        return Tokenizer, (self._hf, self._date)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json and what belongs to it, for transformers and `load_tokenizer`."""
        hf = copy.copy(self._hf)
        if isinstance(hf.chat_template, str):
            hf.chat_template = self._template  # with the date of the training
        hf.save_pretrained(os.fspath(directory))
        path = pathlib.Path(directory) / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        for key in ("backend", "is_local"):  # of transformers 5, like the name of its class
            settings.pop(key, None)
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")

    def encode(self, parts: Parts) -> list[int]:
        """Ids of the parts, tokenised together as one string with added tokens at the ints.

        Args:
            parts: a text, or texts and ids mixed. No id is added that is not among them.
        """
        parts = [parts] if isinstance(parts, str) else parts
        ints = iter([part for part in parts if not isinstance(part, str)])
        text = "".join(
            _REMOVE.sub("", part)
            if isinstance(part, str)
            else self._sentinels[self._kinds.get(part, (False, False))]
            for part in parts
        )
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [next(ints) if i in self._sentinel_ids else i for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens and ids beyond the tokenizer's own are left out."""
        known = [int(i) for i in ids if 0 <= i < self.size]
        return self._backend.decode(known, skip_special_tokens=True)

    def shortened(self, text: str, length: int) -> str:
        """The start of a long text that has more than `length` tokens; the whole of others.

        So that no more of it is tokenised than can be read.
        """
        size = 16 * length + 1024
        while size < len(text) and len(self.encode(text[:size])) < length + 16:  # the cut's tokens
            size *= 4
        return text[:size]

    def head(self, text: str, length: int) -> str:
        """The start of a text that is at most `length` tokens long, cut between tokens."""
        text = _REMOVE.sub("", self.shortened(text, length))
        encoding = self._backend.encode(text, add_special_tokens=False)
        return text if len(encoding.ids) <= length else text[: encoding.offsets[length][0]]

    def digest(self) -> str:
        """A hash of the vocabulary and of how a text of many kinds is split.

        Of what it does and not of its file, which versions of libraries write differently.
        """
        vocabulary = sorted(self._hf.get_vocab().items())
        known = [vocabulary, self.bos_id, self.eos_id, self.encode(_SAMPLE)]
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()

    def chat(self, system: str, user: Parts, assistant: str | None = None) -> list[str | int]:
        """Renders one exchange with the chat template.

        Args:
            system: system text. Where the template has no system role it is joined to the user's
                turn with a newline.
            user: text and ids of the user's turn.
            assistant: text of the answer; None leaves the turn open for generation.

        Returns:
            Parts for `encode`: the template's special tokens and the ints of `user` are ids.
        """
        user = [user] if isinstance(user, str) else user
        ints = [part for part in user if not isinstance(part, str)]
        places = itertools.count(_PLACEHOLDERS)
        text = "".join(
            self._protect(part) if isinstance(part, str) else chr(next(places)) for part in user
        )
        system = self._protect(system)
        turns = {"system": system, "user": text, "assistant": assistant}
        if not self._has_system:
            turns |= {"system": None, "user": f"{system}\n{text}" if system else text}
        if assistant is not None:
            turns["assistant"] = self._protect(assistant)
        elif self._cuts:
            turns["assistant"] = _ANSWER
        return self._parse(self._render(turns).partition(_ANSWER)[0], ints)

    def _protect(self, text: str) -> str:
        text = _REMOVE.sub("", text)
        return self._added_pattern.sub(lambda match: self._protection[match[0]], text)

    def _render(self, turns: Mapping[str, str | None], opens: bool = True) -> str:
        texts = {role: text for role, text in turns.items() if text is not None}
        messages: list[Any] = [
            {"role": role, "content": [{"type": "text", "text": text}] if self._in_parts else text}
            for role, text in texts.items()
        ]
        return self._hf.apply_chat_template(  # pyrefly: ignore[bad-return]  # a text without `tokenize`
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=opens and "assistant" not in texts,
            enable_thinking=False,  # Qwen3: so that the open turn is the start of the closed one
        )

    def _parse(self, rendered: str, ints: list[int]) -> list[str | int]:
        """Splits a rendered prompt at special tokens and placeholders."""
        places = f"[{chr(_PLACEHOLDERS)}-{chr(_PROTECTED - 1)}]"
        pattern = re.compile(f"({self._special_pattern.pattern}|{places})")
        parts: list[str | int] = []
        for piece in pattern.split(rendered):
            if piece in self._specials:
                parts.append(self._specials[piece])
            elif len(piece) == 1 and _PLACEHOLDERS <= ord(piece) < _PROTECTED:
                parts.append(ints[ord(piece) - _PLACEHOLDERS])
            elif piece:
                parts.append(piece.translate(self._restore))
        return parts

    def _try_template(self) -> None:
        """Finds out what the template takes, and how its open turn must end."""
        both = {"system": "the system text", "user": "the question"}
        user = {"user": "the question"}
        self._in_parts, self._cuts = False, False
        self._has_system = self._shows(both)
        if not self._has_system and not self._shows(user):  # it may read a list of parts
            self._in_parts = True
            self._has_system = self._shows(both)
            self._in_parts = self._has_system or self._shows(user)
        # Templates of reasoning models open a thought that their closed turns do not have, or
        # have empty: then the open turn is the closed one up to the answer, as it was trained.
        turns = both if self._has_system else user
        opened, closed = self._render(turns), self._render(turns | {"assistant": _ANSWER})
        if not all(turns["user"] in text for text in (opened, closed)):
            raise ValueError("it does not show the text of the user")
        if _ANSWER not in closed:
            raise ValueError("it does not show the answer")
        try:
            opens = opened != self._render(turns, opens=False)
        except (jinja2.TemplateError, TypeError):  # it needs an answer, or a turn to be opened
            opens = True
        if not opens and closed.startswith(opened):
            return  # the answer's head is learnt
        rest = closed.removeprefix(opened) if closed.startswith(opened) else ""
        self._cuts = not rest.lstrip().startswith(_ANSWER)

    def _shows(self, turns: dict[str, str]) -> bool:
        """Whether the template shows these texts in an open and in a closed exchange."""
        for more in ({}, {"assistant": "the answer"}):
            try:
                rendered = self._render(turns | more)
            except (jinja2.TemplateError, TypeError):
                return False
            if not all(text in rendered for text in turns.values()):
                return False
        return True


class _Endless(Exception):
    """What `_in_time` raises."""

    def __str__(self) -> str:
        return f"it does not end within {_SECONDS:.0f} s"


@contextlib.contextmanager
def _in_time() -> Generator[None]:
    """Stops a template that loops: it is a program of others, and jinja's sandbox has no clock."""
    thread = ctypes.c_ulong(threading.get_ident())
    raising = ctypes.pythonapi.PyThreadState_SetAsyncExc
    timer = threading.Timer(_SECONDS, raising, (thread, ctypes.py_object(_Endless)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _default(template: str | dict[str, str] | None) -> str | None:
    """The chat template for plain chats, of those that a tokenizer may have by name."""
    if not isinstance(template, dict):
        return template
    if "default" not in template:
        raise ValueError(f"none of {', '.join(sorted(template))} is called default")
    return template["default"]


def _dated(template: str, date: str) -> str:
    """A template that gets this date in place of the day's, so that a run's prompts never change.

    It has a macro in place of transformers' function, for itself and for whoever reads an export.
    """
    if "strftime_now" not in template:
        return template
    now = datetime.datetime.fromisoformat(date)
    chain = "".join(f"|replace({kind!r}, {now.strftime(kind)!r})" for kind in _CLOCK)
    macro = "{%- macro strftime_now(form) -%}{{ form" + chain + " }}{%- endmacro %}{{ '' }}"
    return macro + template


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches each of the texts, the longest where several begin alike."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def load_tokenizer(
    name: str,
    chat_template: str | None = None,
    where: str | os.PathLike[str] | None = None,
    date: str = Prompts().date,
) -> Tokenizer:
    """Loads a tokenizer by name.

    Args:
        name: a key of NAMED, a `.gguf` file, a directory with `tokenizer.json`, or a hub id.
        chat_template: in place of its own.
        where: what holds that template, for messages.
        date: for a template that prints the day's, as 2024-07-26.

    Raises:
        UserError: nothing of that name can be loaded, or it is broken.
    """
    if name in NAMED:
        return Tokenizer(NAMED[name](), date)
    hf = gguf.load_tokenizer(name) if name.endswith(".gguf") else _from_files(name)
    hf.chat_template = chat_template or hf.chat_template
    try:
        return Tokenizer(hf, date)
    except Exception as e:  # a template is a program, which may fail in any way
        raise UserError(f"{where or name}: the chat template cannot be used ({reason(e)})") from e


def _from_files(name: str) -> PreTrainedTokenizerFast:
    """Reads a directory's tokenizer, or a hub id's."""
    wanted = "no tokenizer there; give a directory with tokenizer.json, a hub id or a .gguf file"
    path = pathlib.Path(name)
    if not path.is_dir() and not base.is_hub_id(name):
        raise UserError(f"{name}: {wanted}")
    try:
        return PreTrainedTokenizerFast.from_pretrained(name)
    except Exception as e:  # tokenizers raises no narrower class, transformers what it trips over
        if (path / "tokenizer.json").is_file():
            wanted = "tokenizer.json, or a file of the tokenizer beside it, is broken"
        raise UserError(f"{name}: {wanted} ({reason(e)})") from e
