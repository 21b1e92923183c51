"""``bench import``: a vLLM log as a run, joined with the prediction of what it states."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.commands.check import calibration_option


@click.command("import", short_help="Compare a vLLM log with the prediction.")
@click.argument("file", type=click.Path(path_type=Path), metavar="LOG")
@click.option("--gpu", help="The GPU by its catalogue name (`bench gpus`), where the log does not name it.")
@click.option("--model", help="The model by its catalogue name or its folder, where the log's name is not known.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A key of the scenario, as in bench run.")
@calibration_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
    help="Where run folders go.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, everything else on stderr.")
def import_log(
    file: Path, gpu: str | None, model: str | None, overrides: tuple[str, ...], calibration: Path | None, out: Path,
    as_json: bool,
) -> int:  # fmt: skip
    """Read the LOG of a vLLM server or of the LLM class, whether it started or not, and compare it with the prediction.

    The configuration is taken from the log; what it leaves open is named, and said by the options. It is kept as a run
    folder that `bench report` reads, with keys and tokens masked.

    \b
    Examples:
      bench import server.log --gpu h100-sxm-80gb
      bench import server.log --gpu h100-sxm-80gb --set weights.format=int8
      bench import failed.log --gpu h100-sxm-80gb --set expect.starts=false
    """
    from harness import imported
    from harness.commands.once import conclude
    from harness.scenario import calibrated

    start = imported.read(file)
    scenario = imported.scenario(file, start, model, gpu, overrides)
    if calibration is not None:
        scenario = calibrated(scenario, calibration)
    code, reading = conclude(imported.record(start, scenario, file.name, out), quiet=as_json)
    if as_json:
        from harness.report.document import document

        click.echo(json.dumps(document(reading), indent=1))
    return code
