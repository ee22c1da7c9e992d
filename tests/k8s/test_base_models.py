"""`softprompt models manifests`: what it makes of every overlay passes all checks, and each fault in it is caught."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.errors import InvalidInput
from shared.model.models_file import ModelsFile
from softprompt.manifests import BASE_MODEL_LABEL, of_models, query
from tests.k8s.checks import base_models, problems
from tests.k8s.manifests import Manifests, render
from tests.k8s.prometheus import program
from tests.softprompt.cli_runner import CliRunner

SOURCE = "/models/smollm2-135m-instruct"
SMALL: dict[str, Any] = {"id": "small", "source": SOURCE, "replicas": {"least": 2, "most": 4}}
LARGE: dict[str, Any] = {
    "id": "large.v1_x",
    "source": SOURCE,
    "dtype": "bfloat16",
    "workers": {
        "most": 6,
        "num_gpus": 0.5,
        "num_cpus": 2,
        "memory_bytes": 8 << 30,
        "accelerator_type": "H100",
        "ray_resources": {"nvme": 1},
        "ray_labels": {"zone": "in(a,b)", "market-type": "!spot"},
        "node_labels": {"gpu": "h100"},
    },
    "replicas": {
        "least": 0,
        "most": 3,
        "num_gpus": 1,
        "memory_bytes": 24 << 30,
        "node_labels": {"gpu": "h100"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "launch_seconds": 1801,
    },
}
ON_CPU: dict[str, Any] = {
    "id": "on-cpu",
    "source": SOURCE,
    "weights": "q8_0",
    "workers": {"num_gpus": 0, "num_cpus": 3},
    "replicas": {"least": 2, "num_gpus": 0, "num_cpus": 2},
}


def made(overlay: str, directory: Path, *models: dict[str, Any]) -> Manifests:
    path = directory / "models.json"
    path.write_text(json.dumps({"models": models}))
    return Manifests(of_models(render(overlay).objects, ModelsFile(path).entries, path.read_text()))


@pytest.mark.parametrize(
    ("overlay", "models"),
    [
        ("local-cpu", [{"id": "only", "source": SOURCE, "replicas": {"num_cpus": 2}}]),
        ("gpu", [{**SMALL, "replicas": {"least": 2, "most": 2, "num_gpus": 1}}]),
        ("gpu-s3", [SMALL, LARGE, ON_CPU]),
        ("ha", [SMALL, LARGE, ON_CPU]),
    ],
)
def test_nothing_is_wrong_with_any_model(overlay: str, models: list[dict[str, Any]], tmp_path: Path) -> None:
    manifests = made(overlay, tmp_path, *models)
    assert list(base_models.check(manifests)) == []
    assert manifests.find("Deployment", "inference") is None
    for model in models:
        assert problems(base_models.of_one_model(manifests, model["id"])) == {}, model["id"]


def test_each_model_has_its_own_nodes_resources_and_limits(tmp_path: Path) -> None:
    manifests = made("ha", tmp_path, SMALL, LARGE, ON_CPU)
    small, large, on_cpu = (manifests.pod(f"inference-{name}") for name in ("small", "large-v1-x", "on-cpu"))
    assert large.main["resources"]["limits"] == {
        **small.main["resources"]["limits"],
        "memory": "24576Mi",
        "nvidia.com/gpu": "1",
    }
    assert large.spec["nodeSelector"] == {"gpu": "h100"}
    assert {"key": "spot", "operator": "Exists"} in large.spec["tolerations"]
    assert "nvidia.com/gpu" not in on_cpu.main["resources"]["limits"]
    environment = manifests.environment(on_cpu)
    assert (environment["SOFTPROMPT_INFERENCE_DEVICE"], environment["SOFTPROMPT_INFERENCE_WEIGHTS"]) == ("cpu", "q8_0")
    groups = {group["groupName"]: group for group in manifests.of("RayCluster")[0]["spec"]["workerGroupSpecs"]}
    shared = groups["large-v1-x"]
    assert (shared["maxReplicas"], shared["rayStartParams"]["num-gpus"]) == (3, "1"), "two workers on each node"
    assert "resources" not in shared, "KubeRay refuses it beside num-gpus in rayStartParams"
    assert json.loads(json.loads(shared["rayStartParams"]["resources"])) == {"nvme": 2, "accelerator_type:H100": 1}
    assert shared["labels"] == {"zone": "a"}
    assert shared["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == f"{(16 + 3) * 1024}Mi"
    assert groups["on-cpu"]["rayStartParams"]["num-gpus"] == "0"
    with_less = made("ha", tmp_path, {**SMALL, "replicas": {"least": 3, "most": 3}}, LARGE)
    volumes = [found.pod("router").spec["volumes"][-1] for found in (manifests, with_less)]
    assert volumes[0] != volumes[1], "the readers of another file start anew"
    assert manifests.pod("inference-small").template == with_less.pod("inference-small").template, "replicas do not"


Fault = Callable[[Manifests], Any]


def scaled(manifests: Manifests) -> dict[str, Any]:
    return manifests.get("ScaledObject", "inference-large-v1-x")["spec"]


def trigger(manifests: Manifests) -> dict[str, Any]:
    found: dict[str, Any] = scaled(manifests)["triggers"][0]["metadata"]
    return found


def group(manifests: Manifests) -> dict[str, Any]:
    found: dict[str, Any] = manifests.of("RayCluster")[0]["spec"]["workerGroupSpecs"][1]
    return found


def set_environment(manifests: Manifests, name: str, variable: str, value: str) -> None:
    variables = manifests.pod(f"inference-{name}").main["env"]
    next(item for item in variables if item["name"] == f"SOFTPROMPT_INFERENCE_{variable}")["value"] = value


FAULTS: dict[str, Fault] = {
    "a model that nothing serves": lambda m: m.objects.remove(m.get("Deployment", "inference-small")),
    "a replica of another model": lambda m: m.pod("inference-small").main["env"].clear(),
    "pods of all models in one Deployment": lambda m: m.get("Deployment", "inference-small")["spec"]["selector"][
        "matchLabels"
    ].pop(BASE_MODEL_LABEL),
    "replicas that are spread over the nodes of others": lambda m: (
        m.pod("inference-small")
        .spec["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"]
        .pop(BASE_MODEL_LABEL)
    ),
    "two budgets for one pod": lambda m: m.get("PodDisruptionBudget", "inference-small")["spec"]["selector"][
        "matchLabels"
    ].pop(BASE_MODEL_LABEL),
    "a replica with other numbers": lambda m: set_environment(m, "on-cpu", "WEIGHTS", "q4_0"),
    "a replica on another device": lambda m: set_environment(m, "on-cpu", "DEVICE", "auto"),
    "a replica with too few processors": lambda m: (
        m.pod("inference-on-cpu").main["resources"]["requests"].update(cpu="500m")
    ),
    "a replica without its GPU": lambda m: (
        m.pod("inference-large-v1-x").main["resources"]["limits"].pop("nvidia.com/gpu")
    ),
    "a replica on any node": lambda m: m.pod("inference-large-v1-x").spec.pop("nodeSelector"),
    "a replica that is kept off its nodes": lambda m: m.pod("inference-large-v1-x").spec.pop("tolerations"),
    "a replica with too little memory": lambda m: (
        m.pod("inference-large-v1-x").main["resources"]["limits"].update(memory="8Gi")
    ),
    "a probe that ends a slow start": lambda m: (
        m.pod("inference-large-v1-x").main["startupProbe"].update(failureThreshold=10)
    ),
    "an autoscaler of another Deployment": lambda m: scaled(m)["scaleTargetRef"].update(name="inference-small"),
    "an autoscaler that goes beyond the file": lambda m: scaled(m).update(maxReplicaCount=30),
    "a first request that starts nothing": lambda m: trigger(m).update(activationThreshold="1"),
    "a query that is empty without replicas": lambda m: trigger(m).update(
        query=trigger(m)["query"].replace(" or vector(0)", "")
    ),
    "a query that does not see the router": lambda m: trigger(m).update(
        query=trigger(m)["query"].replace("softprompt_router_waiting", "softprompt_router_in_flight")
    ),
    "a query of another model": lambda m: trigger(m).update(query=query("small", "softprompt")),
    "a trainer without the file": lambda m: m.pod("trainer").spec["volumes"].pop(),
    "a router of another file": lambda m: m.pod("router").main["env"].pop(),
    "a gateway past the router": lambda m: m.pod("gateway").main["env"].pop(),
    "Ray nodes without the GPU's type": lambda m: group(m)["rayStartParams"].pop("resources"),
    "resources that KubeRay refuses": lambda m: group(m).update(resources={"nvme": "2"}),
    "Ray nodes without the label": lambda m: group(m).pop("labels"),
    "Ray nodes with too little memory": lambda m: group(m)["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ].update(memory="4Gi"),
    "too few Ray nodes": lambda m: group(m).update(maxReplicas=2),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name: str, tmp_path: Path) -> None:
    manifests = made("gpu-s3", tmp_path, SMALL, LARGE, ON_CPU).copy()
    assert list(base_models.check(manifests)) == []
    FAULTS[name](manifests)
    assert list(base_models.check(manifests)) != []


@pytest.mark.parametrize(
    ("overlay", "models", "expected"),
    [
        ("gpu", [SMALL, ON_CPU], "needs components/router"),
        ("gpu", [{"id": "a", "source": SOURCE, "replicas": {"least": 0}}], "replicas.least of a is 0"),
        ("local-cpu", [{"id": "a", "source": SOURCE, "replicas": {"num_gpus": 1}}], "replicas.num_gpus of a"),
        ("ha", [{"id": "a.b", "source": SOURCE}, {"id": "a-b", "source": SOURCE}], "'a.b' can't be part"),
        ("ha", [{"id": "x" * 41, "source": SOURCE}], "can't be part"),
        ("ha", [{"id": "_a", "source": SOURCE}], "can't be part"),
    ],
)
def test_an_overlay_that_lacks_what_a_model_needs_is_refused(
    overlay: str, models: list[dict[str, Any]], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match=expected):
        made(overlay, tmp_path, *models)


def test_promtool_finds_the_first_waiting_request(tmp_path: Path) -> None:
    """The query is 0, not empty, without any series, and counts only its own model."""
    ours = '{namespace="softprompt",base_model="large"}'
    pods = '{namespace="softprompt",pod="p",softprompt_io_base_model="%s"}'

    def case(value: float, **series: str) -> dict[str, Any]:
        given = [{"series": name, "values": f"{values}x4"} for name, values in series.items()]
        asked = {
            "expr": query("large", "softprompt"),
            "eval_time": "1m",
            "exp_samples": [{"labels": "{}", "value": value}],
        }
        return {"interval": "15s", "input_series": given, "promql_expr_test": [asked]}

    cases = [
        case(0),
        case(1, **{f"softprompt_router_waiting{ours}": "1"}),
        case(0, **{'softprompt_router_waiting{namespace="softprompt",base_model="small"}': "5"}),
        case(
            5,
            **{
                f"softprompt_inference_requests_running{pods % 'large'}": "2",
                f"softprompt_inference_requests_waiting{pods % 'large'}": "3",
                f"softprompt_inference_requests_running{pods % 'small'}": "9",
            },
        ),
    ]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": cases}))
    done = subprocess.run(
        [program("promtool"), "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_prints_what_kubectl_takes_and_names_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = CliRunner(monkeypatch, capsys)
    odd = [
        {**SMALL, "id": id} for id in ("1e5", "1.5e3", "y", "012", "on")
    ]  # no texts for Kubernetes, if they are not quoted
    (tmp_path / "models.json").write_text(json.dumps({"models": [SMALL, LARGE, *odd]}))
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump_all(render("ha").objects))
    command = ["models", "manifests", "--file", str(tmp_path / "models.json")]
    printed = run(*command, str(tmp_path / "overlay.yaml"))
    assert list(base_models.check(Manifests(list(yaml.safe_load_all(printed.out))))) == []
    ids = set(re.findall(rf"{BASE_MODEL_LABEL}: (.*)", printed.out))
    assert ids == {"small", "large.v1_x", '"1e5"', '"1.5e3"', '"y"', '"012"', "'on'"}
    for content, expected in (
        ("a: [", "can't be read as YAML"),
        ("- a", "must consist of Kubernetes objects"),
        ("", "no"),
    ):
        (tmp_path / "overlay.yaml").write_text(content)
        refused = run(*command, str(tmp_path / "overlay.yaml"))
        assert (refused.code, "overlay" in refused.err, expected in refused.err) == (2, True, True)
