"""Compiled guides are reused by their own tenant only, up to a size."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from inference_service import guides as module
from inference_service.engine.guide.compiler import GuideCompiler
from inference_service.guides import Guides, GuideStats
from shared.errors import InvalidInput
from shared.values.guide import Guide
from tests.inference_service.engine.builders import tiny_base

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def compiler() -> GuideCompiler:
    return GuideCompiler(tiny_base())


@pytest.fixture
def guides(compiler: GuideCompiler) -> Iterator[Guides]:
    made = Guides(compiler, max_bytes=10 * MEGABYTE)
    yield made
    made.close()


async def test_a_tenant_s_guide_is_compiled_once(guides: Guides) -> None:
    first = await guides.compiled(Guide(regex="a"), "", "one")
    assert await guides.compiled(Guide(regex="a"), "", "one") is first
    assert await guides.compiled(Guide(regex="a"), " ", "one") is not first
    assert await guides.compiled(Guide(regex="a"), "", "two") is not first
    stats = guides.stats()
    assert (stats.num_compiled, stats.num_reused, stats.num_refused) == (3, 1, 0)
    assert stats.kept_bytes == guides.num_bytes > 0


async def test_the_largest_tenant_gives_way(guides: Guides) -> None:
    own = await guides.compiled(Guide(regex="a"), "", "small")
    for number in range(20):
        await guides.compiled(Guide(regex=f"b{number}"), "", "large")
        assert guides.num_bytes <= 10 * MEGABYTE
    assert await guides.compiled(Guide(regex="a"), "", "small") is own


async def test_a_cache_of_no_bytes_keeps_nothing(compiler: GuideCompiler) -> None:
    guides = Guides(compiler, max_bytes=0)
    try:
        for _ in range(2):
            await guides.compiled(Guide(regex="a"), "", "one")
    finally:
        guides.close()
    assert guides.stats() == GuideStats(num_compiled=2, num_reused=0, num_refused=0, kept_bytes=0)


async def test_a_guide_is_compiled_again_after_a_failure_and_after_many_uses(
    guides: Guides, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await guides.compiled(Guide(regex="a"), "", "one")
    first.failed = True
    second = await guides.compiled(Guide(regex="a"), "", "one")
    assert second is not first
    monkeypatch.setattr(module, "MAX_USES", 2)
    assert await guides.compiled(Guide(regex="a"), "", "one") is second
    assert await guides.compiled(Guide(regex="a"), "", "one") is not second


async def test_a_refused_guide_is_not_kept(guides: Guides) -> None:
    results = await asyncio.gather(
        *(guides.compiled(Guide(regex="(a"), "", "one") for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, InvalidInput) for result in results)
    assert guides.num_bytes == 0
    assert guides.stats() == GuideStats(num_compiled=0, num_reused=0, num_refused=3, kept_bytes=0)
