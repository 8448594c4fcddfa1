"""What the doctor makes of facts: a row for each thing that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli import VERSION
from cli.doctor import report
from cli.doctor.core import clock, engine, kernel, network, node, ports, rights, surroundings
from cli.doctor.facts import (
    ClockFacts,
    EngineFacts,
    FileFacts,
    KernelFacts,
    NetworkFacts,
    NodeFacts,
    PortFacts,
    RightsFacts,
    Route,
    ServiceFacts,
    Settings,
    Space,
    SurroundingFacts,
)
from cli.doctor.finding import Finding, Level, broken, ok, size, unseen, warn
from cli.output import Paint
from services.common import telemetry

SETTINGS = Settings()
GOOD_ENGINE = EngineFacts(
    "unix:///var/run/docker.sock",
    version="29.1.0",
    api_version="1.52",
    runc_version="1.3.4",
    storage_driver="overlay2",
    cgroup_driver="systemd",
    cgroup_version="2",
    runtimes=("io.containerd.runc.v2", "runc"),
    default_runtime="runc",
    root_directory="/var/lib/docker",
    root_space=Space(50 << 30, 100 << 30),
)
GOOD_KERNEL = KernelFacts(
    "6.1.0-13-amd64",
    cgroups="v2",
    controllers=frozenset({"cpu", "memory", "pids"}),
    inotify_instances=128,
    inotify_watches=65536,
    nf_tables=True,
)
GOOD_NETWORK = NetworkFacts(
    SETTINGS,
    ip_forward=True,
    bridge_netfilter=True,
    forward=("-P FORWARD DROP", "-A FORWARD -j DOCKER-USER", "-A FORWARD -j TRIPOD-FORWARD"),
    conntrack_count=100,
    conntrack_limit=1000,
    routes=(Route("192.0.2.0/24", "eth0"), Route("10.201.0.0/24", "tripod0")),
    bridge_exists=True,
)
SOCKET = FileFacts("/run/tripod/kubelet.sock", 0o660, "root", "docker")
KUBELET = ServiceFacts("kubelet", SOCKET, answers=True, version=VERSION)
PROXY = replace(KUBELET, name="proxy")
DEAD = ServiceFacts("proxy", None, error="nothing listens at /run/tripod/proxy.sock")
GOOD_NODE = NodeFacts(
    SETTINGS,
    version=VERSION,
    services=(KUBELET, PROXY),
    engine_group="docker",
    conditions=(("DiskPressure", False, "60% free"), ("Ready", True, "The kubelet runs pods")),
    refused_manifests={},
    state=FileFacts("/var/lib/tripod", 0o755, "root", "root"),
    state_space=Space(50 << 30, 100 << 30),
    state_propagation="private (/)",
    token=FileFacts("/var/lib/tripod/node-token", 0o660, "root", "docker"),
    lock_owner=42,
    lock_owner_alive=True,
)
GOOD_CLOCK = ClockFacts(2026, synchronised=True, source="timedatectl")
GOOD_RIGHTS = RightsFacts("root", root=True, engine_socket="/var/run/docker.sock", resource_capability=True)
USER = RightsFacts(
    "ann", engine_socket="/var/run/docker.sock", engine_group="docker", resource_capability=True
)
GOOD_AROUND = SurroundingFacts(SETTINGS, engine_proxies={}, compose="2.30.1")
PROXIED = {"https_proxy": "http://192.0.2.9:3128"}


def faults(findings: Iterable[Finding]) -> list[Finding]:
    """Return what is not fine."""
    return [finding for finding in findings if finding.level is not Level.OK]


@pytest.mark.parametrize(
    "findings",
    [
        pytest.param(engine.judge(GOOD_ENGINE), id="engine"),
        pytest.param(kernel.judge(GOOD_KERNEL), id="kernel"),
        pytest.param(network.judge(GOOD_NETWORK), id="network"),
        pytest.param(
            ports.judge(
                [PortFacts(50051, "kubelet, gRPC"), PortFacts(4194, "c", used=True, owner="x", ours=True)]
            ),
            id="ports",
        ),
        pytest.param(node.judge(GOOD_NODE), id="node"),
        pytest.param(clock.judge(GOOD_CLOCK), id="clock"),
        pytest.param(rights.judge(GOOD_RIGHTS), id="rights"),
        pytest.param(rights.judge(replace(USER, reaches_engine=True)), id="rights-of-a-user"),
        pytest.param(surroundings.judge(GOOD_AROUND), id="surroundings"),
    ],
)
def test_a_good_host_has_no_fault(findings: Iterable[Finding]) -> None:
    """And something is said to be fine."""
    told = list(findings)

    assert told
    assert faults(told) == []


BROKEN, WARN, UNSEEN = Level.BROKEN, Level.WARN, Level.UNSEEN
Row = tuple[str, Iterable[Finding], Level, str, str]


def of_engine(**values: Any) -> Iterable[Finding]:
    """Judge a good engine with one fault."""
    return engine.judge(replace(GOOD_ENGINE, **values))


def of_kernel(**values: Any) -> Iterable[Finding]:
    """Judge a good kernel with one fault."""
    return kernel.judge(replace(GOOD_KERNEL, **values))


def of_network(**values: Any) -> Iterable[Finding]:
    """Judge a good network with one fault."""
    return network.judge(replace(GOOD_NETWORK, **values))


def of_node(**values: Any) -> Iterable[Finding]:
    """Judge a good node with one fault."""
    return node.judge(replace(GOOD_NODE, **values))


ROWS: Sequence[Row] = [
    ("engine-away", of_engine(error="Connection refused"), BROKEN, "Connection refused", "systemctl start"),
    ("engine-denied", of_engine(denied=True), UNSEEN, "Engine at", "usermod -aG docker"),
    ("old-api", of_engine(version="19.3", api_version="1.40"), BROKEN, "API 1.40", "Upgrade"),
    ("old-runc", of_engine(runc_version="1.1.5+ds1"), WARN, "older than 1.2.8", "--only-upgrade runc"),
    ("old-runc-of-a-newer-line", of_engine(runc_version="1.3.2"), WARN, "older than 1.3.3", "runc"),
    (
        "no-live-restore",
        of_engine(live_restore=False),
        WARN,
        "live-restore is off",
        "systemctl reload docker",
    ),
    ("vfs", of_engine(storage_driver="vfs"), WARN, "Storage driver vfs", "overlay2"),
    (
        "two-drivers",
        of_engine(cgroup_driver="cgroupfs"),
        WARN,
        "cgroupfs on cgroup v2",
        "native.cgroupdriver",
    ),
    ("no-cgroups", of_engine(cgroup_driver="none"), BROKEN, "manages no cgroups", "delegation"),
    ("unknown-runtime", of_engine(default_runtime="kata"), BROKEN, "'kata'", "default-runtime"),
    (
        "its-warning",
        of_engine(warnings=("WARNING: No swap limit support",)),
        WARN,
        "No swap limit support",
        "",
    ),
    ("disk-low", of_engine(root_space=Space(5 << 30, 100 << 30)), WARN, "5.0 GiB free (5%)", "prune"),
    ("disk-full", of_engine(root_space=Space(1 << 20, 100 << 30)), BROKEN, "1 MiB free (0%)", "prune"),
    ("disk-unseen", of_engine(root_space=None), UNSEEN, "Free disk at /var/lib/docker", "root"),
    ("insecure", of_engine(insecure_registries=("r.test:5000",)), WARN, "r.test:5000", "insecure-registries"),
    ("its-clock", of_engine(skew_seconds=-70.0), WARN, "differs from ours by 70 s", "Synchronise"),
    ("old-kernel", of_kernel(release="5.4.0"), BROKEN, "older than 5.6", "newer kernel"),
    ("no-cgroup-mount", of_kernel(cgroups=""), BROKEN, "No cgroup file system", "mount -t cgroup2"),
    (
        "no-memory-controller",
        of_kernel(controllers=frozenset({"cpu", "pids"})),
        WARN,
        "without memory",
        "cgroup",
    ),
    ("no-nf-tables", of_kernel(nf_tables=False), BROKEN, "no nf_tables", "modprobe nf_tables"),
    ("nf-tables-unseen", of_kernel(nf_tables=None), UNSEEN, "nf_tables", "root"),
    ("no-overlay", of_kernel(overlay=False), WARN, "no overlay", "modprobe overlay"),
    ("few-watches", of_kernel(inotify_watches=100), WARN, "100 watches", "max_user_watches"),
    ("inotify-unseen", of_kernel(inotify_instances=None), UNSEEN, "inotify", ""),
    ("no-forwarding", of_network(ip_forward=False), BROKEN, "ip_forward is off", "ip_forward=1"),
    ("not-yet", of_network(ip_forward=False, bridge_exists=False), WARN, "ip_forward is off", "ip_forward=1"),
    ("forwarding-unseen", of_network(ip_forward=None), UNSEEN, "ip_forward", "root"),
    ("no-br-netfilter", of_network(bridge_netfilter=None), WARN, "not loaded", "modprobe br_netfilter"),
    ("bridged-past", of_network(bridge_netfilter=False), WARN, "iptables is 0", "bridge-nf-call-iptables=1"),
    (
        "localnet",
        of_network(route_localnet=("all",)),
        WARN,
        "route_localnet is 1 for all",
        "all.route_localnet=0",
    ),
    (
        "no-jump",
        of_network(forward=("-P FORWARD DROP",)),
        BROKEN,
        "does not jump to TRIPOD-FORWARD",
        "-A FORWARD",
    ),
    ("rules-unseen", of_network(forward=None), UNSEEN, "FORWARD chain", "root"),
    ("no-iptables", of_network(iptables=False, forward=None), UNSEEN, "FORWARD chain", "apt-get install"),
    ("conntrack-filling", of_network(conntrack_count=850), WARN, "850 of 1000", "nf_conntrack_max=2000"),
    ("conntrack-full", of_network(conntrack_count=1000), BROKEN, "1000 of 1000", "nf_conntrack_max=2000"),
    ("conntrack-unseen", of_network(conntrack_count=None), UNSEEN, "Connection tracking", ""),
    ("rival", of_network(routes=(Route("10.201.0.0/25", "wg0"),)), BROKEN, "via wg0", "TRIPOD_POD_CIDR"),
    ("broad-rival", of_network(routes=(Route("10.201.0.0/16", "wg0"),)), WARN, "overlaps", "CIDR"),
    (
        "held",
        ports.judge([PortFacts(4194, "x", used=True, owner="nc (7)")]),
        BROKEN,
        "held by nc (7)",
        "ss -ltnp",
    ),
    (
        "held-unseen",
        ports.judge([PortFacts(4194, "x", used=True)]),
        UNSEEN,
        "listens on port 4194",
        "root",
    ),
    ("waits", of_node(conditions=()), BROKEN, "has not looked at the node yet", "logs"),
    (
        "one-dead",
        of_node(services=(KUBELET, DEAD)),
        BROKEN,
        "proxy does not answer: nothing",
        "logs --tail 20 proxy",
    ),
    ("all-down", of_node(services=(DEAD,), lock_owner=None, conditions=()), WARN, "not running", "make up"),
    ("hangs", of_node(services=(DEAD,), conditions=()), BROKEN, "process 42 holds", "ps -fp 42"),
    (
        "denied",
        of_node(services=(replace(KUBELET, answers=False, denied=True),)),
        UNSEEN,
        "Services kubelet",
        "group",
    ),
    ("mixed", of_node(services=(KUBELET, replace(PROXY, version="0.0.9"))), WARN, "proxy 0.0.9", "make up"),
    (
        "quiet",
        of_node(services=(KUBELET, replace(PROXY, version=""))),
        WARN,
        "proxy tell no version",
        "make up",
    ),
    (
        "open-socket",
        of_node(services=(replace(KUBELET, socket=replace(SOCKET, mode=0o666)),)),
        WARN,
        "0666",
        "chmod",
    ),
    (
        "other-group",
        of_node(services=(replace(KUBELET, socket=replace(SOCKET, group="games")),)),
        WARN,
        "games",
        "chgrp",
    ),
    ("not-ready", of_node(conditions=(("Ready", False, "no runtime"),)), BROKEN, "no runtime", "logs"),
    (
        "store-full",
        of_node(conditions=(("Ready", False, "The disk is full"),)),
        BROKEN,
        "disk is full",
        "df -h",
    ),
    (
        "API server",
        of_node(conditions=(("ApiServerReachable", False, "it does not answer since 12:00"),)),
        BROKEN,
        "it does not answer since 12:00",
        "docs/cluster.md",
    ),
    ("pressure", of_node(conditions=(("DiskPressure", True, "2% is free"),)), WARN, "2% is free", "prune"),
    (
        "refused",
        of_node(refused_manifests={"/m/a.yaml": "spec: missing"}),
        BROKEN,
        "spec: missing",
        "--dry-run -f",
    ),
    ("open-state", of_node(state=FileFacts("/s", 0o777, "root", "root")), WARN, "mode 0777", "go-w"),
    ("foreign-state", of_node(state=FileFacts("/s", 0o755, "ann", "root")), WARN, "owner ann", "chown root"),
    ("state-full", of_node(state_space=Space(1 << 30, 100 << 30)), WARN, "1.0 GiB free (1%)", "du -xh"),
    ("state-unseen", of_node(state=None), UNSEEN, "State directory", "root"),
    (
        "open-token",
        of_node(token=FileFacts("/t", 0o664, "root", "docker")),
        BROKEN,
        "mode 0664",
        "chmod 0660 /t",
    ),
    ("no-owner", of_node(lock_owner_alive=False), WARN, "process 42, which is not there", "restart kubelet"),
    (
        "unsynchronised",
        clock.judge(replace(GOOD_CLOCK, synchronised=False)),
        WARN,
        "not synchronised",
        "set-ntp",
    ),
    ("clock-unseen", clock.judge(replace(GOOD_CLOCK, synchronised=None)), UNSEEN, "Synchronisation", ""),
    ("clock-of-old", clock.judge(replace(GOOD_CLOCK, year=1970)), BROKEN, "says that it is 1970", "date -s"),
    (
        "stepped",
        clock.judge(replace(GOOD_CLOCK, step_seconds=-3.0)),
        WARN,
        "jumped by -3.00 s",
        "one program",
    ),
    ("stranger", rights.judge(USER), WARN, "ann is not in group docker", "usermod -aG docker ann"),
    ("new-member", rights.judge(replace(USER, in_group=True)), WARN, "after it logged in", "newgrp docker"),
    ("no-engine-socket", rights.judge(replace(USER, engine_group="")), UNSEEN, "ann may use the engine", ""),
    (
        "confined",
        rights.judge(replace(GOOD_RIGHTS, resource_capability=False)),
        WARN,
        "CAP_SYS_RESOURCE",
        "dockerd",
    ),
    (
        "caps-unseen",
        rights.judge(replace(GOOD_RIGHTS, resource_capability=None)),
        UNSEEN,
        "Capabilities",
        "root",
    ),
    (
        "no-compose",
        surroundings.judge(replace(GOOD_AROUND, compose="")),
        WARN,
        "No compose",
        "docker-compose",
    ),
    (
        "old-compose",
        surroundings.judge(replace(GOOD_AROUND, compose="1.25.0")),
        WARN,
        "older than 1.29",
        "newer",
    ),
    ("proxies-unseen", surroundings.judge(replace(GOOD_AROUND, engine_proxies=None)), UNSEEN, "Proxies", ""),
    (
        "engine-without-proxy",
        surroundings.judge(replace(GOOD_AROUND, proxies={**PROXIED, "no_proxy": "10.0.0.0/8"})),
        WARN,
        "the engine has none",
        "docker.service.d/proxy.conf",
    ),
    (
        "services-through-proxy",
        surroundings.judge(replace(GOOD_AROUND, proxies=PROXIED, engine_proxies=PROXIED)),
        WARN,
        "NO_PROXY does not name the service addresses 10.202.0.0/16",
        "export NO_PROXY",
    ),
]


@pytest.mark.parametrize(
    ("findings", "level", "words", "fix"), [pytest.param(*row[1:], id=row[0]) for row in ROWS]
)
def test_each_fault_is_told_once_with_its_fix(
    findings: Iterable[Finding], level: Level, words: str, fix: str
) -> None:
    """One fault, one finding; what is wrong has a reason, too."""
    found = faults(findings)

    assert [(f.level, words in f.what, fix in f.fix) for f in found] == [(level, True, True)]
    assert found[0].why


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        (of_engine(mirrors=("https://m.test",)), "Registry mirrors: https://m.test"),
        (of_network(forward=("-P FORWARD ACCEPT",)), "FORWARD accepts by default"),
        (
            of_network(forward=("-P FORWARD DROP",), bridge_exists=False),
            "the kubelet adds TRIPOD-FORWARD when it starts",
        ),
        (clock.judge(replace(GOOD_CLOCK, error_seconds=0.004)), "says timedatectl, within 4 ms"),
        (
            surroundings.judge(
                replace(GOOD_AROUND, proxies={**PROXIED, "no_proxy": "*"}, engine_proxies=PROXIED)
            ),
            "Images are pulled through http://192.0.2.9:3128",
        ),
    ],
)
def test_what_is_fine_is_told_with_its_value(findings: Iterable[Finding], words: str) -> None:
    """So that a person sees what was looked at."""
    told = list(findings)

    assert faults(told) == []
    assert any(words in finding.what for finding in told)


FINDINGS = {
    "Engine": (ok("Engine 29.1.0 answers, API 1.52"), ok("live-restore is on")),
    "Node": (
        ok("kubelet answers"),
        warn("runc is old", "Containers could reach the host.", "apt-get install runc"),
        broken("proxy does not answer", "Its part stands still.", "docker-compose up -d proxy"),
    ),
    "Rights": (unseen("FORWARD chain", "listing rules needs CAP_NET_ADMIN"),),
}
GOLDEN = """\
Engine  2 fine
Node    1 of 3 fine
  broken  proxy does not answer
          Its part stands still.
          Fix: docker-compose up -d proxy
  warn    runc is old
          Containers could reach the host.
          Fix: apt-get install runc
