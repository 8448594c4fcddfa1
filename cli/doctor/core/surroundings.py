"""Judge proxies and compose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_network

from cli.doctor.core.engine import numbers
from cli.doctor.facts import SurroundingFacts
from cli.doctor.finding import Finding, ok, unseen, warn

LEAST_COMPOSE = (1, 29)


def judge(facts: SurroundingFacts) -> Iterator[Finding]:
    """Say how images come in, and whether `make up` finds its tool."""
    yield from _proxies(facts)
    version = numbers(facts.compose)
    if not version:
        yield warn("No compose was found", "`make up` needs it.", "apt-get install docker-compose")
    elif version < LEAST_COMPOSE:
        what = f"Compose {facts.compose} is older than 1.29"
        yield warn(what, "It may not read our docker-compose.yml.", "Install a newer one.")
    else:
        yield ok(f"Compose {facts.compose}")


def _proxies(facts: SurroundingFacts) -> Iterator[Finding]:
    here, engine = _https(facts.proxies), _https(facts.engine_proxies or {})
    if facts.engine_proxies is None:
        yield unseen("Proxies of the engine", "it does not answer", "")
    elif here and not engine:
        yield warn(
            f"HTTPS_PROXY is {here} here, and the engine has none",
            "The engine pulls images, not your shell: its pulls go out directly and may time out.",
            "Set HTTPS_PROXY and NO_PROXY in /etc/systemd/system/docker.service.d/proxy.conf, then "
            "systemctl daemon-reload && systemctl restart docker.",
        )
    else:
        yield ok(f"Images are pulled through {engine}" if engine else "Images are pulled without a proxy")
    if here and not _bypassed(facts.proxies.get("no_proxy", ""), facts.settings.service_cidr):
        yield warn(
            f"NO_PROXY does not name the service addresses {facts.settings.service_cidr}",
            "curl on this host asks the proxy for them, which does not know them.",
            f'export NO_PROXY="$NO_PROXY,127.0.0.1,{facts.settings.service_cidr},{facts.settings.pod_cidr}"',
        )


def _https(proxies: Mapping[str, str]) -> str:
    return proxies.get("https_proxy") or proxies.get("http_proxy") or ""


def _bypassed(no_proxy: str, cidr: str) -> bool:
    ours = ip_network(cidr)
    for word in (part.strip() for part in no_proxy.split(",")):
        if word == "*":
            return True
        try:
            network = ip_network(word)
        except ValueError:
            continue
        if network.version == ours.version and ours.subnet_of(network):  # type: ignore[arg-type]  # one version
            return True
    return False
