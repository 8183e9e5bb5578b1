"""Ids stand where the program puts them, and text is text."""

import pickle
import re
import string

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clara_jax.config import Prompts
from clara_jax.data.prompts import TextLayout, dialogue
from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError
from clara_jax.inference.sampling import stop_ids
from clara_jax.models.config import ExtraTokens

REJECTS = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"
)
DROPS = (
    "{% for m in messages %}{% if m['role'] != 'system' %}"
    "{{ '<|im_start|>' + m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# Shows the system text only before a last user turn, as some published templates do.
DROPS_WHEN_CLOSED = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>"
    "{% if loop.last and m['role'] == 'user' and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + '\n' }}{% endif %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}"
)


def metaspace(prepend: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts its blank before the text as `prepend` says."""
    vocab = {c: i for i, c in enumerate("▁abc<>/s|ME0")}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def legacy() -> PreTrainedTokenizerFast:
    """The blank comes from a normalizer, before each piece between added tokens (Llama 2)."""
    vocab = {c: i for i, c in enumerate("▁abc<>/s|")}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def stripping() -> PreTrainedTokenizerFast:
    """Special tokens that swallow the blanks after them (Phi 3)."""
    hf = metaspace("always")
    backend = tokenizers.Tokenizer.from_str(hf.backend_tokenizer.to_str())
    backend.add_special_tokens([tokenizers.AddedToken("<|end|>", rstrip=True, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|end|>")


KINDS = {
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "legacy": legacy,
    "stripping": stripping,
}


@pytest.fixture(scope="module", params=["bytes", *KINDS])
def hf(request, byte_tokenizer) -> PreTrainedTokenizerFast:
    return KINDS.get(request.param, byte_tokenizer)()


texts = st.text(alphabet="abc  \n", max_size=8)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(texts, st.sampled_from(["BOS", "EOS", "MEM"])), max_size=6))
def test_ids_stand_as_added_tokens_do(hf, parts):
    # The reference: a tokenizer that really has the memory token, given one string.
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(hf.backend_tokenizer.to_str()),
        bos_token=hf.bos_token, eos_token=hf.eos_token,
    )  # fmt: skip
    copy.add_special_tokens({"additional_special_tokens": ["<MEM0>"]})
    memory = copy.convert_tokens_to_ids("<MEM0>")
    ids = {"BOS": hf.bos_token_id, "EOS": hf.eos_token_id, "MEM": memory}
    strings = {"BOS": hf.bos_token, "EOS": hf.eos_token, "MEM": "<MEM0>"}
    reference = copy.backend_tokenizer.encode(
        "".join(strings.get(part, part) for part in parts), add_special_tokens=False
    ).ids
    ours = Tokenizer(hf).encode([ids.get(part, part) for part in parts])
    assert ours == reference


def test_ids_are_never_lost():
    # Special tokens that are matched after normalisation hide behind a blank in a string.
    hf = legacy()
    backend = tokenizers.Tokenizer.from_str(hf.backend_tokenizer.to_str())
    backend.add_special_tokens([tokenizers.AddedToken("<c>", normalized=True, special=True)])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<c>"))
    assert tokenizer.encode(["a", tokenizer.eos_id, "b"]).count(tokenizer.eos_id) == 1


def test_blank_goes_before_the_first_text_only():
    tokenizer = Tokenizer(metaspace("first"))
    blank, a = tokenizer.encode("a")
    assert tokenizer.encode([99, "a", 98, "a"]) in ([99, a, 98, a], [99, blank, a, 98, a])
    assert tokenizer.encode(["a", 98, "a"]) == [blank, a, 98, a]


def test_special_tokens_in_text_are_text(hf):
    tokenizer = Tokenizer(hf)
    special = set(hf.all_special_ids)
    for text in [*hf.all_special_tokens, "<MEM0>", "a</s>b"]:
        assert not special & set(tokenizer.encode(text))
        assert all(i < tokenizer.size for i in tokenizer.encode(text))


def test_the_given_tokenizer_is_not_modified(byte_tokenizer):
    hf = byte_tokenizer()
    before = hf.backend_tokenizer.to_str(), len(hf)
    Tokenizer(hf).encode(["a", 5, "<s>"])
    assert (hf.backend_tokenizer.to_str(), len(hf)) == before
    assert hf.backend_tokenizer.encode_special_tokens is False


def test_users_cannot_write_our_stand_ins(words):
    stand_ins = "".join(map(chr, (0x100000, 0x101000, 0x108000)))
    assert words.encode(["a" + stand_ins, 7]) == words.encode(["a", 7])
    assert words.chat("s" + stand_ins, ["u" + stand_ins, 7]) == words.chat("s", ["u", 7])


@settings(deadline=None, max_examples=60)
@given(
    user=st.lists(st.sampled_from(["a ", "<|im_end|>", "<s>", "\n", "{docs}", "<|im_"]), max_size=6)
)
def test_text_cannot_leave_its_turn(words, user):
    hf = words._hf
    start, end = hf.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = words.encode(words.chat("sys", ["".join(user), 999], "answer <|im_end|>"))
    assert ids.count(start) == 3 and ids.count(end) == 3 and ids.count(999) == 1
    assert "".join(user) in "".join(map(str, words.chat("sys", ["".join(user)])))


def test_chat_equals_the_rendered_template(words):
    hf = words._hf
    turns = [{"role": "system", "content": "be one"}, {"role": "user", "content": "two ? "}]
    for answer in (None, "three"):
        shown = turns + ([{"role": "assistant", "content": answer}] if answer else [])
        text = hf.apply_chat_template(shown, tokenize=False, add_generation_prompt=answer is None)
        reference = hf.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert words.encode(words.chat("be one", "two ? ", answer)) == reference


@pytest.mark.parametrize("template", [REJECTS, DROPS, DROPS_WHEN_CLOSED])
def test_system_text_joins_the_user_turn_where_it_has_no_place(byte_tokenizer, template):
    tokenizer = Tokenizer(byte_tokenizer(template))
    for answer in (None, "yes"):
        shown = "".join(map(str, tokenizer.chat("SYS", ["ask ", 7], answer)))
        assert shown.count("SYS\nask 7") == 1
    assert not tokenizer.chat("", "ask")[1].count("\n")


def test_template_may_trim_and_place_ids_anywhere(byte_tokenizer):
    trims = byte_tokenizer().chat_template.replace("m['content']", "m['content'] | trim")
    tokenizer = Tokenizer(byte_tokenizer(trims))
    parts = tokenizer.chat("s ", [" ", 7, 8, " end "])
    place = parts.index(7)
    assert parts[place - 1 : place + 3] == ["user\n", 7, 8, " end"]


def test_plain_template_for_base_models(byte_tokenizer):
    tokenizer = Tokenizer(byte_tokenizer(None))
    opened = tokenizer.chat("sys", ["user", 7])
    assert opened == [tokenizer.bos_id, "sys\n\nuser", 7, "\n\n"]
    assert tokenizer.chat("sys", ["user", 7], "a")[:3] == opened[:3]
    assert tokenizer.chat("sys", ["user", 7], "a")[3:] == ["\n\na", tokenizer.eos_id]


def test_decode_leaves_out_special_and_foreign_ids(words):
    ids = words.encode([words.bos_id, "one <s> two", words.eos_id])
    assert words.decode([*ids, words.size + 5]).strip() == "one <s> two"


@given(st.text(alphabet="aé😀 ", max_size=20), st.integers(0, 25))
def test_head_is_a_start_of_at_most_so_many_tokens(words, text, length):
    head = words.head(text, length)
    assert text.startswith(head) and len(words.encode(head)) <= length
    assert head == text or len(words.encode(text)) > length


def test_copies_for_other_processes_are_equal(words):
    copy = pickle.loads(pickle.dumps(words))
    parts = words.chat("s", ["u", 7], "a")
    assert copy.chat("s", ["u", 7], "a") == parts and copy.encode(parts) == words.encode(parts)


def test_loading(byte_tokenizer, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tok")
    tokenizer = load_tokenizer(str(tmp_path / "tok"))
    assert tokenizer.encode(tokenizer.chat("s", "u")) == Tokenizer(byte_tokenizer()).encode(
        tokenizer.chat("s", "u")
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no tokenizer there"):
        load_tokenizer(str(tmp_path / "empty"))


# --- Families -------------------------------------------------------------------------------------

TURNS = "{% for m in messages %}{{ START + m['role'] + MIDDLE + m['content'] + END }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ START + 'assistant' + MIDDLE }}"


def turns(start: str, middle: str, end: str, last: str = "") -> str:
    """A template of turns alike, the assistant's open one the same; `last` ends a closed text."""
    closing = f"{{% else %}}{last}{{% endif %}}" if last else "{% endif %}"
    template = TURNS + OPEN + closing
    for name, text in (("START", start), ("MIDDLE", middle), ("END", end)):
        template = template.replace(name, repr(text))
    return template


IM = {"start": "<|im_start|>", "middle": "\n", "end": "<|im_end|>\n"}
THINK = "<think>\n\n</think>\n\n"
# Takes what an answer says before </think> for thoughts; there are none here, and it says so.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ THINK }}{% endif %}"
    "{{ m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ THINK }}{% endif %}{% endif %}"
).replace("THINK }}", f"{THINK!r} }}}}")
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nits own<|im_end|>\n' }}"
    "{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + TAIL + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
