"""What a container may do: from the CRI's words to the engine's."""

from __future__ import annotations

from typing import Any

import pytest
from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri import security
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.security import Confinement

FREE = Confinement()
TIGHT = Confinement(("CHOWN", "KILL"), devices=("/dev/null",))
ARMOURED = Confinement(apparmor=True)
LABELLED = Confinement(selinux=True)
PROFILE = pb.SecurityProfile
LOCAL = PROFILE(profile_type=PROFILE.Localhost, localhost_ref="/p.json")


def context(**values: Any) -> pb.LinuxContainerSecurityContext:
    """Make a security context."""
    return pb.LinuxContainerSecurityContext(**values)


@pytest.mark.parametrize(
    ("values", "read", "expected"),
    [
        ({}, "", ["seccomp=unconfined"]),
        ({"seccomp": PROFILE()}, "", []),
        ({"seccomp": PROFILE(profile_type=PROFILE.Unconfined)}, "", ["seccomp=unconfined"]),
        ({"seccomp": LOCAL}, '{"a":1}', ['seccomp={"a":1}']),
        ({"seccomp_profile_path": "runtime/default"}, "", []),
        ({"seccomp_profile_path": "unconfined"}, "", ["seccomp=unconfined"]),
        ({"seccomp": PROFILE(), "seccomp_profile_path": "unconfined"}, "", []),
        ({"seccomp": PROFILE(), "no_new_privs": True}, "", ["no-new-privileges"]),
    ],
)
def test_seccomp_is_what_was_asked_for(values: dict[str, Any], read: str, expected: list[str]) -> None:
    """No profile is unconfined, as the CRI has it; the typed field goes before the old one."""
    assert security.container(context(**values), FREE, seccomp_profile=read)["SecurityOpt"] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"seccomp": LOCAL}, "/p.json"),
        ({"seccomp_profile_path": "localhost//p.json"}, "/p.json"),
        ({"seccomp": LOCAL, "privileged": True}, ""),
        ({"seccomp": PROFILE(localhost_ref="/p.json")}, ""),
    ],
)
def test_a_profile_is_read_only_where_it_holds(values: dict[str, Any], expected: str) -> None:
    """A privileged container ignores it."""
    assert security.seccomp_file(context(**values)) == expected


@pytest.mark.parametrize(
    ("options", "host", "expected"),
    [
        (pb.SELinuxOption(), FREE, []),
        (pb.SELinuxOption(type="t", level="s0:c1"), LABELLED, ["label=type:t", "label=level:s0:c1"]),
    ],
)
def test_an_selinux_context_is_what_was_asked_for(
    options: pb.SELinuxOption, host: Confinement, expected: list[str]
) -> None:
    """Part by part."""
    made = security.container(context(seccomp=PROFILE(), selinux_options=options), host)

    assert made["SecurityOpt"] == expected


def test_an_selinux_context_needs_selinux() -> None:
    """It is refused, not left out."""
    with pytest.raises(CriError, match="SELinux is not enabled on the host"):
        security.container(context(selinux_options=pb.SELinuxOption(level="s0")), FREE)


@pytest.mark.parametrize(
    ("values", "host", "expected"),
    [
        ({}, ARMOURED, []),
        ({"apparmor": PROFILE()}, ARMOURED, []),
        ({"apparmor": PROFILE(profile_type=PROFILE.Unconfined)}, ARMOURED, ["apparmor=unconfined"]),
        ({"apparmor": PROFILE(profile_type=PROFILE.Unconfined)}, FREE, []),
        (
            {"apparmor": PROFILE(profile_type=PROFILE.Localhost, localhost_ref="p"), "apparmor_profile": "q"},
            ARMOURED,
            ["apparmor=p"],
        ),
        ({"apparmor_profile": "localhost/q"}, ARMOURED, ["apparmor=q"]),
    ],
)
def test_apparmor_is_what_was_asked_for(
    values: dict[str, Any], host: Confinement, expected: list[str]
) -> None:
    """The typed field goes before the old one."""
    made = security.container(context(seccomp=PROFILE(), **values), host)

    assert made["SecurityOpt"] == expected


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"apparmor": PROFILE(profile_type=PROFILE.Localhost, localhost_ref="p")}, "UNSUPPORTED"),
        ({"apparmor_profile": "runtime/default"}, "UNSUPPORTED"),
        ({"seccomp": PROFILE(profile_type=PROFILE.Localhost)}, "REQUEST_INVALID"),
        ({"capabilities": pb.Capability(add_ambient_capabilities=["CHOWN"])}, "UNSUPPORTED"),
    ],
)
def test_what_cannot_be_had_is_refused(values: dict[str, Any], reason: str) -> None:
    """Never less protection than was asked for, in silence."""
    with pytest.raises(CriError) as refused:
        security.container(context(**values), FREE)

    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("host", "add", "expected"),
    [
        (FREE, ["CAP_net_admin", "KILL"], ["NET_ADMIN", "KILL"]),
        (FREE, ["ALL"], ["ALL"]),
        (TIGHT, ["ALL", "NET_RAW"], ["CHOWN", "KILL", "NET_RAW"]),
        (TIGHT, ["SYS_RESOURCE"], ["SYS_RESOURCE"]),
    ],
)
def test_all_capabilities_are_those_that_can_be_had(
    host: Confinement, add: list[str], expected: list[str]
) -> None:
    """One that is named and cannot be had is left to the engine to refuse."""
    wanted = context(capabilities=pb.Capability(add_capabilities=add, drop_capabilities=["cap_mknod"]))

    made = security.container(wanted, host)

    assert (made["CapAdd"], made["CapDrop"]) == (expected, ["MKNOD"])


