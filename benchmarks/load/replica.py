"""The replica under load: the real process, with a store in a directory and prompts published to it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.model import base_model
from shared.prompt.blob import encode_blob
from shared.prompt.manifest import Manifest, utc_now
from shared.prompt.soft_prompt import SoftPrompt
from shared.store import PromptStore, open_store
from shared.text.template import Template
from shared.values.base_model import BaseModelInfo
from softprompt.local.process import Ready, ServiceProcess

NUM_VIRTUAL = 20
START_SECONDS = 180.0
PREFIX = "SOFTPROMPT_INFERENCE_"


@dataclass(frozen=True)
class Replica:
    """`ready` contains the replica's ports and process id."""

    ready: Ready
    store: PromptStore
    process: ServiceProcess

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.ready.port}"


class Publisher:
    """Creates versions of random prompts, with the same scale as the model's embeddings."""

    def __init__(self, store: PromptStore, info: BaseModelInfo) -> None:
        self._store, self._info = store, info
        self._generator = torch.Generator().manual_seed(0)
        self._number = 0

    def publish(self, prompt: str) -> int:
        """Publishes a version, moves the prompt's default alias to it, and returns its number."""
        self._number += 1
        matrix = SoftPrompt(
            0.05 * torch.randn(NUM_VIRTUAL, self._info.hidden_size, generator=self._generator)
        )  # [virtual, hidden]
        manifest = Manifest(
            prompt=prompt,
            base_model=self._info,
            template=Template(text="{input}"),
            num_virtual_tokens=NUM_VIRTUAL,
            hidden_size=self._info.hidden_size,
            golden=(),
            created_at=utc_now(),
        )
        return self._store.publish(
            prompt, encode_blob(matrix, manifest), job=f"load-{self._number}", alias="default"
        ).version

    def forget(self, prompt: str, version: int) -> None:
        self._store.delete_version(prompt, version)


@asynccontextmanager
async def running_replica(
    model: Path, directory: Path, settings: dict[str, str]
) -> AsyncIterator[tuple[Replica, Publisher]]:
    """Serves two prompts, `one` and `two`, until the block ends, then drains the replica."""
    store = open_store(str(directory / "store"))
    publisher = Publisher(store, base_model.inspect(model))
    for prompt in ("one", "two"):
        publisher.publish(prompt)
    ready_file = directory / "ready.json"
    chosen = {
        "BASE_MODEL": str(model),
        "STORE_URL": str(directory / "store"),
        "READY_FILE": str(ready_file),
        **settings,
    }
    environment = {f"{PREFIX}{name}": value for name, value in chosen.items()}
    process = ServiceProcess("inference", "inference_service", environment, ready_file, _say)
    await process.start()
    try:
        ready = await process.ready(START_SECONDS)
        sys.stderr.write(f"the replica is ready, process {ready.pid}\n")
        yield Replica(ready, store, process), publisher
    finally:
        process.terminate()
        await process.wait(30)


def _say(name: str, line: str) -> None:
    """Prints only warnings and errors, because the log has a thousand calls per minute."""
    if any(level in line for level in ("WARNING", "ERROR")):
        sys.stderr.write(f"{name}: {line}\n")