SYS = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + ns.system + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HEADERS = turns("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")

# Template, special tokens (those with > swallow blanks after them, those with ! are not special),
# bos, eos, what the labels are, and how the open prompt ends.
FAMILIES = {
    "qwen2.5": (OWN_SYSTEM + turns(**IM), "<|im_start|> <|im_end|>", None, "<|im_end|>",
                "yes<|im_end|>\n", "<|im_start|>assistant\n"),
    "qwen3": (THINKS, "<|im_start|> <|im_end|> <think>! </think>!", None, "<|im_end|>",
              "yes<|im_end|>\n", f"<|im_start|>assistant\n{THINK}"),
    "phi3": (turns("<|", "|>\n", "<|end|>\n", "{{ eos_token }}"),
             "<s> <|endoftext|> <|system|>> <|user|>> <|assistant|>> <|end|>>", "<s>",
             "<|endoftext|>", " yes<|end|><|endoftext|>", "<|end|><|assistant|>"),
    "phi4-mini": (turns("<|", "|>", "<|end|>", "{{ eos_token }}"),
                  "<|endoftext|> <|system|> <|user|> <|assistant|> <|end|>", "<|endoftext|>",
                  "<|endoftext|>", "yes<|end|><|endoftext|>", "<|end|><|assistant|>"),
    "mistral": ("{{ bos_token }}" + INST.replace("TAIL", "''"), "<s> </s>", "<s>", "</s>",
                " yes</s>", "ask me [/INST]"),
    "llama2": (SYS, "<s> </s>", "<s>", "</s>", " yes </s>", "ask me [/INST]"),
    "llama3": ("{{ bos_token }}" + HEADERS,
               "<|begin|> <|start_header_id|> <|end_header_id|> <|eot_id|>", "<|begin|>",
               "<|eot_id|>", "yes<|eot_id|>", "assistant<|end_header_id|>\n\n"),
}  # fmt: skip


