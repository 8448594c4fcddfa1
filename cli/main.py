"""The commands of `tripod`. Each is thin: it reads its words, calls, prints."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Annotated

import typer

from cli import output
from cli.errors import CliError, Exit
from cli.refs import Ref, one, parse, seconds

app = typer.Typer(
    name="tripod",
    help="See and steer a Tripod node.\n\n"
    "Examples: tripod apply -f examples/ · tripod get pods · tripod trace pod/web-1",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace.")]
Files = Annotated[
    list[str],
    typer.Option("--filename", "-f", help="Manifest, folder of manifests, or - for standard input."),
]
Container = Annotated[str, typer.Option("--container", "-c", help="Container; needed when the pod has many.")]
Words = Annotated[list[str] | None, typer.Argument(help="KIND, KIND NAME or KIND/NAME.")]


@app.command()
def apply(
    filename: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and change nothing.")] = False,
) -> None:
    """Create or change the objects of manifests: all of them, or none."""
    from cli import objects
    from cli.node import connected

    with connected() as node:
        print("\n".join(objects.apply(node, filename, dry_run=dry_run)))


@app.command()
def delete(
    words: Words = None,
    filename: Annotated[
        list[str] | None, typer.Option("--filename", "-f", help="Delete what manifests name.")
    ] = None,
    namespace: Namespace = "default",
    grace_period: Annotated[int | None, typer.Option(help="Seconds that containers get to stop.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until pods are gone.")] = True,
    timeout: Annotated[str, typer.Option(help="How long to wait.")] = "2m",
) -> None:
    """Delete objects. One that does not exist is no error."""
    from cli import objects, pods
    from cli.node import connected

    found = (
        objects.named_in(filename, namespace) if filename else [(namespace, r) for r in parse(words or [])]
    )
    if any(not ref.name for _, ref in found):
        raise CliError("Name the objects to delete, such as `pod/web`", code=Exit.USAGE)
    with connected() as node:
        print("\n".join(objects.delete(node, found, grace_period)))
        for place in sorted({place for place, ref in found if ref.kind == "Pod"}) if wait else []:
            gone = [ref for other, ref in found if other == place and ref.kind == "Pod"]
            pods.wait_pods(node, gone, place, "delete", seconds(timeout))


@app.command()
def get(
    words: Words = None,
    namespace: Namespace = "default",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Every namespace.")] = False,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Labels, as key=value,key=value.")] = "",
    fmt: Annotated[str, typer.Option("--output", "-o", help="wide, json, yaml or name.")] = "table",
) -> None:
    """List pods, services, configmaps, secrets (never their values), namespaces, the node or events."""
    from cli import objects, views
    from cli.node import connected

    if fmt not in output.FORMATS:
        raise CliError(f"Unknown output {fmt!r}", code=Exit.USAGE, advice="Use wide, json, yaml or name.")
    refs = parse(words or ["pods"])
    with connected() as node:
        for kind in dict.fromkeys(ref.kind for ref in refs):
            named = [ref for ref in refs if ref.kind == kind and ref.name]
            if kind == "Node":
                print(objects.show_node(node, fmt))
            elif kind == "Event":
                listed = objects.events(node, "" if all_namespaces else namespace, "")
                print(views.event_table(listed, output.now(), pods_shown=True))
            elif named:
                found = [objects.fetch(node, ref, namespace) for ref in named]
                print(objects.show(found, kind, fmt, single=len(found) == 1, namespaces=False))
            else:
                found = objects.listing(node, kind, "" if all_namespaces else namespace, selector)
                print(objects.show(found, kind, fmt, single=False, namespaces=all_namespaces))


@app.command()
def describe(words: Words = None, namespace: Namespace = "default") -> None:
    """Tell everything about one object, with its events or endpoints and why."""
    from cli import objects
    from cli.node import connected

    ref = Ref("Node") if words and words[0] in ("node", "nodes", "no") else one(words or [])
    with connected() as node:
        print(objects.describe(node, ref, namespace))


@app.command()
def logs(
    pod: Annotated[str, typer.Argument(help="Pod, as NAME or pod/NAME.")],
    namespace: Namespace = "default",
    container: Container = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the instance before.")] = False,
    tail: Annotated[int | None, typer.Option(help="Only the last lines.")] = None,
    since: Annotated[str, typer.Option(help="Only lines younger than this, such as 5m.")] = "",
    timestamps: Annotated[bool, typer.Option("--timestamps", help="With the time of each line.")] = False,
) -> None:
    """Show a container's log."""
    from cli import pods
    from cli.node import connected

    request = pods.log_request(
        namespace,
        one([pod]).name,
        container,
        follow=follow,
        previous=previous,
        tail=tail,
        since=seconds(since) if since else None,
    )
    with connected() as node:
        pods.logs(node, request, timestamps=timestamps)


