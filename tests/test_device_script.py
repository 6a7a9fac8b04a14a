"""The script for the day when a GPU is at hand (`benchmarks/device.py`): all of it at tiny sizes, on the double."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from simt.native import needs_emulator

ROOT = Path(__file__).parents[1]
SCRIPT = [sys.executable, str(ROOT / "benchmarks" / "device.py"), "--dry-run"]


@needs_emulator
def test_dry_run(tmp_path):
    pytest.importorskip("sklearn")
    done = subprocess.run([*SCRIPT, "--out", str(tmp_path)], capture_output=True, text=True, timeout=300)
    report, text = json.loads((tmp_path / "device.json").read_text()), (tmp_path / "device.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    parts = report["parts"]
    assert {n: p["status"] for n, p in parts.items()} == dict.fromkeys(parts, 0) and len(parts) == 7
    rows = {r["what"]: r for p in parts.values() for r in p["rows"]}
    assert rows["tests"]["all"] > 5 and not rows["tests"]["failure"] and not rows["tests"]["error"]
    assert rows["product 32 f32 NN"]["ours_tflops"] > 0 and "AdamW" in rows and "memcheck" in rows
    assert rows["digits, the same bits twice on the device"]["ratio"] == 1
    assert rows["digits, the processor's bits on the device"]["ratio"] == 1
    assert abs(rows["mlpdeep, ours f32"]["loss"] - rows["mlpdeep, ours bf16"]["loss"]) < 0.1
    assert any(w.startswith("mlp bf16, all ") for w in rows)
    assert "the double of the driver" in text.splitlines()[0] and "## steps: ran to its end" in text


def test_one_part_that_fails_spoils_no_other(tmp_path):
    """A limit that no part meets: the report says so, and is complete."""
    command = [*SCRIPT, "--out", str(tmp_path), "--parts", "memory,digits", "--limit", "0.2"]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    assert (tmp_path / "device.md").read_text().count("the time was over") == 2
    wrong = subprocess.run([*SCRIPT, "--parts", "speed"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "unknown part speed" in wrong.stderr
