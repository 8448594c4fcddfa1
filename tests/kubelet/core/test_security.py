"""What a pod and a container ask for is merged by fixed rules, and root is found before it starts."""

from __future__ import annotations

import pytest

from services.kubelet.core import security
from services.kubelet.core.security import (
    ContainerSecurity,
    PodSecurity,
    Profile,
    ProfileType,
    Rights,
    SeLinuxOptions,
    rights,
)

UNCONFINED = Profile(ProfileType.UNCONFINED)
DEFAULT = Profile(ProfileType.RUNTIME_DEFAULT)


@pytest.mark.parametrize(
    ("pod", "container", "expected"),
    [
        pytest.param(PodSecurity(), ContainerSecurity(), Rights(), id="nothing-said-is-the-default-profile"),
        pytest.param(
            PodSecurity(run_as_user=1, run_as_group=2, run_as_non_root=True),
            ContainerSecurity(),
            Rights(user="1", group=2, must_not_be_root=True),
            id="a-container-has-what-its-pod-says",
        ),
        pytest.param(
            PodSecurity(run_as_user=1, run_as_group=2, run_as_non_root=True, seccomp=UNCONFINED),
            ContainerSecurity(run_as_user=0, run_as_group=0, run_as_non_root=False, seccomp=DEFAULT),
            Rights(user="0", group=0),
            id="what-a-container-says-goes-first-zero-and-false-too",
        ),
        pytest.param(
            PodSecurity(supplemental_groups=(5, 6), fs_group=6, strict_groups=True),
            ContainerSecurity(),
            Rights(groups=(5, 6), strict_groups=True),
            id="the-group-of-files-is-one-of-the-groups-once",
        ),
        pytest.param(PodSecurity(fs_group=0), ContainerSecurity(), Rights(groups=(0,)), id="group-zero"),
        pytest.param(
            PodSecurity(),
            ContainerSecurity(allow_privilege_escalation=True),
            Rights(),
            id="escalation-allowed",
        ),
        pytest.param(
            PodSecurity(),
            ContainerSecurity(allow_privilege_escalation=False, read_only_root_filesystem=True),
            Rights(no_new_privileges=True, read_only_root=True),
            id="escalation-forbidden",
        ),
        pytest.param(
            PodSecurity(selinux=SeLinuxOptions(level="s0", type="a")),
            ContainerSecurity(selinux=SeLinuxOptions(level="s1")),
            Rights(selinux=SeLinuxOptions(level="s1")),
            id="a-context-is-taken-whole",
        ),
        pytest.param(
            PodSecurity(),
            ContainerSecurity(
                privileged=True, capabilities_added=("NET_ADMIN",), capabilities_dropped=("ALL",)
            ),
            Rights(privileged=True, capabilities_added=("NET_ADMIN",), capabilities_dropped=("ALL",)),
            id="capabilities",
        ),
    ],
)
def test_a_container_goes_before_its_pod(
    pod: PodSecurity, container: ContainerSecurity, expected: Rights
) -> None:
    """And the default profile of seccomp before nothing."""
    assert rights(pod, container) == expected


@pytest.mark.parametrize(
    ("wanted", "image_user", "words"),
    [
        (Rights(), "0", ""),
        (Rights(user="0"), "", ""),
        (Rights(user="5", must_not_be_root=True), "0", ""),
        (Rights(user="0", must_not_be_root=True), "5", "container's runAsUser breaks non-root policy"),
        (Rights(must_not_be_root=True), "", "container has runAsNonRoot and image will run as root"),
        (Rights(must_not_be_root=True), "0", "container has runAsNonRoot and image will run as root"),
        (Rights(must_not_be_root=True), "1000", ""),
        (Rights(must_not_be_root=True), "web", "image has non-numeric user (web), cannot verify"),
        (Rights(must_not_be_root=True), "+0", "image has non-numeric user (+0), cannot verify"),
        (Rights(must_not_be_root=True), " 0", "image has non-numeric user ( 0), cannot verify"),
    ],
)
def test_root_is_refused_before_it_starts(wanted: Rights, image_user: str, words: str) -> None:
    """A name may lead to root, so it is refused as well (S26)."""
    fault = security.root_fault(wanted, image_user=image_user, pod="web_default(1)", container="app")

    assert fault.startswith(words) if words == "" else words in fault
    assert bool(fault) is bool(words)
    assert not fault or fault.endswith('(pod: "web_default(1)", container: app)')


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Rights(), False),
        (Rights(must_not_be_root=True), True),
        (Rights(group=5), True),
        (Rights(user="1", group=5, must_not_be_root=True), False),
    ],
)
def test_the_image_is_asked_only_when_its_user_counts(wanted: Rights, expected: bool) -> None:
    """A look at the image costs a call."""
    assert wanted.needs_image_user is expected


@pytest.mark.parametrize(
    ("path", "good"),
    [("a.json", True), ("team/a.json", True), ("", False), ("/a", False), ("../a", False), ("a/../b", False)],
)
def test_a_profile_lies_below_its_folder(path: str, *, good: bool) -> None:
    """An empty path once meant unconfined (S28)."""
    assert (security.localhost_fault(path) == "") is good
