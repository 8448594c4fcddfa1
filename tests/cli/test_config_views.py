"""What `tripod get` and `tripod describe` print of objects that pods name."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cli import config_views

NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)


def an_object(kind: str, **fields: Any) -> dict[str, Any]:
    """Write an object as the kubelet shows it."""
    meta = {"name": "thing", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"kind": kind, "metadata": meta, **fields}


def test_a_list_tells_how_much_is_in_an_object() -> None:
    """Keys are counted, values are not shown."""
    secret = an_object("Secret", type="Opaque", data={"password": "7 bytes"})
    settings = an_object("ConfigMap", data={"a": "1"}, binaryData={"b": "/w=="})

    assert config_views.listing("Secret", [secret], NOW, namespaces=False).split() == (
        ["NAME", "TYPE", "DATA", "AGE", "thing", "Opaque", "1", "60s"]
    )
    assert config_views.listing("ConfigMap", [settings], NOW, namespaces=True).split() == (
        ["NAMESPACE", "NAME", "DATA", "AGE", "shop", "thing", "2", "60s"]
    )


def test_a_description_shows_text_and_sizes() -> None:
    """A ConfigMap's text is shown, of bytes and of secrets the size."""
    settings = config_views.describe(an_object("ConfigMap", data={"a": "1\n2\n"}, binaryData={"b": "/w=="}))
    secret = config_views.describe(an_object("Secret", type="Opaque", data={"password": "7 bytes"}))

    assert "  a: |\n    1\n    2\n  b: 1 bytes" in settings
    assert secret.endswith("Type:          Opaque\nData:\n  password: 7 bytes")