def family(name: str) -> PreTrainedTokenizerFast:
    template, specials, bos, eos, _, _ = FAMILIES[name]
    if name in ("phi3", "mistral", "llama2"):  # SentencePiece as it is converted
        vocab = {c: i for i, c in enumerate("▁" + string.printable.replace(" ", ""))}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {c: i for i, c in enumerate(alphabet)}
        merges = [("Ċ", "Ċ")]  # a blank line is one token, whatever follows it
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab | {"ĊĊ": len(vocab)}, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(tokenizers.Regex(r"\s*[\r\n]+| ?\w+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    for token in specials.split():
        kind = token[-1] if token[-1] == "!" or token.endswith(">>") else ""
        content = token.removesuffix(kind)
        added = tokenizers.AddedToken(
            content, rstrip=kind == ">", normalized=False, special=kind != "!"
        )
        (backend.add_tokens if kind == "!" else backend.add_special_tokens)([added])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=template
    )


def shown(hf: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text = "".join(hf.convert_ids_to_tokens(ids))
    return text.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_of_every_family(name):
    """The answer, its end token and what follows; the prompt before is the open prompt."""
    hf = family(name)
    *_, labels, end = FAMILIES[name]
    tokenizer = Tokenizer(hf)
    whole, start = dialogue(tokenizer, "be brief", "ask me", "yes")
    prompt = tokenizer.encode(tokenizer.chat("be brief", "ask me"))
    assert prompt == whole[:start], "the open prompt is the start of the closed one"
    assert shown(hf, whole[start:]) == labels
    assert shown(hf, prompt).endswith(end)
    assert shown(hf, whole).count("be brief") == 1 and "its own" not in shown(hf, whole)
    ends = {hf.convert_ids_to_tokens(i) for i in stop_ids(tokenizer)}
    assert ends == {hf.eos_token, *re.findall(r"<\|end\|>", labels)}
    # What transformers makes of the same turns, where it takes them.
    if name != "mistral":
        messages = [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "ask me"},
        ]
        text = hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert hf.backend_tokenizer.encode(text, add_special_tokens=False).ids == prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_documents_of_every_family(name):
    """<ENC>, bos and eos only where the tokenizer has them, the text, memory tokens."""
    hf = family(name)
    tokenizer = Tokenizer(hf)
    extra = ExtraTokens(tokenizer.size, 2)
    ids, cut = TextLayout(tokenizer, extra, Prompts(), 10).document_ids("a b")
    assert not cut and ids[0] == extra.enc and ids[-2:] == list(extra.memory)
    bos = hf.bos_token or ""
    assert shown(hf, ids[1:-2]).replace(" ", "") == f"{bos}ab{hf.eos_token}"


def test_no_answer_is_taken_for_thoughts():
    """An answer may speak of </think>, or be written in blank lines: all of it is learned."""
    hf = family("qwen3")
    tokenizer = Tokenizer(hf)
    whole, start = dialogue(tokenizer, "", "ask", "first</think>then")
    assert shown(hf, whole[start:]) == "first</think>then<|im_end|>\n"
    assert shown(hf, whole[:start]).endswith(THINK)


@pytest.mark.parametrize("name", ["no-such-directory", "/no/such", "../x/y", "a/b/c", "."])
def test_only_hub_ids_are_asked_for(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ask = PreTrainedTokenizerFast.from_pretrained

    def asked(name):
        assert name == ".", f"asks for {name}"
        return ask(name)

    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", asked)
    with pytest.raises(UserError, match=f"^{re.escape(name)}: no tokenizer there"):
        load_tokenizer(name)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json, or a file"),
        ("tokenizer.json", "{}", "tokenizer.json, or a file"),
        ("tokenizer_config.json", "[]", "tokenizer.json, or a file"),
        ("chat_template.jinja", "{% for", "chat template"),
        ("chat_template.jinja", "{{ unknown() }}", "chat template"),
        ("chat_template.jinja", "{{ messages[0]['content'] + 1 }}", "chat template"),
    ],
)
def test_broken_files_are_named(byte_tokenizer, tmp_path, file, text, message):
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=f"^{tmp_path}: .*{message}") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


