import dataclasses
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

import clara_jax
from clara_jax import config
from clara_jax.config import Data
from clara_jax.corpus import format, write
from clara_jax.corpus.store import Store, open_store
from clara_jax.data.facts import FactsSource
from clara_jax.errors import UserError
from clara_jax.inference import encode
from clara_jax.runs import fingerprint
from clara_jax.runs.weights import put
from clara_jax.sharding import make_mesh
from tests.fixtures.models import altered

SHORT = [FactsSource(9, seed=3)[i].document for i in range(9)]
LONG = " . ".join(SHORT[:4])  # several pieces
OPTIONS = config.Store(part=4, batch=4)


@pytest.fixture(scope="module")
def setup(random_setup):
    return random_setup(Data(document_length=40, rate=10), 5)


def made(path, setup, dtype):
    """Documents d0 to d8, and a long one between them."""
    documents = [{"id": f"d{i}", "text": text} for i, text in enumerate(SHORT)]
    documents.insert(5, {"id": "long", "title": "The title", "text": LONG})
    return write.add(path, *setup, documents, dataclasses.replace(OPTIONS, dtype=dtype))


@pytest.fixture(scope="module")
def plain(setup, tmp_path_factory):
    return made(tmp_path_factory.mktemp("stores") / "plain", setup, "bfloat16")


@pytest.fixture(scope="module", params=["bfloat16", "int8"])
def store(setup, plain, request, tmp_path_factory):
    if request.param == "bfloat16":
        return plain
    return made(tmp_path_factory.mktemp("stores") / "small", setup, request.param)


def tolerance(store) -> float:
    return 2**-8 if store.dtype == "bfloat16" else 0.51 / 127


def test_memories_are_those_of_the_texts(store, setup):
    assert (store.memory_tokens, store.width) == (4, setup.model.architecture.d_model)
    texts = list(store.texts())
    expected = encode.compress(*setup, texts).memories
    read = store.memories(range(store.rows))
    assert read.dtype == np.float32 and read.shape == (
        store.rows,
        4,
        setup.model.architecture.d_model,
    )
    largest = np.abs(expected).max(-1, keepdims=True)
    assert (np.abs(read - expected) <= tolerance(store) * largest + 1e-5).all()
    order = np.random.default_rng(0).permutation(store.rows)
    order = [*order, order[0]]
    np.testing.assert_array_equal(store.memories(order), read[order])
    assert store.memories([]).shape == (0, 4, setup.model.architecture.d_model)


def test_blocks_are_all_memories_in_order(store):
    blocks = list(store.blocks(5))
    assert [first for first, _ in blocks] == list(range(0, store.rows, 5))
    kind = ml_dtypes.bfloat16 if store.dtype == "bfloat16" else np.float32
    assert {block.dtype for _, block in blocks} == {np.dtype(kind)}
    whole = np.concatenate([block for _, block in blocks]).astype(np.float32)
    np.testing.assert_array_equal(whole, store.memories(range(store.rows)))


def test_documents_and_their_pieces(store, setup):
    rows = store.find(["long", "d7"])
    *pieces, d7 = store.documents(rows)
    assert len(pieces) >= 3 and [piece.chunk for piece in pieces] == list(range(len(pieces)))
    assert {(p.parent, p.title) for p in pieces} == {("long", "The title")}
    assert " ".join(piece.text for piece in pieces) == LONG
    assert [p.id for p in pieces] == [f"long#{i}" for i in range(len(pieces))]
    assert store.find(["long#1"]) == [rows[1]]
    assert (d7.id, d7.parent, d7.chunk, d7.title, d7.text) == ("d7", "d7", 0, "", SHORT[7])
    assert d7.tokens == len(setup.model.tokenizer.encode(SHORT[7]))
    texts = list(store.texts())
    assert [texts[row] for row in rows] == [*(f"The title\n{p.text}" for p in pieces), SHORT[7]]
    assert d7.whole == SHORT[7] and store.documents([]) == []


