"""Requests made up from the OpenAPI schema, right and wrong ones: never an error of ours, or none.

More of them: FUZZ=200 pytest tests/serving/test_fuzz.py
"""

import collections
import os

import pytest

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402

EXAMPLES = int(os.environ.get("FUZZ", "20"))  # in all


def test_no_request_gives_an_error_of_ours(http):
    schema = schemathesis.openapi.from_url(http.url + "/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 8
    found = collections.Counter()
    for operation in operations:
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            if mode == GenerationMode.NEGATIVE and not operation.body:
                continue  # nothing to be wrong

            @seed(1)
            @settings(
                max_examples=-(-EXAMPLES // (2 * len(operations))),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def ask(case):
                response = case.call(timeout=20)  # else it hangs
                assert response.status_code < 500, response.text
                found[response.status_code] += 1

            ask()
    print(dict(found))
    assert found[200] and found[422]
