"""The program `itoflow`: what is installed, what a component is, whether it is correct, and a folder for a new one.

    itoflow plugins | list [KIND] | show KIND NAME | check KIND NAME [option=value ...] | new NAME

Plugins add commands by the hook `itoflow_commands`; each is imported when it is run. Listing imports neither torch nor
a component, and `show` imports the module of that one component.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from itoflow import registry
from itoflow.errors import ItoflowError, PluginError, UnknownComponentError, did_you_mean, listing
from itoflow.hookspecs import KINDS
from itoflow.parser import CommandParser
from itoflow.registry import Component, PluginReport


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code: 0, 1 where a check failed, 2 for an error, 130 when interrupted.

    Arguments:
        argv: what follows `itoflow`; None takes it from the command line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            code = _run(arguments)
        except SystemExit as stopped:  # argparse after --help, or a plugin's command
            if isinstance(stopped.code, str):
                print(stopped.code, file=sys.stderr)
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        sys.stdout.flush()
        return code
    except ItoflowError as error:
        if _debug(arguments):
            import traceback

            traceback.print_exc()
        print(f"itoflow: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough; keep the interpreter from flushing again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def _run(arguments: list[str]) -> int:
    split = next((i for i, argument in enumerate(arguments) if not argument.startswith("-")), len(arguments))
    options, command, rest = arguments[:split], arguments[split : split + 1], arguments[split + 1 :]
    parser = CommandParser("", "", add_help=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    given = parser.parse_args(options)
    if given.version:
        from importlib.metadata import version

        print(f"itoflow {version('itoflow')}")
        return 0
    if given.help or not command:
        return _help()
    if command[0] in COMMANDS:
        return COMMANDS[command[0]](rest)
    return _run_plugin_command(command[0], rest)


def _help() -> int:
    """Compose continuous-time generative models by name."""
    added, ignored = _plugin_commands()
    builtin = [(name, _summary(function)) for name, function in COMMANDS.items()]
    print("usage: itoflow [--help] [--version] [--debug] COMMAND ...\n")
    print(_summary(_help))
    print("\nCommands:\n" + _table(builtin))
    if added:
        print("\nCommands of plugins:\n" + _table([(name, f"{c.summary} ({c.distribution})") for name, c in added]))
    print("\n`itoflow COMMAND --help` says more. --debug, or ITOFLOW_DEBUG=1, shows the traceback of an error.")
    _warn(*ignored, *_reports("failed", "empty"))
    return 0


def _run_plugin_command(name: str, rest: list[str]) -> int:
    try:
        component = registry.registry().find("command", name)
    except UnknownComponentError:
        known = [*COMMANDS, *(command for command, _ in _plugin_commands()[0])]
        line = f"No command is called {name!r}.{did_you_mean(name, known)} Commands: {listing(known)}."
        raise UnknownComponentError("\n".join([line, *_reports("failed", "empty", "disabled")])) from None
    function = component.load()
    if not callable(function):
        raise PluginError(f"{component.target!r}, the command {name!r} of {component.distribution}, cannot be called.")
    return int(function(rest) or 0)


def _plugin_commands() -> tuple[list[tuple[str, Component]], list[str]]:
    """The commands that plugins add, by the name that runs them, and a line for each one ignored."""
    components = registry.registry().components("command")
    names = [c.name for c in components]
    added = [(c.name if names.count(c.name) == 1 else c.qualified, c) for c in components if c.name not in COMMANDS]
    ignored = [
        f"command {c.name!r} of {c.distribution} is ignored: itoflow has its own."
        for c in components
        if c.name in COMMANDS
    ]
    return added, ignored


def _plugins(argv: list[str]) -> int:
    """List the plugins, what each registers, and what is wrong with it."""
    parser = CommandParser("plugins", _summary(_plugins))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--traceback", action="store_true", help="print where each failure arose")
    given = parser.parse_args(argv)
    reports = registry.registry().reports
    if given.json:
        return _print_json([_report_data(report) for report in reports])
    for report in reports:
        print(f"{report.distribution} {report.version}  {report.status}  ({report.entry_point} = {report.module})")
        print(_table([(kind, ", ".join(names)) for kind, names in _by_kind(report.components)]), end="")
        for line in (report.message, *(f"warning: {warning}" for warning in report.warnings)):
            if line:
                print(_wrap(line, "  "))
        if report.details and given.traceback:
            print(report.details.rstrip().replace("\n", "\n    ").join(("    ", "")))
    if not reports:
        print(_NONE)
    if any(report.details for report in reports) and not given.traceback:
        print("\n`itoflow plugins --traceback` shows where each failure arose.")
    _warn(*_plugin_commands()[1])
    return 0


def _list(argv: list[str]) -> int:
    """List the installed components, of all kinds or of one."""
    parser = CommandParser("list", _summary(_list))
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(argv)
    components = registry.registry().components(given.kind)
    if given.json:
        return _print_json([_component_data(component) for component in components])
    kinds = list(dict.fromkeys(c.kind for c in components))
    for kind in kinds:
        of_kind = [c for c in components if c.kind == kind]
        names = [c.name for c in of_kind]
        print(kind)
        print(
            _table(
                [
                    (
                        (c.name if names.count(c.name) == 1 else c.qualified)
                        + (f" ({', '.join(c.aliases)})" if c.aliases else ""),
                        f"{c.distribution} {c.version}",
                        c.summary,
                    )
                    for c in of_kind
                ]
            ),
            end="\n" if kind != kinds[-1] else "",
        )
    if not components:
        print(f"No {registry.kind_name(given.kind)} is installed. {_NONE}" if given.kind else _NONE)
    _warn(*_reports("failed", "empty"))
    return 0


def _show(argv: list[str]) -> int:
    """Show one component: formula, options, references, origin."""
    parser = CommandParser("show", _summary(_show))
    _add_component(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with the JSON Schema of the options")
    given = parser.parse_args(argv)
    component = registry.registry().find(given.kind, given.name)
    loaded = component.load()
    from itoflow import describe

    described = describe.describe(loaded)
    if given.json:
        data = {
            **_component_data(component),
            "target": component.target,
            "class": described.name,
            "source": described.source,
            "formula": described.formula,
            "references": list(described.references),
            "schema": describe.schema(loaded),
        }
        return _print_json(data)
    print(f"{component.kind} {component.name}: {component.summary}\n")
    facts = [
        ("from", f"{component.distribution} {component.version}"),
        ("aliases", ", ".join(component.aliases)),
        ("class", described.name),
        ("source", described.source or "unknown"),
    ]
    print(_table([fact for fact in facts if fact[1]]))
    for text in described.formula:
        print("".join(f"  {line}\n" if line else "\n" for line in text.splitlines()))
    if described.options:
        head = ("option", "type", "range", "default", "description")
        rows = [(o.name, o.type, o.range, o.default, o.description) for o in described.options]
        print(f"Options\n{_table([head, *rows])}")
    if described.references:
        print("References\n" + "".join(f"  {line}\n" for line in described.references))
    return 0


def _check(argv: list[str]) -> int:
    """Run the conformance kit on one component."""
    parser = CommandParser("check", _summary(_check))
    _add_component(parser)
    parser.add_argument(
        "options", nargs="*", metavar="OPTION=VALUE", default=[], help="options, values as JSON or plain text"
    )
    given = parser.parse_args(argv)
    from itoflow.written import written_options

    component = registry.create(given.kind, given.name, **written_options(given.options))
    from itoflow.testing import run_checks

    results = run_checks(component)
    for name, failure in results:
        print(f"{'FAIL' if failure is not None else 'ok  '}  {name}")
        if failure is not None:
            kind = "" if isinstance(failure, AssertionError) else f"{type(failure).__name__}: "
            print(_wrap(f"{kind}{failure}{_place(failure, component)}", "      "))
            if _debug(argv):
                import traceback

                print("".join(traceback.format_exception(failure)))
    failed = sum(failure is not None for _, failure in results)
    print(f"{component!r}: {len(results) - failed} of {len(results)} checks passed.")
    return int(failed > 0)


def _place(failure: Exception, component: Any) -> str:
    """Where in the component's own file an error that nobody raised on purpose arose."""
    import inspect
    import traceback

    if isinstance(failure, (AssertionError, ItoflowError)):
        return ""
    own = inspect.getsourcefile(type(component))
    frames = [f for f in traceback.extract_tb(failure.__traceback__) if f.filename == own]
    return f" ({own}:{frames[-1].lineno}, in {frames[-1].name})" if frames else " (--debug shows where)"


