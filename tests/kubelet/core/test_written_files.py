"""What a manifest says ends up on the line that is its own, in files that we write (S34)."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.core import manifest
from services.kubelet.core.dns import NodeDns, pod_dns
from services.kubelet.core.hostname import hosts_text, kernel_name, names
from services.kubelet.core.model import PodSpec

ODD = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "a",
            "a\nb",
            "10.0.0.1",
            "10.0.0.1\n",
            "::1",
            "::1\n",
            "fe80::1%e\n",
            "a.b.",
            "ndots",
            "5",
            "a\tb",
            "a b",
        ]
    ),
)


@given(st.lists(st.tuples(ODD, st.lists(ODD, max_size=2)), max_size=3), ODD, ODD, ODD)
def test_a_hosts_file_has_a_line_for_each_alias(
    aliases: list[tuple[str, list[str]]], hostname: str, subdomain: str, override: str
) -> None:
    """Or the manifest is refused."""
    spec = _read(
        hostAliases=[{"ip": ip, "hostnames": found} for ip, found in aliases],
        hostname=hostname,
        subdomain=subdomain,
        hostnameOverride=override,
    )
    if spec is None:
        return
    found = names("web", "shop", spec.hostname, spec.naming, "cluster.local")
    lines = hosts_text(found, ("10.1.0.1",), spec.naming.host_aliases).splitlines()
    tail = lines[len(lines) - len(aliases) :] if aliases else []

    assert len(lines) == 8 + (2 + len(aliases) if aliases else 0)
    assert [line.split("\t") for line in tail] == [[ip, *given] for ip, given in aliases]
    assert not set(kernel_name(found, spec.naming)) & set("\n\t \0")


@given(st.lists(ODD, max_size=3), st.lists(ODD, max_size=3), st.lists(st.tuples(ODD, ODD), max_size=3))
def test_a_resolver_has_a_word_for_each_that_is_said(
    servers: list[str], searches: list[str], options: list[tuple[str, str]]
) -> None:
    """Or the manifest is refused."""
    config = {
        "nameservers": servers,
        "searches": searches,
        "options": [{"name": name, "value": value} for name, value in options],
    }
    spec = _read(dnsConfig=config)
    if spec is None:
        return
    found = pod_dns(spec.dns, NodeDns(), namespace="shop", host_network=False)
    words = [*found.servers, *found.searches, *found.options]

    assert all(word and len(word.split()) == 1 and word == word.strip() for word in words)
    assert not set("".join(words)) & set("\n\r\t \0")


def _read(**spec: Any) -> PodSpec | None:
    body = {"containers": [{"name": "app", "image": "app:1"}], **spec}
    value = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": body}
    drafts, _ = manifest.read(json.dumps(value).encode())
    made = drafts[0].spec if drafts else None
    assert made is None or isinstance(made, PodSpec)
    return made
