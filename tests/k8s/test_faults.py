"""The checks can fail: each of these seeded faults, of the kind that people make and that comes up half broken in a cluster, is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.checks import problems
from tests.k8s.manifests import Manifests, render

Fault = Callable[[Manifests], Any]


def drop(items: list[Any], **match: Any) -> None:
    items[:] = [item for item in items if not match.items() <= item.items()]


def env(manifests: Manifests, service: str) -> dict[str, str]:
    return manifests.get("ConfigMap", f"{service}-settings")["data"]  # type: ignore[no-any-return]


def remove(manifests: Manifests, kind: str, name: str) -> None:
    manifests.objects.remove(manifests.get(kind, name))


def policy_rule(manifests: Manifests, name: str, direction: str) -> dict[str, Any]:
    return manifests.get("NetworkPolicy", name)["spec"][direction][0]  # type: ignore[no-any-return]


def worker(manifests: Manifests) -> dict[str, Any]:
    return manifests.get("RayCluster", "softprompt-ray")["spec"]["workerGroupSpecs"][0]  # type: ignore[no-any-return]


def cluster(manifests: Manifests) -> dict[str, Any]:
    return manifests.get("RayCluster", "softprompt-ray")


def head(manifests: Manifests) -> dict[str, Any]:
    return cluster(manifests)["spec"]["headGroupSpec"]  # type: ignore[no-any-return]


FAULTS: dict[str, tuple[str, str, Fault]] = {
    # what happened: overlay, check that must catch it, the fault
    "a field misspelt": ("local-cpu", "schemas", lambda m: m.pod("trainer").main.update(imagePullPolice="Always")),
    "a number as text": ("local-cpu", "schemas", lambda m: m.get("Deployment", "trainer")["spec"].update(replicas="1")),
    "a field misspelt in a Ray pod": ("gpu", "schemas", lambda m: worker(m)["template"]["spec"].update(tolerance=[])),
    "the same object twice": ("local-cpu", "schemas", lambda m: m.objects.append(m.get("Service", "trainer"))),
    "an object of another namespace": (
        "gpu",
        "schemas",
        lambda m: cluster(m)["metadata"].update(namespace="ray"),
    ),
    "a null where a value was": ("local-cpu", "schemas", lambda m: m.pod("trainer").spec.update(securityContext=None)),
    "a ConfigMap renamed": (
        "local-cpu",
        "references",
        lambda m: m.get("ConfigMap", "trainer-settings")["metadata"].update(name="settings"),
    ),
    "a ServiceAccount forgotten": ("local-cpu", "references", lambda m: remove(m, "ServiceAccount", "inference")),
    "the Ray workers' account forgotten": ("gpu", "references", lambda m: remove(m, "ServiceAccount", "ray-worker")),
    "a Service that selects nobody": (
        "local-cpu",
        "references",
        lambda m: m.get("Service", "inference")["spec"].update(selector={"app": "inference"}),
    ),
    "a Service for a port that isn't there": (
        "local-cpu",
        "references",
        lambda m: m.get("Service", "trainer")["spec"]["ports"][0].update(targetPort=50099),
    ),
    "a Deployment that selects other pods": (
        "local-cpu",
        "references",
        lambda m: m.get("Deployment", "trainer")["spec"]["selector"].update(matchLabels={"app.kubernetes.io/name": "trainers"}),
    ),
    "a claim deleted that Ray workers mount": ("gpu-s3", "references", lambda m: remove(m, "PersistentVolumeClaim", "models")),
    "a Secret's key misspelt": (
        "ha",
        "references",
        lambda m: next(e for e in m.pod("trainer").main["env"] if e["name"].endswith("DATABASE_URL"))["valueFrom"]["secretKeyRef"].update(
            key="uri"
        ),
    ),
    "no token Secret, since Ray's authentication is off": (
        "gpu",
        "references",
        lambda m: cluster(m)["spec"].pop("authOptions"),
    ),
    "a certificate that doesn't name its Service": (
        "ha",
        "tls",
        lambda m: m.get("Certificate", "inference-tls")["spec"].update(dnsNames=["inference"]),
    ),
    "a certificate that doesn't name the end of a port-forward": (
        "ha",
        "tls",
        lambda m: m.get("Certificate", "trainer-tls")["spec"]["dnsNames"].remove("localhost"),
    ),
    "a certificate without the address that the client dials by default": (
        "ha",
        "tls",
        lambda m: m.get("Certificate", "inference-tls")["spec"].pop("ipAddresses"),
    ),
    "an authority that changes its key at renewal": (
        "ha",
        "tls",
        lambda m: m.get("Certificate", "softprompt-ca")["spec"]["privateKey"].pop("rotationPolicy"),
    ),
    "TLS without a certificate": ("ha", "tls", lambda m: remove(m, "Certificate", "inference-tls")),
    "a Gateway told to speak in the clear to TLS": (
        "ha",
        "tls",
        lambda m: m.get("Service", "inference-headless")["spec"]["ports"][0].update(appProtocol="kubernetes.io/h2c"),
    ),
    "a Gateway not told of HTTP/2": ("gpu-s3", "tls", lambda m: m.get("Service", "trainer")["spec"]["ports"][0].pop("appProtocol")),
    "a certificate nobody issues": ("ha", "references", lambda m: remove(m, "Issuer", "softprompt-ca")),
    "a budget for nobody": (
        "gpu",
        "references",
        lambda m: m.get("PodDisruptionBudget", "inference")["spec"]["selector"].update(matchLabels={"app": "x"}),
    ),
    "a mount without a volume": ("local-cpu", "volumes", lambda m: drop(m.pod("trainer").spec["volumes"], name="shm")),
    "a read-only prompt store": (
        "local-cpu",
        "volumes",
        lambda m: next(x for x in m.pod("trainer").main["volumeMounts"] if x["name"] == "prompts").update(readOnly=True),
    ),
    "the store at another path": ("local-cpu", "volumes", lambda m: env(m, "inference").update(SOFTPROMPT_INFERENCE_STORE_URL="/store")),
    "one node's claim on many nodes": (
        "gpu",
        "volumes",
        lambda m: m.get("PersistentVolumeClaim", "models")["spec"].update(accessModes=["ReadWriteOnce"]),
    ),
    "pods with one node's claim are let apart": ("local-cpu", "volumes", lambda m: m.pod("inference").spec.pop("affinity")),
    "two trainers over one node's claim": (
        "ha",
        "volumes",
        lambda m: m.get("PersistentVolumeClaim", "trainer-data")["spec"].update(accessModes=["ReadWriteOnce"]),
    ),
    "a certificate mounted as a file that never changes": (
        "ha",
        "volumes",
        lambda m: next(x for x in m.pod("trainer").main["volumeMounts"] if x["name"] == "tls").update(subPath="tls.crt"),
    ),
    "scratch space without a bound": (
        "local-cpu",
        "volumes",
        lambda m: next(v for v in m.pod("inference").spec["volumes"] if v["name"] == "tmp").update(emptyDir={}),
    ),
    "a setting misspelt": ("local-cpu", "settings", lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_GRACE_SECOND="60")),
    "a setting out of range": ("local-cpu", "settings", lambda m: env(m, "inference").update(SOFTPROMPT_INFERENCE_MAX_RUNNING="0")),
    "a setting of the other service": ("local-cpu", "settings", lambda m: env(m, "inference").update(SOFTPROMPT_TRAINER_DEVICE="cpu")),
    "a port that isn't the container's": ("local-cpu", "settings", lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_PORT="50050")),
    "a service on loopback": ("local-cpu", "settings", lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_HOST="127.0.0.1")),
    "a password in a ConfigMap": (
        "ha",
        "settings",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_DATABASE_URL="postgresql://user:password@host/database"),
    ),
    "an object store without credentials": (
        "gpu-s3",
        "settings",
        lambda m: m.pod("inference").main["envFrom"].pop(),
    ),
    "half of TLS": ("ha", "settings", lambda m: env(m, "trainer").pop("SOFTPROMPT_TRAINER_TLS_KEY_FILE")),
    "a health service that doesn't exist": (
        "local-cpu",
        "probes",
        lambda m: m.pod("trainer").main["readinessProbe"]["grpc"].update(service="readiness"),
    ),
    "restarts of what is only not ready": (
        "local-cpu",
        "probes",
        lambda m: m.pod("inference").main["livenessProbe"]["grpc"].update(service="ready"),
    ),
    "a plaintext probe on the TLS port": ("ha", "probes", lambda m: m.pod("inference").main["livenessProbe"]["grpc"].update(port=50052)),
    "a minute to load a model": ("local-cpu", "probes", lambda m: m.pod("inference").main["startupProbe"].update(failureThreshold=12)),
    "a Ray pod without a probe": ("gpu", "probes", lambda m: worker(m)["template"]["spec"]["containers"][0].pop("livenessProbe")),
    "a probe of the dashboard that isn't there": (
        "gpu",
        "probes",
        lambda m: head(m)["template"]["spec"]["containers"][0]["livenessProbe"].update(tcpSocket={"port": "dashboard"}),
    ),
    "a root user": ("local-cpu", "security", lambda m: m.pod("trainer").spec["securityContext"].pop("runAsNonRoot")),
    "capabilities kept": ("local-cpu", "security", lambda m: m.pod("inference").main["securityContext"].pop("capabilities")),
    "an init container with a writable root": (
        "local-cpu",
        "security",
        lambda m: m.pod("trainer").spec["initContainers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    "a privileged Ray worker": (
        "gpu",
        "security",
        lambda m: worker(m)["template"]["spec"]["containers"][0]["securityContext"].update(privileged=True),
    ),
    "an autoscaler without limits": (
        "gpu",
        "security",
        lambda m: cluster(m)["spec"]["autoscalerOptions"]["resources"].pop("limits"),
    ),
    "an image by the name latest": ("local-cpu", "security", lambda m: m.pod("trainer").main.update(image="softprompt-trainer:latest")),
    "a folder of the node": (
        "gpu",
        "security",
        lambda m: worker(m)["template"]["spec"]["volumes"][0].update(persistentVolumeClaim=None, hostPath={"path": "/models"}),
    ),
    "an account's token in a pod": (
        "local-cpu",
        "security",
        lambda m: m.pod("inference").spec.update(automountServiceAccountToken=True),
    ),
    "a namespace that allows everything": (
        "local-cpu",
        "security",
        lambda m: m.get("Namespace", "softprompt")["metadata"]["labels"].update({"pod-security.kubernetes.io/enforce": "privileged"}),
    ),
    "killed in the middle of draining": (
        "local-cpu",
        "lifecycle",
        lambda m: m.pod("inference").spec.update(terminationGracePeriodSeconds=120),
    ),
    "a grace time raised alone": ("local-cpu", "lifecycle", lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_GRACE_SECONDS="300")),
    "no pause before the end": ("local-cpu", "lifecycle", lambda m: m.pod("inference").main.pop("lifecycle")),
    "two trainers on SQLite during a rollout": (
        "local-cpu",
        "lifecycle",
        lambda m: m.get("Deployment", "trainer")["spec"].update(strategy={"type": "RollingUpdate"}),
    ),
    "two trainers on SQLite": ("gpu", "lifecycle", lambda m: m.get("Deployment", "trainer")["spec"].update(replicas=2)),
    "a budget that blocks every drain": (
        "gpu",
        "lifecycle",
        lambda m: m.get("PodDisruptionBudget", "inference")["spec"].update(maxUnavailable=0),
    ),
    "all replicas on one node": (
        "ha",
        "lifecycle",
        lambda m: drop(m.pod("inference").spec["topologySpreadConstraints"], topologyKey="kubernetes.io/hostname"),
    ),
    "replicas set by two": ("ha", "lifecycle", lambda m: m.get("Deployment", "inference")["spec"].update(replicas=3)),
    "training on the Ray head": ("gpu", "ray", lambda m: head(m)["rayStartParams"].pop("num-cpus")),
    "a number where Ray wants text": ("gpu", "ray", lambda m: worker(m)["rayStartParams"].update({"num-gpus": 1})),
    "a GPU that Ray doesn't know of": ("gpu", "ray", lambda m: worker(m)["rayStartParams"].update({"num-gpus": "0"})),
    "an older image on Ray's nodes": (
        "gpu",
        "ray",
        lambda m: worker(m)["template"]["spec"]["containers"][0].update(image="softprompt-trainer:0.0.9-cuda"),
    ),
    "another Ray than the image's": ("gpu", "ray", lambda m: cluster(m)["spec"].update(rayVersion="2.46.0")),
    "no models on the workers": (
        "gpu",
        "ray",
        lambda m: drop(worker(m)["template"]["spec"]["containers"][0]["volumeMounts"], name="models"),
    ),
    "workers without labels": ("gpu", "ray", lambda m: worker(m)["template"]["metadata"]["labels"].pop("softprompt.io/ray-member")),
    "the trainer joins another cluster": ("gpu", "ray", lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_RAY_ADDRESS="ray-head:6379")),
    "a driver without a token": ("gpu", "ray", lambda m: drop(m.pod("trainer").main["env"], name="RAY_AUTH_TOKEN")),
    "a driver without a raylet": ("gpu", "ray", lambda m: m.pod("trainer").main.pop("args")),
    "GPUs held while nobody trains": ("gpu", "ray", lambda m: worker(m).update(minReplicas=1)),
    "a worker of two GPUs on nodes of one": ("gpu", "ray", lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_GPUS_PER_WORKER="2")),
    "Ray nodes restarted within their pods": ("gpu", "ray", lambda m: worker(m)["template"]["spec"].pop("restartPolicy")),
    "a dashboard that runs anybody's code": ("gpu", "ray", lambda m: head(m)["rayStartParams"].pop("include-dashboard")),
    "shared memory on disk": (
        "gpu",
        "ray",
        lambda m: next(v for v in worker(m)["template"]["spec"]["volumes"] if v["name"] == "shm")["emptyDir"].pop("medium"),
    ),
    "no names are resolved": ("gpu", "network", lambda m: remove(m, "NetworkPolicy", "dns")),
    "workers cut off from the head": ("gpu", "network", lambda m: remove(m, "NetworkPolicy", "ray-members")),
    "open to everybody": ("gpu", "network", lambda m: policy_rule(m, "trainer-calls", "ingress").pop("from")),
    "Prometheus shut out": ("gpu", "network", lambda m: m.get("NetworkPolicy", "inference-calls")["spec"]["ingress"].pop(1)),
    "nothing denied by default": ("gpu", "network", lambda m: remove(m, "NetworkPolicy", "default-deny")),
    "the object store out of reach": (
        "gpu-s3",
        "network",
        lambda m: [m.pod(name).labels.pop("softprompt.io/reaches-https") for name in ("trainer", "inference")],
    ),
    "the database out of reach": ("ha", "network", lambda m: m.pod("trainer").labels.pop("softprompt.io/reaches-postgres")),
    "traces that can't leave": ("ha", "network", lambda m: m.pod("inference").labels.pop("softprompt.io/reaches-otlp")),
    "traces that can't leave Ray's workers": (
        "ha",
        "network",
        lambda m: worker(m)["template"]["metadata"]["labels"].pop("softprompt.io/reaches-otlp"),
    ),
    "a collector in another namespace": (
        "ha",
        "network",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_OTLP_ENDPOINT="http://collector.observability.svc:4318/v1/traces"),
    ),
    "a way to the collector for those who have no traces": (
        "gpu",
        "network",
        lambda m: m.pod("inference").labels.update({"softprompt.io/reaches-otlp": "true"}),
    ),
    "an issuer of tokens out of reach": (
        "gpu",
        "network",
        lambda m: (
            env(m, "trainer").update(SOFTPROMPT_TRAINER_OIDC_JWKS_URL="https://login.example.com/keys"),
            m.pod("trainer").labels.pop("softprompt.io/reaches-https"),
            m.pod("trainer").spec.pop("initContainers"),
        ),
    ),
    "an issuer of tokens on a port that is shut": (
        "gpu-s3",
        "network",
        lambda m: env(m, "inference").update(SOFTPROMPT_INFERENCE_OIDC_JWKS_URL="https://login.example.com:8443/keys"),
    ),
    "an object store on a port that is shut": (
        "gpu-s3",
        "network",
        lambda m: env(m, "inference").update(AWS_ENDPOINT="https://minio.example.com:9000"),
    ),
    "an object store inside the cluster, by a rule for what is outside": (
        "gpu-s3",
        "network",
        lambda m: env(m, "trainer").update(AWS_ENDPOINT="https://minio.storage.svc"),
    ),
    "the cloud's metadata within reach": (
        "gpu-s3",
        "network",
        lambda m: policy_rule(m, "https", "egress")["to"][0]["ipBlock"].pop("except"),
    ),
    "Ray's ports for everybody in the namespace": (
        "gpu",
        "network",
        lambda m: policy_rule(m, "ray-members", "ingress")["from"][0].update(podSelector={}),
    ),
    "a route to a service that doesn't exist": (
        "gpu-s3",
        "routes",
        lambda m: m.get("GRPCRoute", "inference")["spec"]["rules"][0]["matches"][0]["method"].update(
            service="prompttuning.v1.InferenceService"
        ),
    ),
    "a route to the wrong backend": (
        "gpu-s3",
        "routes",
        lambda m: m.get("GRPCRoute", "trainer")["spec"]["rules"][0]["backendRefs"][0].update(name="inference", port=50052),
    ),
    "a route to a service that lets everybody do everything": (
        "gpu-s3",
        "routes",
        lambda m: env(m, "inference").pop("SOFTPROMPT_INFERENCE_CALLERS_FILE"),
    ),
    "a callers file that may be missing": (
        "gpu-s3",
        "routes",
        lambda m: next(v for v in m.pod("trainer").spec["volumes"] if v["name"] == "callers")["secret"].update(optional=True),
    ),
    "a callers file by another name than the Secret's key": (
        "gpu-s3",
        "routes",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_CALLERS_FILE="/callers/callers.yaml"),
    ),
    "scaling a Deployment that isn't there": (
        "ha",
        "monitoring",
        lambda m: m.get("ScaledObject", "inference")["spec"]["scaleTargetRef"].update(name="generation"),
    ),
    "scaling by a metric that nobody exports": (
        "ha",
        "monitoring",
        lambda m: m.get("ScaledObject", "inference")["spec"]["triggers"][0]["metadata"].update(query="sum(requests_in_flight)"),
    ),
    "a pod scraped twice": (
        "gpu",
        "monitoring",
        lambda m: m.get("Service", "inference-headless")["spec"]["ports"].append(
            {"name": "metrics", "port": 9092, "targetPort": "metrics"}
        ),
    ),
    "an alert about a metric that nobody exports": (
        "gpu",
        "monitoring",
        lambda m: m.get("PrometheusRule", "softprompt")["spec"]["groups"][1]["rules"][0].update(expr="grpc_server_errors_total > 0"),
    ),
    "dashboards that Grafana doesn't find": (
        "gpu",
        "monitoring",
        lambda m: m.get("ConfigMap", "softprompt-dashboards")["metadata"].pop("labels"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_caught(name: str) -> None:
    overlay, check, fault = FAULTS[name]
    manifests = render(overlay)
    fault(manifests)
    assert check in problems(manifests)
