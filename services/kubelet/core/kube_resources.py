"""The resources of a Kubernetes API server that a kubelet uses. Values alone."""

from __future__ import annotations

from services.common.kuberequest import Resource

PODS = Resource("v1", "pods")
NODES = Resource("v1", "nodes", namespaced=False)
EVENTS = Resource("v1", "events")
CONFIG_MAPS = Resource("v1", "configmaps")
SECRETS = Resource("v1", "secrets")
SERVICES = Resource("v1", "services")
SERVICE_ACCOUNTS = Resource("v1", "serviceaccounts")
LEASES = Resource("coordination.k8s.io/v1", "leases")
RUNTIME_CLASSES = Resource("node.k8s.io/v1", "runtimeclasses", namespaced=False)
LEASE_NAMESPACE = "kube-node-lease"
