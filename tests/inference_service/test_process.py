"""The real process: errors name bad settings, SIGTERM drains, and after a kill the next process starts normally."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prompttuning.v1 import generation_pb2, generation_pb2_grpc

from shared.process.service import EXIT_CONFIG
from shared.store import open_store
from shared.store.replicas import ReplicaDirectory
from tests.control_groups import control_group
from tests.forks import Ended, Forks
from tests.inference_service.replica import blob, matrix, publish, stream_request
from tests.waiting import until

Start = Callable[[dict[str, str]], Ended]


def environment(model_dir: Path, directory: Path, **settings: str) -> dict[str, str]:
    chosen = {
        "BASE_MODEL": str(model_dir),
        "STORE_URL": str(directory / "store"),
        "READY_FILE": str(directory / "ready.json"),
        "DTYPE": "float32",
        "LOG_FORMAT": "json",
        **settings,
    }
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **{f"SOFTPROMPT_INFERENCE_{name}": value for name, value in chosen.items()},
    }


@asynccontextmanager
async def process(env: dict[str, str], *before: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`before`: a command that ends by executing its arguments."""
    started = await asyncio.create_subprocess_exec(
        *before, sys.executable, "-m", "inference_service", env=env, stderr=asyncio.subprocess.PIPE, limit=1 << 24
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


def is_ready(running: asyncio.subprocess.Process, ready_file: Path) -> bool:
    assert running.returncode is None, "the process ended before it was ready"
    return ready_file.exists()


async def test_sigterm_lets_a_running_stream_finish(tiny_model_dir: Path, tmp_path: Path) -> None:
    env = environment(tiny_model_dir, tmp_path, GRACE_SECONDS="600")
    store = open_store(str(tmp_path / "store"))
    publish(store, blob(tiny_model_dir, matrix(1)))
    ready_file = tmp_path / "ready.json"
    async with process(env) as running:
        await until(lambda: is_ready(running, ready_file))
        ready = json.loads(ready_file.read_text())
        assert ready["pid"] == running.pid
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ready['port']}") as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            directory = ReplicaDirectory(store.backend)
            await until(directory.list)
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
            stream = stub.GenerateStream(stream_request("hello", "tone", max_new_tokens=450, ignore_eos=True))
            assert (await stream.read()).start.version == "prompts/tone/versions/1"
            running.send_signal(signal.SIGTERM)
            last = None
            while (part := await stream.read()) is not grpc.aio.EOF:
                last = part
            assert last is not None
            assert last.end.finish_reason == generation_pb2.FINISH_REASON_LENGTH
            assert last.end.output_tokens == 450
        _, errors = await running.communicate()
        assert running.returncode == 0
        lines = [json.loads(line) for line in errors.decode().splitlines()]
        messages = [line["message"] for line in lines]
        assert [
            message
            for message in messages
            if message in ("listening", "model loaded", "version loaded", "serving", "drained")
        ] == [
            "listening",
            "model loaded",
            "version loaded",
            "serving",
            "drained",
        ]
        assert any(line["message"] == "generated" and line.get("request_id") for line in lines)
        assert directory.list() == []


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks(
        "inference_service.__main__", "inference_service.server", "transformers.models.llama.modeling_llama"
    ) as made:
        yield made


@pytest.fixture
def start(forks: Forks, tmp_path: Path) -> Start:
    """Starts a service that can't serve, and waits for its end."""
    code = "import inference_service.__main__, sys; sys.exit(inference_service.__main__.main())"
    return lambda env: forks.run(code, tmp_path / "output.txt", environment=env)


def test_bad_settings_stop_the_start_by_name(start: Start, tiny_model_dir: Path, tmp_path: Path) -> None:
    ended = start(environment(tiny_model_dir, tmp_path, DTYPE="int4", MAX_RUNNING="0", COLOUR="red"))
    assert ended.code == EXIT_CONFIG
    for variable in ("DTYPE", "MAX_RUNNING", "COLOUR"):
        assert f"SOFTPROMPT_INFERENCE_{variable}" in ended.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_names_the_setting_and_the_models_file(
    start: Start, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ended = start(environment(tiny_model_dir, tmp_path, DEVICE="cuda"))
    assert ended.code == EXIT_CONFIG
    assert "SOFTPROMPT_INFERENCE_DEVICE (or replicas.num_gpus of the models file" in ended.output
    assert "torch sees no GPU" in ended.output


@pytest.mark.parametrize("setting", ["PORT", "METRICS_PORT", "HEALTH_PORT"])
def test_a_taken_port_is_one_sentence(start: Start, tiny_model_dir: Path, tmp_path: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        ended = start(environment(tiny_model_dir, tmp_path, **{setting: number, "LOG_FORMAT": "console"}))
    lines = [line for line in ended.output.splitlines() if "plaintext, on loopback" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"error: cannot listen on 127.0.0.1:{number}")
    assert "another program uses this port" in lines[0]
    assert ended.code == 1


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("HOST", "no-such-host.invalid", "'no-such-host.invalid' is not an address of this machine"),
        ("STORE_URL", __file__, "is a file; a directory is expected"),
        ("BASE_MODEL", "pickled", "SOFTPROMPT_INFERENCE_BASE_MODEL: base model 'pickled'"),
        ("BASE_MODEL", "cut", "model.safetensors: it is cut short: 9000 of "),
    ],
)
def test_what_keeps_the_service_from_starting_is_one_sentence(
    start: Start, tiny_model_dir: Path, tmp_path: Path, setting: str, value: str, words: str
) -> None:
    for name in ("pickled", "cut"):
        shutil.copytree(tiny_model_dir, tmp_path / name)
    weights = tmp_path / "pickled" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:9000])
    value = str(tmp_path / value) if setting == "BASE_MODEL" else value
    ended = start(environment(tiny_model_dir, tmp_path, PLAINTEXT="true", LOG_FORMAT="console", **{setting: value}))
    lines = ended.output.splitlines()
    assert ended.code in (1, EXIT_CONFIG)
    assert lines[-1].startswith("error: ")
    assert words in lines[-1]
    assert not any(line.startswith(("Traceback", "E")) for line in lines), ended.output
    assert len(lines) < 8


def test_a_model_that_is_not_there_ends_the_start_with_its_name(start: Start, tmp_path: Path) -> None:
    ended = start(environment(tmp_path / "no-such-model", tmp_path))
    assert ended.code == EXIT_CONFIG
    assert "no-such-model" in ended.output
    assert "Traceback" not in ended.output


JOIN = 'for file in {}; do echo $$ > "$file"; done; exec "$@"'


@pytest.mark.parametrize(
    ("settings", "threads"), [({}, 1), ({"NUM_THREADS": "2"}, 2)], ids=["by the quota", "by the setting"]
)
async def test_in_a_container_with_a_quota_of_one_processor(
    tiny_model_dir: Path, tmp_path: Path, settings: dict[str, str], threads: int
) -> None:
    env = environment(tiny_model_dir, tmp_path, **settings)
    del env["OMP_NUM_THREADS"]
    with control_group(quota="100000", memory_bytes=8 << 30) as joined:
        join = JOIN.format(" ".join(map(str, joined)))
        async with process(env, "/bin/sh", "-c", join, "sh") as running:
            assert running.stderr is not None
            while (line := json.loads(await running.stderr.readline()))["message"] != "model loaded":
                pass
            assert line["num_threads"] == threads
            running.send_signal(signal.SIGTERM)
            await running.communicate()
            assert running.returncode == 0
