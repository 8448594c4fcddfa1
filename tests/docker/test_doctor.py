"""The doctor at a real engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.doctor.core.engine import judge
from cli.doctor.examine import examine
from cli.doctor.finding import Level
from cli.doctor.gather.engine import gather
from tests.lab.dockerd import EngineUnavailable, PrivateEngine, private_engine

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateEngine]:
    """Run an engine of our own, without live-restore."""
    try:
        with private_engine(live_restore=False) as made:
            yield made
    except EngineUnavailable as error:
        pytest.skip(str(error))


def test_an_engine_tells_what_it_is(engine: PrivateEngine) -> None:
    """Versions, drivers, room and clock; live-restore is found to be off."""
    facts = gather(engine.host)
    warnings = [f.what for f in judge(facts) if f.level is Level.WARN]

    assert facts.error == ""
    assert facts.version
    assert facts.storage_driver
    assert facts.default_runtime in facts.runtimes
    assert facts.root_space is not None
    assert Path(facts.root_directory).is_relative_to(engine.folder)
    assert abs(facts.skew_seconds) < 60
    assert "live-restore is off" in warnings


def test_an_engine_that_hangs_is_broken_and_costs_seconds_only(engine: PrivateEngine) -> None:
    """It takes the connection, and never answers."""
    engine.freeze()
    try:
        facts = gather(engine.host)
    finally:
        engine.thaw()

    assert facts.error == "timed out"
    assert [f.level for f in judge(facts)] == [Level.BROKEN]


def test_the_engine_of_this_machine_has_no_fault_that_stops_pods() -> None:
    """The other tests of this folder run on it."""
    found = examine({**os.environ})

    assert [f.what for f in found["Engine"] if f.level is Level.BROKEN] == []
    assert [f.what for f in found["Kernel"] if f.level is Level.BROKEN] == []
