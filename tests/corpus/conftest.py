"""What tests of a store share."""

import pytest

from clara_jax.config import Data


@pytest.fixture(scope="module")
def setup(random_setup):
    """A random model of documents of 40 tokens in 4 vectors."""
    return random_setup(Data(document_length=40, rate=10), 5)
