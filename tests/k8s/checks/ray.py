"""The RayCluster and the trainer fit together: one image, one Ray, the same models at the same place, a token, no work
on the head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.k8s.checks.security import bytes_of
from tests.k8s.manifests import Manifests, Object, Pod, ports

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
_STOP_SECONDS = 10
"""What Ray needs to end on a node that is drained."""
_LABELS = {"app.kubernetes.io/part-of": "softprompt", "softprompt.io/ray-member": "true"}


def check(manifests: Manifests) -> Iterator[str]:
    trainer = manifests.pod("trainer")
    environment = manifests.environment(trainer)
    address = environment.get("SOFTPROMPT_TRAINER_RAY_ADDRESS")
    if not manifests.of("RayCluster"):
        if address:
            yield f"the trainer wants a Ray cluster at {address}, and there is none"
        return
    for cluster in manifests.of("RayCluster"):
        head = f"{cluster['metadata']['name']}-head-svc:6379"
        if address != head:
            yield f"the trainer joins {address}, the head is {head}"
        yield from _cluster(cluster["spec"])
        yield from _head(cluster["spec"]["headGroupSpec"]["rayStartParams"])
        for group in cluster["spec"]["workerGroupSpecs"]:
            yield from (f"workers: {problem}" for problem in _handover(group["template"]["spec"], head))
            yield from (f"workers: {problem}" for problem in _workers(group, environment))
    yield from (f"trainer: {problem}" for problem in _driver(trainer, environment))
    for pod in manifests.pods:
        if pod.name.startswith("ray-"):
            yield from (f"{pod.name}: {problem}" for problem in _node(manifests, pod, trainer))


def _cluster(spec: Object) -> Iterator[str]:
    locked = re.search(r"^ray==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    if locked is None or spec["rayVersion"] != locked[1]:
        yield f"rayVersion is {spec['rayVersion']}, constraints.txt has {locked and locked[1]}"
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "Ray asks for no token"
    if not spec.get("enableInTreeAutoscaling") or spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield "no autoscaler of version 2"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        if group["template"]["spec"].get("restartPolicy") != "Never":
            yield "a container restarted in its pod would be another Ray node under the same name"
        yield from (
            f"rayStartParams.{k} is no string" for k, v in group["rayStartParams"].items() if not isinstance(v, str)
        )


def _head(params: dict[str, str]) -> Iterator[str]:
    for name in ("num-cpus", "num-gpus"):
        if params.get(name) != "0":
            yield f"the head offers {name}: training would run on it"
    if params.get("include-dashboard") != "false":
        yield "the head has a dashboard, which runs code for every caller that reaches it"


def _workers(group: Object, environment: dict[str, str]) -> Iterator[str]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    if limits.get("nvidia.com/gpu", "0") != group["rayStartParams"].get("num-gpus"):
        yield f"have {limits.get('nvidia.com/gpu')} GPUs, and announce {group['rayStartParams'].get('num-gpus')}"
    if group["minReplicas"] != 0:
        yield "hold GPUs while no job trains"
    if "SOFTPROMPT_TRAINER_MODELS_FILE" in environment:
        return  # each base model has its own numbers (`base_models`)
    if int(limits.get("nvidia.com/gpu", 0)) < int(environment.get("SOFTPROMPT_TRAINER_GPUS_PER_WORKER", "1")):
        yield "have fewer GPUs than the trainer asks for a worker"
    wanted = environment.get("SOFTPROMPT_TRAINER_MAX_WORKERS")
    if group["maxReplicas"] < int(wanted or "1"):
        yield f"are at most {group['maxReplicas']}, the trainer would start {wanted}"


def _handover(pod: Object, head: str) -> Iterator[str]:
    """A pod moves its jobs to other nodes before it ends, within its grace period."""
    hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    if hook[:3] != ["softprompt-trainer", "drain-node", f"--address={head}"]:
        yield "end with their jobs: preStop does not drain the node"
        return
    seconds = float(next((part.partition("=")[2] for part in hook if part.startswith("--seconds=")), "25"))
    if pod.get("terminationGracePeriodSeconds", 30) < seconds + _STOP_SECONDS:
        yield f"are killed while they drain for {seconds:g} s"


def _driver(pod: Pod, environment: dict[str, str]) -> Iterator[str]:
    command = " ".join([*pod.main.get("command", []), *pod.main.get("args", [])])
    for part in ("ray start --address=", "--num-cpus=0", "--num-gpus=0", "exec softprompt-trainer"):
        if part not in command:
            yield f"{part} is missing in its command"
    if environment.get("RAY_AUTH_MODE") != "token" or not any(
        item["name"] == "RAY_AUTH_TOKEN" for item in pod.main.get("env", [])
    ):
        yield "has no token for Ray"
    if environment.get("SOFTPROMPT_TRAINER_DEVICE") != "cuda":
        yield "would train on the CPU if no GPU node is up when it starts"
    if not _LABELS.items() <= pod.labels.items():
        yield "is not labelled as a member of the Ray cluster"


def _node(manifests: Manifests, pod: Pod, trainer: Pod) -> Iterator[str]:
    kind = "ray-worker" if pod.name.startswith("ray-worker-") else pod.name
    if not _LABELS.items() <= pod.labels.items() or pod.labels.get("app.kubernetes.io/name") != kind:
        yield f"has the labels {pod.labels}"
    if pod.main["image"] != trainer.main["image"]:
        yield f"runs {pod.main['image']}, the trainer {trainer.main['image']}"
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    mounts = {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in pod.main["volumeMounts"]}
    shm = mounts.get("/dev/shm", {}).get("emptyDir", {})
    if shm.get("medium") != "Memory" or bytes_of(shm.get("sizeLimit", "0")) >= bytes_of(
        pod.main["resources"]["limits"]["memory"]
    ):
        yield "has no memory volume at /dev/shm, or more than its limit"
    params = next(
        (
            group["rayStartParams"]
            for group in pod.owner["spec"]["workerGroupSpecs"]
            if pod.name == f"ray-worker-{group['groupName']}"
        ),
        pod.owner["spec"]["headGroupSpec"]["rayStartParams"],
    )
    for name in ("node-manager", "object-manager"):
        opened, declared = params.get(f"{name}-port"), ports(pod.main).get(name)
        if opened != str(declared):
            yield f"opens {opened} for its {name}, the container's port is {declared}"
    if pod.name != "ray-head":
        yield from _models(pod, trainer)


def _models(pod: Pod, trainer: Pod) -> Iterator[str]:
    def claim(of: Pod) -> str | None:
        name = next((mount["name"] for mount in of.main["volumeMounts"] if mount["mountPath"] == "/models"), None)
        volume: Object = next((volume for volume in of.spec["volumes"] if volume["name"] == name), {})
        return volume.get("persistentVolumeClaim", {}).get("claimName")

    if claim(pod) is None or claim(pod) != claim(trainer):
        yield f"has the models of {claim(pod)}, the trainer those of {claim(trainer)}"