def test_manifest_says_what_there_is(store, setup):
    manifest = json.loads((pathlib.Path(store.path) / "manifest.json").read_text())
    documents = store.documents(range(store.rows))
    fed, summary = sum(d.tokens for d in documents), manifest["summary"]
    size = sum(len((d.title + d.text).encode()) for d in documents)
    width = setup.model.architecture.d_model
    row = 8 * width if store.dtype == "bfloat16" else 4 * (width + 4)
    assert summary == {
        "rows": store.rows, "documents": 10, "fed_tokens": fed, "cut_tokens": 0,
        "realised_compression": pytest.approx(fed / (4 * store.rows)),
        "memory_bytes": store.rows * row, "text_bytes": size,
        "memory_bytes_over_text_bytes": pytest.approx(store.rows * row / size),
    }  # fmt: skip
    assert (manifest["rate"], manifest["document_length"], manifest["dtype"]) == (
        10, 40, store.dtype,
    )  # fmt: skip
    assert store.manifest == format.read_manifest(store.path)
    # Documents are whole in a part, of four rows unless one alone has more.
    assert all(part.rows <= 4 or part.documents == 1 for part in store.manifest.parts)
    data = sorted(pathlib.Path(store.path).rglob("memories/c/*/0/0"))
    assert len(data) == len(store.manifest.parts)
    for file, part in zip(data, store.manifest.parts, strict=True):
        numbers = row - 4 * 4 * (store.dtype == "int8")  # the scales have a file of their own
        assert file.stat().st_size == part.rows * (numbers + 4) + 16 * part.rows + 4


def test_the_interface_reads_and_makes_stores(plain, setup, tmp_path):
    clara = clara_jax.Clara(*setup)
    made = clara.compress_to(tmp_path / "s", SHORT[:2])
    again = clara_jax.open_store(tmp_path / "s")
    assert [d.whole for d in again.documents([1, 0])] == [SHORT[1], SHORT[0]] and made.rows == 2
    np.testing.assert_allclose(again.memories([0, 1]), clara.compress(SHORT[:2]), rtol=0.01)
    np.testing.assert_array_equal(again.memories([1]), plain.memories([1]))
    assert len(clara.answer(["who ?"], [again.memories([0, 1])], 4)) == 1


def test_mistakes(plain, tmp_path):
    with pytest.raises(UserError, match="holds no document of the id 'd99'"):
        plain.find(["d1", "d99"])
    for rows in ([-1], [plain.rows]):
        with pytest.raises(UserError, match=f"has rows 0 to {plain.rows - 1}"):
            plain.memories(rows)
    with pytest.raises(UserError, match="no store there"):
        open_store(tmp_path / "none")
    version = "a store of version 2, this program knows 1"
    for text, message in {
        "{": "damaged", "[]": "damaged", '{"version": 1}': "damaged", '{"version": 2}': version,
    }.items():  # fmt: skip
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=message):
            open_store(tmp_path)


def test_files_that_are_lost_or_damaged_are_named(setup, tmp_path):
    store = write.add(tmp_path / "s", *setup, SHORT, OPTIONS)
    (data,) = (tmp_path / "s/parts/00000/memories/c").rglob("0/0/0")
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match=r"parts/00000: this part of the store cannot be read"):
        open_store(store.path).memories([0, 1, 2, 3])
    data.unlink()
    with pytest.raises(UserError, match=r"parts/00000: this part of the store cannot be read"):
        open_store(store.path).memories([0])
    (tmp_path / "s/parts/00001/documents.arrow").write_bytes(b"no")
    with pytest.raises(UserError, match=r"parts/00001/documents.arrow: this part"):
        open_store(store.path).documents([5])


