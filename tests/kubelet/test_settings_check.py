"""Settings that promise pods what cannot be kept end the kubelet before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.settings import SettingsError
from services.kubelet.app import check
from services.kubelet.config import KubeletConfig


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"allowed_unsafe_sysctls": ("net.core.*", "kernel.sem")},
        {"cluster_dns": ("10.96.0.10", "fd00::a"), "cluster_domain": "example.internal"},
    ],
)
def test_settings_that_can_be_kept_are_taken(values: dict[str, Any]) -> None:
    """The defaults too."""
    check(KubeletConfig(**values))


@pytest.mark.parametrize(
    "values",
    [
        {"allowed_unsafe_sysctls": ("vm.*",)},
        {"cluster_dns": ("dns.example",)},
        {"cluster_domain": "Example."},
    ],
)
def test_settings_that_cannot_be_kept_are_named(values: dict[str, Any]) -> None:
    """By the setting."""
    with pytest.raises(SettingsError) as refused:
        check(KubeletConfig(**values))

    assert [v.field for v in refused.value.violations] == list(values)
