"""What a replica refuses to load, and that what served before goes on serving."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import DamagedBlob, PreconditionFailed
from shared.model.base_model import inspect
from shared.prompt import blob as blob_module
from shared.prompt.digest import digest_of
from shared.prompt.manifest import GoldenRecord
from shared.store.layout import blob_key
from tests.inference_service.replica import (
    Replica,
    blob,
    matrix,
    publish,
    refusal,
    running_replica,
    stream_request,
)
from tests.tiny_models import save_tiny_llama
from tests.waiting import until

V1, V2, V3 = (f"prompts/tone/versions/{number}" for number in (1, 2, 3))


def truncated(data: bytes) -> bytes:
    return data[: len(data) - 100]


def not_finite(data: bytes) -> bytes:
    return data[:-4] + b"\x00\x00\xc0\x7f"


@pytest.mark.parametrize(("damage", "reason"), [(truncated, "digest"), (not_finite, "digest")])
async def test_bytes_that_changed_in_the_store_are_quarantined(
    replica: Replica, tiny_model_dir: Path, damage: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.state(V1, "LOADED")
    data = blob(tiny_model_dir, matrix(2))
    create = type(replica.store.backend).create
    with monkeypatch.context() as patch:
        patch.setattr(
            type(replica.store.backend),
            "create",
            lambda self, key, content: create(self, key, damage(content) if content == data else content),
        )
        publish(replica.store, data)
    refused = await replica.state(V2, "QUARANTINED")
    assert reason in refused.reason
    assert list(refused.aliases) == ["default"]
    assert await replica.served_version() == V1
    error = await refusal(replica.generate("hello", "tone@2"))
    assert isinstance(error, PreconditionFailed)
    assert "quarantined" in error.message
    assert await replica.metric("version_load_failures_total", reason="damaged") == 1
    assert await replica.metric("versions_quarantined") == 1
    assert await replica.metric("aliases_behind") == 1


async def test_a_hostile_blob_under_its_own_digest_is_quarantined(
    replica: Replica, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher that skips all checks, and a digest that is right: only the replica's own checks are left."""
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.state(V1, "LOADED")
    good = blob(tiny_model_dir, matrix(2))
    hostile = not_finite(good)
    with pytest.raises(DamagedBlob):
        publish(replica.store, hostile)
    with monkeypatch.context() as patch:
        unchecked = dataclasses.replace(blob_module.decode_blob(good), digest=digest_of(hostile))
        patch.setattr(blob_module, "decode_blob", lambda data: unchecked)
        publish(replica.store, hostile)
    refused = await replica.state(V2, "QUARANTINED")
    assert "finite" in refused.reason
    assert await replica.served_version() == V1


async def test_a_prompt_for_another_model_is_refused_naming_both(
    replica: Replica, tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = save_tiny_llama(tmp_path / "other", seed=1)
    publish(replica.store, blob(other, matrix(1)))
    refused = await replica.state(V1, "QUARANTINED")
    assert inspect(other).fingerprint in refused.reason
    assert inspect(tiny_model_dir).fingerprint in refused.reason
    error = await refusal(replica.generate("hello", "tone"))
    assert isinstance(error, PreconditionFailed)
    assert inspect(other).fingerprint in error.message
    assert await replica.metric("version_load_failures_total", reason="base_model") == 1
    assert await replica.metric("aliases_behind") == 0  # several models may share one store


async def test_a_prompt_of_the_wrong_width_is_refused(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1, hidden_size=48)))
    assert "hidden size 48" in (await replica.state(V1, "QUARANTINED")).reason
    assert (await replica.generate()).end.output_tokens > 0


async def test_a_prompt_that_overflows_the_models_numbers_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    async with running_replica(tiny_model_dir, tmp_path, dtype="bfloat16") as replica:
        publish(replica.store, blob(tiny_model_dir, torch.full((4, 64), 3.4e38)))
        assert "overflows" in (await replica.state(V1, "QUARANTINED")).reason
        assert await replica.metric("version_load_failures_total", reason="not_finite") == 1


def golden(model_dir: Path, top: list[tuple[int, float]], ids: tuple[int, ...]) -> tuple[GoldenRecord, ...]:
    tokens, logprobs = zip(*top, strict=True)
    return (GoldenRecord(text="hello", input_ids=ids, top_token_ids=tokens, top_logprobs=logprobs, dtype="float32"),)


async def test_the_golden_record_decides(replica: Replica, tiny_model_dir: Path) -> None:
    ids = (20, 21, 22)
    request = stream_request(max_new_tokens=1, num_logprobs=5, temperature=0)
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    request.input.prompt = "tone"
    request.input.token_ids.ids.extend(ids)
    parts = [part async for part in replica.stub.GenerateStream(request)]
    top = [
        (item.token_id, item.logprob)
        for part in parts
        for logprob in part.delta.logprobs
        for item in logprob.alternatives
    ]
    assert len(top) == 5
    publish(replica.store, blob(tiny_model_dir, matrix(1), golden=golden(tiny_model_dir, top, ids)))
    await replica.state(V2, "LOADED")
    publish(replica.store, blob(tiny_model_dir, matrix(2), golden=golden(tiny_model_dir, top, ids)))
    refused = await replica.state(V3, "QUARANTINED")
    assert "golden record disagrees" in refused.reason
    assert f"trained: {', '.join(f'{token} {logprob:.4f}' for token, logprob in top)}; here: " in refused.reason
    assert await replica.served_version() == V2


async def test_a_blob_that_is_not_there_yet_is_tried_again(replica: Replica, tiny_model_dir: Path) -> None:
    publish(replica.store, blob(tiny_model_dir, matrix(1)))
    await replica.state(V1, "LOADED")
    data = blob(tiny_model_dir, matrix(2))
    blobs = replica.store_dir / "blobs"
    hidden = replica.store_dir / "hidden"
    # The log entry arrives before the blob, as on a mirror that copies files in no particular order.
    real = replica.store.backend.create
    replica.store.backend.create = lambda key, content: real(key.replace("blobs/", "hidden/", 1), content)  # type: ignore[method-assign, assignment]
    try:
        record = publish(replica.store, data)
    finally:
        del replica.store.backend.create

    async def failing() -> bool:
        return await replica.metric("version_load_failures_total", reason="unavailable") > 0

    await until(failing)
    assert await replica.served_version() == V1
    target = replica.store_dir / blob_key(record.digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    (hidden / target.relative_to(blobs)).rename(target)
    await replica.state(V2, "LOADED")
    assert await replica.served_version() == V2
