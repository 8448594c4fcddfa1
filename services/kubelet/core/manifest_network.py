"""A pod's resolver and names in a manifest: fields and rules. Pure.

Source: Kubernetes API reference, `PodSpec` and `PodDNSConfig` v1, and the API server's validation.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from services.kubelet.core import dns
from services.kubelet.core.dns import DnsOption, DnsPolicy, DnsWish
from services.kubelet.core.fields import DNS_LABEL, DNS_SUBDOMAIN, Fields
from services.kubelet.core.hostname import KERNEL_LIMIT, HostAlias, Naming

# Relaxed since Kubernetes 1.34: underscores, a dot at the end, and the root alone.
_SEARCH = re.compile(
    r"(?=.{1,253}\.?$)([_a-z0-9]([-_a-z0-9]*[a-z0-9])?(\.[_a-z0-9]([-_a-z0-9]*[a-z0-9])?)*\.?|\.)"
)
_OPTION = re.compile(r"[-a-z0-9_]{1,64}", re.IGNORECASE)
_OPTION_VALUE = re.compile(r"[-a-z0-9_.:]{0,64}", re.IGNORECASE)


def read_dns(spec: Fields) -> DnsWish:
    """Read `dnsPolicy` and `dnsConfig`."""
    name = spec.text("dnsPolicy", DnsPolicy.CLUSTER_FIRST.value, choices=[p.value for p in DnsPolicy])
    policy = DnsPolicy(name)
    if not spec.has("dnsConfig"):
        if policy is DnsPolicy.NONE:
            spec.fault("dnsConfig", "needs a name server when dnsPolicy is None")
        return DnsWish(policy)
    config = Fields(
        spec.raw("dnsConfig"),
        spec.at("dnsConfig"),
        spec.faults,
        known=("nameservers", "searches", "options"),
    )
    servers = _servers(config)
    if policy is DnsPolicy.NONE and not servers:
        config.fault("nameservers", "needs one item at least when dnsPolicy is None")
    return DnsWish(policy, servers, _searches(config), _options(config))


def _servers(config: Fields) -> tuple[str, ...]:
    found = config.texts("nameservers")
    if len(found) > dns.SERVER_LIMIT:
        config.fault("nameservers", f"has more than {dns.SERVER_LIMIT} items")
    for index, server in enumerate(found):
        if not is_address(server):
            config.faults.add(f"{config.at('nameservers')}[{index}]", f"{server!r} is no IP address")
    return found


def _searches(config: Fields) -> tuple[str, ...]:
    found = config.texts("searches")
    if len(found) > dns.SEARCH_LIMIT or len(" ".join(found)) > dns.SEARCH_CHARACTERS:
        limits = f"{dns.SEARCH_LIMIT} items or {dns.SEARCH_CHARACTERS} characters"
        config.fault("searches", f"has more than {limits}")
    for index, search in enumerate(found):
        if not _SEARCH.fullmatch(search):
            config.faults.add(f"{config.at('searches')}[{index}]", f"{search!r} is no DNS domain")
    return found


def _options(config: Fields) -> tuple[DnsOption, ...]:
    found = []
    for item, path in config.items("options"):
        one = Fields(item, path, config.faults, known=("name", "value"))
        name = one.text("name", required=True, form=_OPTION, what="the name of an option")
        text = one.text("value", form=_OPTION_VALUE, what="the value of an option")
        found.append(DnsOption(name, text or None))
    return tuple(found)


def is_address(text: str) -> bool:
    """Tell whether a text is an IP address, without a zone."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def read_naming(spec: Fields, *, host_network: bool) -> Naming:
    """Read a pod's names besides `hostname`."""
    found = Naming(
        subdomain=spec.text("subdomain", form=DNS_LABEL, what="a DNS label"),
        hostname_as_fqdn=spec.flag("setHostnameAsFQDN"),
        hostname_override=spec.text("hostnameOverride", form=DNS_SUBDOMAIN, what="a DNS name"),
        host_aliases=_aliases(spec),
    )
    if not found.hostname_override:
        return found
    if len(found.hostname_override) > KERNEL_LIMIT:
        spec.fault("hostnameOverride", f"has more than {KERNEL_LIMIT} characters")
    for name, given in (("setHostnameAsFQDN", found.hostname_as_fqdn), ("hostNetwork", host_network)):
        if given:
            spec.fault("hostnameOverride", f"cannot be given while {name} is true")
    return found


def _aliases(spec: Fields) -> tuple[HostAlias, ...]:
    found = []
    for item, path in spec.items("hostAliases"):
        one = Fields(item, path, spec.faults, known=("ip", "hostnames"))
        ip = one.text("ip", required=True)
        if ip and not is_address(ip):
            one.fault("ip", f"{ip!r} is no IP address")
        names = one.texts("hostnames")
        for index, name in enumerate(names):
            if not DNS_SUBDOMAIN.fullmatch(name):
                spec.faults.add(f"{one.at('hostnames')}[{index}]", f"{name!r} is not a DNS name")
        found.append(HostAlias(ip, names))
    return tuple(found)
