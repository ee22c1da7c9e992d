"""Evaluates the NetworkPolicies: required traffic is allowed in both directions, and forbidden traffic is not."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.k8s.manifests import Manifests, Object, Pod, ports


@dataclass(frozen=True)
class Peer:
    """A peer on the network: a pod of ours (`pod`), of another namespace, or an address outside."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = "softprompt"
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = ""
    pod: Pod | None = None


def of(pod: Pod) -> Peer:
    return Peer(pod.name, pod.labels, pod=pod)


def outside(name: str, address: str) -> Peer:
    return Peer(name, namespace="", address=address)


def elsewhere(name: str, namespace: str, labels: dict[str, str] | None = None, **namespace_labels: str) -> Peer:
    dotted = {key.replace("__", "/").replace("_", "."): value for key, value in namespace_labels.items()}
    return Peer(name, labels or {}, namespace, {"kubernetes.io/metadata.name": namespace, **dotted})


def at(name: str, url: str) -> tuple[Peer, int]:
    """The peer that answers at a URL, and its port: a Service of another namespace by its name, else one outside."""
    parts = urlsplit(url)
    labels = (parts.hostname or "").split(".")
    peer = elsewhere(name, labels[1]) if labels[2:3] == ["svc"] else outside(name, "52.216.1.1")
    return peer, parts.port or {"http": 80, "https": 443, "redis": 6379, "rediss": 6379}[parts.scheme]


def allowed(manifests: Manifests, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let `source` open a connection: its own egress and the target's ingress both have to."""
    return _side(manifests, source, target, port, protocol, "Egress") and _side(
        manifests, target, source, port, protocol, "Ingress"
    )


def _let_in(manifests: Manifests, source: Peer, target: Peer, port: int) -> bool:
    """Whether the side that is ours lets it through: of two pods of ours, the target must not count on what the source
    may send.
    """
    inbound = target.namespace == "softprompt"
    return _side(
        manifests,
        target if inbound else source,
        source if inbound else target,
        port,
        "TCP",
        "Ingress" if inbound else "Egress",
    )


def _side(manifests: Manifests, own: Peer, other: Peer, port: int, protocol: str, direction: str) -> bool:
    if own.namespace != "softprompt":
        return True
    policies = [
        policy["spec"]
        for policy in manifests.of("NetworkPolicy")
        if direction in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], own.labels)
    ]
    target = own if direction == "Ingress" else other
    key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return not policies or any(
        _port(rule.get("ports"), target, port, protocol)
        and (peers not in rule or any(_peer(item, other) for item in rule[peers]))
        for policy in policies
        for rule in policy.get(key, [])
    )


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for term in selector.get("matchExpressions", []):
        if term["operator"] != "In":
            raise ValueError(f"the operator {term['operator']} is not evaluated here")
        if labels.get(term["key"]) not in term["values"]:
            return False
    return True


def _peer(item: Object, peer: Peer) -> bool:
    if "ipBlock" in item:
        if not peer.address:
            return False
        address = ipaddress.ip_address(peer.address)

        def within(block: str) -> bool:
            network = ipaddress.ip_network(block)
            return network.version == address.version and address in network

        return within(item["ipBlock"]["cidr"]) and not any(within(block) for block in item["ipBlock"].get("except", []))
    if peer.address:
        return False
    if "namespaceSelector" in item:
        if not _selects(item["namespaceSelector"], peer.namespace_labels):
            return False
    elif peer.namespace != "softprompt":
        return False
    return _selects(item.get("podSelector", {}), peer.labels)


def _port(rules: list[Object] | None, target: Peer, port: int, protocol: str) -> bool:
    if rules is None:
        return True
    named = ports(target.pod.main) if target.pod else {}
    return any(
        rule.get("protocol", "TCP") == protocol
        and ("port" not in rule or rule["port"] == port or named.get(str(rule["port"])) == port)
        for rule in rules
    )


DNS = elsewhere("DNS", "kube-system", {"k8s-app": "kube-dns"})
PROMETHEUS = elsewhere("Prometheus", "monitoring")
COLLECTOR = elsewhere("the collector", "monitoring")
CLIENT = Peer("a client", {"softprompt.io/client": "true"})
CLIENT_ELSEWHERE = elsewhere("a client elsewhere", "shop", softprompt_io__client="true")
STRANGER = elsewhere("a stranger", "shop")
NEIGHBOUR = Peer("a neighbour", {"app.kubernetes.io/name": "debug"})
HTTPS, DATABASE = outside("an https server", "52.216.1.1"), outside("the database", "10.8.0.5")
API = outside("the Kubernetes API", "10.96.0.1")
METADATA = outside("the cloud's metadata", "169.254.169.254")
Flow = tuple[Peer, Peer, int]


