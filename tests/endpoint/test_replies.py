import json

import pytest

from clara_jax import files
from clara_jax.endpoint.client import Reply
from clara_jax.endpoint.replies import Store
from clara_jax.errors import UserError

A, B = "aa" * 16, "bb" * 16
GOOD, BAD = Reply({"answer": "é" * 20_000}, "", 3, 2), Reply(None, "no JSON", 1, 1)


def test_everything_is_found_again(tmp_path):
    with Store(str(tmp_path / "o"), {"seed": 0}) as store:
        store.add(A, "0.simple.0", BAD)
        store.add(B, "0.simple.0", GOOD)
        store.add(A, "0.simple.1", GOOD)
        store.finish(B, {"records": ["x" * 40_000]})
        assert store.result(B)["records"] == ["x" * 40_000]
    with Store(str(tmp_path / "o"), {"seed": 0}) as store:
        assert store.replies(A) == {"0.simple.0": BAD, "0.simple.1": GOOD}
        assert store.replies(B) == {} and store.result(A) is None
        assert store.result(B)["records"] == ["x" * 40_000]
        assert B in store and A not in store
        assert store.tokens == [7, 5]


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_is_dropped(tmp_path, keep):
    with Store(str(tmp_path), {}) as store:
        store.add(A, "s", GOOD)
    path = tmp_path / "state.jsonl"
    whole = path.read_bytes()
    with Store(str(tmp_path), {}) as store:
        store.finish(A, {"records": []})
    torn = path.read_bytes()[len(whole) :][:keep]
    path.write_bytes(whole + torn)
    with Store(str(tmp_path), {}) as store:
        assert A not in store and store.replies(A) == {"s": GOOD}
        store.finish(A, {"records": [1]})
    with Store(str(tmp_path), {}) as store:
        assert store.result(A) == {"records": [1]}


def test_one_run_at_a_time(tmp_path):
    with Store(str(tmp_path / "o"), {}):
        with pytest.raises(UserError, match="another run"):
            Store(str(tmp_path / "o"), {})
    Store(str(tmp_path / "o"), {}).__exit__()


def test_other_options_and_foreign_folders_are_refused(tmp_path):
    Store(str(tmp_path / "o"), {"seed": 0, "model": "m"}).__exit__()
    with pytest.raises(UserError, match=r"begun with seed=0 \(now 1\)"):
        Store(str(tmp_path / "o"), {"seed": 1, "model": "m"})
    with pytest.raises(UserError, match="holds something else"):
        Store(str(tmp_path), {})


def test_damage_in_the_middle_is_told(tmp_path):
    with Store(str(tmp_path), {}) as store:
        store.add(A, "s", GOOD)
    path = tmp_path / "state.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n{]\n" + json.dumps({"job": A}) + "\n")
    with pytest.raises(UserError, match=r"state\.jsonl:2: damaged"):
        Store(str(tmp_path), {})


def test_half_a_file_never_shows(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(RuntimeError), files.whole_file(str(path)) as f:
        f.write("half")
        raise RuntimeError
    assert not path.exists()
    with files.whole_file(str(path)) as f:
        f.write("whole")
    assert path.read_text() == "whole"


def test_a_full_disk_leaves_no_half_line_before_the_next(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self._file, self.left = file, 20

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            if not self.left:
                raise OSError(28, "No space left on device")
            size, self.left = self._file.write(data[: self.left]), 0
            return size

    with Store(str(tmp_path), {}) as store:
        store._file = Full(store._file)
        with pytest.raises(OSError, match="No space left") as error:
            store.add(A, "s", GOOD)
        assert error.value.filename == str(tmp_path / "state.jsonl")
        store._file.left = 10**6
        store.add(A, "s", GOOD)
    with Store(str(tmp_path), {}) as store:
        assert store.replies(A) == {"s": GOOD}
