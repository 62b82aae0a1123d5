"""A Ray cluster on loopback, run as a process: a head without room for workers, nodes that come and go by command.

Every line of standard input is a command, `add NAME` or `kill NAME`; its end is the cluster's. Answers are lines too,
the first one the address. Started by `tests.ray.conftest`, which sets Ray's environment.
"""

from __future__ import annotations

import os
import sys

OBJECT_STORE_BYTES = 80 << 20  # the least Ray takes is 75 MiB


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ray.cluster_utils import Cluster

    def say(text: str) -> None:
        print(text, file=answers, flush=True)

    common = {
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
    }
    cluster = Cluster()
    cluster.add_node(**common, num_cpus=0)
    nodes = {}
    say(cluster.address)
    for line in sys.stdin:
        command, name = line.split()
        if command == "add":
            nodes[name] = cluster.add_node(
                **common, num_cpus=2, num_gpus=4, resources={"place": 1}, labels={"name": name}
            )
        else:  # SIGKILL to all of its processes
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        say("done")
    cluster.shutdown()


if __name__ == "__main__":
    main()
