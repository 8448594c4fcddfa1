"""What a request asks for, in the words of authorization."""

from __future__ import annotations

import pytest

from services.kubelet.core.access import Access, User, accesses, forbidden, plain, undecided


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        pytest.param("GET", "/stats/summary", ["get stats"], id="statistics"),
        pytest.param("POST", "/stats/summary", ["create stats"], id="verb-of-the-method"),
        pytest.param("GET", "/metrics", ["get metrics"], id="metrics"),
        pytest.param("GET", "/metrics/cadvisor", ["get metrics"], id="metrics-below"),
        pytest.param("GET", "/metricsfoo", ["get proxy"], id="no-part-of-a-name"),
        pytest.param("GET", "/logs/", ["get log"], id="logs"),
        pytest.param("POST", "/checkpoint/ns/pod/app", ["create checkpoint"], id="checkpoint"),
        pytest.param("GET", "/pods", ["get pods", "get proxy"], id="pods-finer-first"),
        pytest.param("GET", "/runningpods/", ["get pods", "get proxy"], id="running-pods"),
        pytest.param("GET", "/healthz/syncloop", ["get healthz", "get proxy"], id="health"),
        pytest.param("GET", "/configz", ["get configz", "get proxy"], id="configuration"),
        pytest.param("GET", "/containerLogs/ns/pod/app", ["get proxy"], id="container-logs"),
        pytest.param("GET", "/exec/ns/pod/app", ["create proxy"], id="exec-creates-though-it-is-a-get"),
        pytest.param("GET", "/attach/ns/pod/app", ["create proxy"], id="attach-creates"),
        pytest.param("GET", "/portForward/ns/pod", ["create proxy"], id="port-forward-creates"),
        pytest.param("POST", "/run/ns/pod/app", ["create proxy"], id="run-creates"),
        pytest.param("PUT", "/exec", ["create proxy"], id="whatever-the-method"),
        pytest.param("PUT", "/debug/flags/v", ["update proxy"], id="put"),
        pytest.param("PATCH", "/x", ["patch proxy"], id="patch"),
        pytest.param("DELETE", "/x", ["delete proxy"], id="delete"),
        pytest.param("HEAD", "/pods", [" pods", " proxy"], id="a-method-without-a-verb"),
    ],
)
def test_a_request_asks_for_what_the_original_maps_it_to(method: str, path: str, expected: list[str]) -> None:
    """Each alternative by itself lets it in, the finer one first."""
    wanted = [Access(item.split(" ")[0], item.split(" ")[1], "n1") for item in expected]

    assert wanted == list(accesses(method, path, "n1"))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/pods", True),
        ("/runningpods/?x=/../y", True),
        ("/containerLogs/ns/a.b-c/app?x=%2e", True),
        ("/metrics/../exec/ns/pod/app", False),
        ("/metrics/./x", False),
        ("/metrics//exec", False),
        ("//exec/ns/pod/app", False),
        ("/metrics%2f..%2fexec", False),
        ("/%65xec/ns/pod/app", False),
        ("http://node/exec/ns/pod/app", False),
        ("*", False),
    ],
)
def test_a_path_that_means_two_things_is_none_of_ours(target: str, expected: bool) -> None:
    """Authorization must not read another path than routing does."""
    assert expected is plain(target)


def test_denials_have_the_originals_words() -> None:
    """People and programs look for them."""
    asked = accesses("GET", "/pods", "n1")

    assert forbidden(User("bob"), asked) == (
        "Forbidden (user=bob, verb=get, resource=nodes, subresource(s)=[pods proxy])\n"
    )
    assert undecided(User("bob"), asked[1]) == (
        "Authorization error (user=bob, verb=get, resource=nodes, subresource=proxy)"
    )
