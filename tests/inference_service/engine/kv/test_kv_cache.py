"""Rows of the cache: copies, prefixes, and memory that really goes back."""

from __future__ import annotations

import torch

from inference_service.engine.build import plan_memory
from inference_service.engine.core.config import EngineConfig
from inference_service.engine.kv.kv_cache import LayerShape, RowKVCache

SHAPES = [LayerShape(2, 16, 16), LayerShape(1, 8, 24), LayerShape(2, 16, 16)]


def cache(max_length: int = 64) -> RowKVCache:
    return RowKVCache(SHAPES, 3, max_length, torch.float32, torch.device("cpu"))


def fill(subject: RowKVCache, row: int, value: float) -> None:
    for index in range(len(SHAPES)):
        for tensor in subject.layer(index):
            tensor[row] = value + index


def test_layers_keep_their_own_shape() -> None:
    subject = cache()
    assert [subject.layer(i)[0].shape for i in range(3)] == [(3, 2, 64, 16), (3, 1, 64, 8), (3, 2, 64, 16)]
    assert subject.layer(1)[1].shape == (3, 1, 64, 24)
    assert subject.bytes_per_token == 4 * (64 + 32 + 64)


def test_a_snapshot_is_restored_elsewhere_and_nothing_else_changes() -> None:
    subject = cache()
    fill(subject, 0, 5.0)
    prefix = subject.snapshot(0, 10)
    assert prefix.num_bytes == 10 * subject.bytes_per_token
    fill(subject, 0, 9.0)
    subject.restore(prefix, 2)
    for index in range(3):
        for tensor in subject.layer(index):
            assert (tensor[2, :, :10] == 5.0 + index).all()
            assert (tensor[2, :, 10:] == 0).all()
            assert (tensor[1] == 0).all()


def test_rows_are_copied_up_to_a_length() -> None:
    subject = cache()
    fill(subject, 1, 3.0)
    subject.copy_row(1, 0, 7)
    keys, _ = subject.layer(2)
    assert (keys[0, :, :7] == 5.0).all()
    assert (keys[0, :, 7:] == 0).all()


def test_trimming_zeroes_the_row_alone_whatever_its_size() -> None:
    """Rows smaller than a page, and rows of many pages that begin in the middle of one."""
    for max_length in (3, 64, 1000):
        subject = cache(max_length)
        for row in range(3):
            fill(subject, row, 1.0 + row)
        subject.layer(0)[0][1, 0, 0, 0] = torch.nan
        subject.trim(1)
        for index in range(3):
            for tensor in subject.layer(index):
                assert (tensor[1] == 0).all()
                assert (tensor[0] == 1.0 + index).all()
                assert (tensor[2] == 3.0 + index).all()


def test_memory_is_planned_within_what_is_free() -> None:
    plan = plan_memory(
        EngineConfig(max_running=4, max_length=1000), bytes_per_token=1000, max_positions=512, free_bytes=10**9
    )
    assert plan.max_length == 512
    assert plan.max_blocks == 4 * 16, "never more than all rows filled"
    tight = plan_memory(EngineConfig(kv_cache_bytes=96_000), bytes_per_token=1000, max_positions=4096, free_bytes=10**9)
    assert tight.max_length == 96
    assert tight.max_blocks == 3
