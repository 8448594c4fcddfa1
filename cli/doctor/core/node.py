"""Judge the node: its services, its conditions, its files."""

from __future__ import annotations

from collections.abc import Iterator

from cli.doctor.facts import NodeFacts, ServiceFacts
from cli.doctor.finding import Finding, broken, ok, size, unseen, warn

_SOCKET_MODE = _TOKEN_MODE = 0o660
_LOW_SHARE = 0.10
_LOGS = "docker-compose logs --tail 50 kubelet"
# Conditions that are good when they hold; the others are pressures.
_GOOD = ("Ready", "ApiServerReachable")
_PRESSURE_WHY = {
    "DiskPressure": (
        "Images and logs fail on a full disk.",
        "docker system prune, and look at du -xh /var/lib",
    ),
    "MemoryPressure": ("The kernel may kill containers.", "Stop what is not needed; see `tripod top` or ps."),
    "PIDPressure": ("New processes cannot start.", "Find who has so many: ps -eLf | wc -l"),
}


def judge(facts: NodeFacts) -> Iterator[Finding]:
    """Say how the node fares."""
    yield from _services(facts)
    yield from _sockets(facts)
    yield from _conditions(facts)
    yield from _manifests(facts)
    yield from _state(facts)
    yield from _token(facts)


def running(facts: NodeFacts) -> bool:
    """Tell whether any service answers."""
    return any(service.answers for service in facts.services)


def _services(facts: NodeFacts) -> Iterator[Finding]:
    denied = [s for s in facts.services if s.denied]
    if denied:
        names = ", ".join(s.name for s in denied)
        fix = f"Run as root or as a member of group {facts.engine_group or 'docker'}."
        yield unseen(f"Services {names}", "this user may not use their sockets", fix)
    silent = [s for s in facts.services if not s.answers and not s.denied]
    if silent and not running(facts) and not denied:
        yield _down(facts)
        return
    for service in silent:
        yield broken(
            f"{service.name} does not answer: {service.error}",
            "Its part of the node stands still; running pods go on.",
            f"docker-compose logs --tail 20 {service.name}; docker-compose up -d {service.name}",
        )
    answering = [s for s in facts.services if s.answers]
    if answering:
        yield ok(f"{', '.join(s.name for s in answering)} answer")
        yield _versions(facts, answering)


def _down(facts: NodeFacts) -> Finding:
    if facts.lock_owner is not None and facts.lock_owner_alive:
        return broken(
            f"No service answers, and process {facts.lock_owner} holds the state directory",
            "A kubelet hangs, or another one is set up with this state and other sockets.",
            f"Look at it (ps -fp {facts.lock_owner}), end it, then `make up`.",
        )
    return warn("The node is not running", "Pods that run go on; nothing new starts.", "make up")


def _versions(facts: NodeFacts, answering: list[ServiceFacts]) -> Finding:
    told = {s.name: s.version for s in answering if s.version}
    quiet = [s.name for s in answering if not s.version]
    different = {name: version for name, version in told.items() if version != facts.version}
    if different:
        words = ", ".join(f"{name} {version}" for name, version in sorted(different.items()))
        return warn(
            f"This command is {facts.version}, {words}",
            "Services of several versions may misunderstand one another.",
            "make up (it builds and starts all three anew; pods go on)",
        )
    if quiet:
        what = f"{', '.join(quiet)} tell no version: older than this command ({facts.version})"
        return warn(what, "Some answers below are missing.", "make up")
    return ok(f"All are of version {facts.version}")


