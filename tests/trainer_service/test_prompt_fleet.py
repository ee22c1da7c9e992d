"""PromptService about the fleet: the replicas that serve or refuse versions, and the store that a watch reads."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import prompts_pb2 as pb

from shared.errors import DeadlineExceeded, NotFound, PreconditionFailed
from shared.prompt.manifest import utc_now
from shared.store import LoadedVersion, PromptStore, RefusedVersion, ReplicaRecord, open_store
from shared.store import follower as follower_module
from shared.store.replicas import ReplicaDirectory
from softprompt import AsyncClient
from tests.trainer_service.conftest import RunningTrainer, refused
from tests.trainer_service.test_prompt_service import MATRIX, publish

LONG_AGO = "2026-01-02T03:04:05.000006Z"


@pytest.fixture
def checking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks at every poll, not once a minute, whether the store is still the same."""
    monkeypatch.setattr(follower_module, "CHECK_SECONDS", 0.05)


def beat(store: PromptStore, replica: str, fingerprint: str, **said: Any) -> None:
    started = said.pop("started_at", utc_now())
    ReplicaDirectory(store.backend).put(
        ReplicaRecord(
            id=replica, base_model="tiny", base_model_fingerprint=fingerprint, started_at=started, revision=2, **said
        )
    )


async def test_the_status_counts_live_replicas_and_names_the_replicas_that_refused(trainer: RunningTrainer) -> None:
    first = await publish(trainer)
    second = await publish(trainer, MATRIX + 1)
    store, ours = open_store(trainer.settings.resolved_store_url), first.base_model.fingerprint
    one = {"prompt": "colours", "version": 1, "digest": first.digest}
    two = {"prompt": "colours", "version": 2, "digest": second.digest}
    serves_one = LoadedVersion(**one, loaded_at=utc_now())
    beat(
        store, "a", ours, loaded=(serves_one, LoadedVersion(**two, loaded_at=utc_now(), publish_to_served_seconds=0.25))
    )
    beat(
        store,
        "b",
        ours,
        loaded=(serves_one,),
        refused=(RefusedVersion(**two, reason="golden: -1.5 here, -0.5 where it was trained"),),
    )
    beat(store, "c", "sha256:other", refused=(RefusedVersion(**one, reason="base_model: tuned for tiny"),))
    beat(store, "killed", ours, updated_at=LONG_AGO, loaded=(serves_one,))
    beat(store, "slow", ours, heartbeat_seconds=120, loaded=(serves_one,))
    stale_bytes = LoadedVersion(prompt="colours", version=2, digest="sha256:" + "0" * 64, loaded_at=utc_now())
    beat(store, "d", ours, loaded=(serves_one, stale_bytes))
    status = await trainer.prompts.GetPromptStatus(pb.GetPromptStatusRequest(name="prompts/colours"))
    newer, older = status.versions
    assert (newer.version, list(newer.aliases), newer.num_replicas, newer.served_by_all) == (
        second.name,
        ["default"],
        4,
        False,
    )
    assert [(item.replica, item.publish_to_served.ToMilliseconds()) for item in newer.served] == [("a", 250)]
    assert [item.has_base_model for item in (*newer.refused, *older.refused)] == [True, False]
    assert [(item.replica, item.reason) for item in newer.refused] == [
        ("b", "golden: -1.5 here, -0.5 where it was trained")
    ]
    assert (older.num_replicas, [item.replica for item in older.served], older.served_by_all) == (
        4,
        ["a", "b", "d", "slow"],
        True,
    )
    assert not older.served[0].HasField("publish_to_served")
    assert [(item.replica, item.reason) for item in older.refused] == [("c", "base_model: tuned for tiny")]
    assert [item.id for item in status.replicas] == ["a", "b", "c", "d", "slow"]
    assert isinstance(
        await refused(trainer.prompts.GetPromptStatus(pb.GetPromptStatusRequest(name="nobody"))), NotFound
    )


