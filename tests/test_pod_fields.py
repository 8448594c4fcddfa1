"""docs/pods.md is held to the code: it names every field that is read, and every one that is refused.

After a change of fields, or a conflict in the page, run `python -m pytest tests/test_pod_fields.py` with
`TRIPOD_WRITE_DOCS=1`: it writes the table anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.kubelet.core import manifest
from services.kubelet.core.fields import Fields

PAGE = Path(__file__).parent.parent / "docs" / "pods.md"
BEGIN, END = "<!-- fields: begin -->\n", "<!-- fields: end -->"
# One of everything that has fields of its own; add to it what you make the manifests take.
EVERYTHING = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: config, configMap: {name: a, items: [{key: a, path: b}]}}
  - {name: secret, secret: {secretName: a, items: [{key: a, path: b}]}}
  - {name: self, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: image, image: {reference: "app:1"}}
  - name: projected
    projected:
      sources:
      - {configMap: {name: a}}
      - {secret: {name: a}}
      - {downwardAPI: {items: [{path: a, resourceFieldRef: {resource: limits.cpu, containerName: app}}]}}
      - {serviceAccountToken: {path: token}}
  - {name: host, hostPath: {path: /x}}
  containers:
  - name: app
    image: app:1
    env:
    - {name: A}
    - {name: B, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: C, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: D, valueFrom: {configMapKeyRef: {name: a, key: b}}}
    - {name: E, valueFrom: {secretKeyRef: {name: a, key: b}}}
    envFrom:
    - {configMapRef: {name: a}}
    - {secretRef: {name: a}}
    ports: [{containerPort: 80}]
    resources: {limits: {cpu: 1}}
    volumeMounts: [{name: scratch, mountPath: /s}]
    livenessProbe: {exec: {command: [x]}}
    readinessProbe: {httpGet: {port: 80, httpHeaders: [{name: A, value: b}]}}
    startupProbe: {tcpSocket: {port: 80}}
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  containers:
  - {name: app, image: "app:1", livenessProbe: {grpc: {port: 80}}}
---
apiVersion: v1
kind: Pod
metadata: {name: policy}
spec:
  securityContext:
    seccompProfile: {type: RuntimeDefault}
    appArmorProfile: {type: RuntimeDefault}
    seLinuxOptions: {level: s0}
    sysctls: [{name: net.ipv4.tcp_syncookies, value: "1"}]
  dnsConfig: {options: [{name: ndots, value: "2"}]}
  hostAliases: [{ip: 10.0.0.1, hostnames: [db]}]
  os: {name: linux}
  tolerations: [{key: a}]
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]
      preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {}}]
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {}}]
      preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: zone}}]
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
  containers:
  - name: app
    image: app:1
    securityContext: {capabilities: {add: [KILL]}}
    resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}]
---
apiVersion: v1
kind: Pod
metadata: {name: lifecycle}
spec:
  initContainers: [{name: first, image: "app:1"}]
  ephemeralContainers: [{name: debug, image: "app:1"}]
  containers:
  - name: app
    image: app:1
    restartPolicy: Never
    restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [1]}}]
    lifecycle:
      postStart: {exec: {command: [x]}}
      preStop: {sleep: {seconds: 1}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
---
{apiVersion: v1, kind: Secret, metadata: {name: a}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}, imagePullSecrets: [{name: a}]}
"""


def test_the_page_names_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both those that are honoured and those that are refused with their path."""
    written = table(fields(monkeypatch))
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    found, _, after = rest.partition(END)
    if os.environ.get("TRIPOD_WRITE_DOCS"):
        PAGE.write_text(before + BEGIN + written + END + after)
        found = written

    assert written == found


def fields(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[set[str], set[str]]]:
    """Read one of everything, and note what each mapping may have."""
    seen: dict[str, tuple[set[str], set[str]]] = {}
    refuse = Fields._refuse_others  # what every mapping passes

    def noted(self: Fields, known: Sequence[str], later: Mapping[str, Sequence[Any]]) -> None:
        place = re.sub(r"\[\d+\]", "[]", self.path)
        honoured, refused = seen.setdefault(place, (set(), set()))
        honoured.update(known)
        refused.update(later)
        refuse(self, known, later)

    monkeypatch.setattr(Fields, "_refuse_others", noted)
    seen_of: dict[str, tuple[set[str], set[str]]] = {}
    for document in yaml.safe_load_all(EVERYTHING):
        _, faults = manifest.read(yaml.safe_dump(document).encode())
        assert faults == []
        kind = document["kind"]
        for place, (honoured, refused) in seen.items():
            shared = place == "metadata" or kind == "Pod"
            name = place if shared and place else f"{kind}: {place}" if place else kind
            before = seen_of.setdefault(name, (set(), set()))
            before[0].update(honoured)
            before[1].update(refused - honoured)
        seen.clear()
    return seen_of


def table(found: Mapping[str, tuple[set[str], set[str]]]) -> str:
    """Write what was noted."""
    lines = ["| in | honoured | refused, with its path |", "|---|---|---|"]
    for place, (honoured, refused) in sorted(found.items()):
        lines.append(f"| `{place}` | {_names(honoured)} | {_names(refused - honoured)} |")
    return "\n".join(lines) + "\n"


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "-"
