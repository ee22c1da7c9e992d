"""Options of a gRPC channel: TLS, retries, keepalive, load balancing, message sizes.

`shared.security.methods` says which calls are retried. gRPC retries a stream only if no message of it has arrived.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import grpc

from shared.process.proxies import grpc_proxy
from shared.security.methods import RULES
from softprompt.client.calls import CallingChannel
from softprompt.client.security import ClientSecurity, TokenSource, hosts_of, is_local

RETRIED_METHODS = tuple(path.strip("/").split("/") for path, rule in RULES.items() if rule.repeatable)
"""Service and method of each."""
RETRY_POLICY: dict[str, Any] = {
    "maxAttempts": 4,
    "initialBackoff": "0.15s",
    "maxBackoff": "3s",
    "backoffMultiplier": 3,
    # RESOURCE_EXHAUSTED waits for the server's push-back time. A replica that shuts down ends calls with CANCELLED.
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
}
MAX_MESSAGE_BYTES = 64 << 20


def service_config(has_replicas: bool, retry_overloaded: bool = True) -> dict[str, Any]:
    """See github.com/grpc/grpc/blob/master/doc/service_config.md. Replicas that report NOT_SERVING get no calls."""
    retried = RETRY_POLICY["retryableStatusCodes"]
    policy = (
        RETRY_POLICY
        if retry_overloaded
        else {**RETRY_POLICY, "retryableStatusCodes": [code for code in retried if code != "RESOURCE_EXHAUSTED"]}
    )
    names = [{"service": service, "method": method} for service, method in RETRIED_METHODS]
    health = {"healthCheckConfig": {"serviceName": ""}} if has_replicas else {}
    return {
        **health,
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": names, "retryPolicy": policy}],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }


def open_channel(endpoint: str, security: ClientSecurity, retry_overloaded: bool = True) -> CallingChannel:
    """A channel to an address that `check_endpoint` allows, in the running event loop. A proxy of the environment is
    for other machines only. `retry_overloaded`: whether refusals of a limit are repeated. Raises InvalidInput for TLS
    files.
    """
    config = service_config(endpoint.startswith("dns:") or "," in endpoint, retry_overloaded)
    return CallingChannel(_open(endpoint, security, config), TokenSource(security))


def open_replica_channel(address: str, security: ClientSecurity) -> grpc.aio.Channel:
    """A channel to one replica, without retries, READY while it reports SERVING. Raises InvalidInput for TLS files."""
    config = {"healthCheckConfig": {"serviceName": ""}, "loadBalancingConfig": [{"round_robin": {}}]}
    options = (("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 2000))
    return _open(address, security, config, options)


def _open(
    endpoint: str, security: ClientSecurity, config: dict[str, Any], more: Sequence[tuple[str, int]] = ()
) -> grpc.aio.Channel:
    options: list[tuple[str, Any]] = [
        *more,
        ("grpc.service_config", json.dumps(config)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 15_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # finds new replicas behind a headless service within seconds
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ]
    if is_local(endpoint) or not any(map(grpc_proxy, hosts_of(endpoint))):  # gRPC itself does not know `no_proxy=*`
        options.append(("grpc.enable_http_proxy", 0))
    if security.server_name:
        options.append(("grpc.ssl_target_name_override", security.server_name))
    if security.uses_tls(endpoint):
        return grpc.aio.secure_channel(endpoint, security.channel_credentials(), options=options)
    return grpc.aio.insecure_channel(endpoint, options=options)
