"""Judge the ports that the services listen on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cli.doctor.facts import PortFacts
from cli.doctor.finding import Finding, broken, ok, unseen


def judge(ports: Sequence[PortFacts]) -> Iterator[Finding]:
    """Say which ports someone else holds."""
    for port in ports:
        place = f"Port {port.port} ({port.purpose})"
        if not port.used:
            yield ok(f"{place} is free")
        elif port.ours:
            yield ok(f"{place} is ours")
        elif port.owner is not None:
            yield broken(
                f"{place} is held by {port.owner}",
                "The service cannot listen there, and ends.",
                f"End that process, or find it with: ss -ltnp 'sport = :{port.port}'",
            )
    hidden = [str(port.port) for port in ports if port.used and not port.ours and port.owner is None]
    if hidden:
        words = f"port{'s' * (len(hidden) > 1)} {', '.join(hidden)}"
        yield unseen(f"Who listens on {words}", "/proc hides another user's processes")
