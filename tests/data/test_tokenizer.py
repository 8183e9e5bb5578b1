"""Ids stand where the program puts them, and text is text."""

import pickle
import re

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clara_jax.data.tokenizer import Tokenizer, load_tokenizer
from clara_jax.errors import UserError

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
