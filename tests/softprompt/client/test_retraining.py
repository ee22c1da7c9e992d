"""Prompts move to another base model: planned first, gated by the kept answers of the old version, and never twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import prompts_pb2

from shared.errors import PreconditionFailed
from shared.security.tokens import hash_token, new_token
from shared.values.base_model import BaseModelInfo
from shared.values.enums import InitMethod, JobState, Metric
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.prompts import Alias, AliasTarget
from shared.values.results import TuningResult
from shared.values.spec import PublishPolicy, TuningSpec
from shared.wire.mirror import read
from softprompt import AsyncClient
from softprompt.client.retraining_plan import aliased_versions, retraining_spec, why_not_comparable
from softprompt.client.security import ClientSecurity
from softprompt.errors import JobFailed
from softprompt.types.prompts import PromptVersion
from tests.softprompt.cli_runner import CliRunner, Outcome
from tests.tiny_models import save_tiny_llama
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.test_training_end_to_end import local_pool
from trainer_service.config import TrainerSettings

QUICK = Hyperparameters(num_steps=2, num_virtual_tokens=3)
LABELLED = [{"input": f"number {number}", "label": ("even", "odd")[number % 2]} for number in range(60)]
SPEC = TuningSpec("parity", LABELLED, base_model="old", validation_fraction=0.4, hyperparameters=QUICK)


@dataclass
class Upgrade:
    trainer: RunningTrainer
    client: AsyncClient
    cli: CliRunner

    async def __call__(self, *arguments: str) -> Outcome:
        """`softprompt retrain --base-model new`."""
        to = ("--trainer", f"127.0.0.1:{self.trainer.port}", "--base-model", "new")
        return await asyncio.to_thread(self.cli, "retrain", *to, *arguments)

    async def train(self, spec: TuningSpec) -> None:
        job = await self.client.create_job(spec)
        assert (await self.client.wait_for_job(job.name)).state is JobState.SUCCEEDED

    async def result(self, job: str) -> TuningResult:
        found = (await self.client.wait_for_job(job)).result
        assert found is not None
        return found


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> TrainerSettings:
    new = save_tiny_llama(tmp_path / "new", seed=7)
    return TrainerSettings(
        base_models=(f"old={tiny_model_dir}", f"new={new}"),
        data_dir=tmp_path / "data",
        store_url=str(tmp_path / "store"),
        ready_file=str(tmp_path / "ready.json"),
        max_proof_model_bytes=0,
        grace_seconds=5,
    )


@pytest.fixture
async def upgrade(
    settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Upgrade]:
    """A trainer with two base models, and a prompt `parity` of the old one."""
    async with running_trainer(settings, local_pool) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        made = Upgrade(trainer, client, CliRunner(monkeypatch, capsys))
        await made.train(SPEC)
        yield made


async def test_from_the_plan_to_the_gate(upgrade: Upgrade) -> None:
    plan = await upgrade("--dry-run", "--json")
    assert plan.code == 0
    (item,) = plan.json
    assert (item["prompt"], item["aliases"], item["version"]) == (
        "parity",
        ["default"],
        "prompts/parity/versions/1",
    )
    assert (item["base_model"], item["data_kept"], item["num_examples"]) == ("old", True, 60)
    assert (item["metric"], item["num_comparable"], item["job"], item["refused"]) == ("accuracy", 24, None, "")
    asked = await upgrade()  # the tests have no terminal
    assert (asked.code, "add --yes" in asked.err) == (0, True)
    assert "train, and move default if it is better" in asked.out
    assert len(await upgrade.client.list_jobs()) == 1, "a plan creates nothing"

    run = await upgrade("--yes", "--json")
    assert (run.code, "no live replica has new" in run.err, "--unserved" in run.err) == (4, True, True)
    (created,) = run.json
    assert created["num_replicas"] == 0
    result = await upgrade.result(created["job"])
    comparison = next(one for one in result.comparisons if one.rival == "current_version")
    assert (comparison.metric, comparison.num_examples) == ("accuracy", 24)
    assert "of the current version" in result.gate_decision
    assert result.alias_moved == result.published == comparison.beats
    spec = (await upgrade.client.get_job(created["job"])).spec
    assert spec is not None
    assert (spec.base_model, spec.hyperparameters, spec.validation_fraction) == ("new", QUICK, 0.4)

    (again,) = (await upgrade("--yes", "--json")).json or [{"job": created["job"]}]  # published: nothing is left to do
    assert again["job"] == created["job"]
    assert len(await upgrade.client.list_jobs()) == 2, "a second call trains nothing again"


async def test_an_interrupted_call_is_continued_and_a_cancelled_job_made_again(upgrade: Upgrade) -> None:
    client = upgrade.client
    plan = await client.plan_retraining("new")
    (item,) = plan.prompts
    assert item.spec is not None
    endless = replace(item, spec=replace(item.spec, hyperparameters=replace(QUICK, num_steps=50_000)))
    cut = replace(plan, prompts=(endless,))
    jobs = [(await client.retrain(cut))[0].job for _ in range(2)]  # as if the first answer had been lost
    assert jobs[0] is not None
    assert {job.name for job in jobs if job is not None} == {jobs[0].name}
    (running,) = (await client.plan_retraining("new")).prompts
    assert (running.is_new, running.job and running.job.name) == (False, jobs[0].name)
    await client.cancel_job(jobs[0].name)
    with pytest.raises(JobFailed):
        await client.wait_for_job(jobs[0].name)
    (later,) = (await client.plan_retraining("new")).prompts
    assert later.is_new
    assert later.request_id != item.request_id
    (second,) = await client.retrain(replace(plan, prompts=(replace(endless, request_id=later.request_id),)))
    assert second.job is not None
    await client.cancel_job(second.job.name)
    with pytest.raises(JobFailed):
        await client.wait_for_job(second.job.name)
    await client.delete_job(jobs[0].name)
    (third,) = await client.retrain(await client.plan_retraining("new"))
    assert (third.refused, third.job and third.job.name != second.job.name) == ("", True), "it is no old job"


async def test_two_operators_at_the_same_time_make_one_job_for_a_version(
    settings: TrainerSettings, tmp_path: Path
) -> None:
    """Another tenant's job for the same version with the same id is its own. And a deliberate second retraining, after
    the first job was deleted, makes another.
    """
    tenants = {"ann": "ops", "bob": "ops", "eve": "shop"}
    tokens = {name: new_token() for name in tenants}
    callers = [
        {"name": name, "tenant": tenants[name], "roles": ["admin"], "token_sha256": [hash_token(token)]}
        for name, token in tokens.items()
    ]
    content = {"tenants": [{"name": "ops"}, {"name": "shop"}], "callers": callers}
    (tmp_path / "callers.json").write_text(json.dumps(content))
    with_callers = settings.model_copy(update={"callers_file": str(tmp_path / "callers.json")})
    async with (
        running_trainer(with_callers, local_pool) as trainer,
        AsyncClient(f"127.0.0.1:{trainer.port}", security=ClientSecurity(token=tokens["ann"])) as ann,
        AsyncClient(f"127.0.0.1:{trainer.port}", security=ClientSecurity(token=tokens["bob"])) as bob,
        AsyncClient(f"127.0.0.1:{trainer.port}", security=ClientSecurity(token=tokens["eve"])) as eve,
    ):
        for prompt in ("one", "two", "three"):
            await ann.wait_for_job((await ann.create_job(replace(SPEC, prompt=prompt))).name)
        plans = await asyncio.gather(*(client.plan_retraining("new", keep_aliases=True) for client in (ann, bob)))
        assert [item.is_new for plan in plans for item in plan.prompts] == [True] * 6
        made = await asyncio.gather(ann.retrain(plans[0]), bob.retrain(plans[1]))
        first, second = ([item.job.name for item in items if item.job is not None] for items in made)
        assert (first == second, len(set(first))) == (True, 3), made
        assert len(await bob.list_jobs()) == 6
        item = plans[0].prompts[0]
        assert item.spec is not None
        same = replace(item.spec, dataset=LABELLED)
        others = [await eve.create_job(same, request_id=item.request_id, shared_request_id=True) for _ in range(2)]
        assert (others[0].name == others[1].name, others[0].name in first) == (True, False)
        for name in first:
            await ann.wait_for_job(name)
            await bob.delete_job(name)
        again = await ann.retrain(await ann.plan_retraining("new", keep_aliases=True))
        assert [item.refused for item in again] == [""] * 3
        assert not {item.job.name for item in again if item.job is not None} & set(first)


async def test_what_cannot_be_compared_is_refused_or_moves_no_alias(upgrade: Upgrade) -> None:
    counting = replace(QUICK, metric=Metric.TOKEN_ACCURACY)
    texts = [{"input": f"number {number}", "output": f"it is {number}"} for number in range(60)]
    await upgrade.train(replace(SPEC, prompt="texts", dataset=texts, hyperparameters=counting))
    refused = await upgrade("--prompt", "texts", "--yes")
    assert (refused.code, "token_accuracy counts tokens" in refused.out) == (4, True)
    assert "--keep-aliases" in refused.err
    (item,) = (await upgrade("--prompt", "texts", "--keep-aliases", "--yes", "--json")).json
    assert (item["moved_alias"], item["refused"]) == ("", "")
    spec = (await upgrade.client.get_job(item["job"])).spec
    assert spec is not None
    assert spec.publish.alias == "-"
    assert spec.publish.gate is not None
    assert (spec.publish.gate.beat_bare_model, spec.publish.gate.beat_current) == (True, False)
    (there,) = (await upgrade("--prompt", "texts", "--keep-aliases", "--json")).json
    assert there["job"] == item["job"], "it is not trained again"


async def test_what_is_gone_or_divided_is_refused_and_the_rest_goes_on(upgrade: Upgrade) -> None:
    client = upgrade.client
    await upgrade.train(replace(SPEC, prompt="gone", dataset=LABELLED[:-1]))
    job = (await client.list_jobs(prompt="gone"))[0]
    assert job.spec is not None
    await client.delete_dataset(job.spec.dataset)
    start = Init(InitMethod.FROM_PROMPT, source="parity@1")
    await upgrade.train(
        replace(SPEC, prompt="canary", hyperparameters=replace(QUICK, num_virtual_tokens=None, init=start))
    )
    plan = {item["prompt"]: item for item in (await upgrade("--json")).json}
    assert plan["gone"]["data_kept"] is False
    assert "none of its examples" in plan["gone"]["refused"]
    assert "began from parity@1" in plan["canary"]["notes"][0]
    assert plan["canary"]["refused"] == plan["parity"]["refused"] == ""
    await upgrade.train(replace(SPEC, prompt="canary", publish=PublishPolicy("-")))
    await client.set_alias("canary", "default", [AliasTarget(1, 0.9), AliasTarget(2, 0.1)])
    shown = await upgrade("--yes")
    assert shown.code == 4
    assert "divides its traffic among the versions 1, 2" in shown.out
    assert "2 prompts can't be retrained" in shown.err
    assert "parity: tuningJobs/" in shown.out


async def test_a_version_whose_job_is_deleted_is_retrained_by_its_own_record(upgrade: Upgrade) -> None:
    (job,) = await upgrade.client.list_jobs()
    await upgrade.client.delete_job(job.name)
    (refused,) = (await upgrade("--json")).json
    assert "0 held-out answers are kept" in refused["refused"]
    (item,) = (await upgrade.client.plan_retraining("new", keep_aliases=True)).prompts
    assert item.spec is not None
    assert "its job is not there" in item.notes[0]
    assert (item.spec.dataset, item.spec.labels, item.spec.validation_fraction) == (
        job.spec and job.spec.dataset,
        ("even", "odd"),
        0.4,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--base-model", "newer"), 3, "the trainer's base models: old, new"),
        (("--prompt", "party"), 3, "'party' does not exist"),
        (("--yes", "--dry-run"), 2, "exclude each other"),
        (("--base-model", "old"), 0, ""),
    ],
)
async def test_what_is_asked_wrongly(upgrade: Upgrade, arguments: tuple[str, ...], code: int, message: str) -> None:
    found = await upgrade(*arguments)
    assert (found.code, message in found.err) == (code, True)
    if not code:
        assert "nothing to retrain" in found.out


def test_one_job_for_each_aliased_version() -> None:
    aliases = (
        Alias("staging", (AliasTarget(2),), 5),
        Alias("default", (AliasTarget(2),), 6),
        Alias("next", (AliasTarget(3),), 7),
        Alias("canary", (AliasTarget(1, 0.9), AliasTarget(3, 0.1)), 8),
    )
    found = {item.version: item for item in aliased_versions("tone", aliases)}
    assert found["prompts/tone/versions/2"].aliases == ("default", "staging")
    assert found["prompts/tone/versions/2"].alias == "default"
    assert "staging will still name version 2" in found["prompts/tone/versions/2"].notes
    assert found["prompts/tone/versions/3"].alias == "next"
    assert found["prompts/tone/versions/1"].refused


@pytest.mark.parametrize("odd", ["/etc/hostname", "file:///etc/hostname", "s3://bucket/rows.jsonl", {}, None])
def test_an_imported_record_names_no_file_of_this_machine(odd: object) -> None:
    """The record of an imported version comes from its importer; an operator may retrain it."""

    def spec_of(recipe: dict[str, Any]) -> TuningSpec:
        version = read(PromptVersion, prompts_pb2.PromptVersion(name="prompts/tone/versions/2"))
        model = BaseModelInfo("new", "sha256:1", "", "LlamaForCausalLM", 8, 8, 1, 8)
        return retraining_spec(replace(version, recipe=recipe), None, model, "")[0]

    stored = f"datasets/sha256-{'0' * 64}"
    for recipe in ({"dataset": odd}, {"dataset": stored, "validation_dataset": odd or "rows.csv"}):
        with pytest.raises(PreconditionFailed, match="names no examples"):
            spec_of(recipe)
    wrong = {"task": odd, "validation_fraction": odd, "hyperparameters": {"metric": odd}}
    spec = spec_of({"dataset": stored, **wrong})
    assert (spec.dataset, spec.task, spec.validation_fraction) == (stored, None, None)
    assert spec.hyperparameters.metric is None


def test_why_not_comparable() -> None:
    assert why_not_comparable(Metric.LOSS, 10) == ""
    assert "9 held-out answers" in why_not_comparable(Metric.LOSS, 9)
    assert "tokens" in why_not_comparable(Metric.TOKEN_ACCURACY, 100)
