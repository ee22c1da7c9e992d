"""Around the pods: Ray's cluster, network policies, routes, certificates, monitoring."""

from __future__ import annotations

from tests.k8s.faults.seeding import Faults, cluster, drop, env, head, policy_rule, remove, router_env, worker
from tests.k8s.manifests import Manifests


def _without_tls(manifests: Manifests) -> None:
    router_env(manifests, "SOFTPROMPT_ROUTER_PLAINTEXT").update(value="true")
    for name in ("CERTIFICATE_FILE", "KEY_FILE"):
        drop(manifests.pod("router").main["env"], name=f"SOFTPROMPT_ROUTER_TLS_{name}")


FAULTS: Faults = {
    "an HTTP route to a port that is not there": (
        "gpu-s3",
        "http",
        lambda m: m.get("HTTPRoute", "gateway")["spec"]["rules"][0]["backendRefs"][0].update(port=80),
    ),
    "an HTTP route of the host name that gRPC has": (
        "gpu-s3",
        "http",
        lambda m: m.get("HTTPRoute", "gateway")["spec"].update(hostnames=["softprompt.example.com"]),
    ),
    "an HTTP route that cuts streams": (
        "gpu-s3",
        "http",
        lambda m: m.get("HTTPRoute", "gateway")["spec"]["rules"][0].pop("timeouts"),
    ),
    "an HTTP gateway that calls another address": (
        "gpu-s3",
        "http",
        lambda m: m.get("ConfigMap", "gateway-settings")["data"].update(SOFTPROMPT_GATEWAY_TRAINER="trainer:1"),
    ),
    "an HTTP gateway that is probed on the port of its callers": (
        "gpu-s3",
        "http",
        lambda m: m.pod("gateway").main["readinessProbe"]["httpGet"].update(port="http"),
    ),
    "an HTTP gateway that may not call the services": (
        "gpu-s3",
        "network",
        lambda m: m.pod("gateway").labels.pop("softprompt.io/client"),
    ),
    "a router of another store": (
        "gpu-s3",
        "router",
        lambda m: env(m, "router").update(SOFTPROMPT_ROUTER_STORE_URL="s3://softprompt-prompts/other"),
    ),
    "a router that may not call replicas": (
        "gpu-s3",
        "network",
        lambda m: m.pod("router").labels.pop("softprompt.io/client"),
    ),
    "a router that is killed while it drains": (
        "gpu-s3",
        "router",
        lambda m: m.pod("router").spec.update(terminationGracePeriodSeconds=60),
    ),
    "a router that is probed on the port of its callers": (
        "gpu-s3",
        "probes",
        lambda m: m.pod("router").main["readinessProbe"]["grpc"].update(port=50053),
    ),
    "a router that calls TLS in the clear": (
        "ha",
        "router",
        lambda m: router_env(m, "SOFTPROMPT_TLS").update(value="off"),
    ),
    "a router that shows replicas no certificate": (
        "ha",
        "router",
        lambda m: drop(m.pod("router").main["env"], name="SOFTPROMPT_TLS_CERTIFICATE_FILE"),
    ),
    "a router that expects replicas by their addresses": (
        "ha",
        "router",
        lambda m: drop(m.pod("router").main["env"], name="SOFTPROMPT_TLS_SERVER_NAME"),
    ),
    "a router in the clear before replicas with TLS": (
        "ha",
        "router",
        _without_tls,
    ),
    "a router whose certificate is not mounted": (
        "ha",
        "volumes",
        lambda m: drop(m.pod("router").main["volumeMounts"], name="tls"),
    ),
    "a router without a certificate": ("ha", "references", lambda m: remove(m, "Certificate", "router-tls")),
    "a certificate that doesn't name the router": (
        "ha",
        "tls",
        lambda m: m.get("Certificate", "router-tls")["spec"]["dnsNames"].remove("router"),
    ),
    "a Gateway without TLS to a router with TLS": (
        "ha",
        "tls",
        lambda m: m.get("Service", "router")["spec"]["ports"][0].update(appProtocol="kubernetes.io/h2c"),
    ),
    "a router's traces that can't leave": (
        "ha",
        "network",
        lambda m: m.pod("router").labels.pop("softprompt.io/reaches-otlp"),
    ),
    "a route past the router": (
        "gpu-s3",
        "routes",
        lambda m: m.get("GRPCRoute", "inference")["spec"]["rules"][0]["backendRefs"][0].update(
            name="inference", port=50052
        ),
    ),
    "replicas whose records have no address of theirs": (
        "local-cpu",
        "router",
        lambda m: drop(m.pod("inference").main["env"], name="SOFTPROMPT_INFERENCE_ADDRESS"),
    ),
    "replicas at an address that is not the pod's": (
        "local-cpu",
        "router",
        lambda m: m.pod("inference").main["env"][0]["valueFrom"]["fieldRef"].update(fieldPath="status.hostIP"),
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
    "a Gateway without TLS to a service with TLS": (
        "ha",
        "tls",
        lambda m: m.get("Service", "inference-headless")["spec"]["ports"][0].update(appProtocol="kubernetes.io/h2c"),
    ),
    "a Service port that does not announce HTTP/2": (
        "gpu-s3",
        "tls",
        lambda m: m.get("Service", "trainer")["spec"]["ports"][0].pop("appProtocol"),
    ),
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
    "workers without labels": (
        "gpu",
        "ray",
        lambda m: worker(m)["template"]["metadata"]["labels"].pop("softprompt.io/ray-member"),
    ),
    "the trainer joins another cluster": (
        "gpu",
        "ray",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_RAY_ADDRESS="ray-head:6379"),
    ),
    "a driver without a token": ("gpu", "ray", lambda m: drop(m.pod("trainer").main["env"], name="RAY_AUTH_TOKEN")),
    "a driver without a raylet": ("gpu", "ray", lambda m: m.pod("trainer").main.pop("args")),
    "Ray's pods end with their jobs": (
        "gpu",
        "ray",
        lambda m: worker(m)["template"]["spec"]["containers"][0].pop("lifecycle"),
    ),
    "no time to move the jobs": (
        "gpu",
        "ray",
        lambda m: worker(m)["template"]["spec"].update(terminationGracePeriodSeconds=30),
    ),
    "GPUs held while no job trains": ("gpu", "ray", lambda m: worker(m).update(minReplicas=1)),
    "a worker of two GPUs on nodes of one": (
        "gpu",
        "ray",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_GPUS_PER_WORKER="2"),
    ),
    "Ray nodes restarted within their pods": (
        "gpu",
        "ray",
        lambda m: worker(m)["template"]["spec"].pop("restartPolicy"),
    ),
    "a dashboard that runs everyone's code": (
        "gpu",
        "ray",
        lambda m: head(m)["rayStartParams"].pop("include-dashboard"),
    ),
    "shared memory on disk": (
        "gpu",
        "ray",
        lambda m: next(v for v in worker(m)["template"]["spec"]["volumes"] if v["name"] == "shm")["emptyDir"].pop(
            "medium"
        ),
    ),
    "no names are resolved": ("gpu", "network", lambda m: remove(m, "NetworkPolicy", "dns")),
    "workers cut off from the head": ("gpu", "network", lambda m: remove(m, "NetworkPolicy", "ray-members")),
    "open to everyone": ("gpu", "network", lambda m: policy_rule(m, "trainer-calls", "ingress").pop("from")),
    "Prometheus shut out": (
        "gpu",
        "network",
        lambda m: m.get("NetworkPolicy", "inference-calls")["spec"]["ingress"].pop(1),
    ),
    "nothing denied by default": ("gpu", "network", lambda m: remove(m, "NetworkPolicy", "default-deny")),
    "the object store out of reach": (
        "gpu-s3",
        "network",
        lambda m: [m.pod(name).labels.pop("softprompt.io/reaches-https") for name in ("trainer", "inference")],
    ),
    "the database out of reach": (
        "ha",
        "network",
        lambda m: m.pod("trainer").labels.pop("softprompt.io/reaches-postgres"),
    ),
    "traces that can't leave": ("ha", "network", lambda m: m.pod("inference").labels.pop("softprompt.io/reaches-otlp")),
    "traces that can't leave Ray's workers": (
        "ha",
        "network",
        lambda m: worker(m)["template"]["metadata"]["labels"].pop("softprompt.io/reaches-otlp"),
    ),
    "a collector in another namespace": (
        "ha",
        "network",
        lambda m: env(m, "trainer").update(
            SOFTPROMPT_TRAINER_OTLP_ENDPOINT="http://collector.observability.svc:4318/v1/traces"
        ),
    ),
    "a way to the collector for a pod that exports no traces": (
        "gpu",
        "network",
        lambda m: m.pod("inference").labels.update({"softprompt.io/reaches-otlp": "true"}),
    ),
    "the counts of limits out of reach": (
        "ha",
        "network",
        lambda m: env(m, "inference").update(SOFTPROMPT_INFERENCE_LIMITS_STORAGE="redis://redis.example.com/0"),
    ),
    "an issuer of tokens out of reach": (
        "gpu",
        "network",
        lambda m: env(m, "trainer").update(SOFTPROMPT_TRAINER_OIDC_JWKS_URL="https://login.example.com/keys"),
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
    "Ray's ports for every pod of the namespace": (
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
        lambda m: m.get("GRPCRoute", "trainer")["spec"]["rules"][0]["backendRefs"][0].update(
            name="inference", port=50052
        ),
    ),
    "a route to a service that lets everyone do everything": (
        "gpu-s3",
        "routes",
        lambda m: env(m, "inference").pop("SOFTPROMPT_INFERENCE_CALLERS_FILE"),
    ),
    "a callers file that may be missing": (
        "gpu-s3",
        "routes",
        lambda m: next(v for v in m.pod("trainer").spec["volumes"] if v["name"] == "callers")["secret"].update(
            optional=True
        ),
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
    "scaling by a metric that no service exports": (
        "ha",
        "monitoring",
        lambda m: m.get("ScaledObject", "inference")["spec"]["triggers"][0]["metadata"].update(
            query="sum(requests_in_flight)"
        ),
    ),
    "a pod scraped twice": (
        "gpu",
        "monitoring",
        lambda m: m.get("Service", "inference-headless")["spec"]["ports"].append(
            {"name": "metrics", "port": 9092, "targetPort": "metrics"}
        ),
    ),
    "an alert about a metric that no service exports": (
        "gpu",
        "monitoring",
        lambda m: m.get("PrometheusRule", "softprompt")["spec"]["groups"][1]["rules"][0].update(
            expr="grpc_server_errors_total > 0"
        ),
    ),
    "dashboards that Grafana doesn't find": (
        "gpu",
        "monitoring",
        lambda m: m.get("ConfigMap", "softprompt-dashboards")["metadata"].pop("labels"),
    ),
}
