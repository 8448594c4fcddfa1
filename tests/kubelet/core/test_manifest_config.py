"""ConfigMaps, Secrets, ServiceAccounts and Namespaces: read, completed and written back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from services.kubelet.core import manifest, render_config
from services.kubelet.core.manifest_config import SecretDraft
from services.kubelet.core.model import ConfigMap, Secret
from services.kubelet.objects import config

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def an_object(kind: str, **fields: Any) -> dict[str, Any]:
    """Write an object."""
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "thing"}, **fields}


def completed(value: dict[str, Any], before: object = None) -> Any:
    """Read an object and complete it."""
    (draft,), faults = manifest.read(json.dumps(value).encode())
    assert faults == []
    made, wrong = config.complete(draft, draft.spec, before, NOW)  # type: ignore[arg-type]  # of these kinds
    assert wrong == []
    return made


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(
            an_object("ConfigMap", data={"a": "1\n"}, binaryData={"b": "/w=="}, immutable=True),
            id="config-map",
        ),
        pytest.param(an_object("ConfigMap"), id="empty"),
        pytest.param(
            an_object("Secret", type="kubernetes.io/tls", data={"tls.crt": "", "tls.key": "YQ=="}),
            id="secret",
        ),
        pytest.param(
            an_object("ServiceAccount", imagePullSecrets=[{"name": "r"}], automountServiceAccountToken=False),
            id="service-account",
        ),
        pytest.param(an_object("Namespace"), id="namespace"),
    ],
)
def test_what_is_written_is_read_back_the_same(value: dict[str, Any]) -> None:
    """The store keeps JSON, and loses nothing."""
    once = completed(value)
    body = config.body(once)
    body["metadata"] = {"name": "thing"}

    again = completed(body, before=once)

    assert again == once


def test_string_data_is_data_that_wins() -> None:
    """As in the API: written in, never read out."""
    secret = completed(an_object("Secret", data={"a": "eA=="}, stringData={"a": "y", "b": "z"}))

    assert dict(secret.data) == {"a": b"y", "b": b"z"}
    assert "stringData" not in config.body(secret)


def test_a_secret_is_shown_without_its_values() -> None:
    """Only their sizes; nor is the copy that kubectl keeps in an annotation shown."""
    value = an_object("Secret", stringData={"password": "hunter2"})
    value["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": '{"stringData": {"password": "hunter2"}}'
    }
    secret = completed(value)

    shown = json.dumps(config.shown(secret))

    assert json.loads(shown)["data"] == {"password": "7 bytes"}
    assert "hunter2" not in shown
    assert "hunter2" not in repr(SecretDraft({"password": b"hunter2"}))
    assert "hunter2" not in repr(secret).replace(repr(secret.annotations), "")
    assert "hunter2" in render_config.secret(secret)["metadata"]["annotations"].popitem()[1]


@pytest.mark.parametrize(
    ("before", "after", "fields"),
    [
        pytest.param({"immutable": True}, {"immutable": True}, [], id="the-same"),
        pytest.param({"immutable": True}, {}, ["immutable"], id="no-way-back"),
        pytest.param({"immutable": True}, {"immutable": True, "data": {"a": "eA=="}}, ["data"], id="data"),
        pytest.param({}, {"data": {"a": "eA=="}}, [], id="not-immutable"),
        pytest.param({}, {"type": "mine"}, ["type"], id="type"),
    ],
)
def test_what_is_immutable_does_not_change(
    before: dict[str, Any], after: dict[str, Any], fields: list[str]
) -> None:
    """Nor does the type of a Secret."""
    stored = completed(an_object("Secret", **before))
    (draft,), _ = manifest.read(json.dumps(an_object("Secret", **after)).encode())

    _, faults = config.complete(draft, draft.spec, stored, NOW)  # type: ignore[arg-type]  # a Secret's

    assert [fault.field for fault in faults] == [f"Secret thing: {field}" for field in fields]


def test_an_object_that_is_too_large_is_refused() -> None:
    """One MiB, keys not counted, as in the API."""
    fits = an_object("ConfigMap", data={"a": "x" * (1 << 20)})
    _, none = manifest.read(json.dumps(fits).encode())
    fits["data"]["b"] = "x"
    _, faults = manifest.read(json.dumps(fits).encode())

    assert none == []
    assert [fault.field for fault in faults] == ["ConfigMap thing: data"]


def test_values_of_objects_compare() -> None:
    """An unchanged object is known as such."""
    left = completed(an_object("ConfigMap", data={"a": "1"}))

    assert isinstance(left, ConfigMap)
    assert left == completed(an_object("ConfigMap", data={"a": "1"}), before=left)
    assert not isinstance(left, Secret)
