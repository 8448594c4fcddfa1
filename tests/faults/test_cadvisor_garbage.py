"""Whatever stands in the kernel's files is read without a fault, fits 63 bits and can be scraped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from services.cadvisor.core import cgroup_v1, cgroup_v2, procfs
from services.cadvisor.core.exposition import render
from services.cadvisor.core.model import NO_CPU, NO_MEMORY, Identity, Snapshot, Stats
from services.cadvisor.server import snapshot_message
from tests.lab.cadvisor import MACHINE, NOW, a_container, a_snapshot

V1 = [name for names in cgroup_v1.FILES.values() for name in names]
WORDS = [b"usage_usec", b"total_rss", b"anon", b"8:0", b"8:", b":", b"Read", b"rbytes=", b"rbytes=7", b"max"]
NUMBERS = [b"0", b"-1", b"9223372036854775807", b"9223372036854775808", b"9" * 5000, b"1e3", b"\xff\xfe", b""]
LINES = st.lists(
    st.lists(st.sampled_from([*WORDS, *NUMBERS]), max_size=4).map(b" ".join) | st.binary(max_size=12),
    max_size=5,
).map(b"\n".join)
FILES = st.dictionaries(st.sampled_from([*V1, *cgroup_v2.FILES]), LINES, max_size=12)


@pytest.mark.fault("F45")
@settings(derandomize=True, max_examples=40, deadline=None)
@given(FILES, LINES)
def test_garbage_gives_numbers_that_everyone_can_hold(files: dict[str, bytes], other: bytes) -> None:
    """No exception, no number past 63 bits, and a page that Prometheus reads."""
    interfaces = procfs.interfaces(b"\n\n" + other + b"\n eth0: " + b" ".join([other, *NUMBERS[:4] * 4]))
    procfs.cgroup_mounts(other, "/sys/fs/cgroup")
    procfs.memory_info(other + b"\nMemTotal: " + other + b" kB")
    procfs.disk_names(other)
    for made in (
        (cgroup_v1.cpu(files, 10_000_000), cgroup_v1.memory(files), cgroup_v1.disks(files)),
        (cgroup_v2.cpu(files), cgroup_v2.memory(files), cgroup_v2.disks(files)),
    ):
        cpu, memory, disks = made
        stats = Stats(Identity("/x", "x"), cpu, memory, interfaces, disks, cgroup_v2.processes(files, 1))
        snapshot = Snapshot(NOW, MACHINE, (stats,))
        snapshot_message(snapshot).SerializeToString()
        assert list(text_string_to_metric_families(render(snapshot)))


@pytest.mark.fault("S46")
@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_name_stays_one_label_of_one_series(name: str, pod: str) -> None:
    """Quotes, backslashes, line ends and tags do not end a label or a line."""
    hostile = a_container(1, name=f'<script>"{name}\\', pod=f"{pod}\n\x1b]0;x\x07")

    families = list(text_string_to_metric_families(render(a_snapshot(hostile))))

    labels = [s.labels for f in families for s in f.samples if s.labels.get("name")]
    assert {(found["container"], found["pod"]) for found in labels} == {
        (hostile.identity.container, hostile.identity.pod)
    }


@pytest.mark.fault("F45")
def test_a_controller_that_is_off_ends_its_series() -> None:
    """A counter that says 0 would have fallen for whoever reads it."""
    whole = a_container()
    halved = Stats(whole.identity, NO_CPU, NO_MEMORY, whole.interfaces, whole.disks, whole.processes)

    page = render(a_snapshot(halved))

    names = {s.name for f in text_string_to_metric_families(page) for s in f.samples if s.labels.get("name")}
    assert "container_network_receive_bytes_total" in names
    assert not {name for name in names if name.startswith(("container_cpu", "container_memory"))}
    message = snapshot_message(a_snapshot(halved)).containers[0]
    assert (message.HasField("cpu"), message.HasField("memory")) == (False, False)
