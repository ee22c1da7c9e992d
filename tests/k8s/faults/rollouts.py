"""In rollouts of pods with GPUs, and in how base models come to the pods."""

from __future__ import annotations

from tests.k8s.faults.seeding import Faults, download, env, models, models_mount, remove, rolling, wait, worker

FAULTS: Faults = {
    "a rollout that needs a spare GPU": (
        "gpu",
        "lifecycle",
        lambda m: rolling(m).update(maxSurge=1, maxUnavailable=0),
    ),
    "a rollout that takes all GPU replicas at once": (
        "gpu",
        "lifecycle",
        lambda m: rolling(m).update(maxUnavailable=2),
    ),
    "a rollout that surges by a part of the replicas": (
        "ha",
        "lifecycle",
        lambda m: rolling(m).update(maxSurge="25%"),
    ),
    "one GPU replica that a rollout takes away": (
        "gpu",
        "lifecycle",
        lambda m: m.get("Deployment", "inference")["spec"].update(replicas=1),
    ),
    "one GPU replica at the least load": (
        "ha",
        "lifecycle",
        lambda m: m.get("ScaledObject", "inference")["spec"].update(minReplicaCount=1),
    ),
    "a rollout on CPUs that takes a replica first": (
        "local-cpu",
        "lifecycle",
        lambda m: rolling(m).update(maxSurge=0, maxUnavailable=1),
    ),
    "a trainer that asks for a GPU and rolls with a spare one": (
        "ha",
        "lifecycle",
        lambda m: m.pod("trainer").main["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
    ),
    "models in an emptyDir": (
        "local-cpu",
        "models",
        lambda m: (
            m.pod("inference").spec["volumes"].__setitem__(1, {"name": "models", "emptyDir": {"sizeLimit": "1Gi"}})
        ),
    ),
    "the hub's files in an emptyDir": (
        "gpu",
        "models",
        lambda m: download(m)["env"].remove({"name": "HF_HOME", "value": "/models/.huggingface"}),
    ),
    "models downloaded beside the claim": (
        "gpu",
        "models",
        lambda m: download(m)["env"][0].update(value="/tmp/models"),
    ),
    "models that a service may write": (
        "gpu",
        "models",
        lambda m: models_mount(m.pod("inference").main).pop("readOnly"),
    ),
    "models that a waiting container may write": (
        "gpu",
        "models",
        lambda m: models_mount(wait(m, "trainer")).pop("readOnly"),
    ),
    "models that Ray's workers may write": (
        "gpu",
        "models",
        lambda m: models_mount(worker(m)["template"]["spec"]["containers"][0]).pop("readOnly"),
    ),
    "a download that can't write": ("gpu", "models", lambda m: models_mount(download(m)).update(readOnly=True)),
    "a download in each pod, besides the Job": (
        "gpu",
        "models",
        lambda m: wait(m, "trainer").update(command=["softprompt", "models", "pull", "$(MODELS)"]),
    ),
    "two downloads at once": (
        "gpu",
        "models",
        lambda m: m.get("Job", "model-download")["spec"].update(parallelism=2),
    ),
    "a download that gives up at once": (
        "local-cpu",
        "models",
        lambda m: m.get("Job", "model-download")["spec"].update(backoffLimit=0),
    ),
    "a Job that can't be applied again": (
        "local-cpu",
        "models",
        lambda m: m.get("Job", "model-download")["spec"].pop("ttlSecondsAfterFinished"),
    ),
    "no Job": ("local-cpu", "models", lambda m: remove(m, "Job", "model-download")),
    "a hub's token in plain text": (
        "local-cpu",
        "models",
        lambda m: download(m)["env"].__setitem__(2, {"name": "HF_TOKEN", "value": "hf_token"}),
    ),
    "a hub's token that everyone needs": (
        "local-cpu",
        "models",
        lambda m: download(m)["env"][2]["valueFrom"]["secretKeyRef"].pop("optional"),
    ),
    "a hub's token under a key that does not exist": (
        "local-cpu",
        "references",
        lambda m: download(m)["env"][2]["valueFrom"]["secretKeyRef"].update(key="hub-token"),
    ),
    "a download on another node than its claim": (
        "local-cpu",
        "volumes",
        lambda m: m.pod("model-download").spec.pop("affinity"),
    ),
    "a download that can't reach the hub": (
        "gpu",
        "network",
        lambda m: m.pod("model-download").labels.pop("softprompt.io/reaches-https"),
    ),
    "a mirror on a port that is shut": (
        "gpu",
        "network",
        lambda m: models(m).update(HF_ENDPOINT="https://mirror.example.com:8443"),
    ),
    "a hub model at whatever commit is newest": (
        "local-cpu",
        "models",
        lambda m: models(m).update(MODELS="smollm2-135m-instruct,Qwen/Qwen3-0.6B"),
    ),
    "a hub model by a tag": (
        "local-cpu",
        "models",
        lambda m: models(m).update(MODELS="smollm2-135m-instruct,a/b@v1.0"),
    ),
    "a name that is none": ("local-cpu", "models", lambda m: models(m).update(MODELS="smollm2-135m-instruct@1")),
    "no model named": ("local-cpu", "models", lambda m: models(m).update(MODELS="")),
    "a base model that nothing downloads": (
        "gpu",
        "models",
        lambda m: env(m, "trainer").update(
            SOFTPROMPT_TRAINER_BASE_MODELS="/models/smollm2-135m-instruct,/models/other"
        ),
    ),
    "a model downloaded under another name": (
        "gpu",
        "models",
        lambda m: models(m).update(MODELS="small=smollm2-135m-instruct"),
    ),
    "a service that starts before its models are complete": (
        "gpu",
        "models",
        lambda m: m.pod("inference").spec.pop("initContainers"),
    ),
    "a service that waits for other models": (
        "gpu",
        "models",
        lambda m: wait(m, "inference").setdefault("env", []).append({"name": "MODELS", "value": "other"}),
    ),
    "a service that waits in another image": (
        "gpu",
        "models",
        lambda m: wait(m, "inference").update(image="softprompt-trainer:0.1.0"),
    ),
    "the first model only": (
        "gpu",
        "models",
        lambda m: download(m).update(command=["softprompt", "models", "pull", "$(MODEL)"]),
    ),
}
