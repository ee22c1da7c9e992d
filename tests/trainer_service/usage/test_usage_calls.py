"""Usage and budgets at a real trainer: what each caller sees, pages, and jobs of a tenant whose budget is used up."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import InvalidInput, Overloaded, PermissionDenied
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.usage import SegmentId, UsageSegments, encode_segment, read_used_up
from shared.values.usage import BudgetStatus, UsageRow
from softprompt.cli import usage as command
from softprompt.client.async_client import AsyncClient
from softprompt.client.security import ClientSecurity
from softprompt.client.sync_client import Client
from tests.trainer_service.conftest import RunningTrainer, refused, running_trainer
from tests.trainer_service.requests import tuning_spec
from tests.trainer_service.test_training_end_to_end import local_pool
from tests.trainer_service.usage.test_folding import LIFE, record
from tests.waiting import until
from trainer_service.config import TrainerSettings

OPERATOR, SHOP, BANK = new_token(), new_token(), new_token()
_BY = {"tenant": pb.USAGE_DIMENSION_TENANT, "hour": pb.USAGE_DIMENSION_HOUR, "caller": pb.USAGE_DIMENSION_CALLER}


def by(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),)}


async def listed(trainer: RunningTrainer, token: str, *names: str, **fields: Any) -> pb.ListUsageResponse:
    request = pb.ListUsageRequest(by=[_BY[name] for name in names], **fields)
    response: pb.ListUsageResponse = await trainer.tuning.ListUsage(request, **by(token))
    return response


async def test_usage_and_budgets(settings: TrainerSettings, tmp_path: Path) -> None:
    soft = {"name": "few", "of": "requests", "limit": 1}
    hard = {"name": "one-job", "of": "jobs", "limit": 1, "per": "day", "hard": True}
    callers = [
        {"name": "operator", "tenant": "shop", "roles": ["admin"], "token_sha256": [hash_token(OPERATOR)]},
        {"name": "shop-tuner", "tenant": "shop", "roles": ["tuner"], "token_sha256": [hash_token(SHOP)]},
        {"name": "bank-viewer", "tenant": "bank", "roles": ["viewer"], "token_sha256": [hash_token(BANK)]},
    ]
    file = tmp_path / "callers.json"
    tenants = [{"name": "shop", "budgets": [soft, hard]}, {"name": "bank"}]
    file.write_text(json.dumps({"tenants": tenants, "callers": callers}))
    asked = settings.model_copy(update={"callers_file": str(file), "usage_seconds": 0.1})
    async with running_trainer(asked, local_pool) as trainer:
        backend = open_store(asked.resolved_store_url).backend
        records = [record(), record(caller="other"), record(tenant="bank", caller="bank-app")]
        UsageSegments(backend).publish(SegmentId(LIFE, 1), encode_segment(records))

        async def folded() -> bool:
            return len((await listed(trainer, OPERATOR, "tenant")).usage) == 2

        await until(folded)
        spec = tuning_spec(
            publish=pb.PublishPolicy(alias="-"), hyperparameters=pb.Hyperparameters(num_steps=2, num_virtual_tokens=2)
        )
        requests = [pb.CreateTuningJobRequest(spec=spec, request_id=f"same-moment-{number}") for number in range(4)]
        calls = [trainer.tuning.CreateTuningJob(request, **by(SHOP)) for request in requests]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        ((first, job),) = (
            (request, answer.job)
            for request, answer in zip(requests, answers, strict=True)
            if isinstance(answer, pb.CreateTuningJobResponse)
        )
        for check in (False, True):
            request = pb.CreateTuningJobRequest(spec=spec, validate_only=check)
            error = await refused(trainer.tuning.CreateTuningJob(request, **by(SHOP)))
            assert isinstance(error, Overloaded)
            assert "budget 'one-job' is used up; it resets at" in str(error)
            assert 0 < error.retry_after_seconds <= 86_400
        assert (await trainer.tuning.CreateTuningJob(first, **by(SHOP))).job.name == job.name

        async def ended() -> bool:
            (row,) = (await listed(trainer, SHOP, "tenant")).usage
            return bool(row.jobs) and "shop" in read_used_up(backend)

        await until(ended)
        shown = await listed(trainer, SHOP, "tenant")
        (row,) = shown.usage
        assert (row.tenant, row.requests, row.jobs) == ("shop", 2, 1)
        assert row.worker_seconds > 0
        assert row.stored_bytes > 0
        assert {budget.name: budget.used for budget in shown.budgets} == {"few": 2, "one-job": 1}
        assert [row.tenant for row in (await listed(trainer, BANK, "tenant")).usage] == ["bank"]
        assert isinstance(await refused(listed(trainer, BANK, tenant="shop")), PermissionDenied)

        async with AsyncClient(f"127.0.0.1:{trainer.port}", security=ClientSecurity(token=SHOP)) as client:
            (mine,) = await client.list_usage(["tenant"], start=datetime(2026, 1, 1, tzinfo=UTC))
            assert (mine.tenant, mine.jobs) == ("shop", 1)
        token, names = "", []
        while True:
            page = await listed(trainer, OPERATOR, "caller", "hour", page_size=1, page_token=token)
            names += [row.caller for row in page.usage]
            if not (token := page.next_page_token):
                break
        assert names == ["app", "bank-app", "other", "shop-tuner"]
        error = await refused(listed(trainer, OPERATOR, "caller", "caller"))
        assert isinstance(error, InvalidInput)
        assert error.violations[0].field == "by"
        unknown = pb.ListUsageRequest(by=[cast("Any", 99)])
        assert isinstance(await refused(trainer.tuning.ListUsage(unknown, **by(OPERATOR))), InvalidInput)
        times = pb.ListUsageRequest()
        times.start_time.FromSeconds(253_402_300_799)
        assert isinstance(await refused(trainer.tuning.ListUsage(times, **by(OPERATOR))), InvalidInput)


def test_csv_has_all_columns_and_no_formulas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [UsageRow(hour=datetime(2030, 1, 31, 12, tzinfo=UTC), caller='=cmd|"x",', requests=2, worker_seconds=1.5)]
    monkeypatch.setattr(Client, "list_usage", lambda self, by, **options: rows)
    command.usage(start="2030-01-31", end=None, by=["hour", "caller"], as_csv=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(",")[:4] == ["hour", "caller", "requests", "input_tokens"]
    assert lines[1] == '2030-01-31T12:00Z,"\'=cmd|""x"",",2,0,0,0,0,0,1.500,0'


@pytest.mark.parametrize(
    ("used", "limit", "shown"),
    [(95007.19573944325,) * 2 + ("(100%)",), (0.29, 1, "(29%)"), (99.9, 100, "(99%)"), (1.506, 1, "(151%)")],
)
def test_a_budget_has_100_percent_only_if_it_is_used_up(
    used: float, limit: float, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = BudgetStatus("shop", "few", "tokens", limit, used, "day", is_hard=True, reset_time=None)
    monkeypatch.setattr(Client, "list_usage", lambda self, by, **options: [])
    monkeypatch.setattr(Client, "list_budgets", lambda self, tenant: [budget])
    command.usage()
    out = capsys.readouterr().out
    assert shown in out
    assert ("used up, refuses" in out) == (used >= limit)
