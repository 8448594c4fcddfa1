"""Read proxies and the version of compose."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cli.doctor.facts import EngineFacts, Settings, SurroundingFacts
from cli.doctor.gather import host

# Compose 1 is a big Python program: on a busy machine it takes seconds to say its version.
_COMPOSE_SECONDS = 20.0
_NAMES = ("http_proxy", "https_proxy", "no_proxy")
# A password in a proxy's address is nobody's business.
_SECRET = re.compile(r"//[^/@]*@")


def gather(settings: Settings, environ: Mapping[str, str]) -> SurroundingFacts:
    """Look at the environment; the engine's own proxies are `of_engine`."""
    return SurroundingFacts(
        settings=settings,
        proxies={name: hidden(environ.get(name) or environ.get(name.upper()) or "") for name in _NAMES},
        compose=_compose(),
    )


def of_engine(engine: EngineFacts) -> Mapping[str, str] | None:
    """Return the engine's proxies; None when it does not tell."""
    if engine.error or engine.denied:
        return None
    return {name: hidden(value) for name, value in engine.proxies.items()}


def hidden(address: str) -> str:
    """Leave out user and password."""
    return _SECRET.sub("//", address)


def _compose() -> str:
    told = host.output(["docker", "compose", "version", "--short"])
    told = told or host.output(["docker-compose", "version", "--short"], limit_seconds=_COMPOSE_SECONDS) or ""
    return told.splitlines()[0] if told else ""
