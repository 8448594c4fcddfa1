"""What ended a group of tasks."""

from __future__ import annotations


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that came first; the others follow from it."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
