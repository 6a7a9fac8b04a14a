"""Everything that is to be done when a GPU is at hand, in one call:

    python benchmarks/device.py                      # all parts; writes device.json and device.md
    python benchmarks/device.py --parts products,memory --out results/
    python benchmarks/device.py --dry-run            # the same at tiny sizes on the double of the driver, no GPU needed

1. what the machine is; 2. the device suite (`tests/test_device.py`); 3. compute-sanitizer on a part of it; 4. matrix
products beside cuBLAS, memory-bound kernels beside a copy, training steps beside PyTorch, where the time of a step
goes, digits to the end.

Each part is a process of its own with a time limit: one that fails, hangs or loses the device spoils no other, and what
it had found until then is kept.  The status is 0 if all parts ran to their end, whatever they found.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
MEASURED = ("products", "memory", "steps", "profile", "digits")
PARTS = ("suite", "sanitizer", *MEASURED)
TOOLS = ("memcheck", "racecheck", "synccheck")
REDUCED = "test_layers and (GELU or LayerNorm or Embedding) or test_products or test_failed or test_ops and True-3"
DRY_SUITE = "test_layers and GELU or test_products and 33x8x40 or test_failed or test_ops and True-3"


def child(command: list[str], limit: float, dry: bool, **environment: str) -> tuple[int | None, str, str]:
    """(status, or None where the time was over; output; the end of the messages)."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in ("compiler", "runtime", "tests", "examples")),
    }
    env |= {"PULLBACK_DEVICE": "double"} if dry else {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=env | environment, cwd=ROOT)
    except subprocess.TimeoutExpired as e:
        out, err = ((x or b"").decode(errors="replace") for x in (e.stdout, e.stderr))
        return None, out, err[-2000:]
    return done.returncode, done.stdout, done.stderr[-2000:]


# ---- what the machine is ------------------------------------------------------------------------------------
def environment(dry: bool) -> dict[str, object]:
    found: dict[str, object] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": first_line("git", "rev-parse", "--short=12", "HEAD"),
        "changed": bool(first_line("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
    }
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,compute_mode,mig.mode.current"
    found["gpu"] = (
        "the double of the driver" if dry else first_line("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    )
    for package in ("numpy", "llvmlite", "cuda-bindings", "torch", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    for tool in ("ptxas", "nvdisasm", "compute-sanitizer"):
        version = re.search(r"(release|Version) [\d.]+", first_line(tool, "--version", every=True))
        found[tool] = version[0] if version else "not found"
    return found


def first_line(*command: str, every: bool = False) -> str:
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return text if every else text.partition("\n")[0].strip()


# ---- the parts ----------------------------------------------------------------------------------------------
def suite(dry: bool, limit: float) -> dict[str, object]:
    """The device suite: how many tests passed, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/test_device.py",
            f"--junitxml={report}",
        ]
        parallel = ["-n", str(min(8, (os.cpu_count() or 2) // 2))] if importlib.util.find_spec("xdist") else []
        status, out, err = child([*command, *(["-k", DRY_SUITE] if dry else parallel)], limit, dry)
        found = {"status": status, "rows": tests_of(report) if report.exists() else []}
    return found if found["rows"] else found | {"error": (out[-1500:] + err).strip()}


def tests_of(report: Path) -> list[dict[str, object]]:
    cases = list(ElementTree.parse(report).iter("testcase"))
    kinds = {kind: [c for c in cases if c.find(kind) is not None] for kind in ("failure", "error", "skipped")}
    rows = [{"what": "tests", "all": len(cases), **{k: len(v) for k, v in kinds.items()}}] if cases else []
    for case in (*kinds["failure"], *kinds["error"]):
        message = (case.find("failure") if case.find("failure") is not None else case.find("error")).get("message", "")
        rows.append({"what": f"FAILED {case.get('name')}", "message": message[:400]})
    return rows


def sanitizer(dry: bool, limit: float) -> dict[str, object]:
    """NVIDIA's checkers over a part of the suite."""
    tool, rows, last = shutil.which("compute-sanitizer"), [], 0
    test = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_device.py", "-k", REDUCED]
    for name in TOOLS:
        command = [str(tool), "--tool", name, "--error-exitcode", "99", "--target-processes", "all", *test]
        if dry or tool is None:
            rows.append({"what": name, "skipped": "dry run" if dry else "compute-sanitizer was not found"})
            continue
        status, out, err = child(command, limit / len(TOOLS), dry)
        summary = re.findall(r"=+ (ERROR SUMMARY.*|RACECHECK SUMMARY.*)", out)
        rows.append({"what": name, "status": status, "summary": "; ".join(summary)[-300:]})
        if status:
            rows[-1]["output"], last = (out[-3000:] + err).strip(), status
    return {"status": last, "rows": rows}


def measured(part: str, dry: bool, limit: float) -> dict[str, object]:
    command = [sys.executable, str(ROOT / "benchmarks" / "device_parts.py"), part]
    status, out, err = child(command, limit, dry)
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {"status": status, "rows": rows, **({"error": err.strip()} if status != 0 else {})}


# ---- the report ---------------------------------------------------------------------------------------------
def markdown(report: dict) -> str:
    machine = report["environment"]
    lines = [f"# {machine['date']}, {machine['gpu'] or 'no GPU found'}", ""]
    lines += [", ".join(f"{k} {v}" for k, v in machine.items() if k not in ("date", "gpu")), ""]
    for part, found in report["parts"].items():
        ended = {0: "ran to its end", None: "the time was over"}.get(found["status"], f"status {found['status']}")
        lines += [f"## {part}: {ended}, {found['seconds']:.0f} s", ""]
        rows = found["rows"]
        names = list(dict.fromkeys(n for r in rows for n in r if n not in ("what", "output")))
        if rows:
            lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
            lines += [f"| {r['what']} | " + " | ".join(cell(r, n) for n in names) + " |" for r in rows]
        if "error" in found:
            lines += ["", "```", found["error"][-1500:], "```"]
        lines.append("")
    return "\n".join(lines)


def cell(row: dict, name: str) -> str:
    value = row.get(name)
    if name == "ratio" and row.get("goal") is not None and value is not None:
        return f"**{value:.3g}**" if value >= row["goal"] else f"{value:.3g} (below)"
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    parser = argparse.ArgumentParser(description="Tests and benchmarks on a GPU, in one call.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where device.json and device.md go")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="for each part (default 600)")
    parser.add_argument("--dry-run", action="store_true", help="on the double of the driver, at tiny sizes")
    args = parser.parse_args()
    chosen = args.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown part {min(unknown)}: expected {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict = {"environment": environment(args.dry_run), "dry_run": args.dry_run, "parts": {}}
    for part in chosen:
        start = time.perf_counter()
        run = {"suite": suite, "sanitizer": sanitizer}.get(
            part, lambda dry, limit, part=part: measured(part, dry, limit)
        )
        found = run(args.dry_run, args.limit)
        report["parts"][part] = {"seconds": time.perf_counter() - start, **found}
        (args.out / "device.json").write_text(json.dumps(report, indent=1))
        (args.out / "device.md").write_text(markdown(report))
        print(f"{part}: status {found['status']}, {len(found['rows'])} rows", flush=True)
    print((args.out / "device.md").read_text())
    return int(any(p["status"] != 0 for p in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
