"""In rollouts of pods with GPUs, and in how base models come to the pods."""

from __future__ import annotations

from tests.k8s.faults.seeding import Faults, download, env, models, rolling, worker

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
        lambda m: download(m, "trainer")["env"].remove({"name": "HF_HOME", "value": "/models/.huggingface"}),
    ),
    "models downloaded beside the claim": (
        "gpu",
        "models",
        lambda m: download(m, "trainer")["env"][0].update(value="/tmp/models"),
    ),
    "models that a service may write": (
        "gpu",
        "models",
        lambda m: next(x for x in m.pod("inference").main["volumeMounts"] if x["name"] == "models").pop("readOnly"),
    ),
    "models that Ray's workers may write": (
        "gpu",
        "models",
        lambda m: next(
            x for x in worker(m)["template"]["spec"]["containers"][0]["volumeMounts"] if x["name"] == "models"
        ).pop("readOnly"),
    ),
    "a download that can't write": (
        "gpu",
        "models",
        lambda m: next(x for x in download(m, "trainer")["volumeMounts"] if x["name"] == "models").update(
            readOnly=True
        ),
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
    "only the trainer downloads": ("gpu", "models", lambda m: m.pod("inference").spec.pop("initContainers")),
    "the first model only": (
        "gpu",
        "models",
        lambda m: download(m, "inference").update(command=["softprompt", "models", "pull", "$(MODEL)"]),
    ),
}
