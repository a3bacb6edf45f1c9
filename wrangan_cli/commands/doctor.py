"""`wrangan doctor`: what this installation can do, and what it lacks."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    build: Annotated[
        bool, typer.Option("--build-kernels", help="Recompile the kernels first (about a minute).")
    ] = False,
) -> None:
    """Show versions, devices, optional parts, models and weights, and run a self-test.

    Missing optional parts are not a failure; exit code 1 means that the self-test failed.
    """
    from wrangan_cli.engine.diagnosis import build_kernels, diagnose

    if build:
        build_kernels()
    report = diagnose()
    print(json.dumps(report) if as_json else "\n".join(_lines(report)))
    if not report["passed"]:
        raise typer.Exit(1)


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield "versions"
    for name, version in report["versions"].items():
        yield f"  {name:<16}{version}"
    devices = report["devices"]
    yield f"device auto is {devices['auto']}; available: {', '.join(devices['available'])}"
    yield f"threads {devices['threads']}"
    for device, state in report["kernels"].items():
        yield f"kernels {device}: {state}"
    yield "optional parts"
    for extra in report["extras"]:
        state = "present" if extra["present"] else f"missing: {extra['install']}"
        yield f"  {extra['name']:<12}{extra['purpose']:<36}{state}"
    yield "bundled models" if report["models"] else "bundled models: none"
    for model in report["models"]:
        size = f"{model['bytes'] / 2**20:.1f} MiB"
        if model["problem"]:
            state = f"BROKEN: {model['problem']}"
        elif model["fetch"]:
            state = f"weights missing: {model['fetch']}"
        else:
            state = f"{model['resolution']} px, {model['perceptual']}, sha256 {model['sha256'][:12]}…"
        yield f"  {model['name']:<16}{size:<12}{state}"
    yield "to fetch"
    for item in report["fetchable"]:
        state = f"found: {item['here']}" if item["here"] else f"missing: wrangan fetch {item['name']}"
        yield f"  {item['name']:<16}{item['bytes'] / 1e6:<6.1f} MB   {state}"
    yield "third-party weights"
    for file in report["weights"]:
        yield f"  {file['name']:<28}  {file['path'] or file['problem']}"
    yield "self-test"
    for check in report["self_test"]:
        yield f"  {'ok  ' if check['passed'] else 'FAIL'}  {check['name']}: {check['detail']}"
