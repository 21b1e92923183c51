"""A run as a JUnit suite: an expectation is a test, so that a CI shows which one of which scenario failed."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.compare import check
from harness.engines.log import printable
from harness.report.reading import Reading
from harness.report.words import OUTCOMES


def suite(reading: Reading) -> TestSuite:
    """The suite of one run. What was not judged is skipped; with no expectation the run itself is the test."""
    met, failures = check(reading.scenario.expect, reading.comparison, reading.scenario.slo)
    name, its = reading.scenario.name, reading.record.series
    if its:
        name += f", repeat {its['repeat']}"
    found = TestSuite(name)
    stated = reading.scenario.expect.items()
    for key, wanted in stated:
        case = _case(name, f"expect.{key}: {str(wanted).lower()}")
        failed = [line for line in failures if line.startswith(f"expect.{key}:")]
        if met is None:
            case.result = [Skipped(_outcome(reading))]
        elif failed:
            case.result = [Failure(printable(failed[0]))]
        found.add_testcase(case)
    if not stated:
        case = _case(name, "run")
        if reading.record.outcome not in ("completed", "cut_short"):
            case.result = [Error(_outcome(reading))]
        found.add_testcase(case)
    found.update_statistics()
    return found


def fault(scenario: str, message: str) -> TestSuite:
    """The suite of a scenario that could not be run."""
    case = _case(scenario, "run")
    case.result = [Error(printable(message))]
    found = TestSuite(scenario)
    found.add_testcase(case)
    found.update_statistics()
    return found


def render(suites: list[TestSuite]) -> bytes:
    """The XML."""
    document = JUnitXml("loadfit")
    for each in suites:
        document.add_testsuite(each)
    document.update_statistics()
    return bytes(document.tostring())


def _case(scenario: str, name: str) -> TestCase:
    return TestCase(name, classname=scenario)


def _outcome(reading: Reading) -> str:
    outcome = OUTCOMES.get(reading.record.outcome, reading.record.outcome)
    return printable(f"{outcome}: {reading.record.manifest.get('reason', '')}".rstrip(": "))
