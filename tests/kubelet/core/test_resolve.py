"""The variables of a container: where each comes from, in which order, what is told when one is missing."""

from __future__ import annotations

from typing import Any

import pytest

from services.kubelet.core.brought import EnvFrom, EnvSource, FieldRef, KeyRef, Origin, ResourceRef
from services.kubelet.core.env import TooLongError
from services.kubelet.core.model import (
    ConfigMap,
    Container,
    EnvVar,
    Protocol,
    Resources,
    Secret,
    Service,
    ServicePort,
)
from services.kubelet.core.resolve import (
    Environment,
    Found,
    MissingError,
    Surroundings,
    environment,
    needed_by,
    needs_address,
)
from tests.builders import a_container, a_pod

AROUND = Surroundings("node-1", ("192.0.2.1", "2001:db8::1"), ("10.0.0.2",), 4000, 8 << 30, 1 << 40)
SETTINGS = ConfigMap("u1", "default", "settings", data={"mode": "fast", "1st": "x", "SHARED": "map"})
KEY = Secret("u2", "default", "key", data={"password": b"hunter2", "binary": b"\xff", "SHARED": b"secret"})
FOUND = Found({(Origin.CONFIG_MAP, "settings"): SETTINGS, (Origin.SECRET, "key"): KEY})
WEB = Service(
    "u3",
    "default",
    "web-site",
    "10.1.0.7",
    (ServicePort(80, 8080, "http"), ServicePort(53, 53, "dns-udp", Protocol.UDP)),
)


def computed(found: Found = FOUND, *, services: tuple[Service, ...] = (), **values: Any) -> Environment:
    """Compute the variables of a pod's one container."""
    of_pod = {name: values.pop(name) for name in ("labels", "enable_service_links") if name in values}
    container = a_container(**values)
    pod = a_pod(container, **of_pod)
    return environment(pod, container, Found(found.objects, services), AROUND)


def value_of(source: EnvSource, **values: Any) -> str | None:
    """Compute one variable."""
    return computed(env=(EnvVar("A", "", source),), **values).values.get("A")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "web"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "uid-1"),
        ("metadata.labels['app.kubernetes.io/name']", "shop"),
        ("metadata.annotations['none']", ""),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "192.0.2.1"),
        ("status.hostIPs", "192.0.2.1,2001:db8::1"),
        ("status.podIP", "10.0.0.2"),
        ("status.podIPs", "10.0.0.2"),
    ],
)
def test_a_field_of_the_pod_is_a_value(path: str, expected: str) -> None:
    """Every path that Kubernetes knows for variables."""
    assert value_of(FieldRef(path), labels={"app.kubernetes.io/name": "shop"}) == expected


@pytest.mark.parametrize(
    ("resource", "divisor", "expected"),
    [
        pytest.param("limits.cpu", "", "2", id="rounded-up-to-whole-cores"),
        pytest.param("limits.cpu", "1m", "1500", id="in-millicores"),
        pytest.param("requests.cpu", "1m", "250", id="a-request"),
        pytest.param("limits.memory", "", str(64 << 20), id="in-bytes"),
        pytest.param("limits.memory", "1Mi", "64", id="in-mebibytes"),
        pytest.param("limits.memory", "1M", "68", id="in-megabytes-rounded-up"),
        pytest.param("limits.ephemeral-storage", "1Gi", "1024", id="what-the-node-has"),
        pytest.param("requests.memory", "", "0", id="a-request-that-is-not-set"),
    ],
)
def test_an_amount_is_divided_and_rounded_up(resource: str, divisor: str, expected: str) -> None:
    """A limit that is not set is what the node can give."""
    resources = Resources(250, 1500, None, 64 << 20)

    assert value_of(ResourceRef(resource, "", divisor), resources=resources) == expected


def test_a_limit_that_is_not_set_is_what_the_node_has() -> None:
    """As the downward API has it for CPU and memory."""
    assert value_of(ResourceRef("limits.cpu")) == "4"
    assert value_of(ResourceRef("limits.memory", "", "1Gi")) == "8"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (KeyRef(Origin.CONFIG_MAP, "none", "a"), 'configmap "none" not found'),
        (KeyRef(Origin.SECRET, "none", "a"), 'secret "none" not found'),
        (KeyRef(Origin.CONFIG_MAP, "settings", "a"), "couldn't find key a in ConfigMap default/settings"),
        (KeyRef(Origin.SECRET, "key", "a"), "couldn't find key a in Secret default/key"),
        (
            KeyRef(Origin.SECRET, "key", "binary"),
            "the key binary of Secret default/key is no text that a variable can hold",
        ),
    ],
)
def test_what_is_missing_is_told_by_name(source: KeyRef, message: str) -> None:
    """In the words of the kubelet; what is optional is left out instead."""
    with pytest.raises(MissingError, match="^" + message.replace("(", r"\(") + "$"):
        value_of(source)

    if source.key != "binary":
        assert value_of(KeyRef(source.origin, source.name, source.key, optional=True)) is None


