"""Rates from counters. Pure."""

from __future__ import annotations

from dataclasses import replace

from services.cadvisor.core.model import NO_CPU, Cpu


def with_rate(now: Cpu, before: Cpu | None, seconds: float) -> Cpu:
    """Add the rate since the sample `seconds` before; none after a reset, or without one."""
    if before is None or seconds <= 0 or now is NO_CPU or before is NO_CPU:
        return now
    used = now.usage_ns - before.usage_ns
    return now if used < 0 else replace(now, nanocores=round(used / seconds))
