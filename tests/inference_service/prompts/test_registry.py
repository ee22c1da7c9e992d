"""What a reference means on a replica while versions come, fail, move and go."""

from __future__ import annotations

from datetime import timedelta

import pytest

from inference_service.prompts.registry import PromptRegistry
from inference_service.prompts.version import RefusalReason, prefix_id_of, publish_to_served_seconds
from shared.errors import NotFound, PreconditionFailed
from shared.names import PromptReference
from shared.prompt.manifest import parse_timestamp
from shared.values.enums import LoadedState
from tests.inference_service.prompts.fakes import Log, loaded


class Bench:
    """A registry, its log, and the versions that the engine has to unload."""

    def __init__(self, max_loaded: int = 100) -> None:
        self.log, self.unloaded = Log(), list[str]()
        self.registry = PromptRegistry(self.unloaded.append, max_loaded)
        self.registry.update(self.log.index)

    def publish(self, version: int, **about: str | None) -> None:
        self.log.publish(version, **about)  # type: ignore[arg-type]
        self.registry.update(self.log.index)

    def load(self, version: int) -> float | None:
        return self.registry.add(loaded(self.log.record(version)))

    def refuse(self, version: int) -> None:
        self.registry.quarantine(self.log.record(version), RefusalReason.DAMAGED, "cut short")

    def move(self, *targets: tuple[int, int]) -> None:
        self.registry.update(self.log.move(*targets))

    def meaning(self, reference: str = "tone", key: str = "") -> int:
        return self.registry.resolve(PromptReference.parse(reference), key).version


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_alias_moves_when_its_target_is_loaded(bench: Bench) -> None:
    bench.publish(1)
    assert bench.load(1) is not None
    bench.publish(2)
    assert bench.meaning() == 1
    assert bench.registry.num_aliases_behind == 1
    bench.load(2)
    assert bench.meaning() == 2
    assert bench.registry.num_aliases_behind == 0
    assert bench.meaning("tone@1") == 1


def test_a_quarantined_target_leaves_the_alias_where_it_was(bench: Bench) -> None:
    bench.publish(1)
    bench.load(1)
    bench.publish(2)
    bench.refuse(2)
    assert bench.meaning() == 1
    with pytest.raises(PreconditionFailed, match="cut short"):
        bench.meaning("tone@2")
    bench.publish(3)
    bench.load(3)
    assert bench.meaning() == 3


def test_without_anything_better_a_quarantined_target_is_refused_with_its_reason(bench: Bench) -> None:
    bench.publish(1)
    assert bench.meaning() == 1  # not loaded yet: the request loads it
    bench.refuse(1)
    with pytest.raises(PreconditionFailed, match="quarantined"):
        bench.meaning()
    bench.publish(2)
    bench.load(2)
    assert bench.meaning() == 2


def test_a_weighted_alias_with_a_bad_target_goes_on_as_before(bench: Bench) -> None:
    bench.publish(1)
    bench.load(1)
    bench.publish(2, alias=None)
    bench.refuse(2)
    bench.move((1, 50), (2, 50))
    assert {bench.meaning(key=f"user-{n}") for n in range(50)} == {1}


def test_a_fresh_replica_serves_the_sound_targets_of_a_weighted_alias() -> None:
    bench = Bench()
    bench.log.publish(1, alias=None)
    bench.log.publish(2, alias=None)
    bench.move((1, 50), (2, 50))
    bench.load(1)
    bench.refuse(2)
    assert {bench.meaning(key=f"user-{n}") for n in range(50)} == {1}


def test_a_canary_is_stable_for_a_key_and_splits_by_weight(bench: Bench) -> None:
    for version in (1, 2):
        bench.publish(version)
        bench.load(version)
    bench.move((1, 80), (2, 20))
    meanings = [bench.meaning(key=f"user-{n}") for n in range(1000)]
    assert meanings == [bench.meaning(key=f"user-{n}") for n in range(1000)]
    assert 140 < meanings.count(2) < 260


