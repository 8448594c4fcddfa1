"""Which nodes a selector, an affinity and tolerations take."""

from __future__ import annotations

import pytest

from services.kubelet.core.scheduling import (
    Requirement,
    Scheduling,
    Taint,
    Term,
    Toleration,
    fits,
    tolerates,
)

LABELS = {"disk": "ssd", "cores": "8"}


@pytest.mark.parametrize(
    ("operator", "key", "values", "expected"),
    [
        ("In", "disk", ("ssd", "hdd"), True),
        ("In", "disk", ("hdd",), False),
        ("In", "zone", ("a",), False),
        ("NotIn", "disk", ("hdd",), True),
        ("NotIn", "disk", ("ssd",), False),
        ("NotIn", "zone", ("a",), True),
        ("Exists", "disk", (), True),
        ("Exists", "zone", (), False),
        ("DoesNotExist", "zone", (), True),
        ("DoesNotExist", "disk", (), False),
        ("Gt", "cores", ("7",), True),
        ("Gt", "cores", ("8",), False),
        ("Lt", "cores", ("9",), True),
        ("Lt", "cores", ("8",), False),
        ("Gt", "disk", ("7",), False),
        ("Gt", "zone", ("7",), False),
    ],
)
def test_a_requirement_is_on_a_label(
    operator: str, key: str, values: tuple[str, ...], expected: bool
) -> None:
    """A label that is not there is in no set, and compares with nothing."""
    term = Term((Requirement(key, operator, values),))

    assert fits(Scheduling(required=(term,)), LABELS, "one") is expected


SSD, HDD = (Term((Requirement("disk", "In", (kind,)),)) for kind in ("ssd", "hdd"))
NAMED = Term(fields=(Requirement("metadata.name", "In", ("one",)),))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(Scheduling(), True, id="nothing-asked"),
        pytest.param(Scheduling(node_selector={"disk": "ssd"}), True, id="selected"),
        pytest.param(Scheduling(node_selector={"disk": "hdd"}), False, id="another-value"),
        pytest.param(Scheduling(node_selector={"disk": "ssd"}, required=(HDD,)), False, id="both-count"),
        pytest.param(Scheduling(required=(HDD, SSD)), True, id="terms-are-alternatives"),
        pytest.param(Scheduling(required=(Term((*SSD.labels, *HDD.labels)),)), False, id="all-of-a-term"),
        pytest.param(Scheduling(required=(Term(),)), False, id="an-empty-term-holds-nowhere"),
        pytest.param(Scheduling(required=()), False, id="no-term-holds-nowhere"),
        pytest.param(Scheduling(required=(NAMED,)), True, id="by-name"),
    ],
)
def test_a_node_fits_or_not(wanted: Scheduling, expected: bool) -> None:
    """Selector and affinity together."""
    assert fits(wanted, LABELS, "one") is expected


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        (Toleration("a", "Equal", "b", "NoExecute"), True),
        (Toleration("a", "Equal", "c", "NoExecute"), False),
        (Toleration("a", "Equal", "b", "NoSchedule"), False),
        (Toleration("a", "Equal", "b"), True),
        (Toleration("a", "Exists"), True),
        (Toleration("x", "Exists"), False),
        (Toleration("", "Exists"), True),
        (Toleration("", "Exists", effect="NoSchedule"), False),
    ],
)
def test_a_taint_is_borne_or_not(toleration: Toleration, expected: bool) -> None:
    """An empty key with Exists bears all."""
    assert tolerates(toleration, Taint("a", "NoExecute", "b")) is expected