@app.command(name="exec", context_settings={"allow_interspersed_args": False})
def exec_(
    pod: Annotated[str, typer.Argument(help="Pod, as NAME or pod/NAME.")],
    command: Annotated[list[str], typer.Argument(help="Program and arguments, after `--`.")],
    namespace: Namespace = "default",
    container: Container = "",
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Feed our standard input.")] = False,
    terminal: Annotated[bool, typer.Option("--tty", "-t", help="Use a terminal.")] = False,
) -> None:
    """Run a command in a container: tripod exec -it web-1 -- sh."""
    from cli import pods
    from cli.node import connected

    words = command[1:] if command[:1] == ["--"] else command
    with connected() as node:
        code = pods.execute(
            node, namespace, one([pod]).name, container, words, stdin=stdin or terminal, terminal=terminal
        )
    raise typer.Exit(code)


@app.command()
def attach(
    pod: Annotated[str, typer.Argument(help="Pod, as NAME or pod/NAME.")],
    namespace: Namespace = "default",
    container: Container = "",
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Feed our standard input.")] = False,
    terminal: Annotated[bool, typer.Option("--tty", "-t", help="Use a terminal.")] = False,
) -> None:
    """Join the streams of a running container: tripod attach -i web-1."""
    from cli import pods
    from cli.node import connected

    with connected() as node:
        pods.attach(node, namespace, one([pod]).name, container, stdin=stdin or terminal, terminal=terminal)


@app.command(name="port-forward")
def port_forward(
    pod: Annotated[str, typer.Argument(help="Pod, as NAME or pod/NAME.")],
    ports: Annotated[list[str], typer.Argument(help="LOCAL:REMOTE, or PORT for both.")],
    namespace: Namespace = "default",
) -> None:
    """Reach ports of a pod from this machine: tripod port-forward web-1 8080:80."""
    from cli import forwarding
    from cli.node import connected

    with connected() as node:
        forwarding.forward(node, namespace, one([pod]).name, forwarding.read_ports(ports))


@app.command()
def trace(
    what: Annotated[
        str, typer.Argument(help="Pod, as NAME or pod/NAME, or a trace id. Without it: the latest traces.")
    ] = "",
    namespace: Namespace = "default",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With attributes and events.")] = False,
) -> None:
    """Draw the trace of a pod's start, from manifest to first packet."""
    from cli import tracing, waterfall
    from cli.node import connected

    with connected() as node:
        if not what:
            rows = [
                (i, n, p, waterfall.milliseconds(d), str(c)) for i, n, p, d, c in tracing.latest(node, 30)
            ]
            print(output.table(["TRACE", "NAME", "POD", "DURATION", "SPANS"], rows))
            return
        is_id = re.fullmatch(r"[0-9a-f]{32}", what) is not None
        trace_id = what if is_id else tracing.trace_of_pod(node, namespace, one([what]).name)
        spans, silent = tracing.collect(node, trace_id)
    if silent:
        output.error(f"No answer from {', '.join(silent)}: the trace may lack its spans")
    if not spans:
        raise CliError(f"No service remembers trace {trace_id}", code=Exit.NOT_FOUND)
    print(waterfall.render(trace_id, spans, verbose=verbose))


