"""Modules that are left out, and the pages that need no library."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common import gauges
from services.common.lean import collection_put_off, without


def test_a_module_that_is_left_out_is_as_one_that_is_not_installed() -> None:
    """And it can be imported afterwards."""
    sys.modules.pop("this_is_not_here", None)
    with without("colorsys"), pytest.raises(ImportError):
        import colorsys  # noqa: F401  # fails on purpose

    import colorsys as later

    assert later.rgb_to_hls(0, 0, 0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("service", "absent"),
    [
        ("cadvisor", {"ssl", "rich", "docker", "pyroute2", "prometheus_client", "opentelemetry.exporter"}),
        ("proxy", {"ssl", "rich", "docker", "pyroute2", "prometheus_client", "opentelemetry.exporter"}),
        ("kubelet", {"rich", "pyroute2", "prometheus_client", "opentelemetry.exporter", "typer"}),
    ],
)
def test_a_service_holds_no_module_that_it_does_not_use(service: str, absent: set[str]) -> None:
    """Each would cost megabytes in every process, for as long as the node runs."""
    program = f"import sys, services.{service}.__main__\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert not absent & set(done.stdout.split())


def test_collection_is_put_off_until_the_outermost_end_whatever_happens() -> None:
    """An error within, or one piece of work within another, does not leave a process without it."""
    seen = []

    def work() -> None:
        with collection_put_off():
            with collection_put_off():
                seen.append(gc.isenabled())
            seen.append(gc.isenabled())
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        work()

    assert seen == [False, False]
    assert gc.isenabled()


def test_freed_memory_goes_back_to_the_kernel() -> None:
    """Half of many small blocks, freed from the start of the heap, are no longer resident after it."""
    program = (
        "import ctypes, pathlib\nfrom services.common.lean import Memory\n"
        "def pages(): return int(pathlib.Path('/proc/self/statm').read_text().split()[1])\n"
        "memory, libc = Memory(), ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\n"
        "libc.free.argtypes = [ctypes.c_void_p]\nmemory.share_arenas(2)\n"
        "held = [libc.malloc(4000) for _ in range(20_000)]\n"
        "for block in held: ctypes.memset(block, 1, 4000)\n"
        "for block in held[:-1]: libc.free(block)\n"
        "before = pages()\nmemory.give_back()\nprint(before - pages())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert int(done.stdout) > 10_000


def test_a_page_of_gauges_is_read_by_prometheus_to_the_last_digit() -> None:
    """Memory in bytes has more digits than `%g` writes."""
    page = gauges.page({"a": "One.", "b": "Two.", "c": "Not told."}, {"a": 69_123_457, "b": 0.1})

    found = {s.name: s.value for f in text_string_to_metric_families(page.decode()) for s in f.samples}
    assert found == {"a": 69_123_457.0, "b": 0.1}
