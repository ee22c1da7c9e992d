"""A version goes from one trainer service to another: the same bytes, shown first, by the target's roles."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prompttuning.v1 import prompts_pb2
from prompttuning.v1 import tuning_pb2 as pb

from shared.errors import Conflict
from shared.prompt.blob import decode_blob
from shared.security.tokens import hash_token, new_token
from shared.store import open_store
from shared.store.commit import AliasTarget
from shared.store.layout import blob_key
from softprompt import Client
from softprompt.cli.output import show, stdout, table
from softprompt.cli.promote import _cells, _text
from softprompt.client.security import ClientSecurity
from softprompt.promotion import plan_promotion, promote
from tests.softprompt.cli_runner import CliRunner, Outcome
from tests.trainer_service.conftest import RunningTrainer, running_trainer
from tests.trainer_service.requests import create_job
from tests.trainer_service.test_training_end_to_end import local_pool
from tests.waiting import until
from trainer_service.config import TrainerSettings

READER, PUBLISHER = new_token(), new_token()


@dataclass
class Stages:
    source: RunningTrainer
    target: RunningTrainer
    tokens: dict[str, str]
    """Files of the target's tokens by role."""
    cli: CliRunner

    async def __call__(self, *arguments: str) -> Outcome:
        """`softprompt prompts promote` from the source to the target, with the target's publisher unless given."""
        own = () if "--to-token-file" in arguments else ("--to-token-file", self.tokens["publisher"])
        to = ("--trainer", f"127.0.0.1:{self.source.port}", "--to", f"127.0.0.1:{self.target.port}", *own)
        return await asyncio.to_thread(self.cli, "prompts", "promote", *arguments, *to)

    def at_target(self) -> Client:
        return Client(f"127.0.0.1:{self.target.port}", security=ClientSecurity(token=PUBLISHER))


async def train(trainer: RunningTrainer, length: int) -> None:
    job = await create_job(
        trainer, hyperparameters=pb.Hyperparameters(num_steps=2, num_virtual_tokens=length, seed=length)
    )

    async def succeeded() -> bool:
        found = (await trainer.tuning.GetTuningJob(pb.GetTuningJobRequest(name=job.name))).job
        assert found.state != pb.TuningJob.STATE_FAILED, found.error
        return bool(found.state == pb.TuningJob.STATE_SUCCEEDED)

    await until(succeeded)


def stage(directory: Path, model_dir: Path, model_id: str, **fields: Any) -> TrainerSettings:
    directory.mkdir()
    return TrainerSettings(
        base_models=(f"{model_id}={model_dir}",),
        data_dir=directory / "data",
        store_url=str(directory / "store"),
        ready_file=str(directory / "ready.json"),
        max_proof_model_bytes=0,
        grace_seconds=5,
        **fields,
    )


@pytest.fixture
async def stages(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Stages]:
    """The source has trained two versions of different lengths. The base model has another id at the target."""
    callers = [
        {"name": "reader", "roles": ["viewer"], "token_sha256": [hash_token(READER)]},
        {"name": "alice", "roles": ["viewer", "publisher"], "token_sha256": [hash_token(PUBLISHER)]},
    ]
    (tmp_path / "callers.json").write_text(json.dumps({"callers": callers}))
    tokens = {"viewer": READER, "publisher": PUBLISHER}
    for role, token in tokens.items():
        (tmp_path / role).write_text(token)
    production = stage(tmp_path / "production", tiny_model_dir, "other-id", callers_file=str(tmp_path / "callers.json"))
    async with (
        running_trainer(stage(tmp_path / "staging", tiny_model_dir, "tiny"), local_pool) as source,
        running_trainer(production) as target,
    ):
        for length in (2, 3):
            await train(source, length)
        yield Stages(source, target, {role: str(tmp_path / role) for role in tokens}, CliRunner(monkeypatch, capsys))


