"""The tool that compares our contract of the CRI with a released one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import compare_cri


def test_a_copy_has_no_differences(tmp_path: Path) -> None:
    """Comments and blanks are no part of a contract."""
    copy = tmp_path / "api.proto"
    copy.write_text("// Another head.\n" + compare_cri.OURS.read_text())

    assert compare_cri.differences(copy) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        pytest.param(
            "  string image_sub_path = 10;",
            "  bytes image_sub_path = 10;",
            [
                "+ runtime.v1.Mount.image_sub_path = 10 string",
                "- runtime.v1.Mount.image_sub_path = 10 bytes",
            ],
            id="another type",
        ),
        pytest.param(
            "  string image_sub_path = 10;",
            "  string image_sub_path = 12;",
            [
                "+ runtime.v1.Mount.image_sub_path = 10 string",
                "- runtime.v1.Mount.image_sub_path = 12 string",
            ],
            id="another number",
        ),
        pytest.param(
            "  string image_sub_path = 10;",
            "  string image_sub_path = 10;\n  string more = 99;",
            ["- runtime.v1.Mount.more = 99 string"],
            id="a field that we lack",
        ),
        pytest.param(
            "  rpc ImageFsInfo(ImageFsInfoRequest) returns (ImageFsInfoResponse);\n",
            "",
            [
                "+ runtime.v1.ImageService/ImageFsInfo: "
                "runtime.v1.ImageFsInfoRequest -> runtime.v1.ImageFsInfoResponse"
            ],
            id="a call that only we have",
        ),
        pytest.param(
            "  CGROUPFS = 1;",
            "  CGROUPFS = 2;",
            ["+ runtime.v1.CgroupDriver.CGROUPFS = 1", "- runtime.v1.CgroupDriver.CGROUPFS = 2"],
            id="another enum number",
        ),
    ],
)
def test_each_kind_of_difference_is_told(tmp_path: Path, ours: str, theirs: str, expected: list[str]) -> None:
    """A changed copy: `-` is the release's, `+` is ours."""
    text = compare_cri.OURS.read_text()
    copy = tmp_path / "api.proto"
    copy.write_text(text.replace(ours, theirs))

    assert ours in text
    assert sorted(compare_cri.differences(copy)) == sorted(expected)


@pytest.mark.parametrize(("ours", "code"), [("", 0), ("  CGROUPFS = 1;", 1), ('syntax = "proto3";', 2)])
def test_the_exit_code_says_whether_they_differ(
    tmp_path: Path, ours: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero for the same, one for another, two for a file that cannot be read."""
    copy = tmp_path / "api.proto"
    copy.write_text(compare_cri.OURS.read_text().replace(ours, "syntax =" if code == 2 else ""))
    if code == 0:
        copy.write_text(compare_cri.OURS.read_text())
    monkeypatch.setattr("sys.argv", ["compare_cri", str(copy)])

    assert compare_cri.main() == code