@pytest.mark.parametrize("change", [
    {"dtype": "float16"}, {"dtype": []}, {"width": "32"}, {"part": 0}, {"deleted": []},
    {"deleted": {"d0": 99}}, {"parts": [{"name": "../x"}]}, {"parts": [{"rows": -1}]},
    {"parts": [{"name": "00001"}]}, {"more": 1}, {"fingerprint": None},
])  # fmt: skip
def test_a_manifest_with_strange_values_is_refused_and_nothing_is_removed(plain, tmp_path, change):
    path = tmp_path / "s"
    shutil.copytree(plain.path, path)
    manifest = path / format.MANIFEST
    found = json.loads(manifest.read_text())
    if isinstance(change.get("parts"), list):
        found["parts"][0] |= change["parts"][0]
    else:
        found |= change
    manifest.write_text(json.dumps(found))
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match=r"manifest.json: damaged"):
        write.delete(path, ["d0"])
    assert sorted(path.rglob("*")) == before


def test_parts_that_are_not_as_the_manifest_says_are_named(plain, tmp_path):
    path = tmp_path / "s"
    shutil.copytree(plain.path, path)
    manifest = path / format.MANIFEST
    found = json.loads(manifest.read_text())
    found["parts"][0]["rows"] -= 1
    del found["crc32"]
    manifest.write_text(json.dumps(found))
    for read in (Store.memories, Store.documents):
        with pytest.raises(UserError, match="this part of the store cannot be read"):
            read(open_store(path), [0])


# --- The model that made it ----------------------------------------------------------------------


def changed(setup, path, change):
    """The model with one tree's leaf changed."""
    name, *keys = path.split("/")
    trees = dict(setup.trees)
    tree = trees[name] = jax.tree.map(lambda x: x, trees[name])
    for key in keys[:-1]:
        tree = tree[key]
    if keys:
        tree[keys[-1]] = change(tree[keys[-1]])
    else:
        trees[name] = change(tree)
    return altered(setup, trees=trees)


def nudged(x):
    return x.at[(-1,) * x.ndim].add(0.5)


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        ("base/layers/mlp/up/kernel", nudged, "base weights"),  # of the last layer
        ("base/layers/mlp/up/kernel", lambda x: x[::-1], "base weights"),
        ("base/embed/embedding", nudged, "base weights"),
        ("compressor/layers/mlp/up/b", nudged, "compressor"),
        ("memory", nudged, "compressor"),
        ("generator/layers/mlp/up/b", nudged, None),  # memories do not depend on it
    ],
)
def test_another_model_is_refused(plain, setup, path, change, what):
    plain.check(*setup)
    other = changed(setup, path, change)
    if what is None:
        plain.check(*other)
        return
    with pytest.raises(UserError, match=f"made by another model: other {what}"):
        plain.check(*other)
    with pytest.raises(UserError, match=f"made by another model: other {what}"):
        write.add(plain.path, *other, ["more"])


def test_another_layout_or_tokenizer_is_refused(plain, setup):
    data = dataclasses.replace(setup.model.config.data, document_length=41)
    other = altered(setup, config=dataclasses.replace(setup.model.config, data=data))
    with pytest.raises(UserError, match="other document length, rate"):
        plain.check(*other)

    class Other(type(setup.model.tokenizer)):
        def encode(self, parts):
            return super().encode(parts)[::-1]

    other = altered(setup, tokenizer=Other(setup.model.tokenizer._hf))
    with pytest.raises(UserError, match="other tokenizer"):
        plain.check(*other)


def test_the_fingerprint_holds_for_any_mesh_and_for_bfloat16(setup):
    found = fingerprint.fingerprint(*setup)
    base = jax.tree.map(lambda x: x.astype("bfloat16"), setup.trees["base"])
    assert fingerprint.fingerprint(*altered(setup, trees=setup.trees | {"base": base})) == found
    mesh = make_mesh(config.Mesh(fsdp=4, tensor=2))
    spread = altered(setup, mesh=mesh, trees=put(mesh, jax.device_get(setup.trees)))
    assert fingerprint.fingerprint(*spread) == found