DATED = (
    "\n{% if strftime_now is defined %}{% set form = '%d %b %Y' %}{% for m in messages %}"
    "<|im_start|>{{ m['role'] }} {{ strftime_now(form) }}:{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {{ strftime_now('%-d') }}:{% endif %}"
    "{% endif %}"
)


def test_the_date_of_a_template_is_that_of_the_run(byte_tokenizer, tmp_path):
    tokenizer = Tokenizer(byte_tokenizer(DATED), "2020-02-03")
    rendered = "".join(map(str, tokenizer.chat("s", "ask")))
    assert rendered[0] == "\n" and "user 03 Feb 2020:ask" in rendered
    assert pickle.loads(pickle.dumps(tokenizer)).chat("s", "ask") == tokenizer.chat("s", "ask")
    tokenizer.save(tmp_path)  # an export is asked as it was trained, by whatever reads it
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    turns = [{"role": "user", "content": "ask"}]
    text = saved.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert "user 03 Feb 2020:ask" in text and text.endswith("assistant 3:")


OPEN = "{% for m in messages %}{% if m.role != 'assistant' %}<|im_start|>{{ m.content }}<|im_end|>"
CLOSE = "{% endif %}{% endfor %}{% if add_generation_prompt %}<s><think>\n{% endif %}"
THINKING = {
    "no thought in closed turns": "{% else %}<s>{{ m.content }}</s>",
    "an empty thought": "{% else %}<s><think>\n\n</think>\n\n{{ m.content }}</s>",
}


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize("answer", ["the answer", "\n\nlines"])
def test_the_open_turn_is_the_start_of_the_trained_one(byte_tokenizer, name, answer):
    tokenizer = Tokenizer(byte_tokenizer(OPEN + THINKING[name] + CLOSE))
    whole, start = dialogue(tokenizer, "", "ask", answer)
    assert whole[:start] == tokenizer.encode(tokenizer.chat("", "ask"))
    assert tokenizer.decode(whole[start:]).lstrip(" ") == answer