async def test_from_the_first_promotion_to_the_next_version(stages: Stages) -> None:
    refused = await stages("support-tone@1", "--yes", "--to-token-file", stages.tokens["viewer"])
    assert (refused.code, "publisher" in refused.err) == (4, True)

    first = await stages("support-tone@1", "--yes")
    assert "served there by support-tone@default: nothing yet" in first.out
    assert "recipe.dataset " in first.out
    assert "recipe.hyperparameters" not in first.out
    assert "published prompts/support-tone/versions/1" in first.out
    staging, production = (open_store(str(trainer.settings.store_url)) for trainer in (stages.source, stages.target))
    sent, received = (store.index().prompt("support-tone").version(1) for store in (staging, production))
    assert received.digest == sent.digest  # the same prefix, manifest and golden records
    manifest = decode_blob(production.fetch(received.digest)).manifest
    assert manifest.job == sent.job
    provenance: Any = manifest.recipe["provenance"]
    assert provenance["caller"] == "anonymous"
    assert provenance["software"].startswith("softprompt ")
    assert str(manifest.recipe["dataset"]).startswith("datasets/")
    assert [commit.actor for commit in production.recent_commits()] == ["alice", "alice"]

    preview = await stages("support-tone@2", "--dry-run", "--json")
    differences = {one["what"]: (one["served"], one["promoted"]) for one in preview.json[0]["differences"]}
    assert differences["num_virtual_tokens"] == (2, 3)
    assert {"provenance.job", "metrics.loss", "recipe.hyperparameters.seed"} <= differences.keys()
    assert "provenance.caller" not in differences
    assert not {what for what in differences if what.startswith(("base_model", "recipe.dataset", "template"))}
    shown = await stages("support-tone@2", "--dry-run")
    assert "num_virtual_tokens" in shown.out
    assert len(production.refresh().prompt("support-tone").versions) == 1

    canary = await stages("support-tone@2", "--yes", "--alias", "canary")
    assert "support-tone@canary names it" in canary.out
    again = await stages("support-tone@2", "--yes", "--json")
    assert (again.json[0]["published"], again.json[0]["version"]["name"]) == (False, "prompts/support-tone/versions/2")
    named = {alias.name: str(alias) for alias in production.refresh().prompt("support-tone").aliases.values()}
    assert named == {"default": "2", "canary": "2"}

    production.set_alias("support-tone", "default", [AliasTarget(1, 9), AliasTarget(2, 1)])
    divided = await stages("support-tone@2", "--dry-run")
    assert "versions/1, and others (1:0.9 2:0.1): the move ends this division" in divided.out


def test_what_differs_is_seen_and_moves_no_cursor() -> None:
    old, new = "a" * 100 + "bc", "a" * 100 + "cd"
    assert [cell[-3:] for cell in _cells(old, new)] == ["abc", "acd"]
    assert _cells("short", new + "e" * 100)[1].endswith("…")
    assert _text("one\nserved there by") == '"one\\nserved there by"'
    made = table("WHAT")
    made.add_row("\x1b[2J\u202e[red]")
    with stdout().capture() as shown:
        show(made)
        show("\x9b2Jone\r")
    assert [line.strip() for line in shown.get().splitlines()] == ["WHAT", r"\x1b[2J\u202e[red]", r"\x9b2Jone\r"]


async def test_an_alias_that_moved_since_the_difference_was_shown_stays(stages: Stages) -> None:
    def promoted_too_late() -> None:
        with Client(f"127.0.0.1:{stages.source.port}") as source, stages.at_target() as target:
            promote(target, plan_promotion(source, target, "support-tone@1"))
            plan = plan_promotion(source, target, "support-tone@2")
            target.set_alias("support-tone", "default", [])
            with pytest.raises(Conflict):
                promote(target, plan)
            assert [version.name[-1] for version in target.list_versions("support-tone")] == ["2", "1"]
            assert target.get_prompt("support-tone").aliases == ()
            target.delete_version("support-tone@1")
            again = [plan_promotion(source, target, "support-tone@1", alias="") for _ in range(2)]
            assert [promote(target, one).version.name[-1] for one in again] == ["3", "3"]  # as at the same moment

    await asyncio.to_thread(promoted_too_late)


async def test_what_can_not_be_promoted_says_why(stages: Stages) -> None:
    unasked = await stages("support-tone@1")
    assert (unasked.code, "--yes" in unasked.err) == (2, True)
    unknown = await stages("support-tone@9", "--yes")
    assert (unknown.code, "prompts/support-tone/versions/9" in unknown.err) == (3, True)
    staging = open_store(str(stages.source.settings.store_url))
    first, second = (blob_key(staging.index().prompt("support-tone").version(number).digest) for number in (1, 2))
    staging.backend.put(first, b"damaged")
    staging.backend.delete(second)
    for number in (1, 2):
        lost = await stages(f"support-tone@{number}", "--yes")
        assert (lost.code, "digest" in lost.err or f"versions/{number} is missing" in lost.err) == (1, True), lost.err
    store = await asyncio.to_thread(
        stages.cli, "prompts", "promote", "support-tone@1", "--to", "s3://prompts/production"
    )
    assert (store.code, "trainer service" in store.err) == (2, True)


async def test_only_publishers_see_who_trained_a_version(stages: Stages) -> None:
    await stages("support-tone@1", "--yes")

    async def provenance(token: str) -> Any:
        request = prompts_pb2.GetPromptVersionRequest(name="support-tone@1")
        metadata = (("authorization", f"Bearer {token}"),)
        found = await stages.target.prompts.GetPromptVersion(request, metadata=metadata)
        return dict(found.version.recipe["provenance"])

    assert "caller" in await provenance(PUBLISHER)
    assert (await provenance(READER)).keys() == {"job", "software"}