def _new(argv: list[str]) -> int:
    """Write the folder of a new plugin, ready to run and to change."""
    from itoflow import scaffold

    parser = CommandParser("new", _summary(_new))
    parser.add_argument("name", metavar="NAME", help="of the component, e.g. my-sde; the folder is itoflow-NAME")
    parser.add_argument("--kind", default="process", help=f"one of {', '.join(scaffold.TEMPLATES)}; default: process")
    given = parser.parse_args(argv)
    folder = scaffold.write(given.name, given.kind)
    print(f"Wrote {folder}. Next:\n  pip install -e './{folder}[test]'\n  python -m pytest {folder}")
    print(f"  itoflow show {given.kind} {given.name}\n  itoflow check {given.kind} {given.name}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "plugins": _plugins,
    "list": _list,
    "show": _show,
    "check": _check,
    "new": _new,
}
"""The commands of core; a plugin's command of the same name is ignored."""

_NONE = "Plugins are distributions, e.g.: pip install itoflow-sde itoflow-score itoflow-mlp itoflow-samplers"


def _add_component(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("name", metavar="NAME", help="as `itoflow list` gives it, or distribution:name")


def _summary(function: Callable[..., int]) -> str:
    return (function.__doc__ or "").strip()


def _by_kind(components: Iterable[Component]) -> list[tuple[str, list[str]]]:
    names: dict[str, list[str]] = {}
    for component in components:
        names.setdefault(component.kind, []).append(component.name)
    return list(names.items())


def _component_data(component: Component) -> dict[str, Any]:
    return {
        "kind": component.kind,
        "name": component.name,
        "aliases": list(component.aliases),
        "summary": component.summary,
        "distribution": component.distribution,
        "version": component.version,
    }


def _report_data(report: PluginReport) -> dict[str, Any]:
    return {
        "distribution": report.distribution,
        "version": report.version,
        "entry_point": report.entry_point,
        "module": report.module,
        "status": report.status,
        "hooks": {KINDS[kind].hook: names for kind, names in _by_kind(report.components)},
        "message": report.message,
        "details": report.details,
        "warnings": list(report.warnings),
    }


def _reports(*statuses: str) -> list[str]:
    reports = registry.registry().reports
    return [f"plugin {r.distribution} ({r.status}): {r.message}" for r in reports if r.status in statuses]


def _warn(*lines: str) -> None:
    for line in lines:
        print(f"itoflow: warning: {line}", file=sys.stderr)


def _print_json(data: Any) -> int:
    import json

    print(json.dumps(data, indent=2, allow_nan=False))
    return 0


def _debug(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("ITOFLOW_DEBUG", "0") not in ("", "0")


def _width() -> int:
    import shutil

    return max(40, min(shutil.get_terminal_size().columns, 120))


def _wrap(text: str, indent: str) -> str:
    import textwrap

    lines = text.splitlines()
    return "\n".join(
        textwrap.fill(line, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        for line in lines
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns, indented by two, that fit the terminal: the last column wraps, the widest others too."""
    import textwrap

    if not rows:
        return ""
    columns = max(map(len, rows))
    widths = [max(len(row[i]) if i < len(row) else 0 for row in rows) for i in range(columns)]
    available = _width() - 2 * columns
    last = min(widths[-1], max(12, available // 3))
    while sum(widths[:-1]) + last > available and max(widths[1:-1], default=0) > 8:
        widest = max(range(1, columns - 1), key=lambda i: widths[i])
        widths[widest] -= 1
    widths[-1] = max(last, available - sum(widths[:-1]), 12)
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(cell, widths[i], break_on_hyphens=False, break_long_words=i < columns - 1) or [""]
            for i, cell in enumerate(row)
        ]
        for i in range(max(map(len, cells))):
            parts = ((cell[i] if i < len(cell) else "").ljust(widths[j]) for j, cell in enumerate(cells))
            lines.append(f"  {'  '.join(parts)}".rstrip())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
