"""`tune` ends with what the first live replica says of the new version, not with its publication."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prompttuning.v1 import prompts_pb2

from shared.errors import DeadlineExceeded, NotFound, PermissionDenied, PreconditionFailed, Unimplemented
from shared.values.example import Example
from shared.values.spec import TuningSpec
from softprompt.client.async_client import AsyncClient
from tests.both_services import both
from tests.inference_service.replica import blob, matrix
from tests.softprompt.cli_runner import CliRunner, Outcome
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import FakeTrainer, finished_events, succeeded_job

VERSION = "prompts/tone/versions/1"
REASON = "golden: disagrees by 0.9570 at worst, allowed 0.75"
SPEC = TuningSpec("tone", [Example("a", output="b")])


def status(
    num_replicas: int = 1, served: str = "", refused: str = "", has_base_model: bool = True
) -> prompts_pb2.VersionStatus:
    found = prompts_pb2.VersionStatus(version=VERSION, num_replicas=num_replicas)
    if served:
        found.served.add(replica=served)
    if refused:
        found.refused.add(replica=refused, reason=REASON, has_base_model=has_base_model)
    return found


@pytest.fixture
def tune(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    monkeypatch.setenv("SOFTPROMPT_TRAINER", services.trainer_endpoint)
    monkeypatch.setenv("SOFTPROMPT_INFERENCE", services.inference_endpoint)
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"input": "a", "output": "b"}) + "\n")
    runner = CliRunner(monkeypatch, capsys)
    return lambda *options: runner("tune", str(file), "--prompt", "tone", *options)


def test_it_waits_for_the_first_replica_that_serves_it(tune: Callable[..., Outcome], services: Services) -> None:
    services.trainer.statuses = [status(2), status(2), status(2, served="replica-b")]
    outcome = tune()
    assert outcome.code == 0
    assert "  served by      replica-b\n" in outcome.out
    assert len(services.trainer.statuses) == 1
    services.trainer.statuses = [status(1, served="replica-b", refused="of-another-model", has_base_model=False)]
    assert tune("--json").code == 0


def test_a_refusal_is_the_end(tune: Callable[..., Outcome], services: Services) -> None:
    services.trainer.statuses = [status(), status(refused="replica-a")]
    outcome = tune()
    assert outcome.code == 1
    assert f"published {VERSION} (alias moved)" in outcome.out
    assert outcome.err.endswith(
        f"error: {VERSION} is published, but replica-a refused {VERSION}: {REASON}\n"
        "hint: `softprompt prompts status` shows the replicas; `softprompt prompts alias set` moves the alias back\n"
    )


def test_without_a_replica_to_ask_nothing_is_printed(
    tune: Callable[..., Outcome], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.trainer.statuses = [status(num_replicas=0)]
    assert (tune().code, "served by" in tune().out) == (0, False)
    for error in (Unimplemented("no"), PermissionDenied("no"), NotFound("prompt", "tone")):

        async def refuse(self: object, request: object, context: object, error: Exception = error) -> object:
            raise error

        monkeypatch.setattr(FakeTrainer, "GetPromptStatus", refuse)
        assert tune().code == 0


def test_a_version_that_no_alias_names_is_not_waited_for(tune: Callable[..., Outcome], services: Services) -> None:
    job = succeeded_job()
    job.result.alias_moved = False
    services.trainer.events = finished_events(job)
    services.trainer.statuses = [status(refused="replica-a")]
    assert tune("--alias", "-").code == 0


def test_replicas_that_say_nothing_are_not_waited_for_without_end(
    tune: Callable[..., Outcome], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softprompt.client.verdict.first_verdict.__defaults__", (0.0,))
    method = "softprompt.client.prompts.PromptMethods.first_verdict"
    monkeypatch.setattr(f"{method}.__kwdefaults__", {"timeout_seconds": 0.0})
    services.trainer.statuses = [status()]
    outcome = tune()
    assert outcome.code == 0
    assert f"no replica has served or refused {VERSION} within 0 s; `softprompt prompts status`" in outcome.err


async def test_the_clients_tune_waits_too(client: AsyncClient, trainer: FakeTrainer) -> None:
    trainer.statuses = [status(), status(served="replica-a")]
    assert (await client.tune(SPEC)).result is not None
    assert len(trainer.statuses) == 1
    trainer.statuses = [status(), status(refused="replica-a")]
    with pytest.raises(PreconditionFailed, match="replica-a refused prompts/tone/versions/1: golden"):
        await client.tune(SPEC)
    trainer.statuses = [status()]
    with pytest.raises(DeadlineExceeded, match="no replica has served or refused"):
        await client.first_verdict(VERSION, timeout_seconds=0)


async def test_a_real_replicas_verdict(tiny_model_dir: Path, tmp_path: Path) -> None:
    async with both(tiny_model_dir, tmp_path, replica="replica-a") as services:
        services.replica.store.publish("tone", blob(tiny_model_dir, matrix(1)), job="a", alias="default")
        assert [item.replica for item in (await services.client.first_verdict(VERSION)).served] == ["replica-a"]
        services.replica.store.publish(
            "tone", blob(tiny_model_dir, matrix(2, hidden_size=48)), job="b", alias="default"
        )
        with pytest.raises(PreconditionFailed, match=r"replica-a refused prompts/tone/versions/2: .*hidden size 48"):
            await services.client.first_verdict("prompts/tone/versions/2")
