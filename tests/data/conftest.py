"""Tokenizers that are built here, without any download."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from clara_jax.data.tokenizer import Tokenizer

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_byte_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte, except that a few words are merged."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {c: i for i, c in enumerate(alphabet)}, []
    for word in ("Ġone", "Ġtwo", "Ġthree"):
        joined = word[0]
        for character in word[1:]:
            merges.append((joined, character))
            joined += character
            vocab.setdefault(joined, len(vocab))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges))))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Makes byte tokenizers, given a chat template or None."""
    return make_byte_tokenizer


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    """A byte tokenizer with a ChatML template."""
    return Tokenizer(make_byte_tokenizer())
