"""Rates from counters. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from services.cadvisor.core.model import Cpu


def with_rate(now: Cpu, now_at: datetime, before: Cpu | None, before_at: datetime | None) -> Cpu:
    """Add the rate since the sample before; none after a reset, or without one."""
    if before is None or before_at is None:
        return now
    seconds = (now_at - before_at).total_seconds()
    used = now.usage_ns - before.usage_ns
    if seconds <= 0 or used < 0:
        return now
    return replace(now, nanocores=round(used / seconds))
