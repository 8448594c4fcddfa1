"""CNI configurations: which are taken, and what is said of the others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.cri.network.cni import conf
from services.kubelet.cri.network.cni.conf import VERSIONS, ConfError


def a_conf(**changed: Any) -> dict[str, Any]:
    """Build a usable list of plugins."""
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}], **changed}


def parse(value: Any) -> conf.Network:
    """Parse a value as a file."""
    return conf.parse("/etc/cni/net.d/10-net.conflist", json.dumps(value).encode())


def test_a_list_is_read_with_all_its_plugins() -> None:
    """In their order, each with its own part."""
    network = parse(a_conf(plugins=[{"type": "bridge", "mtu": 1400}, {"type": "portmap"}]))

    assert network.name == "net"
    assert [plugin.kind for plugin in network.plugins] == ["bridge", "portmap"]
    assert network.plugins[0].conf["mtu"] == 1400


def test_a_file_of_one_plugin_is_a_list_of_one() -> None:
    """As `.conf` files are."""
    network = parse({"cniVersion": "0.3.1", "name": "net", "type": "bridge", "bridge": "cni0"})

    assert [plugin.kind for plugin in network.plugins] == ["bridge"]
    assert network.version == "0.3.1"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["20-b.conf", "10-a.conflist"], "10-a.conflist", id="first-by-name"),
        pytest.param(["00-readme.txt", "10-a.json"], "10-a.json", id="other-endings-are-nobodys"),
        pytest.param([".10-a.conflist", "20-b.conf"], "20-b.conf", id="a-hidden-file-is-half-written"),
        pytest.param([], None, id="none"),
    ],
)
def test_the_first_file_by_name_is_the_network(names: list[str], expected: str | None) -> None:
    """Its content plays no part: a broken first file is not passed over."""
    assert conf.choose(names) == expected


@pytest.mark.parametrize(
    ("version", "checks", "remembers", "new"),
    [
        pytest.param("0.3.1", False, False, False, id="0.3.1"),
        pytest.param("0.4.0", True, True, False, id="0.4.0-has-CHECK-and-DEL-with-a-result"),
        pytest.param("1.0.0", True, True, False, id="1.0.0"),
        pytest.param("1.1.0", True, True, True, id="1.1.0-has-GC-and-STATUS"),
    ],
)
def test_the_version_says_what_may_be_asked(version: str, checks: bool, remembers: bool, new: bool) -> None:
    """Nothing is asked that the configuration's version does not have."""
    network = parse(a_conf(cniVersion=version))

    assert (network.checks, network.remembers) == (checks, remembers)
    assert (network.collects, network.tells_status) == (new, new)


def test_the_administrator_may_forbid_check_and_gc() -> None:
    """As who has several runtimes on one network must."""
    network = parse(a_conf(cniVersion="1.1.0", disableCheck=True, disableGC=True))

    assert (network.checks, network.collects, network.tells_status) == (False, False, True)


def test_the_highest_version_that_both_know_is_spoken() -> None:
    """A configuration may offer several, those of the future too."""
    network = parse(a_conf(cniVersion="0.4.0", cniVersions=["0.3.1", "1.1.0", "9.0.0"]))

    assert network.version == "1.1.0"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"cniVersion": "0.2.0"}, "cniVersion: '0.2.0' is not among", id="old"),
        pytest.param({"cniVersion": 1}, "cniVersion: 1 is not among", id="version-is-no-text"),
        pytest.param({"name": "a/b"}, "name: 'a/b'", id="name-with-a-slash"),
        pytest.param({"name": None}, "name: None", id="no-name"),
        pytest.param({"plugins": []}, "plugins: must be a list of at least one", id="no-plugins"),
        pytest.param({"plugins": {}}, "plugins: must be a list", id="plugins-no-list"),
        pytest.param({"plugins": [{"type": "../sh"}]}, "plugins[0].type: '../sh'", id="type-leaves-folder"),
        pytest.param({"plugins": [{"type": ".."}]}, "plugins[0].type: '..'", id="type-is-a-folder"),
        pytest.param({"plugins": [7]}, "plugins[0].type: None", id="plugin-no-object"),
        pytest.param({"plugins": [{"type": "a\ud800"}]}, "plugins[0].type", id="type-no-text"),
        pytest.param({"plugins": [{"type": "a", "capabilities": 1}]}, "capabilities", id="capabilities"),
        pytest.param({"disableGC": "yes"}, "disableGC: must be true or false", id="flag"),
    ],
)
def test_a_fault_is_named_with_its_place(changed: dict[str, Any], said: str) -> None:
    """The administrator reads it in the node's condition."""
    with pytest.raises(ConfError, match=r".") as refused:
        parse(a_conf(**changed))

    assert said in str(refused.value)


def test_every_fault_is_told_at_once() -> None:
    """Nobody mends a file three times."""
    with pytest.raises(ConfError) as refused:
        parse({"name": "", "plugins": [{}]})

    assert str(refused.value).count(";") == 2


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    """What is no configuration is a `ConfError`."""
    with pytest.raises(ConfError):
        conf.parse("f", data)


def test_a_deep_nest_is_refused() -> None:
    """It would end the parser."""
    with pytest.raises(ConfError):
        conf.parse("f", b"[" * 200_000)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(VERSIONS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_PLUGINS = st.dictionaries(st.sampled_from(["type", "capabilities", "ipam", "name"]), _VALUES)
_KEYS = ("cniVersion", "cniVersions", "name", "type", "disableCheck", "disableGC")


@given(
    st.fixed_dictionaries(
        {}, optional={"plugins": st.lists(_PLUGINS, max_size=3) | _VALUES, **dict.fromkeys(_KEYS, _VALUES)}
    )
)
def test_any_object_is_a_network_that_reads_back_or_is_refused(value: dict[str, Any]) -> None:
    """What is taken is written into the record and read from there."""
    try:
        network = parse(value)
    except ConfError:
        return

    assert conf.parse(network.source, json.dumps(conf.render(network)).encode()) == network


@given(
    st.from_regex(r"\A[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,20}\Z"),
    st.sampled_from(VERSIONS),
    st.lists(st.from_regex(r"\A[a-z-]{1,12}\Z"), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_network_reads_back_as_it_was(name: str, version: str, kinds: list[str], disabled: bool) -> None:
    """DEL is run with the configuration of ADD, whatever the file says by then."""
    plugins = [{"type": kind, "capabilities": {"dns": True}} for kind in kinds]
    network = parse(
        a_conf(name=name, cniVersion=version, plugins=plugins, disableGC=disabled, disableCheck=disabled)
    )

    assert conf.parse(network.source, json.dumps(conf.render(network)).encode()) == network
    assert network.capabilities == {"dns"}