async def test_without_replicas_nothing_is_served_by_all(trainer: RunningTrainer) -> None:
    await publish(trainer)
    (version,) = (await trainer.prompts.GetPromptStatus(pb.GetPromptStatusRequest(name="colours"))).versions
    assert (version.num_replicas, version.served_by_all) == (0, False)


async def test_a_watch_resumed_with_the_revision_of_another_store_is_refused(
    trainer: RunningTrainer, tmp_path: Path
) -> None:
    await publish(trainer)
    first = await anext(aiter(trainer.prompts.WatchPrompts(pb.WatchPromptsRequest())))
    assert first.store_id == open_store(trainer.settings.resolved_store_url).id
    same = pb.WatchPromptsRequest(after_revision=first.revision, store_id=first.store_id)
    await publish(trainer, MATRIX + 1)
    assert (await anext(aiter(trainer.prompts.WatchPrompts(same)))).published.name == "prompts/colours/versions/2"

    replace_store(trainer, tmp_path)
    error = await refused(anext(aiter(trainer.prompts.WatchPrompts(same))))
    assert isinstance(error, PreconditionFailed)
    assert first.store_id in error.message
    assert error.metadata["store_id"] == open_store(trainer.settings.resolved_store_url).id
    anew = await anext(aiter(trainer.prompts.WatchPrompts(pb.WatchPromptsRequest())))
    assert not anew.snapshot.prompts


async def test_a_running_watch_hears_that_its_store_was_replaced(
    checking_often: None, trainer: RunningTrainer, tmp_path: Path
) -> None:
    await publish(trainer)
    watch = aiter(trainer.prompts.WatchPrompts(pb.WatchPromptsRequest()))
    first = await anext(watch)
    await publish(trainer, MATRIX + 1)
    assert (await anext(watch)).store_id == first.store_id
    replace_store(trainer, tmp_path)
    message = await anext(watch)
    while not message.HasField("snapshot"):  # the alias that moved with the second version
        message = await anext(watch)
    assert message.store_id == open_store(trainer.settings.resolved_store_url).id != first.store_id
    assert not message.snapshot.prompts


def replace_store(trainer: RunningTrainer, tmp_path: Path) -> None:
    """Replaces the store by another, empty one atomically."""
    place, other = Path(trainer.settings.resolved_store_url), tmp_path / "other-store"
    open_store(str(other)).close()
    place.rename(tmp_path / "first-store")
    shutil.move(other, place)


async def test_waiting_for_served_by_all_ends_with_the_count_or_the_reasons(trainer: RunningTrainer) -> None:
    version = await publish(trainer)
    store, ours = open_store(trainer.settings.resolved_store_url), version.base_model.fingerprint
    about = {"prompt": "colours", "version": 1, "digest": version.digest}
    loaded, refusal = (
        LoadedVersion(**about, loaded_at=utc_now()),
        RefusedVersion(**about, reason="golden: 1 here, 2 there"),
    )
    async with AsyncClient(f"127.0.0.1:{trainer.port}", "127.0.0.1:1") as client:
        with pytest.raises(DeadlineExceeded, match="served by 0 of 0 live replicas"):
            await client.wait_until_served_by_all("colours@1", timeout_seconds=0)
        beat(store, "a", ours, loaded=(loaded,))
        beat(store, "b", ours)
        beat(store, "other", "sha256:other", refused=(RefusedVersion(**about, reason="base_model: tuned for tiny"),))
        with pytest.raises(DeadlineExceeded, match="served by 1 of 2 live replicas"):
            await client.wait_until_served_by_all("colours@1", timeout_seconds=0)
        waiting = asyncio.create_task(client.wait_until_served_by_all("prompts/colours/versions/1"))
        beat(store, "b", ours, loaded=(loaded,))
        assert [item.replica for item in (await waiting).served] == ["a", "b"]
        beat(store, "b", ours, refused=(refusal,))
        with pytest.raises(PreconditionFailed, match="b refused prompts/colours/versions/1: golden: 1 here, 2 there"):
            await client.wait_until_served_by_all("colours@1")
        with pytest.raises(NotFound):
            await client.wait_until_served_by_all("colours@9")
