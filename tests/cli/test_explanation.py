"""What `tripod explain` prints."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cli.errors import Exit
from cli.explanation import Cause, Evidence, Explanation, as_text, first
from cli.main import run
from cli.output import Paint, length

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ago(count: float) -> datetime:
    """Return a time before now."""
    return NOW - timedelta(seconds=count)


CRASH = Cause(
    "container",
    "app",
    "CrashLoopBackOff",
    "it ended with exit code 137 (SIGKILL), OOMKilled after 3 s; it has ended 4 times",
    "it is started again (this wait is 40 s, each end doubles it up to 300 s)",
    ago(12),
    27.6,
    (Evidence("BackOff", "back-off 40s restarting", 3, ago(12)),),
)
DOWN = Cause(
    "node", "", "RuntimeNotAnswering", "no answer from cri.sock.", "the kubelet looks again", None, 0.0
)
CRASHING = Explanation(
    "shop",
    "web",
    "NotReady",
    "pod/web is not Ready: the node: RuntimeNotAnswering",
    NOW,
    ago(185),
    (DOWN, CRASH),
    "ab" * 16,
)

GOLDEN = """\
pod/web is not Ready, for 3 min 5 s

  the node: RuntimeNotAnswering
    No answer from cri.sock.
    Next: the kubelet looks again, due now.

  container app: CrashLoopBackOff, for 12 s
    It ended with exit code 137 (SIGKILL), OOMKilled after 3 s; it has ended 4 times.
    Next: it is started again (this wait is 40 s, each end doubles it up to 300 s), in 28 s.
    Event: BackOff, 12 s ago, 3 times

See: tripod logs web -c app --previous -n shop
     tripod doctor
     tripod trace pod/web -n shop"""


def test_an_explanation_is_plain_sentences() -> None:
    """What, since when, what next and when, and where to see more."""
    assert as_text(CRASHING, Paint()) == GOLDEN


def test_a_ready_pod_is_told_in_three_lines() -> None:
    """A container without anything to come has no `Next`."""
    fine = Cause("container", "app", "Running", "it runs, and has no readiness probe", "", ago(60))
    told = Explanation("default", "web", "Ready", "pod/web is Ready", NOW, ago(60), (fine,))

    assert as_text(told, Paint()).splitlines() == [
        "pod/web is Ready, for 60 s",
        "",
        "  container app: Running, for 60 s",
        "    It runs, and has no readiness probe.",
    ]


def test_colour_changes_nothing_but_colour() -> None:
    """On a terminal the same words, marked."""
    painted = as_text(CRASHING, Paint(on=True))

    assert painted != GOLDEN
    for code in ("\033[31m", "\033[1m", "\033[0m"):
        painted = painted.replace(code, "")
    assert painted == GOLDEN


def test_describe_gets_the_first_cause_in_a_line() -> None:
    """Nothing when there is none."""
    assert first([]) == ""
    assert first([CRASH]).startswith("container app: CrashLoopBackOff: it ended with exit code 137")
    assert "\n" not in first([CRASH])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0.2 s"),
        (1, "1 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (185, "3 min 5 s"),
        (3000, "50 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
    ],
)
def test_a_length_of_time_is_short(seconds: float, words: str) -> None:
    """The unit grows with it."""
    assert length(seconds) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "svc/web"], "Only pods can be explained"),
        (["explain", "pod/a", "-o", "xml"], "Unknown output 'xml'"),
        (["doctor", "-o", "xml"], "Unknown output 'xml'"),
        (["audit", "-o", "xml"], "Unknown output 'xml'"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_asked(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what would be right."""
    code = run(words)

    assert code == Exit.USAGE
    assert message in capsys.readouterr().err
