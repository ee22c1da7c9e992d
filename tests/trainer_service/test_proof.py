"""The trainer makes golden records for imports in a process that may die without harm; replicas replay them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from shared.errors import PreconditionFailed
from shared.prompt.blob import decode_blob
from shared.text.golden_inputs import GOLDEN_INPUTS
from tests.both_services import both
from tests.inference_service.replica import blob, matrix
from tests.tiny_models import save_tiny_llama
from tests.waiting import until
from trainer_service.proof import Prover
from trainer_service.training.evaluation.golden import TOP_K


async def test_an_import_is_proven_on_the_trainers_copy_of_the_model_and_replayed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    save_file({"decoder": matrix(1)}, tmp_path / "decoder.safetensors")
    async with both(tiny_model_dir, tmp_path, max_proof_model_bytes=1 << 30) as services:
        version = await services.client.import_version(tmp_path / "decoder.safetensors", "tone")
        described, data = await services.client.download_version(version.name)
        golden = decode_blob(data).manifest.golden
        assert described.name == version.name
        assert [(record.text, len(record.top_token_ids)) for record in golden] == [("", TOP_K)] * len(GOLDEN_INPUTS)
        await services.client.wait_until_served(version.name, timeout_seconds=600)
        # The same golden records with another matrix: what a replica says that loads something else than was imported.
        forged = blob(tiny_model_dir, matrix(2), golden=golden)
        services.replica.store.publish("tone", forged, job="forged", alias=None)
        with pytest.raises(PreconditionFailed, match="golden record disagrees"):
            await services.client.wait_until_served("tone@2", timeout_seconds=600)


async def test_a_model_that_is_too_large_or_not_there_leaves_the_import_without(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    data = blob(tiny_model_dir, matrix(1))
    assert await Prover(max_model_bytes=0).golden_records(tiny_model_dir, data) == ()
    broken = save_tiny_llama(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    assert await Prover(max_model_bytes=1 << 30).golden_records(broken, data) == ()
    assert await Prover(max_model_bytes=1 << 30, timeout_seconds=0.05).golden_records(tiny_model_dir, data) == ()
    reasons = [
        str(record.__dict__["fields"]["why"]) for record in caplog.records if "no golden record" in record.message
    ]
    assert len(reasons) == 3
    assert "may be loaded" in reasons[0]
    assert "exit code 1" in reasons[1]
    assert "longer than 0.05 s" in reasons[2]


async def test_a_withdrawn_import_leaves_no_process(tiny_model_dir: Path) -> None:
    before = psutil.Process().children()

    def children() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in before]

    task = asyncio.create_task(
        Prover(max_model_bytes=1 << 30).golden_records(tiny_model_dir, blob(tiny_model_dir, torch.zeros(2, 64)))
    )
    await until(lambda: bool(children()))
    started = children()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not any(child.is_running() for child in started)
