"""bench.py runs, and every count that has a budget keeps it. Times are never judged here."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
BENCH = os.path.join(HERE, "bench.py")


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    done = subprocess.run([sys.executable, BENCH, "--quick", "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_section_ran(table: dict[str, Any]) -> None:
    assert [one["ours"] for one in table["rows"] if str(one["ours"]).startswith("failed")] == []
    assert {one["kind"] for one in table["rows"]} == {"counts", "ratios", "times"}
    assert table["machine"] and table["date"]
    said = " ".join(one["what"] for one in table["rows"])
    for part in ("import", "memory over a bare", "opcodes of nvmlDevice", "share of a core at 1 Hz", "under one Prometheus", "Metal",
                 "process list"):
        assert part in said


def test_counts_keep_their_budgets(table: dict[str, Any]) -> None:
    counts = [one for one in table["rows"] if one["kind"] == "counts" and one["budget"] is not None]
    assert [one for one in counts if not one["met"]] == []
    said = " ".join(one["what"] for one in counts)
    for part in ("engine utilisation", "wanted channels", "first GPU temperature", "GPU and CPU temperature", "six getters", "first MemoryGetTotal",
                 "97 to 1,500", "full snapshot", "string conversions of a sample", "IOReport, SMC, HID, Objective-C or Metal"):
        assert part in said


def test_readme_has_every_budget(table: dict[str, Any]) -> None:
    """The rows of README are those of today; their numbers belong to the day that it names."""
    def rows(names: Any) -> set[str]:
        return {re.sub(r"\d+", "#", name) for name in names}
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        text = file.read()
    shown = rows(re.findall(r"^\| (.+?) \|", text[text.index("## What the library costs"):], re.M))
    assert rows(one["what"] for one in table["rows"] if one["budget"] is not None) <= shown


def test_the_same_whoever_is_there(table: dict[str, Any]) -> None:
    """A peer that is not installed is said to be missing; its rows stay."""
    for one in table["rows"]:
        assert set(one) == {"kind", "what", "ours", "unit", "peer", "theirs", "budget", "met"}
        assert "metalstat" not in one["peer"] or one["theirs"] is not None or "not installed" in one["peer"]


def test_the_table_for_people() -> None:
    done = subprocess.run([sys.executable, BENCH, "--quick", "--only", "smc"], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "-core" in lines[0] and "| Counts | pyapplegpu | peer | at most |" in lines
    assert any("270 met" in line for line in lines)
