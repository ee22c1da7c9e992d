"""Fair turns between tenants; a cancelled waiter returns its place."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from shared.fair_turns import SERVICE, FairSlots, FairTurns, places_of_one


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_every_item_is_started_once_and_no_holder_waits_for_two_of_another(holders: list[str]) -> None:
    turns = FairTurns[int]()
    for item, holder in enumerate(holders):
        turns.add(holder, item)
    order = list[str]()
    while (found := turns.start_next(lambda holder: 1)) is not None:
        order.append(found[0])
        assert holders[found[1]] == found[0]
        turns.finish(found[0])
    assert sorted(order) == sorted(holders)
    for index, holder in enumerate(order):
        last = max((at for at in range(index) if order[at] == holder), default=-1)
        between = order[last + 1 : index]
        assert len(set(between)) == len(between), "one turn of each other tenant at most"
    assert len(turns) == 0


def test_one_place_in_four_is_for_others() -> None:
    assert [places_of_one(count) for count in (1, 2, 4, 8, 16)] == [1, 1, 3, 6, 12]


async def test_cancelled_waiters_give_their_places_back() -> None:
    slots, released = FairSlots(4), asyncio.Event()

    async def hold(holder: str) -> None:
        async with slots.taken(holder):
            await released.wait()

    greedy = [asyncio.create_task(hold("greedy")) for _ in range(10)]
    await asyncio.sleep(0)
    assert slots._num_taken == 3
    modest = asyncio.create_task(hold("modest"))
    await asyncio.sleep(0)
    assert slots._num_taken == 4
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)
    assert slots._num_taken == 1
    service = [asyncio.create_task(hold(SERVICE)) for _ in range(3)]
    await asyncio.sleep(0)
    assert slots._num_taken == 4
    released.set()
    await asyncio.gather(modest, *service)
    assert (slots._num_taken, len(slots._turns)) == (0, 0)