def _sockets(facts: NodeFacts) -> Iterator[Finding]:
    seen = [s.socket for s in facts.services if s.socket is not None]
    wrong = [
        f
        for f in seen
        if f.mode & ~_SOCKET_MODE or (facts.engine_group and f.group not in (facts.engine_group, "root"))
    ]
    for socket in wrong:
        yield warn(
            f"{socket.path} has mode {socket.mode:04o} and group {socket.group}",
            f"Others than root and group {facts.engine_group or 'docker'} may steer the node.",
            f"chgrp {facts.engine_group or 'docker'} {socket.path} && chmod 0660 {socket.path}",
        )
    if seen and not wrong:
        yield ok(
            f"Sockets in {facts.settings.run_directory} are for root and group {facts.engine_group or 'root'}"
        )


def _conditions(facts: NodeFacts) -> Iterator[Finding]:
    if not facts.conditions and any(s.name == "kubelet" and s.answers for s in facts.services):
        yield broken(
            "The kubelet has not looked at the node yet",
            "It waits for the runtime before it starts anything.",
            _LOGS,
        )
    for name, holds, message in facts.conditions:
        if holds is (name in _GOOD):
            yield ok(f"{name} is {str(holds).lower()}: {message}")
        elif name == "ApiServerReachable":
            yield broken(
                message,
                "Pods that run go on; nothing new is heard of, and nothing is told.",
                "Look at the control plane, the way to it, and the kubeconfig (docs/cluster.md).",
            )
        elif name in _GOOD:
            place = facts.settings.state_directory
            fix = f"df -h {place}; free some space there" if "full" in message else _LOGS
            yield broken(f"The node is not Ready: {message}", "New pods do not start.", fix)
        else:
            why, fix = _PRESSURE_WHY.get(name, ("The node is short of something.", "tripod describe node"))
            yield warn(f"{name}: {message}", why, fix)


def _manifests(facts: NodeFacts) -> Iterator[Finding]:
    if facts.refused_manifests is None:
        return
    for file, fault in sorted(facts.refused_manifests.items()):
        yield broken(
            f"Manifest {file} is refused: {fault}",
            "Its objects stay as the file said before, or do not exist.",
            f"Correct it; check with: tripod apply --dry-run -f {file}",
        )
    if not facts.refused_manifests:
        yield ok("No manifest is refused")


def _state(facts: NodeFacts) -> Iterator[Finding]:
    place = facts.settings.state_directory
    if facts.state is None:
        if running(facts):
            yield unseen(f"State directory {place}", "it cannot be read from here")
        return
    if facts.state.mode & 0o022 or facts.state.owner != "root":
        yield warn(
            f"{place} has mode {facts.state.mode:04o} and owner {facts.state.owner}",
            "Who may write there decides what runs as root.",
            f"chown root {place} && chmod go-w {place}",
        )
    else:
        yield ok(f"{place} is root's, mode {facts.state.mode:04o}")
    space = facts.state_space
    if space is not None:
        what = f"{size(space.free_bytes)} free ({space.share:.0%}) at {place}"
        low = space.share < _LOW_SHARE
        why = "On a full disk no object can be stored; pods go on, and can be deleted."
        yield warn(what, why, f"du -xh {place} | sort -h | tail") if low else ok(what)
    if facts.state_propagation:
        # Volumes are not mounted by us yet, so private is good; it is told for who wonders.
        yield ok(f"Its mount is {facts.state_propagation}")


def _token(facts: NodeFacts) -> Iterator[Finding]:
    token = facts.token
    if token is not None and token.mode & ~_TOKEN_MODE:
        yield broken(
            f"{token.path} has mode {token.mode:04o}",
            "Whoever reads it may run anything on this host as root.",
            f"chmod 0660 {token.path}; then remove it and restart the kubelet, for a new token",
        )
    elif token is not None:
        yield ok(f"The node's token has mode {token.mode:04o}, group {token.group}")
    if facts.lock_owner is not None and running(facts):
        if facts.lock_owner_alive:
            yield ok(f"Process {facts.lock_owner} holds the state directory")
        else:
            yield warn(
                f"The state directory names process {facts.lock_owner}, which is not there",
                "Where that is no matter of process namespaces, a second kubelet could use the state.",
                "docker-compose restart kubelet",
            )
