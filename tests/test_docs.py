"""What the repository says of itself is true: scenarios meet their expectations, documents are fresh."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT, SCENARIOS, bench
from ruamel.yaml import YAML

from harness.compare import check, compare
from harness.learn import EXPERIMENTS
from harness.predict import predict
from harness.scenario import load_scenario

REFERENCES = sorted((ROOT / "results" / "reference").iterdir())


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_scenario_asks_a_question_and_meets_its_expectation(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert scenario.question.strip().endswith("?")
    assert scenario.expect.items(), "a shipped scenario is a check"
    compared = compare(predict(scenario), None, mode="analytic", outcome="completed")
    verdict = check(scenario.expect, compared, scenario.slo)
    assert verdict == (True, [])


def test_the_questions_name_scenarios_that_exist() -> None:
    questions = YAML(typ="safe").load((ROOT / "seeds" / "questions.yaml").read_text(encoding="utf-8"))
    assert len(questions) >= 14
    assert len({q["id"] for q in questions}) == len(questions)
    for q in questions:
        assert q["question"].strip()
        assert q["look_at"], q["id"]
        if "command" in q:
            assert q["command"].removeprefix("bench learn ") in EXPERIMENTS, q["id"]
        else:
            assert (SCENARIOS / q["scenario"]).is_file(), q["id"]
    asked = {q.get("scenario") for q in questions}
    assert {p.name for p in SCENARIOS.glob("*.yaml")} - asked <= {"tiny_cpu.yaml", "8b_24gb_poisson.yaml"}


def test_the_readme_opens_with_a_real_report() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("```text\n", 1)[1].split("```", 1)[0]
    report = (ROOT / "tests" / "golden" / "70b_8k_int4-rehearsal.txt").read_text(encoding="utf-8")
    blocks = shown.strip("\n").split("\n  [...]\n")
    assert len(shown.splitlines()) >= 15
    for block in blocks:
        assert block.strip("\n") in report, block


def test_the_readme_names_every_command_and_scenario() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^  (\w+)  ", bench("--help").out.partition("Commands:")[2], re.MULTILINE)
    assert len(listed) >= 6
    for name in [f"bench {c}" for c in listed] + [p.stem for p in SCENARIOS.glob("*.yaml")]:
        assert name in readme, name


@pytest.mark.parametrize("document", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target
