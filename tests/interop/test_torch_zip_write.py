import hashlib
import mmap
import weakref

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from clara_jax.errors import UserError
from clara_jax.interop.torch_zip import TorchFile
from clara_jax.interop.torch_zip_write import Blocks, write

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def some(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def content():
    """Every dtype and kind of shape, at two depths, names with other letters among them."""
    arrays = {np.dtype(dtype).name: some((3, 5), dtype) for dtype in DTYPES}
    shapes = {"scalar": some(()), "one": some((1,)), "empty": some((0, 4)), "deep": some((2, 3, 4))}
    odd = {
        "not contiguous": some((6, 4))[::2].T,
        "größer": some((7,)),
        "big-endian": some(4, ">f4"),
    }
    return {"arrays": arrays, "more": {"shapes": shapes, "odd": odd}, "nothing": {}}


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.dtype.newbyteorder("=") == theirs.dtype
    assert ours.astype(theirs.dtype).tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_was_written_bit_for_bit(tmp_path, mapped):
    torch = pytest.importorskip("torch")
    write(tmp_path / "x.pth", content())
    read = torch.load(tmp_path / "x.pth", weights_only=True, mmap=mapped)
    assert list(read) == ["arrays", "more", "nothing"]
    assert read["nothing"] == {}
    theirs = dict(flat(read))
    for name, array in flat(content()):
        tensor = theirs.pop(name)
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        assert_same(array, np.asarray(tensor))
    assert not theirs


def test_torch_without_the_safe_unpickler_reads_it_too(tmp_path):
    torch = pytest.importorskip("torch")
    write(tmp_path / "x.pth", content())
    read = torch.load(tmp_path / "x.pth", weights_only=False)
    torch.save(read, tmp_path / "y.pth")
    assert_same(content()["arrays"]["float32"], np.asarray(read["arrays"]["float32"]))


def test_own_reader_reads_what_was_written_bit_for_bit(tmp_path):
    write(tmp_path / "x.pth", content())
    file = TorchFile(tmp_path / "x.pth")
    theirs = dict(flat(file.content))
    assert list(theirs) == [name for name, _ in flat(content())]
    for name, array in flat(content()):
        assert_same(array, file.array(name, theirs[name]))


def test_storages_are_aligned(tmp_path):
    write(tmp_path / "x.pth", {"a": some(1), "b": some(3), "c": some((5, 7)), "d" * 99: some(2)})
    file = TorchFile(tmp_path / "x.pth")
    with open(tmp_path / "x.pth", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        for name, tensor in file.content.items():
            found = m.find(file.array(name, tensor).tobytes())
            assert found > 0
            assert found % 64 == 0


def test_same_content_gives_the_same_bytes(tmp_path):
    digests = set()
    for name in ("x.pth", "other.pth"):
        write(tmp_path / name, content())
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_one_array_in_two_places_is_stored_once(tmp_path):
    table = some((100, 50))
    write(tmp_path / "x.pth", {"embed": table, "more": {"head": table}})
    assert (tmp_path / "x.pth").stat().st_size < 1.5 * table.nbytes
    file = TorchFile(tmp_path / "x.pth")
    for tensor in (file.content["embed"], file.content["more"]["head"]):
        assert_same(table, file.array("t", tensor))
    torch = pytest.importorskip("torch")
    read = torch.load(tmp_path / "x.pth", weights_only=True)
    assert read["embed"].data_ptr() == read["more"]["head"].data_ptr()


def test_arrays_of_jax_are_written(tmp_path):
    array = jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
    write(tmp_path / "x.pth", {"a": array})
    file = TorchFile(tmp_path / "x.pth")
    assert_same(np.asarray(array), file.array("a", file.content["a"]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_never_held_together(tmp_path, dtype):
    whole = some((10, 3))
    held = []

    def blocks():
        for start in range(0, 10, 4):
            block = whole[start : start + 4].copy()
            held.append(weakref.ref(block))
            yield block
            del block
            assert sum(ref() is not None for ref in held) <= 2  # the last, and what it became

    write(tmp_path / "x.pth", {"a": Blocks((10, 3), dtype, blocks()), "b": whole})
    assert len(held) == 3
    file = TorchFile(tmp_path / "x.pth")
    assert_same(whole.astype(dtype), file.array("a", file.content["a"]))
    assert_same(whole, file.array("b", file.content["b"]))


@pytest.mark.parametrize("n", [1, 3])
def test_blocks_of_another_size_are_refused_and_leave_no_file(tmp_path, n):
    (tmp_path / "x.pth").write_text("earlier")
    with pytest.raises(ValueError, match=r"blocks of an array of shape \(10, 3\) differ by"):
        write(tmp_path / "x.pth", {"a": Blocks((10, 3), np.float32, [some((5, 3))] * n)})
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
    assert (tmp_path / "x.pth").read_text() == "earlier"


def test_other_dtypes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="arrays of int32 cannot be written"):
        write(tmp_path / "x.pth", {"a": np.arange(3, dtype=np.int32)})


def test_a_flipped_byte_of_a_storage_is_told(tmp_path):
    path = tmp_path / "x.pth"
    write(path, {"a": np.arange(100, dtype=np.float32), "b": np.ones(3, np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(50).tobytes())] ^= 1
    path.write_bytes(data)
    file = TorchFile(path)
    file.array("b", file.content["b"])
    with pytest.raises(UserError, match=r"x\.pth: tensor a: damaged, its storage differs"):
        file.array("a", file.content["a"])
