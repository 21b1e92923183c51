"""The gate as JUnit: read back by another reader, each expectation a test of its own."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from conftest import SCENARIOS, bench


def gate(tmp_path: Path, *arguments: str | Path) -> tuple[int, ElementTree.Element, str]:
    file = tmp_path / "gate.xml"
    ran = bench("run", *arguments, "--analytic-only", "--out", tmp_path / "out", "--junit", file)
    return ran.code, ElementTree.parse(file).getroot(), ran.err


def test_an_expectation_is_a_test(tmp_path: Path) -> None:
    code, root, _ = gate(
        tmp_path, SCENARIOS / "70b_8k_int4.yaml", SCENARIOS / "70b_8k.yaml", "--set", "expect.starts=true"
    )
    assert code == 1
    first, second = root.findall("testsuite")
    assert (first.get("name"), first.get("failures")) == ("70b_8k_int4", "0")
    assert {c.get("name") for c in first.findall("testcase")} >= {"expect.starts: true", "expect.holds: false"}
    failed = {c.get("name"): c.find("failure") for c in second.findall("testcase")}
    assert failed["expect.starts: true"] is not None
    assert "expected true, predicted false" in str(failed["expect.starts: true"].get("message"))
    assert [name for name, failure in failed.items() if failure is not None] == ["expect.starts: true"]
    assert (root.get("tests"), root.get("failures")) == (str(len(list(root.iter("testcase")))), "1")


def test_a_scenario_that_expects_nothing_is_one_test(tmp_path: Path) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text("name: bare\nmodel: Qwen/Qwen3-0.6B\ngpu: {name: l4-24gb}\nengine: {max_model_len: 4096}\n")
    code, root, _ = gate(tmp_path, bare)
    assert code == 0 and [c.get("name") for c in root.iter("testcase")] == ["run"]


def test_a_scenario_that_can_not_be_run_is_an_error_of_its_own(tmp_path: Path) -> None:
    full = tmp_path / "out"
    full.write_text("a file where run folders should go")
    file = tmp_path / "gate.xml"
    ran = bench("run", SCENARIOS / "70b_8k.yaml", "--analytic-only", "--out", full, "--junit", file)
    error = ElementTree.parse(file).getroot().find("testsuite/testcase/error")
    assert ran.code == 2 and error is not None and str(full) in str(error.get("message"))


def test_a_file_of_another_kind_is_not_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_bytes((SCENARIOS / "70b_8k.yaml").read_bytes())
    ran = bench("run", "--junit", mine, SCENARIOS / "70b_8k_int4.yaml", "--analytic-only", "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "") and f"{mine} is there and is no JUnit report" in ran.err
    assert mine.read_bytes() == (SCENARIOS / "70b_8k.yaml").read_bytes()
    assert gate(tmp_path, SCENARIOS / "70b_8k.yaml")[0] == gate(tmp_path, SCENARIOS / "70b_8k.yaml")[0] == 0


def test_where_it_can_not_be_written_is_told_before_anything_is_run(tmp_path: Path) -> None:
    nowhere = tmp_path / "no" / "gate.xml"
    ran = bench("run", SCENARIOS / "70b_8k.yaml", "--analytic-only", "--out", tmp_path, "--junit", nowhere)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"bench: {nowhere} can't be written: No such file or directory\n"
