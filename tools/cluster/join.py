"""Make the files by which a machine joins the cluster: `python -m tools.cluster.join NAME ADDRESS`.

Runs where `make cluster-up` made the cluster. ADDRESS is where the API server finds the kubelet. Copy
the folder that it names to the machine, as /var/lib/tripod/join, and bring the node up there.
"""

from __future__ import annotations

import ipaddress
import sys

from tools.cluster.layout import load, prepare_node
from tools.cluster.up import FOLDER
from tools.steps import StepError, main_wrapper


def main() -> int:
    """Write the files, and say where they are."""
    if len(sys.argv) != 3:
        raise StepError("Two words are needed: the node's name and its address")
    name, address = sys.argv[1:]
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise StepError(f"ADDRESS: {error}") from error
    layout = load(FOLDER)
    if layout is None:
        raise StepError(f"There is no cluster in {FOLDER}", "Make one: make cluster-up")
    print(prepare_node(layout, name, address).kubeconfig.parent)
    return 0


if __name__ == "__main__":
    main_wrapper(main)
