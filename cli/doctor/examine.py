"""Look at everything: each group's facts, then its findings."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from cli.doctor.core import clock, engine, kernel, network, node, ports, rights, surroundings
from cli.doctor.facts import Settings
from cli.doctor.finding import Finding
from cli.doctor.gather import clock as clock_facts
from cli.doctor.gather import engine as engine_facts
from cli.doctor.gather import kernel as kernel_facts
from cli.doctor.gather import network as network_facts
from cli.doctor.gather import node as node_facts
from cli.doctor.gather import ports as port_facts
from cli.doctor.gather import rights as right_facts
from cli.doctor.gather import surroundings as surrounding_facts


def examine(environ: Mapping[str, str]) -> dict[str, tuple[Finding, ...]]:
    """Return the findings by group, in the order in which a person would mend them."""
    settings = Settings.of(environ)
    # Together, since most of the time is spent waiting for other programs.
    with ThreadPoolExecutor() as pool:
        docker = pool.submit(engine_facts.gather, settings.docker_host)
        host = pool.submit(kernel_facts.gather)
        net = pool.submit(network_facts.gather, settings)
        listeners = pool.submit(port_facts.gather)
        services = pool.submit(node_facts.gather, settings, environ)
        time = pool.submit(clock_facts.gather)
        user = pool.submit(right_facts.gather, settings.docker_host)
        around = pool.submit(surrounding_facts.gather, settings, environ)
    proxies = surrounding_facts.of_engine(docker.result())
    return {
        "Engine": tuple(engine.judge(docker.result())),
        "Kernel": tuple(kernel.judge(host.result())),
        "Network": tuple(network.judge(net.result())),
        "Ports": tuple(ports.judge(listeners.result())),
        "Node": tuple(node.judge(services.result())),
        "Clock": tuple(clock.judge(time.result())),
        "Rights": tuple(rights.judge(user.result())),
        "Proxies and tools": tuple(surroundings.judge(replace(around.result(), engine_proxies=proxies))),
    }
