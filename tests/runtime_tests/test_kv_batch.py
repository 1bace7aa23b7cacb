"""Keys and values of rows that join, step and leave."""

import weakref

import pytest
import torch
from transformers import DynamicCache

from kserve_runtime.kv_batch import KVBatch, _Layer

LAYERS = 3


def read(value: float, length: int) -> DynamicCache:
    """A row as it is read: all its keys and values are `value`."""
    cache = DynamicCache()
    for layer in range(LAYERS):
        states = torch.full((1, 2, length, 4), value)
        cache.update(states, -states, layer)
    return cache


def begin(value: float, length: int, *, most: int = 1000, limit: int = 100_000) -> KVBatch:
    return KVBatch(read(value, length), length, most=most, limit=limit)


def step(kv: KVBatch) -> list[torch.Tensor]:
    """What each layer's attention sees when every row gets a token of its own length."""
    kv.make_room()
    states = torch.tensor(kv.lengths).float()[:, None, None, None].expand(-1, 2, 1, 4)
    seen = [kv.cache.update(states, -states, layer)[0] for layer in range(LAYERS)]
    mask = kv.attention_mask(torch.device("cpu"))
    kv.grew()
    assert all(keys.isfinite().all() for keys in seen)  # the hidden ones too: 0 · NaN is NaN
    return [keys[:, 0, :, 0] * mask for keys in seen]


def sums(kv: KVBatch) -> list[list[float]]:
    return [keys.sum(-1).tolist() for keys in step(kv)]


def test_what_a_row_leaves_behind_is_not_seen_by_who_takes_its_place() -> None:
    kv = begin(1, 10)
    for value, length in ((float("nan"), 30), (float("inf"), 30), (2.0, 12)):
        kv.join(read(value, length), length, most=1000)

    # The last row moves into the place of the first that goes; the new one takes the other's.
    kv.drop([1, 2])
    kv.join(read(3, 5), 5, most=1000)
    # A longer one shows columns that were hidden.
    kv.join(read(4, 25), 25, most=1000)

    expected = [10 + 10, 24 + 12, 15 + 5, 100 + 25]
    assert sums(kv) == [expected] * LAYERS


def fail_to_join(kv: KVBatch, monkeypatch: pytest.MonkeyPatch, *, failing: int) -> None:
    """Out of memory at the layer `failing`, counted from 1."""
    left = failing
    move = _Layer.move

    def run_out(layer: _Layer, *sizes: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise torch.OutOfMemoryError("no memory")
        move(layer, *sizes)

    with monkeypatch.context() as patch:
        patch.setattr(_Layer, "move", run_out)
        with pytest.raises(torch.OutOfMemoryError):
            kv.join(read(2, 300), 300, most=1000)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_out_of_memory_while_a_row_joins_leaves_the_others_as_they_were(
    monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    kv, control = begin(1, 10), begin(1, 10)

    fail_to_join(kv, monkeypatch, failing=failing)

    assert [sums(kv) for _ in range(200)] == [sums(control) for _ in range(200)]
    for each in (kv, control):
        each.join(read(2, 300), 300, most=1000)
    assert sums(kv) == sums(control)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_steps_over_all_places_find_layers_alike_after_a_move_that_failed(
    monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    kv = KVBatch(read(1, 10), 10, most=1000, fixed=True)
    fail_to_join(kv, monkeypatch, failing=failing)
    kv.make_room()
    assert len({(layer.keys.shape, layer.end) for layer in kv.cache.layers}) == 1


def test_buffers_go_with_their_batch() -> None:
    kv = begin(1, 10)
    keys = weakref.ref(kv.cache.layers[0].keys)
    del kv
    assert keys() is None


def test_buffers_have_no_more_places_than_they_may() -> None:
    kv = begin(1, 10, most=200, limit=800)
    for _ in range(3):
        kv.join(read(1, 10), 10, most=200)
    most = 0
    while kv.width < 199:
        step(kv)
        most = max(most, kv.places)

    assert most == 4 * 200


def test_buffers_give_places_back_for_a_prompt_that_is_read() -> None:
    kv = begin(1, 10, most=100, limit=600)
    for _ in range(4):
        kv.join(read(1, 10), 10, most=100)
    before = kv.places

    kv.spare(200)

    assert before > 400 >= kv.places
    assert sums(kv) == [[20.0] * 5] * LAYERS


def test_the_size_of_a_copy_is_known_before() -> None:
    kv = begin(1, 10)
    kv.join(read(2, 30), 30, most=1000)

    copied = kv.copy(1)

    assert kv.copy_bytes(1) == sum(keys.nbytes + values.nbytes for keys, values in copied)