def test_env_overrides_env_from_and_the_last_of_env_from_wins() -> None:
    """`$(NAME)` sees all that came before: what came at once, and services behind it."""
    made = computed(
        env_from=(EnvFrom(Origin.CONFIG_MAP, "settings"), EnvFrom(Origin.SECRET, "key", "K_")),
        env=(
            EnvVar("mode", "very $(mode)"),
            EnvVar("LINE", "$(K_password)@$(WEB_SITE_SERVICE_HOST) $(LATER) $$(mode)"),
            EnvVar("LATER", "x"),
        ),
        services=(WEB,),
    )

    assert made.values["mode"] == "very fast"
    assert made.values["LINE"] == "hunter2@10.1.0.7 $(LATER) $(mode)"
    assert made.values["SHARED"] == "map"
    assert made.values["K_SHARED"] == "secret"
    assert made.values["1st"] == "x"


def test_what_no_variable_can_hold_is_left_out_and_told() -> None:
    """A binary key, and one with a NUL."""
    secret = Secret("u", "default", "key", data={"ok": b"1", "bad": b"\xff", "nul": b"a\0b"})
    found = Found({(Origin.SECRET, "key"): secret})

    made = computed(found, env_from=(EnvFrom(Origin.SECRET, "key"),))

    assert made.values["ok"] == "1"
    assert made.skipped == {"Secret default/key": ("bad", "nul")}


def test_an_object_that_is_not_there_stops_env_from_unless_optional() -> None:
    """Its name is told."""
    with pytest.raises(MissingError, match='secret "none" not found'):
        computed(env_from=(EnvFrom(Origin.SECRET, "none"),))

    assert computed(env_from=(EnvFrom(Origin.SECRET, "none", optional=True),)).values == {}


def test_services_are_variables_in_both_forms() -> None:
    """Those of Kubernetes, and Docker's links."""
    made = computed(services=(WEB,)).values

    assert made == {
        "WEB_SITE_SERVICE_HOST": "10.1.0.7",
        "WEB_SITE_SERVICE_PORT": "80",
        "WEB_SITE_SERVICE_PORT_HTTP": "80",
        "WEB_SITE_SERVICE_PORT_DNS_UDP": "53",
        "WEB_SITE_PORT": "tcp://10.1.0.7:80",
        "WEB_SITE_PORT_80_TCP": "tcp://10.1.0.7:80",
        "WEB_SITE_PORT_80_TCP_PROTO": "tcp",
        "WEB_SITE_PORT_80_TCP_PORT": "80",
        "WEB_SITE_PORT_80_TCP_ADDR": "10.1.0.7",
        "WEB_SITE_PORT_53_UDP": "udp://10.1.0.7:53",
        "WEB_SITE_PORT_53_UDP_PROTO": "udp",
        "WEB_SITE_PORT_53_UDP_PORT": "53",
        "WEB_SITE_PORT_53_UDP_ADDR": "10.1.0.7",
    }


def test_only_services_with_an_address_in_the_namespace_are_variables() -> None:
    """The API's own is one for every pod, also for one without service links."""
    port = (ServicePort(443, 6443),)
    headless = Service("a", "default", "headless", "", port)
    elsewhere = Service("b", "shop", "db", "10.1.0.9", port)
    api = Service("c", "default", "kubernetes", "10.1.0.1", port)
    services = (headless, elsewhere, api, WEB)

    linked = computed(services=services).values
    unlinked = computed(services=services, enable_service_links=False).values

    assert {name.split("_")[0] for name in linked} == {"WEB", "KUBERNETES"}
    assert {name.split("_")[0] for name in unlinked} == {"KUBERNETES"}
    assert unlinked["KUBERNETES_SERVICE_HOST"] == "10.1.0.1"


def test_values_are_not_in_what_is_printed_or_raised() -> None:
    """Neither in the environment's own form, nor in what was found, nor in an error."""
    made = computed(env_from=(EnvFrom(Origin.SECRET, "key"),))
    with pytest.raises(TooLongError) as error:
        computed(
            env_from=(EnvFrom(Origin.SECRET, "key"),),
            env=tuple(EnvVar(f"A{n}", f"$(password)$(A{n - 1})$(A{n - 1})") for n in range(40)),
        )

    assert "hunter2" in made.values["password"]
    assert "hunter2" not in repr(made) + repr(FOUND) + str(error.value)


def test_what_a_container_needs_is_known_before() -> None:
    """Its objects, and whether its sandbox must be looked at first."""
    container: Container = a_container(
        env=(EnvVar("A", "", KeyRef(Origin.SECRET, "key", "a")), EnvVar("B", "", FieldRef("status.podIP"))),
        env_from=(EnvFrom(Origin.CONFIG_MAP, "settings"),),
    )

    assert needed_by(container) == {(Origin.SECRET, "key"), (Origin.CONFIG_MAP, "settings")}
    assert needs_address(container)
    assert not needs_address(a_container(env=(EnvVar("B", "", FieldRef("status.hostIP")),)))