@app.command()
def explain(
    pod: Annotated[str, typer.Argument(help="Pod, as NAME or pod/NAME.")],
    namespace: Namespace = "default",
    fmt: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
) -> None:
    """Say why a pod is not Ready, since when, and what is tried next."""
    from cli import explanation
    from cli.node import connected

    _known(fmt, ("text", "json"))
    ref = one([pod])
    if ref.kind != "Pod":
        raise CliError(
            f"Only pods can be explained, not {pod!r}",
            code=Exit.USAGE,
            advice="`tripod describe service NAME` tells where a service leads and why.",
        )
    with connected() as node:
        told = explanation.ask(node, namespace, ref.name)
    if fmt == "json":
        print(json.dumps(explanation.as_values(told), indent=2))
    else:
        print(explanation.as_text(told, output.Paint.of(sys.stdout)))


def _known(fmt: str, formats: tuple[str, ...]) -> None:
    if fmt not in formats:
        what = f"Use {' or '.join(formats)}."
        raise CliError(f"Unknown output {fmt!r}", code=Exit.USAGE, advice=what)


@app.command()
def doctor(
    fmt: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what is fine.")] = False,
) -> None:
    """Check host and node, and say how to mend what is wrong. Exit code 1 when something is broken."""
    from cli.doctor import report
    from cli.doctor.examine import examine

    _known(fmt, ("text", "json"))
    findings = examine(os.environ)
    if fmt == "json":
        print(report.as_json(findings))
    else:
        print(report.as_text(findings, output.Paint.of(sys.stdout), verbose=verbose))
    raise typer.Exit(int(Exit.FAILED) if report.failed(findings) else 0)


@app.command()
def audit(
    json_: Annotated[bool, typer.Option("--json", help="For programs; the same as -o json.")] = False,
    fmt: Annotated[str, typer.Option("--output", "-o", help="text or json.")] = "text",
    wait_seconds: Annotated[
        float, typer.Option("--wait", help="Look twice, this many seconds apart; what both saw is real.")
    ] = 2.0,
) -> None:
    """Compare what the node holds on its host with what it should hold. Exit code 1 when they differ."""
    from cli import audit as ledger
    from cli.node import connected

    _known(fmt, ("text", "json"))
    with connected() as node:
        found = ledger.settled(node, wait_seconds)
    print(ledger.as_json(found) if json_ or fmt == "json" else ledger.as_text(found))
    raise typer.Exit(int(Exit.FAILED) if found.findings or found.unavailable else 0)


@app.command()
def wait(
    words: Words = None,
    namespace: Namespace = "default",
    condition: Annotated[
        str,
        typer.Option(
            "--for", help="condition=Ready, condition=Ready=false, delete; for a service endpoints=N."
        ),
    ] = "condition=Ready",
    selector: Annotated[str, typer.Option("--selector", "-l", help="Pods with these labels.")] = "",
    timeout: Annotated[str, typer.Option(help="How long.")] = "60s",
) -> None:
    """Wait until pods meet a condition, or a service is programmed. Exit code 3 when time is up."""
    from cli import objects, pods
    from cli.node import connected

    refs = parse(words or [])
    with connected() as node:
        if selector:
            refs = [
                Ref("Pod", o["metadata"]["name"]) for o in objects.listing(node, "Pod", namespace, selector)
            ]
        if not refs or any(not ref.name for ref in refs):
            raise CliError("Nothing to wait for: name pods, or select some that exist", code=Exit.USAGE)
        for ref in (ref for ref in refs if ref.kind == "Service"):
            minimum = int(condition.removeprefix("endpoints=")) if condition.startswith("endpoints=") else 0
            pods.wait_service(node, ref, namespace, seconds(timeout), minimum)
        waiting = [ref for ref in refs if ref.kind == "Pod"]
        if waiting:
            pods.wait_pods(node, waiting, namespace, condition.removeprefix("condition="), seconds(timeout))


def run(argv: list[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    try:
        app(args=argv, prog_name="tripod", standalone_mode=True)
    except CliError as error:
        output.error(error.message, error.advice)
        return int(error.code)
    except KeyboardInterrupt:
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(Exit.FAILED) if end.code else 0
    return 0
