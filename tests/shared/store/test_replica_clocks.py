"""Which replicas are live if clocks disagree: the reader measures with its own clock whether a record changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.store import replicas
from shared.store.memory import MemoryBackend
from shared.store.replicas import LIVE_SECONDS, ReplicaDirectory, ReplicaRecord

HEARTBEAT_SECONDS = 5.0


class Fleet:
    """A reader with its clock, and replicas whose clocks are wrong by the given seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self._began = datetime.now(UTC) - timedelta(seconds=self.now)
        self.directory = ReplicaDirectory(MemoryBackend())
        monkeypatch.setattr(replicas, "_monotonic", lambda: self.now)
        fleet = self

        class Clock(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return fleet._began + timedelta(seconds=fleet.now)

        monkeypatch.setattr(replicas, "datetime", Clock)

    def beat(self, name: str, skew_seconds: float) -> None:
        time = self._began + timedelta(seconds=self.now + skew_seconds)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        record = ReplicaRecord(id=name, started_at=stamp, updated_at=stamp, heartbeat_seconds=HEARTBEAT_SECONDS)
        self.directory.put(record)

    def live(self) -> list[str]:
        return [record.id for record in self.directory.list()]


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(monkeypatch)


@pytest.mark.parametrize("skew_seconds", [-86_400.0, -LIVE_SECONDS - 5, 0.0, LIVE_SECONDS + 5, 86_400.0])
def test_a_replica_is_live_while_it_reports_whatever_its_clock_shows(fleet: Fleet, skew_seconds: float) -> None:
    fleet.beat("a", skew_seconds)
    fleet.live()
    for _ in range(20):
        fleet.now += HEARTBEAT_SECONDS
        fleet.beat("a", skew_seconds)
        assert fleet.live() == ["a"]
    fleet.now += LIVE_SECONDS - 1
    assert fleet.live() == ["a"]
    fleet.now += 2
    assert fleet.live() == [], "its last report is too old"


@pytest.mark.parametrize("skew_seconds", [-LIVE_SECONDS + 1, 0.0, LIVE_SECONDS - 1])
def test_the_first_look_tolerates_the_skew_that_is_documented(fleet: Fleet, skew_seconds: float) -> None:
    fleet.beat("a", skew_seconds)
    assert fleet.live() == ["a"]


def test_a_dead_replica_with_a_clock_ahead_is_not_live_for_as_long_as_it_was_ahead(fleet: Fleet) -> None:
    fleet.beat("a", 86_400.0)
    assert fleet.live() == ["a"], "after one look, its clock may be right"
    for _ in range(4):
        fleet.now += LIVE_SECONDS / 3
        found = fleet.live()
    assert found == []


def test_a_change_between_two_looks_that_are_far_apart_proves_nothing(fleet: Fleet) -> None:
    fleet.beat("a", 0.0)
    assert fleet.live() == ["a"]
    fleet.now += 10
    fleet.beat("a", 0.0)
    fleet.now += 3600
    assert fleet.live() == []


def test_a_replica_that_comes_back_is_live_again(fleet: Fleet) -> None:
    fleet.beat("a", 0.0)
    fleet.live()
    fleet.now += LIVE_SECONDS - 1
    fleet.live()
    fleet.now += 2
    assert fleet.live() == []
    fleet.beat("a", 0.0)
    assert fleet.live() == ["a"]