def test_unknown_things_are_named(bench: Bench) -> None:
    bench.publish(1)
    for reference, kind in (("other", "prompt"), ("tone@staging", "alias"), ("tone@9", "version")):
        with pytest.raises(NotFound) as caught:
            bench.meaning(reference)
        assert caught.value.kind == kind


def test_a_removed_alias_means_nothing_any_more(bench: Bench) -> None:
    bench.publish(1)
    bench.load(1)
    bench.move()
    with pytest.raises(NotFound):
        bench.meaning()


def test_a_held_version_is_unloaded_after_its_last_request(bench: Bench) -> None:
    bench.publish(1)
    bench.load(1)
    first, record = prefix_id_of(bench.log.record(1)), bench.log.record(1)
    bench.publish(2)
    bench.load(2)
    with bench.registry.hold(record) as outer:
        with bench.registry.hold(record) as inner:
            assert inner is outer is not None
            bench.registry.update(bench.log.delete(1))
        assert bench.unloaded == []
    assert bench.unloaded == [first]
    with bench.registry.hold(record) as gone:
        assert gone is None
    bench.registry.check_integrity()


def test_a_version_deleted_while_it_loads_is_unloaded_at_once(bench: Bench) -> None:
    bench.publish(1, alias=None)
    version = loaded(bench.log.record(1))
    bench.registry.update(bench.log.delete(1))
    assert bench.registry.add(version) is None
    assert bench.unloaded == [version.prefix_id]
    assert bench.registry.num_loaded == 0


def test_the_least_recently_used_goes_first_and_aliased_ones_last() -> None:
    bench = Bench(max_loaded=3)
    bench.publish(1)
    bench.load(1)
    for version in (2, 3):
        bench.publish(version, alias=None)
        bench.load(version)
    with bench.registry.hold(bench.log.record(2)):
        pass
    bench.publish(4, alias=None)
    bench.load(4)
    assert bench.unloaded == [prefix_id_of(bench.log.record(3))]
    with bench.registry.hold(bench.log.record(2)), bench.registry.hold(bench.log.record(4)):
        bench.publish(5, alias=None)
        bench.load(5)
    assert bench.unloaded[1:] == [prefix_id_of(bench.log.record(1))]
    assert bench.meaning() == 1  # known and checked: loads on its next use
    bench.registry.check_integrity()


def test_states_are_listed_and_unfinished_checks_are_not() -> None:
    bench = Bench()
    log = bench.log
    for version in (1, 2, 3):
        log.publish(version, alias="default" if version == 2 else None)
    bench.registry = PromptRegistry(bench.unloaded.append, 100)
    bench.registry.update(log.index)
    bench.publish(4, alias=None)
    states = {status.record.version: status.state for status in bench.registry.statuses()}
    assert states == {1: LoadedState.KNOWN, 3: LoadedState.KNOWN}
    assert [record.version for record in bench.registry.wanted()] == [2]
    assert bench.load(2) is None  # older than the replica: no time from publish to served
    seconds = bench.load(4)
    bench.refuse(3)
    statuses = {status.record.version: status for status in bench.registry.statuses("tone")}
    assert [statuses[version].state for version in (1, 2, 3, 4)] == ["KNOWN", "LOADED", "QUARANTINED", "LOADED"]
    assert statuses[2].aliases == ("default",)
    assert statuses[4].publish_to_served_seconds == seconds is not None
    with pytest.raises(NotFound):
        bench.registry.statuses("other")


def test_a_publisher_with_a_clock_ahead_gives_no_negative_time() -> None:
    bench = Bench()
    bench.publish(1, alias=None)
    record = bench.log.record(1)
    ahead = parse_timestamp(record.created_at) - timedelta(hours=1)
    assert publish_to_served_seconds(record, ahead) == 0.0
    assert publish_to_served_seconds(record, ahead + timedelta(hours=1, seconds=2)) == 2.0
