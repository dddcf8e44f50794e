"""The commands for operators: `run`, `check`, `selftest`, `doctor` and `pool`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from nanoagent.cli import check_report
from nanoagent.cli import settings as settings_of
from nanoagent.cli.application import (
    EXIT_FAILED,
    EXIT_NOT_REACHED,
    EXIT_USAGE,
    AsJson,
    EnvFile,
    epilog,
    run_async,
)

commands = typer.Typer()


@commands.command(epilog=epilog("run", "run --env-file /etc/nanoagent/env"))
def run(env_file: EnvFile = Path(".env")) -> None:
    """Take jobs until SIGTERM or Ctrl-C."""
    settings = settings_of.of_worker(env_file)
    import structlog

    from nanoagent import app as process
    from nanoagent.host import event_loop
    from nanoagent.telemetry import logs

    logs.configure(settings.log_format, settings.log_level)
    for warning in settings_of.warnings(env_file, settings):
        structlog.get_logger(__name__).warning("setting without effect", reason=warning)
    event_loop.run(process.serve(settings))


@commands.command(epilog=epilog("check", "check --json"))
def check(env_file: EnvFile = Path(".env"), as_json: AsJson = False) -> int:
    """Show the settings, and check whether a worker can start."""
    settings = settings_of.of_worker(env_file)
    from nanoagent.doctor import check as checks

    results = run_async(checks.check(settings))
    warnings = {result.part: result.warnings for result in results}
    warnings["settings"] = tuple(settings_of.warnings(env_file, settings))
    shown, defaults = check_report.shown_settings(settings), checks.changed(settings)
    if as_json:
        document = {
            "settings": shown,
            "changed": sorted(defaults),
            "warnings": {part: texts for part, texts in warnings.items() if texts},
            "problems": {result.part: result.problem for result in results},
            "verdict": checks.verdict(results),
        }
        print(settings_of.without_secrets(json.dumps(document, indent=2, ensure_ascii=False)))
    else:
        check_report.show(shown, defaults, warnings, results)
    return EXIT_FAILED if any(result.problem for result in results) else 0


@commands.command(epilog=epilog("selftest", "selftest --json"))
def selftest(env_file: EnvFile = Path(".env"), as_json: AsJson = False) -> int:
    """Test the isolation of runs in every language."""
    settings = settings_of.of_function(env_file)
    from nanoagent.selftest import report
    from nanoagent.telemetry import logs
    from nanoagent.wiring import self_test

    logs.configure(settings.log_format, "ERROR" if as_json else "WARNING")
    tested = run_async(self_test.run_once(settings))
    if as_json:
        print(json.dumps(report.document(tested), indent=2))
    else:
        report.show(tested)
    return 0 if tested.ok else EXIT_FAILED


@commands.command(epilog=epilog("doctor", "doctor --json"))
def doctor(env_file: EnvFile = Path(".env"), as_json: AsJson = False) -> int:
    """Examine the host and every service, and propose remedies."""
    settings_of.load_environment(env_file)
    from nanoagent.doctor import examination, report
    from nanoagent.telemetry import logs

    logs.configure("auto", "ERROR")
    examined = run_async(examination.examine(env_file))
    if as_json:
        print(json.dumps(report.document(examined.findings), indent=2, ensure_ascii=False))
    else:
        report.show(examined.findings)
    if examined.settings_are_wrong:
        return EXIT_USAGE
    return EXIT_FAILED if examined.has_problem else 0


@commands.command(
    epilog=epilog("pool", "pool --url http://10.0.0.7:8000", exits="0 success, 3 no worker answers.")
)
def pool(
    url: Annotated[
        str, typer.Option(help="URL of the worker's metrics; default: METRICS_HOST and METRICS_PORT.")
    ] = "",
    as_json: AsJson = False,
    env_file: EnvFile = Path(".env"),
) -> int:
    """Show the containers and the memory of a running worker."""
    settings_of.load_environment(env_file)
    from nanoagent.telemetry import pool_report

    try:
        document = pool_report.fetch(url or pool_report.default_url(os.environ))
    except pool_report.WorkerNotReached as exc:
        print(f"nanoagent: {settings_of.without_secrets(str(exc))}", file=sys.stderr)
        return EXIT_NOT_REACHED
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        pool_report.show(document)
    return 0
