"""Hashes of beginnings find what a comparison of the tokens finds, and what they find is compared before it is used."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_service.engine.core import token_hashes
from inference_service.engine.core.request import FinishReason
from inference_service.engine.core.token_hashes import HASHED_TOKENS, TokenHashes
from inference_service.engine.kv.blocks import BlockPool
from inference_service.engine.kv.rows import RowPool
from inference_service.engine.scheduler import Scheduler
from tests.inference_service.engine.scheduling import sequence

TOKENS = st.lists(st.integers(0, 1), max_size=4 * HASHED_TOKENS)


@given(common=TOKENS, one=TOKENS, other=TOKENS, replaced=TOKENS, part=st.floats(0, 1))
def test_a_common_length_is_that_of_the_tokens(
    common: list[int], one: list[int], other: list[int], replaced: list[int], part: float
) -> None:
    tokens, others = [*common, *one], [*common, *other]
    hashes, of_others = TokenHashes(tokens), TokenHashes(others)
    for appended in ([], replaced):
        tokens += appended
        most = min(len(tokens), len(others))
        for limit in (most, int(part * most)):
            pairs = zip(tokens[:limit], others[:limit], strict=True)
            expected = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            assert hashes.common_length(of_others, limit) == of_others.common_length(hashes, limit) == expected
            assert hashes.begins_as(of_others, limit) == (tokens[:limit] == others[:limit])
        kept = int(part * len(tokens))
        hashes.forget(kept)
        tokens[kept:] = replaced


@pytest.mark.parametrize("short", [5, HASHED_TOKENS - 1, HASHED_TOKENS + 1])
def test_tokens_that_are_appended_to_a_partial_block_are_hashed(short: int) -> None:
    tokens, others = [1] * short, [1] * 100
    hashes, of_others = TokenHashes(tokens), TokenHashes(others)
    wanted = (short // HASHED_TOKENS + 1) * HASHED_TOKENS
    assert not hashes.begins_as(of_others, wanted)
    assert not of_others.begins_as(hashes, wanted)
    tokens += [1] * (100 - short)
    assert hashes.common_length(of_others, 100) == 100


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("collide", [False, True])
def test_tokens_with_the_same_hash_are_not_reused(paged: bool, collide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(BlockPool(4, 64, 512, 8) if paged else RowPool(4, 64, 512), 512)
    first, second = sequence(1, 100), sequence(2, 100)
    second.tokens[:] = [*first.tokens[:90], *range(10)]
    if collide:
        monkeypatch.setattr(token_hashes, "hash", lambda _: 7, raising=False)
        second.tokens[5] += 1
    for item in (first, second):
        scheduler.add(item)
        scheduler.complete(scheduler.schedule(0.0))
        scheduler.finish(item, FinishReason.LENGTH)
    assert second.cached_tokens == (0 if collide else 90)


class Counted(int):
    """A token that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return isinstance(other, int) and int(self) == int(other)

    __hash__ = int.__hash__


@pytest.mark.parametrize("paged", [False, True])
def test_a_start_beside_remembered_texts_compares_few_tokens(paged: bool) -> None:
    rows, length = 16, 640
    pool = BlockPool(rows, 20 * rows, length, HASHED_TOKENS) if paged else RowPool(rows, 20 * rows, length)
    scheduler = Scheduler(pool, rows * length)
    for number in range(rows + 1):
        item = sequence(number, length - 2)
        item.tokens[:-1] = range(1, length - 2)
        item.tokens[:] = [Counted(token) for token in item.tokens]
        scheduler.add(item)
        Counted.compared = 0
        scheduler.complete(scheduler.schedule(0.0))
        assert scheduler.running == [item]
        scheduler.finish(item, FinishReason.LENGTH)
    assert item.cached_tokens == length - 3
    assert 0 < Counted.compared <= length + rows * HASHED_TOKENS
