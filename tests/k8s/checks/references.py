"""Whatever one object calls another by is there: ConfigMaps, Secrets and their keys, claims, accounts, Services' pods
and ports.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.manifests import Manifests, Object, Pod, ports

MADE_BY_PEOPLE = {
    "softprompt-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT"},
    "softprompt-postgres": {"url"},
    "softprompt-callers": {"callers.json"},
    "softprompt-hub": {"token"},
}
"""Secrets that docs/kubernetes.md asks operators to create, and their keys (`test_docs` compares)."""


def secrets(manifests: Manifests) -> dict[str, set[str]]:
    """Every Secret that will be there, with its keys."""
    found = {
        item["metadata"]["name"]: set(item.get("data", {})) | set(item.get("stringData", {}))
        for item in manifests.of("Secret")
    }
    for certificate in manifests.of("Certificate"):
        found[certificate["spec"]["secretName"]] = {"tls.crt", "tls.key", "ca.crt"}
    for cluster in manifests.of("RayCluster"):
        if cluster["spec"].get("authOptions", {}).get("mode") == "token":  # KubeRay makes it, by the cluster's name
            found[cluster["metadata"]["name"]] = {"auth_token"}
    return found | MADE_BY_PEOPLE


def check(manifests: Manifests) -> Iterator[str]:
    for pod in manifests.pods:
        for container in pod.containers:
            yield from (f"{pod.name}/{container['name']}: {problem}" for problem in _environment(manifests, container))
        yield from (f"{pod.name}: {problem}" for problem in _pod(manifests, pod))
    for service in manifests.of("Service"):
        yield from _service(manifests, service)
    for budget in manifests.of("PodDisruptionBudget"):
        if not manifests.selected(budget["spec"]["selector"]["matchLabels"]):
            yield f"PodDisruptionBudget {budget['metadata']['name']} selects no pod"
    for deployment in manifests.of("Deployment"):
        if (
            not deployment["spec"]["selector"]["matchLabels"].items()
            <= deployment["spec"]["template"]["metadata"]["labels"].items()
        ):
            yield f"Deployment {deployment['metadata']['name']} does not select its own pods"
    yield from _certificates(manifests)


def _environment(manifests: Manifests, container: Object) -> Iterator[str]:
    known = secrets(manifests)
    for source in container.get("envFrom", []):
        if "configMapRef" in source and manifests.find("ConfigMap", source["configMapRef"]["name"]) is None:
            yield f"no ConfigMap {source['configMapRef']['name']}"
        if "secretRef" in source and source["secretRef"]["name"] not in known:
            yield f"no Secret {source['secretRef']['name']}"
    for item in container.get("env", []):
        reference = item.get("valueFrom", {}).get("secretKeyRef")
        if reference and reference["key"] not in known.get(reference["name"], ()):
            yield f"no Secret {reference['name']} with the key {reference['key']}"
        if reference := item.get("valueFrom", {}).get("configMapKeyRef"):
            config_map = manifests.find("ConfigMap", reference["name"])
            if config_map is None or reference["key"] not in config_map["data"]:
                yield f"no ConfigMap {reference['name']} with the key {reference['key']}"


def _pod(manifests: Manifests, pod: Pod) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account is not None and manifests.find("ServiceAccount", account) is None:
        yield f"no ServiceAccount {account}"
    if account is None and pod.name != "ray-head":  # KubeRay makes the head's
        yield "runs as the default ServiceAccount"
    for volume in pod.spec.get("volumes", []):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and manifests.find("PersistentVolumeClaim", claim) is None:
            yield f"no claim {claim}"
        secret = volume.get("secret", {}).get("secretName")
        if secret is not None and secret not in secrets(manifests):
            yield f"no Secret {secret}"
        config_map = volume.get("configMap", {}).get("name")
        if config_map is not None and manifests.find("ConfigMap", config_map) is None:
            yield f"no ConfigMap {config_map}"


def _service(manifests: Manifests, service: Object) -> Iterator[str]:
    name, pods = service["metadata"]["name"], manifests.selected(service["spec"]["selector"])
    if len(pods) != 1:
        yield f"Service {name} selects {[pod.name for pod in pods]}, not one kind of pod"
    for pod in pods:
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports(pod.main) and port["targetPort"] not in ports(pod.main).values():
                yield f"Service {name}: {pod.name} has no port {port['targetPort']}"


def _certificates(manifests: Manifests) -> Iterator[str]:
    issuers = {item["metadata"]["name"]: item["spec"] for item in manifests.of("Issuer")}
    for certificate in manifests.of("Certificate"):
        if certificate["spec"]["issuerRef"]["name"] not in issuers:
            yield f"Certificate {certificate['metadata']['name']}: no Issuer {certificate['spec']['issuerRef']['name']}"
    for name, spec in issuers.items():
        if len(spec) != 1 or not spec.keys() <= {"selfSigned", "ca"}:
            yield f"Issuer {name} is neither selfSigned nor ca"
        if "ca" in spec and spec["ca"]["secretName"] not in secrets(manifests):
            yield f"Issuer {name}: no Secret {spec['ca']['secretName']}"
