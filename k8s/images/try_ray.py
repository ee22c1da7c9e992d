"""Run the Ray component's commands in three restricted containers: `python k8s/images/try_ray.py --model DIRECTORY`.

Starts head, worker and trainer as in components/ray, with a token, but without a GPU and with other ports, because all
use this machine's network. The worker trains one of the trainer's jobs; then the trainer gets SIGTERM. Needs the
trainer's image, podman with runc, and root.
"""

from __future__ import annotations

import argparse
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from try_images import EXAMPLES, HARDENED, copied_model, image, owned_by_containers, podman, remove, say

import softprompt

OVERLAY = Path(__file__).parents[1] / "overlays" / "gpu"
GCS = 26379
PORTS = {"head": (26380, 26381), "worker": (26390, 26391), "trainer": (26400, 26401)}
"""Ports of node manager and object manager: different ones, because all nodes share one machine."""

DEADLINE_SECONDS = 180.0


def manifests() -> tuple[dict[str, Any], dict[str, Any]]:
    """The RayCluster's spec, and the trainer's container."""
    text = subprocess.run(
        [Path(sys.executable).parent / "kubectl", "kustomize", OVERLAY], capture_output=True, text=True, check=True
    ).stdout
    objects = [item for item in yaml.safe_load_all(text) if item]
    cluster = next(item for item in objects if item["kind"] == "RayCluster")["spec"]
    trainer = next(item for item in objects if item["kind"] == "Deployment" and item["metadata"]["name"] == "trainer")
    return cluster, trainer["spec"]["template"]["spec"]["containers"][0]


def ray_start(role: str, group: dict[str, Any], place: str) -> list[str]:
    """The command line that KubeRay builds from a group's rayStartParams."""
    node_manager, object_manager = PORTS[role]
    own = {"node-manager-port": str(node_manager), "object-manager-port": str(object_manager), "num-gpus": "0"}
    flags = [
        name if value == "true" else f"{name}={value}" for name, value in {**group["rayStartParams"], **own}.items()
    ]
    command = f"ulimit -n 4096; ray start {place} {' '.join(f'--{flag}' for flag in flags)} --block"
    return ["--entrypoint=/bin/bash", image("trainer"), "-c", command]


def wait_for(what: str, container: str, seen: Any) -> None:
    """Wait until `seen()` is true. Exits with the container's log if the container ends or time runs out."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not seen():
        if time.monotonic() > deadline or podman("inspect", "--format={{.State.Running}}", container) != "true":
            done = subprocess.run(["podman", "logs", container], capture_output=True, text=True)
            raise SystemExit(f"{what}: not seen\n{done.stdout}{done.stderr}")
        time.sleep(0.5)
    say(what)


def answers(port: int) -> bool:
    """Whether a TCP server listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def use(folder: Path, model: Path, containers: ExitStack) -> None:
    """Start the cluster and the trainer, run a job, and stop the trainer."""
    cluster, deployed = manifests()
    token = [
        "--env=RAY_AUTH_MODE=token",
        f"--env=RAY_AUTH_TOKEN={secrets.token_hex(32)}",
        "--env=RAY_worker_niceness=0",
    ]

    def start(*arguments: str) -> str:
        mounts = [f"--volume={model}:/models/{model.name}:ro"]
        name = podman("run", "--detach", *HARDENED, *token, "--env=HF_HUB_OFFLINE=1", *mounts, *arguments)
        containers.callback(remove, name)
        return name

    head = start(*ray_start("head", cluster["headGroupSpec"], f"--head --port={GCS}"))
    wait_for("the head passes its probe", head, lambda: answers(GCS))
    worker = start(*ray_start("worker", cluster["workerGroupSpecs"][0], f"--address=127.0.0.1:{GCS} --num-cpus=2"))
    wait_for("the worker passes its probe", worker, lambda: answers(PORTS["worker"][0]))

    settings = {
        "BASE_MODELS": f"/models/{model.name}",
        "DATA_DIR": "/data",
        "STORE_URL": "/prompts",
        "RAY_ADDRESS": f"127.0.0.1:{GCS}",
    }
    settings |= {
        "HOST": "127.0.0.1",
        "PORT": "0",
        "METRICS_PORT": "0",
        "DEVICE": "cpu",
        "READY_FILE": "/run/softprompt/trainer.json",
    }
    node_manager, object_manager = PORTS["trainer"]
    command = deployed["args"][0].replace("6380", str(node_manager)).replace("6381", str(object_manager))
    trainer = start(
        *(
            f"--volume={folder / name}:/{path}"
            for name, path in (("data", "data"), ("prompts", "prompts"), ("run", "run/softprompt"))
        ),
        *(f"--env=SOFTPROMPT_TRAINER_{name}={value}" for name, value in settings.items()),
        *(f"--entrypoint={json.dumps(deployed['command'])}", image("trainer"), command),
    )
    ready = folder / "run" / "trainer.json"
    wait_for("the trainer has joined the cluster and serves", trainer, ready.exists)
    with softprompt.Client(f"127.0.0.1:{json.loads(ready.read_text())['port']}") as client:
        data = client.upload_dataset(EXAMPLES)
        few = softprompt.Hyperparameters(num_virtual_tokens=8, batch_size=4, num_steps=4, evaluation_interval_steps=4)
        job = client.tune(
            softprompt.TuningSpec(prompt="product-descriptions", dataset=data.dataset, hyperparameters=few)
        )
        assert job.result is not None, job
        say(f"{job.state.name} {job.result.version} on the worker in its own container")
    begun = time.monotonic()
    podman("stop", "--time=100", trainer)
    code = podman("inspect", "--format={{.State.ExitCode}}", trainer)
    say(f"trainer: SIGTERM, ended after {time.monotonic() - begun:.1f} s with exit code {code}")
    if code != "0":
        raise SystemExit(1)


def main() -> None:
    """Run the checks of the image on a Ray cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a small base model")
    model = parser.parse_args().model.absolute()
    with tempfile.TemporaryDirectory(prefix="softprompt-ray-") as directory, ExitStack() as containers:
        folder = Path(directory)
        owned_by_containers(folder, "data", "prompts", "run")
        use(folder, copied_model(model, folder), containers)
    say("all checks passed")


if __name__ == "__main__":
    main()