def test_an_answer_that_would_melt_into_the_prompt_is_apart():
    vocab = {c: i for i, c in enumerate(["a", "b", "ab", "<s>"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.add_special_tokens(["<s>"])
    template = (
        "{{ messages[-1].content if add_generation_prompt else "
        "messages[-2].content + messages[-1].content + '<s>' }}"
    )
    tokenizer = Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>", chat_template=template)
    )
    assert dialogue(tokenizer, "", "ba", "ba") == ([1, 0, 1, 0, 3], 2)


def test_templates_by_name_and_of_parts(byte_tokenizer):
    plain = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    parts = plain.replace("m.content", "m.content[0].text")
    expected = Tokenizer(byte_tokenizer(plain)).chat("s", "ask")
    for template in ({"default": plain, "tool_use": "no"}, parts):
        assert Tokenizer(byte_tokenizer(template)).chat("s", "ask") == expected
    with pytest.raises(ValueError, match="none of rag, tool_use is called default"):
        Tokenizer(byte_tokenizer({"rag": plain, "tool_use": plain}))
    with pytest.raises(ValueError, match="does not show"):
        Tokenizer(byte_tokenizer("{{ bos_token }}"))


def test_a_template_without_end_is_stopped(byte_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("clara_jax.data.tokenizer._SECONDS", 0.2)
    ranges = "".join(f"{{% for i{n} in range(99999) %}}" for n in range(3))
    template = f"{ranges}{{% endfor %}}{{% endfor %}}{{% endfor %}}"
    byte_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"template cannot be used .* does not end within"):
        load_tokenizer(str(tmp_path))


def test_a_long_text_is_tokenised_as_far_as_it_is_read(words, monkeypatch):
    text, seen = "one two three " * 100_000, []
    original = words.encode
    monkeypatch.setattr(words, "encode", lambda parts: seen.append(parts) or original(parts))
    layout = TextLayout(words, ExtraTokens(words.size, 2), Prompts(), 10)
    ids, is_cut = layout.document_ids(text)
    assert is_cut and all(len("".join(map(str, parts))) < 5_000 for parts in seen)
    assert ids == layout.document_ids("one two three " * 20)[0]
    assert words.head(text, 6) == words.head("one two three " * 20, 6)
    assert words.shortened(" " * 9_000, 9_000) == " " * 9_000
