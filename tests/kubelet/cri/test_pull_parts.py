"""Why pulls fail, and how far they are."""

from __future__ import annotations

import pytest

from services.common.errors import Code
from services.kubelet.cri import pullerrors
from services.kubelet.cri.pullprogress import LayerStep, PullProgress
from services.kubelet.cri.reference import parse

# Sentences of engines 20.10 to 29, as they came.
SENTENCES = [
    ("manifest for r.example/a:1 not found: manifest unknown: manifest unknown", "IMAGE_NOT_FOUND"),
    (
        "pull access denied for a, repository does not exist or may require 'docker login': denied: "
        "requested access to the resource is denied",
        "IMAGE_ACCESS_DENIED",
    ),
    ("error pulling image configuration: download failed after attempts=1: unknown blob", "IMAGE_NOT_FOUND"),
    ("Head http://r.example/v2/a/manifests/1: no basic auth credentials", "IMAGE_UNAUTHORIZED"),
    ("unauthorized: authentication required", "IMAGE_UNAUTHORIZED"),
    ("Get https://r.example/v2/: unauthorized: incorrect username or password", "IMAGE_UNAUTHORIZED"),
    ("error parsing HTTP 403 response body: denied: no", "IMAGE_ACCESS_DENIED"),
    (
        "toomanyrequests: You have reached your pull rate limit. You may increase the limit",
        "REGISTRY_RATE_LIMITED",
    ),
    (
        "Get https://r.example/v2/: x509: certificate signed by unknown authority",
        "REGISTRY_TLS_FAILED",
    ),
    (
        "Get https://r.example/v2/: http: server gave HTTP response to HTTPS client",
        "REGISTRY_TLS_FAILED",
    ),
    (
        "Get https://r.example/v2/: dial tcp: lookup r.example on 10.0.0.2:53: no such host",
        "REGISTRY_UNREACHABLE",
    ),
    ("Get http://127.0.0.1:1/v2/: dial tcp 127.0.0.1:1: connect: connection refused", "REGISTRY_UNREACHABLE"),
    ("unexpected EOF", "REGISTRY_UNREACHABLE"),
    ("read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer", "REGISTRY_UNREACHABLE"),
    ("net/http: request canceled (Client.Timeout exceeded while awaiting headers)", "REGISTRY_UNREACHABLE"),
    ("received unexpected HTTP status: 500 Internal Server Error", "REGISTRY_FAILED"),
    ("received unexpected HTTP status: 503 Service Unavailable", "REGISTRY_FAILED"),
    ("filesystem layer verification failed for digest sha256:0", "IMAGE_CORRUPT"),
    ("manifest verification failed for digest sha256:0", "IMAGE_CORRUPT"),
    ("no matching manifest for linux/amd64 in the manifest list entries", "IMAGE_PLATFORM_MISSING"),
    (
        "failed to register layer: Error processing tar file: write /x: no space left on device",
        "DISK_FULL",
    ),
    ("something that nobody foresaw", "IMAGE_PULL_FAILED"),
]


@pytest.mark.parametrize(("sentence", "reason"), SENTENCES, ids=[s[0][:40] for s in SENTENCES])
def test_a_sentence_of_the_engine_has_its_reason(sentence: str, reason: str) -> None:
    """The message says what to do, and keeps the engine's words."""
    error = pullerrors.error("a:1", parse("r.example/a:1"), sentence)

    assert error.reason == reason
    assert error.message.startswith("Failed to pull image 'a:1': ")
    assert sentence in error.message
    assert error.metadata == {"image": "a:1", "registry": "r.example"}
    assert error.code not in (Code.OK, Code.CANCELLED, Code.INTERNAL)


def test_every_kind_of_failure_has_a_sentence() -> None:
    """No row of the table is unreachable."""
    seen = {pullerrors.classify(sentence).reason for sentence, _ in SENTENCES}

    assert seen == {fault.reason for fault in pullerrors.FAULTS} | {pullerrors.UNKNOWN.reason}


def _line(status: str, layer: str = "l1", current: int = 0, total: int = 0) -> dict[str, object]:
    detail = {"current": current, "total": total} if current or total else {}
    return {"status": status, "id": layer, "progressDetail": detail}


def test_bytes_and_layers_are_counted() -> None:
    """A layer that is there counts nothing; one too small to be seen loading counts when it is unpacked."""
    pull = PullProgress()
    lines: list[dict[str, object]] = [
        {"status": "Pulling from a", "id": "1"},
        _line("Already exists", "l0"),
        _line("Pulling fs layer"),
        _line("Downloading", current=40, total=100),
        _line("Downloading", current=100, total=100),
        _line("Download complete"),
        _line("Extracting", current=100, total=100),
        _line("Pull complete"),
        _line("Pulling fs layer", "l2"),
        _line("Extracting", "l2", current=7, total=7),
        _line("Pull complete", "l2"),
        {"status": "Digest: sha256:0"},
    ]
    steps = [step for _, step in map(pull.fold, lines) if step]

    assert (pull.bytes_pulled, pull.layers_pulled) == (107, 2)
    assert steps == [
        LayerStep("l0", "exists", 0),
        LayerStep("l1", "downloaded", 100),
        LayerStep("l1", "pulled", 100),
        LayerStep("l2", "pulled", 7),
    ]


def test_only_what_moves_is_progress() -> None:
    """The same again, or a countdown to another try, is none."""
    pull = PullProgress()
    lines = [
        _line("Downloading", current=1, total=9),
        _line("Downloading", current=1, total=9),
        _line("Downloading", current=2, total=9),
        _line("Retrying in 5 seconds"),
        _line("Retrying in 4 seconds"),
        _line("Downloading", current=2, total=9),
        _line("Verifying Checksum"),
    ]

    assert [pull.fold(line)[0] for line in lines] == [True, False, True, False, False, False, True]


def test_a_pull_whose_layers_all_wait_is_queued() -> None:
    """Not one that loads, nor one that is done."""
    pull = PullProgress()
    assert not pull.queued
    pull.fold(_line("Already exists", "l0"))
    pull.fold(_line("Pulling fs layer"))
    pull.fold(_line("Waiting"))
    assert pull.queued

    pull.fold(_line("Downloading", current=1, total=2))
    assert not pull.queued
    pull.fold(_line("Pull complete"))
    assert not pull.queued
