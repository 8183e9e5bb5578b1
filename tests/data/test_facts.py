import pytest

from clara_jax.data import facts
from clara_jax.data.facts import FactsSource
from clara_jax.data.sources import open_source
from clara_jax.data.tokenizer import load_tokenizer
from clara_jax.errors import UserError


def test_records_depend_on_seed_and_index_alone():
    assert FactsSource(10, 3)[7].document == FactsSource(20, 3)[7].document
    assert FactsSource(10, 3)[7].document != FactsSource(10, 4)[7].document
    train = {FactsSource(300)[i].document for i in range(300)}
    dev = {FactsSource(300, 1)[i].document for i in range(300)}
    assert len(train) == 300 and not train & dev


def test_every_part_is_asked_for_and_answered_in_the_document():
    record = open_source("facts:5:2")[4]
    assert len(record.questions) == facts.FACTS + 1 and "who ?" in record.questions
    assert all(answer in record.document for answer in record.answers)


def test_tokenizer_knows_every_word():
    tokenizer = load_tokenizer("facts")
    for i in range(200):
        record = FactsSource(200, 9)[i]
        for text in (record.document, *record.questions, *record.answers, "Question: Answer: \n"):
            ids = tokenizer.encode(text)
            assert 0 not in ids  # <unk>
            assert tokenizer.decode(ids).split() == text.split()
    assert len(tokenizer.encode(FactsSource(1)[0].document)) == 25


@pytest.mark.parametrize(
    "name", ["facts:", "facts:0", "facts:x", "facts:3:1:1", "facts:-1", "facts:²", "facts:3:²"]
)
def test_mistakes(name):
    with pytest.raises(UserError, match="expected facts:<documents>"):
        open_source(name)


def test_more_documents_than_fit_are_refused():
    with pytest.raises(UserError, match="ask for 100000000 or fewer"):
        open_source("facts:100000000000000")
