"""The directory that a store gives: a thousand prompts, split aliases, records that come, go and collide."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from shared.model import base_model
from shared.prompt.blob import encode_blob
from shared.prompt.manifest import Manifest, utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import AliasTarget, open_store
from shared.store.layout import replica_key
from shared.store.replicas import ReplicaDirectory, ReplicaRecord
from shared.text.template import Template
from softprompt.routing.directory import Replica
from softprompt.routing.store import StoreDirectory
from tests.inference_service.replica import matrix
from tests.waiting import until

NUM_PROMPTS = 1000


def record(id: str, started_at: str, address: str = "10.0.0.1:50052") -> ReplicaRecord:
    return ReplicaRecord(id=id, base_model="m", base_model_fingerprint="f", address=address, started_at=started_at)


async def test_a_thousand_prompts_and_records_of_all_kinds(tiny_model_dir: Path) -> None:
    store = open_store("memory://")
    info, prefix = base_model.inspect(tiny_model_dir), SoftPrompt(matrix(1))
    for number in range(NUM_PROMPTS):
        name = f"prompt-{number}"
        manifest = Manifest(
            prompt=name,
            base_model=replace(info, fingerprint=f"sha256:{number % 10:064}"),
            template=Template(text="{input}"),
            kind=prefix.kind,
            num_virtual_tokens=prefix.num_virtual_tokens,
            hidden_size=info.hidden_size,
            golden=(),
            created_at=utc_now(),
        )
        store.publish(name, encode_blob(prefix, manifest), job=f"job-{number}")
    records = ReplicaDirectory(store.backend)
    records.put(record("old", "2026-01-01T00:00:00Z"))
    records.put(record("new", "2026-01-02T00:00:00Z"))  # at the same address
    records.put(record("older-build", "2026-01-01T00:00:00Z", address=""))
    liar = record("liar", "2026-01-03T00:00:00Z").model_dump_json().replace('"waiting":0', f'"waiting":1{"0" * 400}')
    store.backend.put(replica_key("liar"), liar.encode())  # no number that a choice could compute with
    directory = StoreDirectory(store, poll_seconds=0.01)
    running = asyncio.create_task(directory.run())
    try:
        await until(lambda: directory.revision == NUM_PROMPTS and bool(directory.replicas))
        assert directory.replicas == (Replica("new", "10.0.0.1:50052", "m", "f"),)
        for number in range(NUM_PROMPTS):
            target = directory.resolve(f"prompt-{number}", "")
            assert target is not None
            assert target.version == f"prompts/prompt-{number}/versions/1"
            assert target.fingerprint == f"sha256:{number % 10:064}"
        for unknown in ("", "prompt-1@canary", "prompt-1@2", "nothing", "NO!", "x" * 5000, "a@b@c", "prompt-1@0"):
            assert directory.resolve(unknown, "") is None
            assert not directory.is_split(unknown)
        assert not directory.is_split("prompt-1")
        manifest = manifest.model_copy(update={"prompt": "prompt-1"})
        store.publish("prompt-1", encode_blob(prefix, manifest), job="second")
        store.set_alias("prompt-1", "split", [AliasTarget(1, 50), AliasTarget(2, 50)])
        await directory.catch_up()
        assert directory.is_split("prompt-1@split")
        versions = {directory.resolve("prompt-1@split", str(key)) for key in range(64)}
        assert len(versions) == 2
        records.remove("new")
        await until(lambda: [replica.id for replica in directory.replicas] == ["old"])
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