def test_privileged_is_put_together_where_the_engine_refuses_it() -> None:
    """Capabilities, devices, nothing masked, no profile; a host that can do it has the engine's own."""
    wanted = context(privileged=True, seccomp=LOCAL, masked_paths=["/x"])

    made = security.container(wanted, TIGHT)

    assert security.container(wanted, FREE) == {"Privileged": True, "SecurityOpt": []}
    assert (made["Privileged"], made["CapAdd"], made["MaskedPaths"]) == (False, ["CHOWN", "KILL"], [])
    assert "seccomp=unconfined" in made["SecurityOpt"]
    assert made["Devices"] == [security.device("/dev/null", "/dev/null", "rwm")]


@pytest.mark.parametrize(
    ("bounding_set", "recent", "expected"),
    [
        (0x1FFFFFFFFFF, True, None),
        (1 << 24, True, None),
        (1 << 0 | 1 << 38 | 1 << 40, False, ("CHOWN",)),
        (1 << 0 | 1 << 38 | 1 << 40, True, ("CHOWN", "PERFMON", "CHECKPOINT_RESTORE")),
    ],
)
def test_grantable_capabilities_are_known_to_both(
    bounding_set: int, expected: tuple[str, ...] | None, *, recent: bool
) -> None:
    """With CAP_SYS_RESOURCE nothing need be counted."""
    assert security.grantable(bounding_set, recent_engine=recent) == expected


def test_masked_and_read_only_paths_are_the_callers() -> None:
    """Without any the engine takes its own."""
    assert "MaskedPaths" not in security.container(context(), FREE)
    made = security.container(context(masked_paths=["/a"], readonly_paths=["/b"]), FREE)

    assert (made["MaskedPaths"], made["ReadonlyPaths"]) == (["/a"], ["/b"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        ({"run_as_user": pb.Int64Value(value=0)}, "0"),
        ({"run_as_username": "web"}, "web"),
        ({"run_as_user": pb.Int64Value(value=1), "run_as_group": pb.Int64Value(value=2)}, "1:2"),
    ],
)
def test_a_user_is_a_number_or_a_name(values: dict[str, Any], expected: str) -> None:
    """With the group, where there is one."""
    assert security.user(context(**values)) == expected


def test_a_group_needs_a_user() -> None:
    """As the CRI says."""
    with pytest.raises(CriError) as refused:
        security.user(context(run_as_group=pb.Int64Value(value=2)))

    assert refused.value.reason == "REQUEST_INVALID"


@pytest.mark.parametrize(
    ("user", "expected"), [("web", 33), ("1000", 7), ("2000", 0), ("", 5), ("other", 0), ("broken", 0)]
)
def test_a_users_group_is_the_images(user: str, expected: int) -> None:
    """The first user, by name or number; root without a user; 0 for one that is not there."""
    passwd = "root:x:0:5::/:/bin/sh\nweb:x:33:33:::\nbroken:x\nme:x:1000:7:::\nme2:x:1000:8:::\n"

    assert security.primary_group(passwd, user) == expected


@pytest.mark.parametrize(
    ("policy", "user", "expected"),
    [("Strict", "1000", True), ("Strict", "", True), ("Strict", "1:2", False), ("Merge", "1000", False)],
)
def test_an_explicit_group_is_strict_already(policy: str, user: str, *, expected: bool) -> None:
    """The engine leaves an image's groups out then."""
    wanted = context(supplemental_groups_policy=pb.SupplementalGroupsPolicy.Value(policy))

    assert security.needs_strict_groups(wanted, user) is expected


def test_a_process_tells_its_user() -> None:
    """None when it has gone meanwhile."""
    found = security.process_user({"Uid": ["1", "2"], "Gid": ["3", "4"], "Groups": ["5", "6"]})

    assert found is not None
    assert (found.linux.uid, found.linux.gid, list(found.linux.supplemental_groups)) == (1, 3, [5, 6])
    assert security.process_user({}) is None
