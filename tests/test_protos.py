"""The contracts: what they are on the wire, and how they are written."""

from __future__ import annotations

from typing import Any

import pytest

from tools import wire_lock

FILES: list[Any] = wire_lock.descriptors()
OURS = [file for file in FILES if file.package.startswith("tripod.")]


def test_the_wire_is_as_it_was_locked() -> None:
    """A number or a type that changes breaks someone; `make proto-lock` says that it is meant."""
    assert wire_lock.lines() == wire_lock.LOCK.read_text().splitlines()


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_a_folder_is_its_package_and_ends_in_a_version(file: Any) -> None:
    """A breaking change becomes a package beside the old one."""
    assert file.name.rsplit("/", 1)[0].replace("/", ".") == file.package
    assert file.package.endswith(".v1")


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_each_call_has_its_own_request_and_response(file: Any) -> None:
    """A field can be added to one call without touching another."""
    for service in file.service:
        for method in service.method:
            assert method.input_type == f".{file.package}.{method.name}Request"
            assert method.output_type == f".{file.package}.{method.name}Response"


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_every_enum_begins_with_unspecified(file: Any) -> None:
    """Zero means that nobody said anything."""
    for enum in file.enum_type:
        assert enum.value[0].number == 0
        assert enum.value[0].name.endswith("_UNSPECIFIED")


@pytest.mark.parametrize("file", OURS, ids=lambda file: file.name)
def test_everything_has_a_comment(file: Any) -> None:
    """The contract is what people read first."""
    commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments}
    wanted: list[tuple[int, ...]] = []
    for i, message in enumerate(file.message_type):
        wanted.append((4, i))
        wanted += [(4, i, 2, j) for j in range(len(message.field))]
    for i, enum in enumerate(file.enum_type):
        wanted.append((5, i))
        wanted += [(5, i, 2, j) for j in range(len(enum.value))]
    for i, service in enumerate(file.service):
        wanted.append((6, i))
        wanted += [(6, i, 2, j) for j in range(len(service.method))]

    assert [place for place in wanted if place not in commented] == []


def test_the_cri_keeps_the_paths_of_the_originals() -> None:
    """crictl and every kubelet call `/runtime.v1.RuntimeService/...`."""
    cri = next(file for file in FILES if file.package == "runtime.v1")

    assert {service.name: len(service.method) for service in cri.service} == {
        "RuntimeService": 37,
        "ImageService": 6,
    }
