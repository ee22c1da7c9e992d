"""Which replica is chosen: the same for the same version, within the bound, and with few moves when replicas change."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from grpc_status import rpc_status

from shared.errors import InvalidInput, Overloaded
from shared.rpc.errors import status_of
from softprompt.routing.ask import Ask, Call, with_fields
from softprompt.routing.choice import LOAD_FACTOR, choose
from softprompt.routing.directory import Replica
from softprompt.routing.routing import Routing
from tests.inference_service.replica import generate_request


def chosen(key: str, loads: dict[str, int]) -> str:
    return choose(key, list(loads), str, lambda replica: loads[replica])


def test_a_version_stays_on_one_replica_and_versions_spread() -> None:
    idle = dict.fromkeys("abcd", 0)
    keys = [f"prompts/p{number}/versions/1" for number in range(400)]
    homes = {key: chosen(key, idle) for key in keys}
    assert homes == {key: chosen(key, dict(reversed(idle.items()))) for key in keys}
    assert min(Counter(homes.values()).values()) > 60
    without = dict.fromkeys("abc", 0)
    moved = [key for key in keys if chosen(key, without) != homes[key]]
    assert moved == [key for key in keys if homes[key] == "d"]


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 7])
def test_no_replica_gets_more_than_its_bounded_share(num_replicas: int) -> None:
    loads = {str(number): 0 for number in range(num_replicas)}
    numbers = random.Random(7)
    running: list[str] = []
    for _ in range(2000):
        if running and numbers.random() < 0.45:
            loads[running.pop(numbers.randrange(len(running)))] -= 1
        else:
            key = "hot" if numbers.random() < 0.8 else f"cold-{numbers.randrange(50)}"
            replica = chosen(key, loads)
            loads[replica] += 1
            running.append(replica)
            assert loads[replica] <= -(-LOAD_FACTOR * len(running) // num_replicas)


def test_fields_are_added_to_a_request_without_changing_the_rest() -> None:
    request = generate_request("hi", "tone@canary", temperature=0.5, seed=7)
    request.priority = 3
    added = with_fields(request.SerializeToString(), routing_key="k")
    request.input.routing_key = "k"
    assert type(request).FromString(added) == request
    assert Ask.of(added) == Ask("tone@canary", "k", "")
    assert Ask.of(b"\xff\xff") == Ask()


@pytest.mark.parametrize(("about", "goes_on"), [({"budget": "monthly"}, False), ({"caller": "app"}, True)])
def test_no_other_replica_is_asked_when_a_budget_is_used_up(about: dict[str, str], goes_on: bool) -> None:
    status: Any = rpc_status.to_status(status_of(Overloaded("used up", 5.0, **about)))
    trailers = grpc.aio.Metadata(*status.trailing_metadata)
    error = grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, details=status.details)
    assert Routing(Mock(), Mock())._may_go_on(error, Ask.of(b""), Mock()) is goes_on


async def test_the_first_call_of_a_router_goes_to_no_base_model_by_chance() -> None:
    """No replica was known when it came, and two base models have one when the records are read for it."""
    directory = Mock(replicas=())

    async def find_replicas() -> None:
        directory.replicas = tuple(Replica(name, f"{name}:1", name, name) for name in ("amber", "birch"))

    directory.find_replicas = find_replicas
    with pytest.raises(InvalidInput, match="several base models are served"):
        await Routing(directory, Mock()).unary(Call("Generate", generate_request("hi").SerializeToString()))
