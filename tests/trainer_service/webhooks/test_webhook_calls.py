"""Webhooks of a whole trainer: a cancelled job is reported, and the calls and commands of the operator."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import NotFound
from softprompt import AsyncClient
from tests.trainer_service.conftest import refused, running_trainer
from tests.trainer_service.requests import create_job
from tests.trainer_service.webhooks.receiver import receiver
from tests.waiting import until
from trainer_service.config import TrainerSettings
from trainer_service.webhooks import deliveries


async def test_a_cancelled_job_is_delivered_and_an_operator_sees_it(
    settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "LOOK_SECONDS", 0.02)
    with receiver() as heard:
        file = heard.write_file(tmp_path / "webhooks.json")
        async with (
            running_trainer(settings.model_copy(update={"webhooks_file": file})) as trainer,
            AsyncClient(trainer=f"127.0.0.1:{trainer.port}") as client,
        ):
            job = await create_job(trainer)
            await client.cancel_job(job.name)
            await until(lambda: heard.types == ["job.ended"])
            assert heard.events[0].data["state"] == "CANCELLED"
            test = await client.test_webhook("here")
            await until(lambda: len(heard.events) == 2)
            assert heard.events[1].id == test

            async def all_delivered() -> bool:
                [webhook] = await client.list_webhooks()
                return (webhook.num_delivered, webhook.num_pending, webhook.dead_letters) == (2, 0, ())

            await until(all_delivered)
            assert await client.retry_webhook("here") == 0
            unknown = await refused(trainer.tuning.TestWebhook(pb.TestWebhookRequest(name="other")))
            assert isinstance(unknown, NotFound)


async def test_without_a_file_there_are_no_webhooks(settings: TrainerSettings) -> None:
    async with running_trainer(settings) as trainer:
        assert not (await trainer.tuning.ListWebhooks(pb.ListWebhooksRequest())).webhooks
