"""What replicas record survives kill -9, is published once, and agrees with the metrics; used-up budgets refuse."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

import grpc
import pytest

from inference_service.engine.core.request import FinishReason, ScoreRequest, TokenUsage
from inference_service.engine.core.running_request import sequence_of
from inference_service.engine.core.stats import FinishedRequest
from inference_service.usage import UsageJournal
from shared.config import ConfigError
from shared.errors import Overloaded, Unavailable
from shared.rpc.errors import error_from_rpc
from shared.security.tokens import hash_token, new_token
from shared.store.layout import USAGE
from shared.store.memory import MemoryBackend
from shared.store.usage import SegmentId, UsageRecord, UsageSegments, UsedUp, write_used_up
from tests.inference_service.replica import generate_request, running_replica, stream_request
from tests.waiting import until


def request(**changes: object) -> FinishedRequest:
    values = {
        "tenant": "shop",
        "caller": "app",
        "prefix_id": "prompts/tone/versions/3#sha256:0",
        "finish_reason": FinishReason.EOS,
        "usage": TokenUsage(10, 4, 3, 5),
        "queue_seconds": 0.0,
        "ttft_seconds": 0.1,
        "e2e_seconds": 0.2,
        "inter_token_seconds": (),
    }
    return FinishedRequest(**{**values, **changes})  # type: ignore[arg-type]


def published(backend: MemoryBackend) -> list[UsageRecord]:
    segments = UsageSegments(backend)
    found = (segments.read(segment) for segment in segments.all())
    return [record for segment in found if segment is not None for record in segment.records]


def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        dying = UsageJournal(tmp_path, "tiny")
        while True:
            dying.append(request())
            os.write(writing, b".")  # what a metric would count
    os.close(writing)
    counted = sum(len(os.read(reading, 100)) for _ in range(10))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 1000):
        counted += len(more)
    os.close(reading)
    backend, journal = MemoryBackend(), UsageJournal(tmp_path, "tiny")
    journal.publish(UsageSegments(backend))
    (record,) = published(backend)
    assert (record.tenant, record.caller, record.prompt, record.version) == ("shop", "app", "tone", 3)
    assert counted <= record.requests <= counted + 1
    assert record.input_tokens == 10 * record.requests
    journal.publish(UsageSegments(backend))
    assert len(backend.list(USAGE)) == 1
    journal.close()
    assert not tmp_path.exists()


def test_a_file_is_published_again_after_a_death_before_its_removal(tmp_path: Path) -> None:
    backend, journal = MemoryBackend(), UsageJournal(tmp_path, "tiny")
    journal.append(request())

    class Dying(UsageSegments):
        def publish(self, segment: SegmentId, data: bytes) -> None:
            super().publish(segment, data)
            raise Unavailable("the acknowledgement is lost")

    with pytest.raises(Unavailable):
        journal.publish(Dying(backend))
    journal.append(request(usage=TokenUsage(1, 0, 0, 1)))
    journal.publish(UsageSegments(backend))
    assert [info.key[-15:] for info in backend.list(USAGE)] == ["000000001.jsonl", "000000002.jsonl"]
    assert sum(record.requests for record in published(backend)) == 2


def test_a_damaged_line_loses_only_itself(tmp_path: Path) -> None:
    backend, journal = MemoryBackend(), UsageJournal(tmp_path, "tiny")
    journal.append(request())
    (file,) = tmp_path.rglob("1")
    file.write_bytes(file.read_bytes() + b"\0" * 50 + b"\n" + b'{"hour": 17')
    journal.publish(UsageSegments(backend))
    assert [record.requests for record in published(backend)] == [1]


@pytest.mark.parametrize("seconds", [6_000_000.0, 2_200_000_000.0])  # in 1970 and in 2039
def test_a_wrong_clock_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    backend, journal = MemoryBackend(), UsageJournal(tmp_path, "tiny")
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: seconds)
        journal.append(request())
    journal.append(request())
    assert journal.num_lost == 0
    journal.publish(UsageSegments(backend))
    (segment,) = UsageSegments(backend).all()
    read = UsageSegments(backend).read(segment)  # by a trainer with a right clock
    assert read is not None
    assert [record.requests for record in read.records] == [1]
    assert read.problem.endswith("hour: is not between 2020 and tomorrow: a clock is wrong")
    assert json.loads(read.unread)["hour"] == seconds // 3600 * 3600  # kept for the operator


def test_a_record_that_does_not_fit_on_the_disk_loses_only_itself(tmp_path: Path) -> None:
    backend, journal = MemoryBackend(), UsageJournal(tmp_path, "tiny")
    journal.append(request())
    (file,) = tmp_path.rglob("1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 50, hard))
    try:
        journal.append(request())  # the system writes the first 50 bytes
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.num_lost == 1
    journal.append(request())
    journal.publish(UsageSegments(backend))
    assert [record.requests for record in published(backend)] == [2]


def test_the_candidates_of_a_score_count_as_input(tmp_path: Path) -> None:
    backend, journal = MemoryBackend(), UsageJournal(tmp_path, "tiny")
    score = ScoreRequest("1", (1, 2, 3), candidates=((4, 5), (6,)))
    usage = sequence_of(score, num_virtual=0, arrival=1, now=0.0).usage
    assert usage.input_tokens == 3  # what the answer shows
    journal.append(request(usage=usage, is_score=True))
    journal.publish(UsageSegments(backend))
    assert [record.input_tokens for record in published(backend)] == [6]


def test_names_of_callers_that_can_not_be_stored_are_replaced_and_nothing_raises(tmp_path: Path) -> None:
    backend, journal = MemoryBackend(), UsageJournal(tmp_path, "tiny")
    journal.append(request(caller="a\0b\ud800" + "x" * 500))
    journal.append(request(usage=TokenUsage(-1, 0, 0, 0)))
    assert journal.num_lost == 1
    journal.publish(UsageSegments(backend))
    assert published(backend)[0].caller == "a?b?" + "x" * 196


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="SOFTPROMPT_INFERENCE_USAGE_DIR"):
        UsageJournal(tmp_path / "file", "tiny")


async def test_answers_are_published_and_a_used_up_budget_refuses(tiny_model_dir: Path, tmp_path: Path) -> None:
    shop, bank = new_token(), new_token()
    callers = [
        {"name": f"{name}-app", "tenant": name, "roles": ["generator"], "token_sha256": [hash_token(token)]}
        for name, token in (("shop", shop), ("bank", bank))
    ]
    path = tmp_path / "callers.json"
    path.write_text(json.dumps({"tenants": [{"name": "shop"}, {"name": "bank"}], "callers": callers}))
    metadata = {name: (("authorization", f"Bearer {token}"),) for name, token in (("shop", shop), ("bank", bank))}
    settings = {"callers_file": str(path), "usage_dir": str(tmp_path / "usage"), "usage_seconds": 0.1}
    async with running_replica(tiny_model_dir, tmp_path, **settings) as replica:
        for name in ("shop", "bank", "shop"):
            await replica.stub.Generate(generate_request(max_new_tokens=3), metadata=metadata[name])
        backend = replica.store.backend

        def counts() -> dict[str, tuple[int, int]]:
            found: dict[str, tuple[int, int]] = {}
            for record in published(backend):  # type: ignore[arg-type]
                before = found.get(record.caller, (0, 0))
                found[record.caller] = before[0] + record.requests, before[1] + record.generated_tokens
            return found

        await until(lambda: sum(requests for requests, _ in counts().values()) == 3)
        assert {name: requests for name, (requests, _) in counts().items()} == {"shop-app": 2, "bank-app": 1}
        write_used_up(backend, {"shop": UsedUp(budget="monthly", resets_at=time.time() + 3600)})

        async def refused() -> Overloaded | None:
            try:
                await replica.stub.Generate(generate_request(max_new_tokens=1), metadata=metadata["shop"])
            except grpc.aio.AioRpcError as error:
                found = error_from_rpc(error)
                assert isinstance(found, Overloaded)
                return found
            return None

        await until(refused)
        error = await refused()
        assert error is not None
        assert "budget 'monthly' is used up; it resets at" in str(error)
        assert 3000 < error.retry_after_seconds <= 3600
        assert [part async for part in replica.stub.GenerateStream(stream_request(), metadata=metadata["bank"])]
        write_used_up(backend, {})

        async def answered() -> bool:
            return await refused() is None

        await until(answered)
