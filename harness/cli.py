"""The command ``bench``: gathers the verbs, and turns every error into one clear line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from harness import __version__
from harness.commands.calibrate import calibrate
from harness.commands.capacity import capacity
from harness.commands.check import check
from harness.commands.doctor import doctor
from harness.commands.evidence import evidence
from harness.commands.fetch import fetch
from harness.commands.gpus import gpus
from harness.commands.import_log import import_log
from harness.commands.learn import learn
from harness.commands.models import models
from harness.commands.paging import paging
from harness.commands.report import report
from harness.commands.run import run
from harness.commands.schema import schema
from harness.engines.log import printable
from harness.engines.masks import mask
from harness.errors import EXIT_INTERRUPTED, EXIT_MACHINE, LoadfitError

EXIT_BUG = 70
EXIT_PIPE = 141  # as a shell tells of SIGPIPE: no verdict, neither 0 nor 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="loadfit")
def cli() -> None:
    """Why a model that fits a GPU when idle stops fitting under load: predicted, then measured.

    \b
    Examples:
      bench run scenarios/70b_8k_int4.yaml              as real as possible here
      bench run scenarios/70b_8k.yaml --analytic-only   arithmetic, in a second
      bench run my.yaml --set engine.max_model_len=4096 one key changed
      bench capacity scenarios/70b_8k_int4.yaml         how many users it holds
      bench report results/70b_8k_int4/latest           from the folder alone

    Exit codes: 0 met · 1 expectation not met · 2 bad scenario or usage · 3 this machine can't do the
    forced mode · 4 the engine failed in a way the scenario did not expect.
    """


for command in (
    run, import_log, calibrate, check, capacity, paging, report, models, fetch, gpus, doctor, evidence, learn, schema
):  # fmt: skip
    cli.add_command(command)


def main(argv: list[str] | None = None) -> Any:
    """Run ``bench``; ends the process with its exit code."""
    # A stream that the shell closed (`>&-`) is None.
    sys.stdout, sys.stderr = (s or Path(os.devnull).open("w") for s in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no bars or dashes gets question marks
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(argv, prog_name="bench", standalone_mode=False)
        sys.stdout.flush()
    except LoadfitError as error:
        _say(str(error))
        code = error.exit_code
    except click.exceptions.Abort:
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show(sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader of our output has gone, as `head` does; click and rich make a SystemExit of it.
        _drop_output()
        code = EXIT_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            code = _fault(error)
        else:
            _drop_output()
            _say(f"the output can't be written: {error.strerror}")
            code = EXIT_MACHINE
    except Exception as error:
        code = _fault(error)
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """What is still buffered goes nowhere, so that the interpreter's last flush does not fail as well."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fault(error: Exception) -> int:
    if os.environ.get("LOADFIT_DEBUG"):
        raise error
    _say(f"a fault of bench itself: {type(error).__name__}: {error} (LOADFIT_DEBUG=1 shows where)")
    return EXIT_BUG


def _say(text: str) -> None:
    for line in text.splitlines():
        click.echo(f"bench: {mask(printable(line))}", err=True)
