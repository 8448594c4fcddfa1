"""A kernel's packet rules in memory, which refuses what the real one refuses."""

from __future__ import annotations

from dataclasses import fields

from services.proxy.core import ways
from services.proxy.core.ruleset import Change, Damage, Ruleset
from services.proxy.errors import KernelRefusedError


class MemoryKernel:
    """Obeys `Kernel`. `refusals` are errors for the next writes, in order."""

    def __init__(self) -> None:
        self.rules: Ruleset | Damage = Damage.TABLE
        self.refusals: list[str] = []
        self.writes = 0
        self.reads = 0

    async def read(self) -> Ruleset | Damage:
        """Return the rules."""
        self.reads += 1
        return self.rules

    async def change(self, change: Change) -> None:
        """Change the rules, all or nothing."""
        self._refuse()
        if isinstance(self.rules, Damage):
            raise KernelRefusedError("ENOENT for element of endpoints: No such file or directory")
        self.rules = apply(self.rules, change)
        self.writes += 1

    async def rewrite(self, wanted: Ruleset) -> None:
        """Take new rules."""
        self._refuse()
        self.rules = apply(Ruleset(), Change(Ruleset(), wanted))
        self.writes += 1

    async def remove(self) -> None:
        """Forget the rules."""
        self.rules = Damage.TABLE

    def _refuse(self) -> None:
        if self.refusals:
            raise KernelRefusedError(self.refusals.pop(0))


def apply(rules: Ruleset, change: Change) -> Ruleset:
    """Carry a transaction out as the kernel does. Raises `KernelRefusedError`."""
    made: dict[str, object] = {}
    for part in (field.name for field in fields(Ruleset)):
        before, gone, new = (getattr(r, part) for r in (rules, change.gone, change.new))
        if not gone <= before if isinstance(before, frozenset) else not gone.keys() <= before.keys():
            raise KernelRefusedError(f"ENOENT for element of {part}: No such file or directory")
        keys = set(before) - set(gone)
        if keys & set(new):
            raise KernelRefusedError(f"EEXIST for element of {part}: File exists")
        if isinstance(before, frozenset):
            made[part] = frozenset(keys | set(new))
        else:
            made[part] = {key: before[key] for key in keys} | dict(new)
    after = Ruleset(**made)  # type: ignore[arg-type]  # each field got its own type
    used = {chain for way in after.services.values() for chain in ways.shared(way)}
    groups = {
        group for way in after.services.values() for one in ways.branches(way) if (group := ways.group(one))
    }
    if not used <= after.chains or not groups <= {stick.group for stick in after.sticks}:
        raise KernelRefusedError("EBUSY for chain of lb: Device or resource busy")
    return after
