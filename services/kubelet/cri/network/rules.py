"""Which iptables rules the pod network needs, and what to change to get there. No I/O.

Two chains of our own, each jumped to from the end of a built-in one:

- `<PREFIX>-FORWARD` in `filter`. Docker sets the policy of FORWARD to DROP, and with bridge netfilter even
  packets between two pods of one bridge pass through it. An accept in another nftables table, or in the
  other iptables back end, does not undo a drop: the rules must stand where Docker's are. The end of FORWARD
  is enough, as Docker's own rules there accept or return, and it leaves DOCKER-USER, which is the
  administrator's, in front.
- `<PREFIX>-POSTROUTING` in `nat`: pods that talk beyond the pod CIDR, or the cluster's, take the node's
  address.

`DNAT` in the second accept lets traffic in that the service proxy has sent to a pod; other new connections
from outside to a pod stay with the policy, unless the node is one of a cluster: there pods are reached by
their own addresses, from other nodes too.

Source: iptables-save(8), iptables-restore(8): with `--noflush` a line `:CHAIN -` makes or empties that
chain, and all lines of one table take effect in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.kubelet.cri.network.config import BridgeConfig


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of ours: the built-in chain that jumps to it, and its rules as iptables-save prints them."""

    table: str
    hook: str
    name: str
    rules: tuple[str, ...]

    @property
    def jump(self) -> str:
        """The rule in `hook` that leads here."""
        return f"-j {self.name}"


Tables = Mapping[str, Mapping[str, Sequence[str]]]
"""Table -> chain -> its rules in order, each without the leading `-A CHAIN`."""


def wanted(config: BridgeConfig) -> tuple[Chain, ...]:
    """List the chains that the network needs."""
    bridge, pods = config.bridge, config.pool
    others = [network for network in config.cluster if not network.subnet_of(pods)]
    forward = Chain(
        "filter",
        "FORWARD",
        f"{config.chain_prefix}-FORWARD",
        (
            f"-i {bridge} -j ACCEPT",
            f"-o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT",
            # To any pod of the cluster: nodes, other pods and the service proxies of other nodes reach ours;
            # and what this node's service proxy has sent to pods of other nodes passes, and its answers.
            *(f"-{side} {network} -j ACCEPT" for network in config.cluster for side in ("d", "s")),
        ),
    )
    masquerade = Chain(
        "nat",
        "POSTROUTING",
        f"{config.chain_prefix}-POSTROUTING",
        # Not out of the bridge: a pod's multicast and broadcast stay inside and must keep their source.
        (
            *(f"-s {pods} -d {network} -j RETURN" for network in others),
            f"-s {pods} ! -d {pods} ! -o {bridge} -j MASQUERADE --random-fully",
        ),
    )
    return forward, masquerade


def parse(saved: str) -> Tables:
    """Read the output of iptables-save (without counters)."""
    tables: dict[str, dict[str, list[str]]] = {}
    chains: dict[str, list[str]] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            chains = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            chains.setdefault(line[1:].split()[0], [])
        elif line.startswith("-A "):
            _, chain, rule = (line.rstrip() + " ").split(" ", 2)
            chains.setdefault(chain, []).append(rule.rstrip())
    return tables


def repair(chains: Sequence[Chain], found: Tables) -> str:
    """Render the input of `iptables-restore --noflush` that makes `chains` whole; "" if they are."""
    return _render(chains, lambda chain: _repair(chain, found.get(chain.table, {})))


def removal(chains: Sequence[Chain], found: Tables) -> str:
    """Render the input of `iptables-restore --noflush` that removes `chains`; "" if none is there."""
    return _render(chains, lambda chain: _removal(chain, found.get(chain.table, {})))


def obstacle(chain: Chain, found: Tables) -> str:
    """Return the rule that drops or rejects everything before `chain` is reached; "" if there is none."""
    for rule in found.get(chain.table, {}).get(chain.hook, ()):
        if rule == chain.jump:
            return ""
        if rule == "-j DROP" or rule.split()[:2] == ["-j", "REJECT"]:
            return f"-A {chain.hook} {rule}"
    return ""


def _repair(chain: Chain, found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    # One without rules must be there, too, for the jump to it.
    if chain.name not in found or tuple(found[chain.name]) != chain.rules:
        yield f":{chain.name} - [0:0]"
        yield from (f"-A {chain.name} {rule}" for rule in chain.rules)
    jumps = _jumps(chain, found)
    if jumps == 0:
        yield f"-A {chain.hook} {chain.jump}"
    yield from [f"-D {chain.hook} {chain.jump}"] * (jumps - 1)


def _removal(chain: Chain, found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield from [f"-D {chain.hook} {chain.jump}"] * _jumps(chain, found)
    if chain.name in found:
        yield f"-F {chain.name}"
        yield f"-X {chain.name}"


def _jumps(chain: Chain, found: Mapping[str, Sequence[str]]) -> int:
    return list(found.get(chain.hook, ())).count(chain.jump)


def _render(chains: Sequence[Chain], change: Callable[[Chain], Iterator[str]]) -> str:
    blocks = ((chain.table, list(change(chain))) for chain in chains)
    return "".join("\n".join([f"*{table}", *lines, "COMMIT", ""]) for table, lines in blocks if lines)
