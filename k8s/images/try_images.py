"""Run the built images with the manifests' restrictions: `python k8s/images/try_images.py --model DIRECTORY`.

Both containers get a read-only root, no capabilities, no new privileges and an unprivileged user. The trainer tunes a
prompt, and the inference service streams an answer with it. Then both get SIGTERM, the inference service during a
stream, which must still reach its end. Needs podman with runc, the images of build.sh, and root. Prints its findings
and exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import softprompt

VERSION = version("softprompt")
UID = 10001
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
EXAMPLES = Path(__file__).parents[2] / "examples" / "product-descriptions" / "train.jsonl"
INPUT = "name: Aria 5 | category: earbuds | battery: 30 h | price: $79"
HARDENED = [
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", f"--user={UID}:{UID}", "--network=host"),
    *("--runtime=runc", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"),  # podman's defaults may be forbidden
    *("--tmpfs=/tmp:rw,size=1g,mode=1777", "--shm-size=512m"),
]


def say(text: str) -> None:
    """Print a line with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def podman(*arguments: str, timeout: float = 120) -> str:
    """Run podman and return its output. Exits with the output if it fails."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise SystemExit(f"podman {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def image(target: str) -> str:
    """Name of the built image."""
    return f"localhost/softprompt-{target}:{VERSION}"


def check_contents(target: str) -> None:
    """Check that the image has no build tools, no writable paths and no privileges, and that its labels are right."""
    script = (
        "id -u; command -v pip pip3 gcc cc c++ make || echo no-build-tools; "
        "python -m pip --version 2>/dev/null || echo no-pip; "
        "touch /opt/softprompt/x /etc/x 2>/dev/null || echo read-only; "
        "grep CapEff /proc/self/status; find / -xdev -name '*.safetensors' | wc -l"
    )
    seen = podman("run", "--rm", *HARDENED, image(target), "sh", "-c", script).split()
    expected = [str(UID), "no-build-tools", "no-pip", "read-only", "CapEff:", "0000000000000000", "0"]
    say(f"{target}: {' '.join(seen)}")
    if seen != expected:
        raise SystemExit(f"{image(target)} printed {seen}, expected {expected}")
    check_versions(target)
    labels = json.loads(podman("image", "inspect", image(target)))[0]["Labels"]
    prefix = "org.opencontainers.image."
    shown = {key.removeprefix(prefix): value for key, value in labels.items() if "opencontainers" in key}
    say(f"{target}: labels {shown}")


def check_versions(target: str) -> None:
    """Check installed versions against constraints.txt, except softprompt and setuptools (the Dockerfile pins it)."""
    code = (
        "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()), sep='\\n')"
    )
    installed = {
        normalised(line) for line in podman("run", "--rm", *HARDENED, image(target), "python", "-c", code).split()
    }
    pinned = {normalised(line) for line in CONSTRAINTS.read_text().split()}
    loose = {line for line in installed - pinned if not line.startswith(("setuptools==", "softprompt=="))}
    say(f"{target}: {len(installed)} distributions, not as in constraints.txt: {sorted(loose) or 'none'}")
    if loose:
        raise SystemExit(1)


def normalised(requirement: str) -> str:
    """The requirement without a local version (+cpu), with the name in a standard spelling."""
    name, _, version = requirement.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version.partition('+')[0]}"


def remove(container: str) -> None:
    """Stop and remove a container, if it exists."""
    subprocess.run(["podman", "rm", "--force", "--time=5", container], capture_output=True)


def owned_by_containers(folder: Path, *names: str) -> None:
    """Make directories that the containers' user can write."""
    folder.chmod(0o755)
    for name in names:
        (folder / name).mkdir()
        subprocess.run(["chown", f"{UID}:{UID}", folder / name], check=True)


def copied_model(model: Path, folder: Path) -> Path:
    """A copy that the containers' user can read, regardless of the original's owner."""
    copy = shutil.copytree(model, folder / "models" / model.name)
    subprocess.run(["chmod", "--recursive", "a+rX", folder / "models"], check=True)
    return copy


