"""What can go wrong with CNI, as errors of the pod network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.common.errors import Code
from services.kubelet.cri.network.cni.result import TRY_AGAIN, Failure
from services.kubelet.cri.network.errors import NetworkError


def not_configured(folder: str) -> NetworkError:
    """CNI is asked for and no configuration is there."""
    return NetworkError(
        f"There is no CNI configuration in {folder}",
        code=Code.UNAVAILABLE,
        reason="CNI_NOT_CONFIGURED",
        metadata={"folder": folder},
    )


def configuration_unusable(file: str, why: str) -> NetworkError:
    """A configuration is there, and broken."""
    return NetworkError(
        f"The CNI configuration {file} cannot be used: {why}",
        code=Code.FAILED_PRECONDITION,
        reason="CNI_CONFIGURATION_UNUSABLE",
        metadata={"file": file, "cause": why},
    )


def plugin_missing(kind: str, source: str, folders: Sequence[Path]) -> NetworkError:
    """A configuration names a plugin that is not installed."""
    where = ", ".join(map(str, folders))
    return NetworkError(
        f"The CNI plugin {kind}, which {source} names, is in none of {where}",
        code=Code.FAILED_PRECONDITION,
        reason="CNI_PLUGIN_MISSING",
        metadata={"plugin": kind, "file": source, "folders": where},
    )


def plugin_failed(kind: str, command: str, source: str, failure: Failure) -> NetworkError:
    """A plugin said that it failed, or ended badly."""
    return NetworkError(
        f"CNI plugin {kind} ({source}) failed at {command}: {failure.message}",
        code=Code.UNAVAILABLE if failure.code == TRY_AGAIN else Code.INTERNAL,
        reason="CNI_PLUGIN_FAILED",
        metadata={
            "plugin": kind,
            "command": command,
            "file": source,
            "cni_code": str(failure.code),
            "cause": failure.message,
        },
        retry_after_seconds=5.0 if failure.code == TRY_AGAIN else None,
    )


def result_unreadable(kind: str, command: str, source: str, why: str) -> NetworkError:
    """A plugin ended well and printed no result."""
    return NetworkError(
        f"CNI plugin {kind} ({source}) gave no result at {command}: {why}",
        code=Code.INTERNAL,
        reason="CNI_RESULT_UNREADABLE",
        metadata={"plugin": kind, "command": command, "file": source, "cause": why},
    )


def no_address(source: str) -> NetworkError:
    """The plugins are content, and the sandbox has no address."""
    return NetworkError(
        f"The CNI plugins of {source} gave the sandbox no address",
        code=Code.INTERNAL,
        reason="CNI_NO_ADDRESS",
        metadata={"file": source},
    )


def plugin_slow(kind: str, command: str, source: str, seconds: float) -> NetworkError:
    """A plugin did not end in its time and was killed."""
    return NetworkError(
        f"CNI plugin {kind} ({source}) took longer than {seconds:g} s for {command}",
        code=Code.DEADLINE_EXCEEDED,
        reason="CNI_TIMEOUT",
        metadata={"plugin": kind, "command": command, "file": source, "limit_seconds": f"{seconds:g}"},
    )


def request_unusable(why: str) -> NetworkError:
    """The pod asks for what no plugin can be told."""
    return NetworkError(
        f"The pod's network cannot be asked for: {why}",
        code=Code.INVALID_ARGUMENT,
        reason="CNI_REQUEST_UNUSABLE",
        metadata={"cause": why},
    )


def busy(sandbox_id: str, seconds: float) -> NetworkError:
    """A plugin that an earlier process of ours has started still works on the sandbox."""
    return NetworkError(
        f"A CNI plugin works on sandbox {sandbox_id} for longer than {seconds:g} s already",
        code=Code.DEADLINE_EXCEEDED,
        reason="CNI_BUSY",
        metadata={"sandbox_id": sandbox_id, "limit_seconds": f"{seconds:g}"},
    )