Rights  0 of 1 fine
  unseen  FORWARD chain: listing rules needs CAP_NET_ADMIN
          Fix: Run as root to see it.

1 thing is broken, 1 could be better; 1 could not be looked at."""


def test_a_report_is_short_and_begins_with_the_worst() -> None:
    """What is fine is counted; the rest has its reason and its fix."""
    assert report.as_text(FINDINGS, Paint(), verbose=False) == GOLDEN
    assert "  ok      live-restore is on" in report.as_text(FINDINGS, Paint(), verbose=True).splitlines()


def test_a_report_without_faults_says_so() -> None:
    """In one sentence at the end."""
    good = report.as_text({"Engine": FINDINGS["Engine"]}, Paint(), verbose=False)
    partly = report.as_text({"Engine": FINDINGS["Engine"], "R": FINDINGS["Rights"]}, Paint(), verbose=False)

    assert good.splitlines()[-1] == "Everything that was looked at is fine."
    assert partly.splitlines()[-1] == "Everything that was looked at is fine; 1 could not be looked at."


def test_colour_is_for_terminals_only() -> None:
    """The words are the same."""
    painted = report.as_text(FINDINGS, Paint(on=True), verbose=False)

    assert "\033[31mbroken" in painted
    assert "\033[" not in GOLDEN


def test_only_what_is_broken_fails() -> None:
    """Warnings and what is unseen do not."""
    mild = {"Node": FINDINGS["Node"][:2], "Rights": FINDINGS["Rights"]}
    value = json.loads(report.as_json(FINDINGS))

    assert (report.failed(FINDINGS), report.failed(mild)) == (True, False)
    assert value["broken"] is True
    assert value["counts"] == {"ok": 3, "warn": 1, "broken": 1, "unseen": 1}
    assert value["findings"][4] == {
        "group": "Node",
        "level": "broken",
        "what": "proxy does not answer",
        "why": "Its part stands still.",
        "fix": "docker-compose up -d proxy",
    }


def test_the_command_and_the_services_are_of_one_version() -> None:
    """`doctor` compares them."""
    assert telemetry.VERSION == VERSION


def test_settings_are_those_of_the_services() -> None:
    """Same names, same meaning."""
    chosen = Settings.of(
        {"TRIPOD_STATE_DIRECTORY": "/s", "DOCKER_HOST": "unix:///d.sock", "TRIPOD_BRIDGE": "b0"}
    )

    assert Settings.of({}) == Settings()
    assert (chosen.state_directory, chosen.docker_host, chosen.bridge) == (Path("/s"), "unix:///d.sock", "b0")


@pytest.mark.parametrize(
    ("version", "expected"),
    [("1.1.5+ds1", (1, 1, 5)), ("v2.30.1", (2, 30, 1)), ("6.1.0-13-amd64", (6, 1, 0)), ("unknown", ())],
)
def test_a_version_is_its_leading_numbers(version: str, expected: tuple[int, ...]) -> None:
    """What a distribution adds says nothing about age."""
    assert engine.numbers(version) == expected


def test_sizes_are_in_words_of_two_digits() -> None:
    """MiB below one GiB."""
    assert (size(512 << 20), size(3.4 * (1 << 30))) == ("512 MiB", "3.4 GiB")
