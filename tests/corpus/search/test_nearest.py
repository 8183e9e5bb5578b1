"""Brute force on one device and on eight, exact and approximate, against numpy."""

import jax
import numpy as np
import pytest

from clara_jax.config import Mesh
from clara_jax.corpus.search import nearest as nearest_lib
from clara_jax.corpus.search.keys import Basis
from clara_jax.corpus.search.nearest import Nearest
from clara_jax.sharding import make_mesh

K = 12
RNG = np.random.default_rng(0)
BASIS = Basis("cosine", np.eye(K, dtype=np.float32), np.zeros(K, np.float32), 1.0)
QUERIES = RNG.standard_normal((3, 3, K // 3)).astype(np.float32)
KEYS = RNG.standard_normal((2500, K)).astype(np.float16)
ALIVE = RNG.random(2500) > 0.3


def expected(k, alive):
    products = QUERIES.reshape(3, K) @ KEYS.astype(np.float32).T
    products[:, ~alive] = -np.inf
    return np.argsort(-products, 1)[:, :k]


@pytest.mark.parametrize("mesh", [Mesh(data=1, fsdp=1), Mesh(data=2, fsdp=2, tensor=2)])
@pytest.mark.parametrize("approximate", [False, True])
def test_shards_find_what_one_device_finds(mesh, approximate, monkeypatch):
    nearest_lib.program.cache_clear()
    monkeypatch.setattr(nearest_lib, "_BLOCK", 96)
    if approximate:  # on CPUs it is exact
        monkeypatch.setattr(nearest_lib, "_blocked", nearest_lib._approximate)
    made = make_mesh(mesh, jax.devices()[: 8 if mesh.tensor == 2 else 1])
    nearest = Nearest(made, BASIS, KEYS, ALIVE)
    np.testing.assert_array_equal(nearest.search(QUERIES, 40), expected(40, ALIVE))
    other = nearest.masked(~ALIVE)
    np.testing.assert_array_equal(other.search(QUERIES, 40), expected(40, ~ALIVE))
    np.testing.assert_array_equal(nearest.search(QUERIES, 40), expected(40, ALIVE))
    if mesh.tensor == 2:
        assert len({str(shard.index) for shard in nearest._keys.addressable_shards}) == 8
    nearest_lib.program.cache_clear()


def test_more_than_a_shard_or_all_rows():
    made = make_mesh(Mesh(data=1, fsdp=8), jax.devices())
    alive = np.zeros(2500, bool)
    alive[:300] = True  # most of them on one device
    found = Nearest(made, BASIS, KEYS, alive).search(QUERIES, 400)
    np.testing.assert_array_equal(found[:, :300], expected(300, alive))
    assert (found[:, 300:] == -1).all()


def test_few_sizes_are_compiled():
    for rows in (1, 100, 2500, 200_000, 2_000_000):
        for devices in (1, 8):
            size = nearest_lib.capacity(rows, devices)
            assert size % devices == 0
            assert rows <= size <= 1.13 * rows + 128 * devices
    sizes = {nearest_lib.capacity(rows, 1) for rows in range(1000, 4000)}
    assert len(sizes) <= 18
