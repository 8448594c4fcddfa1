"""A Deployment with all that goes with it, spread over two nodes, updated under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp

from tests.cluster.objects import container, deployment, marks, pod, server, service
from tests.lab.cluster import Cluster, until

pytestmark = marks
_SPREAD = [
    {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
]


def web(version: str) -> dict[str, Any]:
    """Write the deployment: its servers wait before they end, so that every proxy has heard of it."""
    lifecycle = {"preStop": {"exec": {"command": ["sleep", "3"]}}}
    probes = {"startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}
    probes |= {"livenessProbe": {"exec": {"command": ["cat", "/etc/settings/mode"]}, "periodSeconds": 5}}
    settings = {"name": "settings", "mountPath": "/etc/settings"}
    secret = {"name": "secret", "mountPath": "/etc/secret", "readOnly": True}
    reference = {"secretRef": {"name": "web"}}
    template = {
        "terminationGracePeriodSeconds": 5,
        "topologySpreadConstraints": _SPREAD,
        "containers": [
            server(
                version, lifecycle=lifecycle, volumeMounts=[settings, secret], envFrom=[reference], **probes
            )
        ],
        "volumes": [
            {"name": "settings", "configMap": {"name": "web"}},
            {"name": "secret", "secret": {"secretName": "web", "defaultMode": 0o400}},
        ],
    }
    return deployment("web", template)


class Load:
    """Asks, over and over, each time by a new connection, and counts what it gets."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self._ended = False

    async def run(self, url: str) -> None:
        """Ask until told to end."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=5)) as http:
            while not self._ended:
                try:
                    async with http.get(url) as answer:
                        self.answers[(await answer.text()).split()[-1]] += 1
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.faults.append(f"{url}: {error!r}")
                await asyncio.sleep(0.02)

    def end(self) -> None:
        """End."""
        self._ended = True


async def test_a_deployment_brings_its_settings_and_is_updated_without_a_failed_request(
    made: Cluster,
) -> None:
    """ConfigMap and Secret are there as files and variables; new pods serve before old ones end."""
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "web"},
        "data": {"mode": "fast"},
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "web"},
        "stringData": {"KEY": "hush"},
    }
    await made.apply(settings, secret, service("web", type="NodePort"), web("1"))
    await made.kubectl("rollout", "status", "deployment/web", "--timeout=90s", seconds=100)
    pods = await made.pods("app=web")
    name = pods[0]["metadata"]["name"]
    seen = await made.kubectl(
        "exec", name, "--", "sh", "-c", "cat /etc/settings/mode /etc/secret/KEY; echo $KEY"
    )
    exposed = await made.plane.get("/api/v1/namespaces/default/services/web")
    port = exposed["spec"]["ports"][0]["nodePort"]
    urls = [f"http://{node.address}:{port}/" for node in made.nodes.values()]

    load = Load()
    async with asyncio.TaskGroup() as tasks:
        for url in urls:
            tasks.create_task(load.run(url))
        try:
            await until(lambda: _answered(load, "1"), "the first version answers")
            await made.apply(web("2"))
            await made.kubectl("rollout", "status", "deployment/web", "--timeout=120s", seconds=130)
            await until(lambda: _left(made, 2), "the old pods are gone", 60)
        finally:
            load.end()

    assert {each["spec"]["nodeName"] for each in pods} == {"a", "b"}
    assert seen.out == "fasthushhush\n"
    assert load.faults == []
    assert load.answers["1"] > 0
    assert load.answers["2"] > 0
    restarts = [each["restartCount"] for found in await made.pods("app=web") for each in _containers(found)]
    assert restarts == [0, 0]
    await made.delete("deployment/web", "service/web", "configmap/web", "secret/web")


async def _answered(load: Load, version: str) -> bool:
    return load.answers[version] > 20


async def _left(made: Cluster, count: int) -> bool:
    return len(await made.pods("app=web")) == count


def _containers(found: dict[str, Any]) -> list[dict[str, Any]]:
    return list(found["status"]["containerStatuses"])


async def test_a_job_runs_to_its_end(made: Cluster) -> None:
    """A failed try is followed by another; the controller counts what the kubelet tells."""
    template = {"restartPolicy": "Never", "containers": [container("sh", "-c", "echo done")]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once"},
        "spec": {"template": {"spec": template}},
    }

    await made.apply(job)
    await made.kubectl("wait", "job/once", "--for=condition=Complete", "--timeout=60s", seconds=70)

    assert (await made.kubectl("logs", "job/once")).out == "done\n"
    await made.delete("job/once")


async def test_a_changed_config_map_reaches_a_running_pod(made: Cluster) -> None:
    """Files of a volume change at once, as a whole, in a container that goes on."""
    settings = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "words"},
        "data": {"word": "old"},
    }
    reader = pod("reader", volumeMounts=[{"name": "words", "mountPath": "/words"}])
    reader["spec"]["volumes"] = [{"name": "words", "configMap": {"name": "words"}}]
    await made.apply(settings, reader)
    await made.ready("reader")

    async def says_new() -> bool:
        return (await made.kubectl("exec", "reader", "--", "cat", "/words/word")).out == "new"

    await made.apply({**settings, "data": {"word": "new"}})
    await until(says_new, "the file has the new word", 120)

    assert _containers(await made.pod("reader"))[0]["restartCount"] == 0
    await made.delete("pod/reader", "configmap/words")