def check(manifests: Manifests) -> Iterator[str]:
    if not manifests.of("NetworkPolicy"):
        return
    for source, target, port in _needed(manifests):
        if not allowed(manifests, source, target, port):
            yield f"{source.name} can't reach {target.name} on {port}"
    for source, target, port in _forbidden(manifests):
        if _let_in(manifests, source, target, port):
            yield f"{source.name} reaches {target.name} on {port}"
    for pod in manifests.pods:
        if not allowed(manifests, of(pod), DNS, 53, "UDP"):
            yield f"{pod.name} can't resolve names"


def _needed(manifests: Manifests) -> Iterator[Flow]:
    trainer, inference = of(manifests.pod("trainer")), of(manifests.pod("inference"))
    for service, port, metrics in ((trainer, 50051, 9091), (inference, 50052, 9092)):
        yield from ((client, service, port) for client in (CLIENT, CLIENT_ELSEWHERE))
        yield PROMETHEUS, service, metrics
    if manifests.find("Deployment", "gateway"):
        gateway = of(manifests.pod("gateway"))
        yield from ((client, gateway, 8000) for client in (CLIENT, CLIENT_ELSEWHERE))
        yield PROMETHEUS, gateway, 9093
        yield gateway, trainer, 50051
        yield gateway, inference, 50052
    if manifests.find("Deployment", "router"):
        router = of(manifests.pod("router"))
        yield from ((client, router, 50053) for client in (CLIENT, CLIENT_ELSEWHERE))
        yield PROMETHEUS, router, 9094
        yield router, inference, 50052
    for route in (*manifests.of("GRPCRoute"), *manifests.of("HTTPRoute")):
        parent = route["spec"]["parentRefs"][0]["namespace"]
        for backend in route["spec"]["rules"][0]["backendRefs"]:
            yield (
                elsewhere("the Gateway", parent, softprompt_io__client="true"),
                of(manifests.pod(backend["name"])),
                backend["port"],
            )
    for pod in manifests.pods:
        yield from ((of(pod), *server) for server in _servers(manifests, pod))
        if any(item["name"] == "SOFTPROMPT_TRAINER_DATABASE_URL" for item in pod.main.get("env", [])):
            yield of(pod), DATABASE, 5432
    members = (
        [pod for pod in manifests.pods if pod.name == "trainer" or pod.name.startswith("ray-")]
        if manifests.of("RayCluster")
        else []
    )
    for source in members:
        for target in members:
            yield from ((of(source), of(target), port) for port in (6379, 6380, 6381, 10002, 43210))
        if source.name == "ray-head":
            yield of(source), API, 443


def _servers(manifests: Manifests, pod: Pod) -> Iterator[tuple[Peer, int]]:
    """The servers that a pod's settings name. Ray's workers have no settings: the trainer passes on its collector."""
    environment = manifests.environment(pod)
    prefix = f"SOFTPROMPT_{pod.name.upper()}_"
    if environment.get(f"{prefix}STORE_URL", "").startswith("s3://"):
        yield at("the object store", environment.get("AWS_ENDPOINT", "https://s3.amazonaws.com"))
    if pod.name == "model-download":
        yield at("the model hub", environment.get("HF_ENDPOINT", "https://huggingface.co"))
        if server := environment.get("SOFTPROMPT_MODELS_FROM"):
            yield at("the file server", server)
    if counts := environment.get(f"{prefix}LIMITS_STORAGE"):
        yield at("the counts of limits", counts)
    if issuer := environment.get(f"{prefix}OIDC_JWKS_URL"):
        yield at("the issuer of tokens", issuer)
    if pod.name.startswith("ray-worker"):
        environment, prefix = manifests.environment(manifests.pod("trainer")), "SOFTPROMPT_TRAINER_"
    if collector := environment.get(f"{prefix}OTLP_ENDPOINT"):
        yield at("the collector", collector)


def _forbidden(manifests: Manifests) -> Iterator[Flow]:
    for pod in manifests.pods:
        us = of(pod)
        for port in (22, 6379, 8265, 50051, 50052, 50053, 50061, 50062, 50063, 8000, 9091, 9092, 9093, 9094):
            yield from ((other, us, port) for other in (STRANGER, NEIGHBOUR))
        yield from ((CLIENT, us, port) for port in (6379, 8265, 9091, 9092, 9093, 9094))
        yield PROMETHEUS, us, 50052
        yield from ((us, METADATA, port) for port in (80, 443))
        yield us, outside("a web server", "93.184.215.14"), 80
        yield us, PROMETHEUS, 9090
        if COLLECTOR.name not in [server.name for server, _ in _servers(manifests, pod)]:
            yield us, COLLECTOR, 4318
        if pod.name.startswith("ray-worker"):
            yield us, HTTPS, 443
    yield of(manifests.pod("inference")), DATABASE, 5432
    yield STRANGER, NEIGHBOUR, 80
    yield NEIGHBOUR, HTTPS, 443
    if manifests.of("RayCluster"):
        yield of(manifests.pod("inference")), of(manifests.pod("ray-head")), 6379
