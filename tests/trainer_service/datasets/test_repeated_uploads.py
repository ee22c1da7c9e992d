"""The same bytes are sent once, and a creation doesn't wait until all examples are counted."""

from __future__ import annotations

import json
from pathlib import Path

from shared.values.enums import JobState, TooLong
from shared.values.spec import TuningSpec
from softprompt.client.async_client import AsyncClient
from tests.trainer_service.conftest import running_trainer
from trainer_service.config import TrainerSettings

CONVERSATION = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}]


async def test_bytes_that_the_tenant_has_are_not_sent_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    turns = [*CONVERSATION, *CONVERSATION[:1]]
    lines = [json.dumps({"messages": [*turns, {"role": "assistant", "content": f"{n}"}]}) + "\n" for n in range(9000)]
    file.write_text("".join(lines))
    settings = TrainerSettings(
        base_models=(f"tiny={tiny_model_dir}",),
        data_dir=tmp_path / "data",
        ready_file=str(tmp_path / "ready"),
        grace_seconds=1,
    )
    sent = list[tuple[int, int]]()
    async with running_trainer(settings) as trainer, AsyncClient(f"127.0.0.1:{trainer.port}") as client:
        first = await client.upload_dataset(file, on_progress=lambda done, total: sent.append((done, total)))
        size = file.stat().st_size
        assert (len(sent), sent[-1]) == (-(-size // (512 << 10)), (size, size))
        assert await client.upload_dataset(file, on_progress=lambda done, total: sent.append((0, 0))) == first
        assert sent[-1] == (size, size), "nothing was sent"
        job = await client.create_job(TuningSpec(prompt="p", dataset=file, too_long=TooLong.DROP))
        assert job.state is JobState.QUEUED
        assert job.effective_spec is not None
        assert job.effective_spec.too_long is TooLong.DROP
