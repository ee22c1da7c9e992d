"""In pods and what they refer to: schemas, references, volumes, settings, probes, security, lifecycle."""

from __future__ import annotations

from tests.k8s.faults.seeding import Faults, cluster, drop, env, head, remove, worker

FAULTS: Faults = {
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
    "a Service that selects no pod": (
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
        lambda m: m.get("Deployment", "trainer")["spec"]["selector"].update(
            matchLabels={"app.kubernetes.io/name": "trainers"}
        ),
    ),
    "a claim deleted that Ray workers mount": (
        "gpu-s3",
        "references",
        lambda m: remove(m, "PersistentVolumeClaim", "models"),
    ),
    "a Secret's key misspelt": (
        "ha",
        "references",
        lambda m: next(e for e in m.pod("trainer").main["env"] if e["name"].endswith("DATABASE_URL"))["valueFrom"][
            "secretKeyRef"
        ].update(key="uri"),
    ),
    "no token Secret, since Ray's authentication is off": (
        "gpu",
        "references",
        lambda m: cluster(m)["spec"].pop("authOptions"),
    ),
    "a certificate that nothing issues": ("ha", "references", lambda m: remove(m, "Issuer", "softprompt-ca")),
    "a disruption budget for no pod": (
        "gpu",
        "references",
        lambda m: m.get("PodDisruptionBudget", "inference")["spec"]["selector"].update(matchLabels={"app": "x"}),
    ),
    "a mount without a volume": ("local-cpu", "volumes", lambda m: drop(m.pod("trainer").spec["volumes"], name="shm")),
    "a read-only prompt store": (
        "local-cpu",
        "volumes",
        lambda m: next(x for x in m.pod("trainer").main["volumeMounts"] if x["name"] == "prompts").update(
            readOnly=True
        ),
    ),
    "the store at another path": (
        "local-cpu",
        "volumes",
        lambda m: env(m, "inference").update(SOFTPROMPT_INFERENCE_STORE_URL="/store"),
    ),
    "one node's claim on many nodes": (
        "gpu",
        "volumes",
        lambda m: m.get("PersistentVolumeClaim", "models")["spec"].update(accessModes=["ReadWriteOnce"]),
    ),
    "pods with one node's claim are let apart": (
        "local-cpu",
        "volumes",
        lambda m: m.pod("inference").spec.pop("affinity"),
    ),
    "two trainers over one node's claim": (
        "ha",
        "volumes",
        lambda m: m.get("PersistentVolumeClaim", "trainer-data")["spec"].update(accessModes=["ReadWriteOnce"]),
    ),
    "a certificate mounted as a file that never changes": (
        "ha",
        "volumes",
        lambda m: next(x for x in m.pod("trainer").main["volumeMounts"] if x["name"] == "tls").update(
            subPath="tls.crt"
        ),
    ),
    "scratch space without a bound": (
        "local-cpu",
        "volumes",
        lambda m: next(v for v in m.pod("inference").spec["volumes"] if v["name"] == "tmp").update(emptyDir={}),
    ),
    "a setting misspelt": (
        "local-cpu",
        "settings",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_GRACE_SECOND="60"),
    ),
    "a setting out of range": (
        "local-cpu",
        "settings",
        lambda m: env(m, "inference").update(SOFTPROMPT_INFERENCE_MAX_RUNNING="0"),
    ),
    "a setting of the other service": (
        "local-cpu",
        "settings",
        lambda m: env(m, "inference").update(SOFTPROMPT_TRAINER_DEVICE="cpu"),
    ),
    "a port that isn't the container's": (
        "local-cpu",
        "settings",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_PORT="50050"),
    ),
    "a service on loopback": (
        "local-cpu",
        "settings",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_HOST="127.0.0.1"),
    ),
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
    "a plaintext probe on the TLS port": (
        "ha",
        "probes",
        lambda m: m.pod("inference").main["livenessProbe"]["grpc"].update(port=50052),
    ),
    "a minute to load a model": (
        "local-cpu",
        "probes",
        lambda m: m.pod("inference").main["startupProbe"].update(failureThreshold=12),
    ),
    "a Ray pod without a probe": (
        "gpu",
        "probes",
        lambda m: worker(m)["template"]["spec"]["containers"][0].pop("livenessProbe"),
    ),
    "a probe of the dashboard that isn't there": (
        "gpu",
        "probes",
        lambda m: head(m)["template"]["spec"]["containers"][0]["livenessProbe"].update(tcpSocket={"port": "dashboard"}),
    ),
    "a root user": ("local-cpu", "security", lambda m: m.pod("trainer").spec["securityContext"].pop("runAsNonRoot")),
    "capabilities kept": (
        "local-cpu",
        "security",
        lambda m: m.pod("inference").main["securityContext"].pop("capabilities"),
    ),
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
    "an image by the name latest": (
        "local-cpu",
        "security",
        lambda m: m.pod("trainer").main.update(image="softprompt-trainer:latest"),
    ),
    "a folder of the node": (
        "gpu",
        "security",
        lambda m: worker(m)["template"]["spec"]["volumes"][0].update(
            persistentVolumeClaim=None, hostPath={"path": "/models"}
        ),
    ),
    "an account's token in a pod": (
        "local-cpu",
        "security",
        lambda m: m.pod("inference").spec.update(automountServiceAccountToken=True),
    ),
    "a namespace that allows everything": (
        "local-cpu",
        "security",
        lambda m: m.get("Namespace", "softprompt")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "privileged"}
        ),
    ),
    "killed in the middle of draining": (
        "local-cpu",
        "lifecycle",
        lambda m: m.pod("inference").spec.update(terminationGracePeriodSeconds=120),
    ),
    "a grace time raised alone": (
        "local-cpu",
        "lifecycle",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_GRACE_SECONDS="300"),
    ),
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
}
