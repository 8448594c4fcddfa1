"""What CNI plugins print."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.cri.network.cni import result
from services.kubelet.cri.network.cni.result import Failure, ResultError

BRIDGED = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
    "ips": [
        {"address": "192.0.2.1/24", "interface": 0},
        {"address": "10.0.0.7/24", "gateway": "10.0.0.1", "interface": 2},
        {"address": "fd00::7/64", "interface": 2},
    ],
}


def parse(value: Any, version: str = "1.0.0") -> dict[str, Any]:
    """Parse a value as a plugin's output."""
    return result.parse(json.dumps(value).encode(), version)


def test_the_addresses_are_those_of_the_sandboxs_interfaces() -> None:
    """In the plugin's order, without their lengths; the host's own are not."""
    assert result.addresses(parse(BRIDGED)) == ("10.0.0.7", "fd00::7")


def test_an_address_of_no_interface_is_the_sandboxs() -> None:
    """As `host-local` alone, or `static`, tell it."""
    assert result.addresses(parse({"ips": [{"address": "10.0.0.7/32"}]})) == ("10.0.0.7",)


def test_a_result_takes_the_form_of_the_networks_version() -> None:
    """Before 1.0.0 an address names its family; the next plugin refuses any other form."""
    old = parse(BRIDGED, "0.4.0")
    new = parse(old, "1.0.0")

    assert old["cniVersion"] == "0.4.0"
    assert [ip["version"] for ip in old["ips"]] == ["4", "4", "6"]
    assert new == BRIDGED


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"Segmentation fault",
        b"[]",
        b"\xff\xfe",
        b'{"ips": 1}',
        b'{"ips": [1]}',
        b'{"ips": [{}]}',
        b'{"ips": [{"address": "10.0.0.300/24"}]}',
        b'{"ips": [{"address": "10.0.0.3/24", "interface": 0}]}',
        b'{"ips": [{"address": "10.0.0.3/24", "interface": -1}], "interfaces": [{}]}',
        b'{"ips": [{"address": "10.0.0.3/24", "interface": true}], "interfaces": [{}, {}]}',
        b'{"interfaces": [null]}',
        b'{"a":' * 100_000,
    ],
)
def test_garbage_is_refused(output: bytes) -> None:
    """Every kind of it, with what was wrong."""
    with pytest.raises(ResultError, match=r"."):
        result.parse(output, "1.0.0")


@given(st.binary(max_size=100))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    """What is no object is a `ResultError`."""
    with pytest.raises(ResultError):
        result.parse(data, "1.0.0")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["10.0.0.1/24", "::1/64", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["address", "interface", "sandbox", "version"]), inner, max_size=3)
    ),
)


@given(st.fixed_dictionaries({}, optional={"ips": _JSON, "interfaces": _JSON, "cniVersion": _JSON}))
def test_a_result_that_is_taken_can_be_read(value: dict[str, Any]) -> None:
    """Nobody reads further than was looked at."""
    for version in ("0.3.1", "1.1.0"):
        try:
            made = parse(value, version)
        except ResultError:
            continue

        assert isinstance(result.addresses(made), tuple)


@pytest.mark.parametrize(
    ("output", "complaint", "code", "expected"),
    [
        pytest.param(
            b'{"code": 7, "msg": "no", "details": "why"}', b"", 1, Failure("no; why", 7), id="as-specified"
        ),
        pytest.param(b'{"code": 11, "msg": "later"}', b"noise", 1, Failure("later", 11), id="no-details"),
        pytest.param(b"oops", b"", 3, Failure("ended with 3: oops"), id="no-json"),
        pytest.param(b"", b"panic: x\n", 2, Failure("ended with 2: panic: x"), id="stderr"),
        pytest.param(b"", b"", -9, Failure("was killed by signal 9"), id="killed"),
        pytest.param(b'{"code": "x", "msg": 1}', b"", 1, None, id="code-is-no-number"),
    ],
)
def test_a_failure_is_told_in_the_plugins_words(
    output: bytes, complaint: bytes, code: int, expected: Failure | None
) -> None:
    """Where the specification's form is missing, what else was written."""
    found = result.failure(output, complaint, code)

    assert found == (expected or Failure(f"ended with {code}: {output.decode()}"))


def test_a_failure_is_of_bounded_length() -> None:
    """It travels in a condition."""
    told = json.dumps({"code": 1, "msg": "x" * 100_000}).encode()

    assert len(result.failure(told, b"", 1).message) < 3000
    assert len(result.failure(b"", b"y" * 100_000, 1).message) < 3000
