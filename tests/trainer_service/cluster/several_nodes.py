"""A Ray cluster that is not ours: a head without room for workers and three nodes of one core. Ends when its standard
input does.

Prints its address and the process ids of the nodes' raylets, by the nodes' ids, as one line of JSON.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    # Neither the autoscaler nor the monitor of log files has anything to do here, and each starts a Python process.
    head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    raylets = {node.node_id: node.all_processes["raylet"][0].process.pid for node in nodes}
    sys.stdout.write(json.dumps({"address": cluster.address, "raylets": raylets}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
