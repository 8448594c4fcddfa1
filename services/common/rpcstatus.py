"""Errors on the wire: TripodError to and from `google.rpc.Status` with its details.

Source: AIP-193 and google/rpc/error_details.proto.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import Code, FieldViolation, RemoteError, TripodError

DETAILS_KEY = "grpc-status-details-bin"
# The details travel in trailing metadata, which many peers cap at 8 KiB.
_DETAILS_LIMIT_BYTES = 7_000
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


def grpc_code(code: Code) -> grpc.StatusCode:
    """Return grpc's name for a code."""
    return _GRPC_CODES[int(code)]


def encode(error: TripodError, domain: str) -> bytes:
    """Serialize an error as `google.rpc.Status`; drops field faults from the end to fit a header."""
    violations = list(error.violations)
    while True:
        encoded: bytes = _status(error, domain, violations).SerializeToString()
        if len(encoded) <= _DETAILS_LIMIT_BYTES or not violations:
            return encoded
        violations = violations[: len(violations) * 3 // 4]


def _status(error: TripodError, domain: str, violations: list[FieldViolation]) -> Any:
    status = status_pb2.Status(code=int(error.code), message=error.message[:2_000])
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=domain)
    for key, value in error.metadata.items():
        info.metadata[key] = value[:500]
    _pack(status, info)
    if violations:
        fault = error_details_pb2.BadRequest
        listed = [fault.FieldViolation(field=v.field, description=v.description) for v in violations]
        _pack(status, fault(field_violations=listed))
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        _pack(status, retry)
    return status


def _pack(status: Any, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def decode(error: grpc.aio.AioRpcError) -> RemoteError:
    """Turn what a peer answered into our error; a peer without details gives reason `RPC_<CODE>`."""
    code = Code(error.code().value[0])
    message = error.details() or code.name
    reason, metadata, violations, retry = f"RPC_{code.name}", {}, [], None
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = [FieldViolation(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info_retry = error_details_pb2.RetryInfo()
            detail.Unpack(info_retry)
            retry = info_retry.retry_delay.ToNanoseconds() / 1e9
    return RemoteError(
        message, code=code, reason=reason, metadata=metadata, violations=violations, retry_after_seconds=retry
    )


def _details(error: grpc.aio.AioRpcError) -> list[Any]:
    trailing: Any = error.trailing_metadata() or ()
    found = next((value for key, value in trailing if key == DETAILS_KEY), None)
    return list(status_pb2.Status.FromString(found).details) if found is not None else []
