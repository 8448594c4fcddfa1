"""Run a proxy beside an API server of its own, within one network namespace; obey lines of JSON on stdin.

`{"put": [RESOURCE, OBJECT]}`, `{"remove": [RESOURCE, NAMESPACE, NAME]}`, `{"do": METHOD}` of the
server, `{"restart": true}` kills the proxy and starts it again. Each line is answered with `done`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.fakes.kube_server import KubeServer


async def main(folder: Path, node: str, *settings: str) -> None:
    """Serve until stdin ends; then kill the proxy."""
    server = KubeServer()
    await server.start()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "clusters": [{"name": "c", "cluster": {"server": server.url}}],
                "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                "current-context": "c",
            }
        )
    )
    kubeconfig.chmod(0o600)
    words = [
        *(sys.executable, "-m", "services.proxy", "--node-name", node, "--kubeconfig", str(kubeconfig)),
        *("--run-directory", str(folder), "--cni-conf-dir", str(folder / "none"), "--listen=", *settings),
    ]
    log = (folder / "proxy.log").open("ab")  # for the whole run

    async def started() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log, env=os.environ)

    proxy = await started()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    _answer("ready")
    while line := await reader.readline():
        command = json.loads(line)
        if "put" in command:
            server.put(*command["put"])
        elif "remove" in command:
            server.remove(*command["remove"])
        elif "do" in command:
            outcome = getattr(server, command["do"])()
            if asyncio.iscoroutine(outcome):
                await outcome
        else:
            proxy.kill()
            await proxy.wait()
            proxy = await started()
        _answer("done")
    proxy.kill()
    await proxy.wait()


def _answer(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
