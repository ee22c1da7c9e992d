"""`softprompt-trainer drain-node`: the node that this runs on is about to go, so its jobs move to other nodes first.

It marks the node in Ray as draining. The trainer then takes a checkpoint of every job there and queues it again, Ray
places no new worker there, and the node leaves the cluster once it has none. The command waits for that.

As a preStop hook of a pod of Ray it runs once. With --file or --url it is an agent beside the node: it waits until the
file exists, or the URL answers with status 200 (and contains --expect), which is how clouds announce the end of a spot
machine.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.process.standard_streams import ERROR_MARK

COMMAND = "drain-node"
_POLL_SECONDS = 2.0
_URL_SECONDS = 5.0
_LONGEST_ANSWER = 1 << 16


def main(arguments: list[str]) -> int:
    """Runs the command; the exit code: 0 if the node is empty, 1 if it is not after --seconds, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        f"softprompt-trainer {COMMAND}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--address", default=os.environ.get("RAY_ADDRESS", ""), help="head of the Ray cluster, HOST:PORT [RAY_ADDRESS]")
    add("--node-id", default="", help="id of the node [the one with this machine's address]")
    add("--seconds", type=float, default=25.0, help="time until the node goes [25]")
    add("--file", type=Path, help="wait until this file exists")
    add("--url", default="", help="wait until this URL answers with status 200")
    add("--header", action="append", default=[], metavar="NAME:VALUE", help="header of the request to --url")
    add("--expect", default="", help="text that the answer of --url must contain, for example TRUE")
    chosen = parser.parse_args(arguments)
    if not chosen.address:
        parser.error("--address or RAY_ADDRESS must name the head of the Ray cluster")
    if chosen.url and not chosen.url.startswith(("http://", "https://")):
        parser.error("--url must begin with http:// or https://")
    headers = dict(header.partition(":")[::2] for header in chosen.header)
    if chosen.file is not None or chosen.url:
        wait_for_notice(lambda: _has_notice(chosen.file, chosen.url, headers, chosen.expect))
    try:
        is_empty = drain(chosen.address, chosen.node_id, chosen.seconds)
    except (RuntimeError, ValueError, OSError) as error:
        sys.stderr.write(f"{ERROR_MARK}the node can't be drained: {error}\n")
        return 1
    sys.stdout.write("the node is empty\n" if is_empty else f"the node is not empty after {chosen.seconds:g} s\n")
    return 0 if is_empty else 1


def wait_for_notice(has_notice: Callable[[], bool]) -> None:
    """Returns once there is a notice."""
    while not has_notice():
        time.sleep(_POLL_SECONDS)


def _has_notice(file: Path | None, url: str, headers: dict[str, str], expect: str) -> bool:
    if file is not None and file.exists():
        return True
    if not url:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_URL_SECONDS) as answer:
            return answer.status == 200 and expect in answer.read(_LONGEST_ANSWER).decode(errors="replace")
    except (urllib.error.URLError, TimeoutError, OSError):
        return False  # no notice is a 404; an endpoint that is not there says nothing


def drain(address: str, node_id: str, seconds: float) -> bool:
    """Marks the node and waits up to `seconds` until it has left the cluster; whether it has.

    Raises RuntimeError or ValueError if the cluster refuses, or if no node or several have this machine's address.
    """
    from trainer_service.cluster.ray_cluster import RayCluster

    RayCluster(address).set_environment()
    from ray.core.generated import autoscaler_pb2

    raylet: Any = importlib.import_module("ray._raylet")  # compiled, without types
    client = raylet.GcsClient(address=address)
    node_id = node_id or _own_node(client)
    deadline = time.time() + seconds
    accepted, reason = client.drain_node(
        node_id, autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, "the node is about to go", int(1000 * deadline)
    )
    if not accepted:
        raise RuntimeError(reason)
    while node_id in _alive(client):
        if time.time() > deadline:
            return False
        time.sleep(min(0.2, seconds))
    return True


def _alive(client: Any) -> dict[str, str]:
    """The addresses of the cluster's live nodes, by id."""
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    nodes = client.get_all_node_info(timeout=_URL_SECONDS)
    return {id.hex(): node.node_manager_address for id, node in nodes.items() if node.state == GcsNodeInfo.ALIVE}


def _own_node(client: Any) -> str:
    import ray

    own = ray.util.get_node_ip_address()
    found = [id for id, address in _alive(client).items() if address == own]
    if len(found) != 1:
        raise ValueError(f"{len(found)} nodes of the cluster have the address {own}; name one with --node-id")
    return found[0]
