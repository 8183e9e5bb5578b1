import json

import pytest

from clara_jax.endpoint.client import Reply
from clara_jax.endpoint.replies import Replies
from clara_jax.errors import UserError

A, B = "aa" * 16, "bb" * 16
GOOD, BAD = Reply({"answer": "é" * 20_000}, "", 3, 2), Reply(None, "no JSON", 1, 1)


def test_everything_is_found_again(tmp_path):
    with Replies(str(tmp_path / "o"), {"seed": 0}) as replies:
        replies.add(A, "0.simple.0", BAD)
        replies.add(B, "0.simple.0", GOOD)
        replies.add(A, "0.simple.1", GOOD)
        replies.finish(B, {"records": ["x" * 40_000]})
        assert replies.result(B)["records"] == ["x" * 40_000]
    with Replies(str(tmp_path / "o"), {"seed": 0}) as replies:
        assert replies.of(A) == {"0.simple.0": BAD, "0.simple.1": GOOD}
        assert replies.of(B) == {} and replies.result(A) is None
        assert replies.result(B)["records"] == ["x" * 40_000]
        assert B in replies and A not in replies
        assert replies.tokens == [7, 5]


def test_a_job_whose_line_a_kill_cut_is_not_finished(tmp_path):
    with Replies(str(tmp_path), {}) as replies:
        replies.add(A, "s", GOOD)
        replies.finish(A, {"records": []})
    path = tmp_path / "state.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    with Replies(str(tmp_path), {}) as replies:
        assert A not in replies and replies.of(A) == {"s": GOOD}
        replies.finish(A, {"records": [1]})
    with Replies(str(tmp_path), {}) as replies:
        assert replies.result(A) == {"records": [1]}


def test_one_run_at_a_time(tmp_path):
    with Replies(str(tmp_path / "o"), {}):
        with pytest.raises(UserError, match="another run"):
            Replies(str(tmp_path / "o"), {})
    Replies(str(tmp_path / "o"), {}).close()


def test_other_options_and_foreign_folders_are_refused(tmp_path):
    Replies(str(tmp_path / "o"), {"seed": 0, "model": "m"}).close()
    with pytest.raises(UserError, match=r"begun with seed=0 \(now 1\)"):
        Replies(str(tmp_path / "o"), {"seed": 1, "model": "m"})
    with pytest.raises(UserError, match="holds something else"):
        Replies(str(tmp_path), {})


def test_damage_in_the_middle_is_told(tmp_path):
    with Replies(str(tmp_path), {}) as replies:
        replies.add(A, "s", GOOD)
    path = tmp_path / "state.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n{]\n" + json.dumps({"job": A}) + "\n")
    with pytest.raises(UserError, match=r"state\.jsonl:2: damaged"):
        Replies(str(tmp_path), {})
