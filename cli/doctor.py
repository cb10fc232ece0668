"""`isotrain doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..backends import Availability


def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="The same as JSON, for machines.")] = False,
) -> None:
    """Say which devices work here: run a matmul and a backward pass on each, or say what is missing and how to get it.

    Exits with 1 when a device that is here fails its test.
    """
    reports = [report for name in _names() for report in _examine(name)]
    if json_output:
        import json

        typer.echo(json.dumps({"backends": reports}, indent=2))
    else:
        _show(reports)
    if any(report["status"] == "FAIL" for report in reports):
        raise typer.Exit(1)


def _names() -> list[str]:
    from ..backends import list_backends

    return list_backends()


def _examine(name: str) -> list[dict[str, Any]]:
    """A report of each device behind a backend's name."""
    from .. import UserError
    from ..backends import backend_class

    try:
        variants = backend_class(name).variants()
    except UserError as error:
        fix = "repair or uninstall the package"
        return [{"backend": name, "status": "FAIL", "reason": str(error), "fix": fix, "checks": []}]
    return [_test(name, label, availability, options) for label, (availability, options) in variants.items()]


def _test(name: str, label: str, availability: Availability, options: Mapping[str, Any] | None) -> dict[str, Any]:
    from .. import UserError
    from ..backends import get_backend
    from ..backends.selftest import self_test

    report: dict[str, Any] = {"backend": label, "status": "absent", "checks": []}
    report |= {"reason": availability.reason, "fix": availability.fix}
    if not availability.ok:
        return report
    try:
        backend = get_backend(name, {name: options} if options else None)
        checks = self_test(backend)
        policy = backend.cast_policy("bfloat16")
    except (RuntimeError, UserError) as error:
        return report | {
            "status": "FAIL",
            "reason": f"the self-test failed: {error}",
            "fix": "check the device's driver",
        }
    report["status"] = "PASS" if all(check.ok for check in checks) else "FAIL"
    report["checks"] = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks]
    report["device"] = backend.info().as_dict()
    report["bfloat16"] = policy.__dict__
    report["kernels"] = {
        name: f"available, {state.reason}" if state.ok else f"not here: {state.reason}"
        for name, state in backend.kernels().items()
    }
    return report


def _show(reports: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="isotrain doctor", title_justify="left")
    for column in ("backend", "result", "what", "checks"):
        table.add_column(column, overflow="fold")
    colours = {"PASS": "green", "FAIL": "bold red", "absent": "yellow"}
    for report in reports:
        what = report["reason"] + (f"\nfix: {report['fix']}" if report["fix"] else "")
        if "bfloat16" in report:
            what += f"\nbfloat16: {report['bfloat16']['reason']}"
            what += "".join(f"\nkernel {name}: {state}" for name, state in report["kernels"].items())
        checks = "\n".join(
            f"{check['name']}: {'ok' if check['ok'] else 'WRONG'}, {check['detail']}" for check in report["checks"]
        )
        status = report["status"]
        table.add_row(report["backend"], Text(status, colours[status]), Text(what), Text(checks))
    Console().print(table)