class Container:
    """One service in its container."""

    def __init__(self, target: str, folder: Path, model: Path, settings: dict[str, str]) -> None:
        self.target, self.ready_file = target, folder / "run" / f"{target}.json"
        prefix = f"SOFTPROMPT_{target.upper()}_"
        own = {
            "HOST": "127.0.0.1",
            "PORT": "0",
            "METRICS_PORT": "0",
            "LOG_FORMAT": "json",
            "READY_FILE": f"/run/softprompt/{target}.json",
        }
        variables = {f"{prefix}{name}": value for name, value in (own | settings).items()} | {"HF_HUB_OFFLINE": "1"}
        mounts = [
            f"{folder / name}:/{path}"
            for name, path in (("data", "data"), ("prompts", "prompts"), ("run", "run/softprompt"))
        ]
        self.name = podman(
            *(
                "run",
                "--detach",
                *HARDENED,
                f"--volume={model}:/models/{model.name}:ro",
                *(f"--volume={mount}:rw" for mount in mounts),
            ),
            *(f"--env={name}={value}" for name, value in variables.items()),
            image(target),
        )

    def endpoint(self, seconds: float = 180) -> str:
        """Wait until the service is ready."""
        deadline = time.monotonic() + seconds
        while not self.ready_file.exists():
            if time.monotonic() > deadline or podman("inspect", "--format={{.State.Running}}", self.name) != "true":
                raise SystemExit(f"{self.target} did not become ready:\n{self.log()}")
            time.sleep(0.2)
        return f"127.0.0.1:{json.loads(self.ready_file.read_text())['port']}"

    def log(self) -> str:
        """What the container has written so far."""
        done = subprocess.run(["podman", "logs", self.name], capture_output=True, text=True)
        return done.stdout + done.stderr

    def stop(self) -> None:
        """Send SIGTERM. The service must exit with code 0 and log that it drained."""
        begun = time.monotonic()
        podman("stop", "--time=90", self.name)
        code = podman("inspect", "--format={{.State.ExitCode}}", self.name)
        drained = [line for line in self.log().splitlines() if '"drained"' in line]
        seconds = time.monotonic() - begun
        result = drained[-1] if drained else "not drained"
        say(f"{self.target}: SIGTERM, ended after {seconds:.1f} s with exit code {code}; {result}")
        if code != "0" or not drained:
            raise SystemExit(self.log())

    def remove(self) -> None:
        """Remove the container, running or not."""
        remove(self.name)


def use(folder: Path, model: Path, containers: ExitStack) -> None:
    """Start both services, tune a prompt, stream an answer with it, and stop both."""
    trainer = Container(
        "trainer", folder, model, {"BASE_MODELS": f"/models/{model.name}", "DATA_DIR": "/data", "STORE_URL": "/prompts"}
    )
    containers.callback(trainer.remove)
    inference = Container("inference", folder, model, {"BASE_MODEL": f"/models/{model.name}", "STORE_URL": "/prompts"})
    containers.callback(inference.remove)
    with softprompt.Client(trainer.endpoint(), inference.endpoint()) as client:
        say("both serve; tuning")
        data = client.upload_dataset(EXAMPLES)
        few = softprompt.Hyperparameters(num_virtual_tokens=8, batch_size=4, num_steps=8, evaluation_interval_steps=8)
        job = client.tune(
            softprompt.TuningSpec(prompt="product-descriptions", dataset=data.dataset, hyperparameters=few)
        )
        assert job.result is not None, job
        say(f"trainer: {job.state.name} {job.result.version} {job.result.digest[:19]}")
        client.wait_until_served(job.result.version)
        sampling = softprompt.Sampling(temperature=0.0, max_new_tokens=24)
        text = "".join(delta.text for delta in client.stream(INPUT, prompt="product-descriptions", sampling=sampling))
        say(f"inference streamed: {text!r}")
        drain_in_mid_stream(client, inference)
    trainer.stop()


def drain_in_mid_stream(client: softprompt.Client, inference: Container) -> None:
    """Send SIGTERM after the first tokens; the stream must still end normally."""
    length, tokens = 192, 0
    sampling = softprompt.Sampling(temperature=0.0, max_new_tokens=length, min_new_tokens=length)
    stopping = threading.Thread(target=inference.stop)
    for delta in client.stream(INPUT, prompt="product-descriptions", sampling=sampling):
        tokens += len(delta.token_ids)
        if tokens and not stopping.ident:
            say(f"SIGTERM at token {tokens} of {length}")
            stopping.start()
    stopping.join()
    say(f"the stream continued to token {tokens} of {length}")
    if tokens != length:
        raise SystemExit("the stream was cut")


def main() -> None:
    """Run the checks of both images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a small base model")
    model = parser.parse_args().model.absolute()
    for target in ("inference", "trainer"):
        check_contents(target)
    with tempfile.TemporaryDirectory(prefix="softprompt-images-") as directory, ExitStack() as containers:
        folder = Path(directory)
        owned_by_containers(folder, "data", "prompts", "run")
        use(folder, copied_model(model, folder), containers)
    say("all checks passed")


if __name__ == "__main__":
    main()
