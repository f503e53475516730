"""Compare this project with a naive implementation of the same method: first the numbers, then the costs.

    python benchmarks/bench.py --suite all
    python benchmarks/bench.py --suite phase1 --device cuda --repeats 7
    python benchmarks/bench.py --quick                                    (seconds, tiny sizes: a smoke test)

Writes benchmarks/results/<device>-<suite>.json and prints a table. Exit code 1: the two sides do not agree.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 (the path comes first)

from benchmarks.measure import Case, Row, matrix_ceiling, measure  # noqa: E402
from benchmarks.suites import SUITES  # noqa: E402
from benchmarks.workload import CPU, CUDA, QUICK, Bench  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import write_text  # noqa: E402
from utils.run.cli import cli  # noqa: E402
from utils.run.device import environment  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


@cli
def main(argv: list[str] | None = None) -> list[Row]:
    """Run the suites; exit code 1 when a comparison finds different numbers."""
    args = _arguments(argv)
    device = torch.device(args.device)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # the naive side's workers, on few cores
    torch.backends.cudnn.allow_tf32 = False  # the other precisions are checked against float32
    sizes = QUICK if args.quick else CUDA if device.type == "cuda" else CPU
    bench = Bench(sizes, device, args.pretrained, workers=1 if args.quick else 8)
    ceiling = matrix_ceiling(device, quick=args.quick)
    command = shlex.join(["python", "benchmarks/bench.py", *(sys.argv[1:] if argv is None else argv)])
    facts = {**environment(device), "command": command, "quick": args.quick, "matrix_ceiling_flops": ceiling}
    rows: list[Row] = []
    for suite in SUITES if args.suite == "all" else [args.suite]:
        found = [_measured(suite, case, bench, args.repeats, ceiling) for case in SUITES[suite](bench)]
        if args.out is None:
            _write(RESULTS / f"{device.type}-{suite}{'-quick' if args.quick else ''}.json", facts, found)
        rows += found
    if args.out is not None:
        _write(Path(args.out), facts, rows)
    print(f"\n{facts['device']}, {facts['threads']} threads, matrix ceiling {ceiling / 1e9:,.0f} GFLOP/s\n")
    print(table(rows))
    if different := [row["case"] for row in rows if not row["equal"]]:
        print(f"\nnot the same numbers: {'; '.join(different)}", file=sys.stderr)
        raise SystemExit(1)
    return rows


def _measured(suite: str, case: Case, bench: Bench, repeats: int, ceiling: float) -> Row:
    print(f"{suite}: {case.name} ...", flush=True)
    row = {"suite": suite, **measure(case, repeats=repeats, device=bench.device, ceiling=ceiling)}
    verdict = "" if row["equal"] else f": TOO MUCH (above {row['tolerance']:.2g})"
    print(f"  largest relative difference {row['difference']:.2g} in {row['difference_in']}{verdict}", flush=True)
    return row


def _write(path: Path, facts: dict[str, Any], rows: list[Row]) -> None:
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_text(path, json.dumps({"date": date, **facts, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}", flush=True)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=[*SUITES, "all"], default="all", help="the comparison (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each side (default: 3)")
    parser.add_argument("--quick", action="store_true", help="tiny model and sizes: a smoke test, no measurement")
    parser.add_argument("--pretrained", default="none", help="weights, as the key `pretrained` (default: random)")
    parser.add_argument("--out", metavar="FILE", help="one file for all results (default: one per suite in results/)")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available; use --device cpu")
    return args


SIDES = ("ours", "naive")
HEADER = ("", "ours", "naive", "faster", "spread", "target", "difference", "peak memory", "GFLOP", "of the ceiling")


def table(rows: list[Row]) -> str:
    """The results as a Markdown table, with notes and further figures below it."""
    lines = [f"| {' | '.join(HEADER)} |", f"|---{'|--:' * (len(HEADER) - 1)}|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    remarks = [f"* {row['case']}: {remark}" for row in rows for remark in _remarks(row)]
    return "\n".join([*lines, "", *remarks])


def _cells(row: Row) -> list[str]:
    seconds = row.get("seconds", {})
    spread = row.get("ratio_spread")
    return [
        row["case"],
        *(_seconds(seconds[side]) if side in seconds else "-" for side in SIDES),
        f"{row['ratio']:.2f}x" if "ratio" in row else "-",
        f"{spread[0]:.2f} to {spread[1]:.2f}" if spread else "-",
        f"{row['target']:g}x" if row["target"] else "-",
        f"{row['difference']:.1g}" if row["equal"] else f"**{row['difference']:.2g}**",
        _both(row, "peak_bytes", lambda value: f"{value / 2**30:.2f} GiB"),
        _both(row, "flops", lambda value: f"{value / 1e9:,.3g}" if value < 1e11 else f"{value / 1e9:,.0f}"),
        _both(row, "ceiling_share", lambda value: f"{100 * value:.0f} %"),
    ]


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _both(row: Row, name: str, show: Callable[[float], str]) -> str:
    return " / ".join(show(row[name][side]) if side in row[name] else "-" for side in SIDES) if name in row else "-"


def _remarks(row: Row) -> list[str]:
    """Notes and figures that fit no column, one line each."""
    remarks = [row["note"]] if row["note"] else []
    if "saved_bytes" in row:
        saved = _both(row, "saved_bytes", lambda value: f"{value / 2**20:,.0f} MiB")
        target = f" (target {row['saved_target']:g}x)" if row["saved_target"] else ""
        remarks.append(f"saved for the backward pass {saved}, {row['saved_ratio']:.1f}x less{target}")
    if "growth" in row:
        gflop = {side: " -> ".join(f"{n / 1e9:,.0f}" for n in row["step_flops"][side].values()) for side in SIDES}
        counts = "; ".join(f"{side} {gflop[side]} GFLOP, {row['growth'][side]:.2f}x" for side in SIDES)
        remarks.append(f"{counts} (target for ours: below {row['growth_target']:g}x)")
    if "images_per_second" in row:
        remarks.append(f"images per second {_both(row, 'images_per_second', '{:,.1f}'.format)}")
    if "waiting_share" in row:
        fed, waiting = row["fed_images_per_second"], 100 * row["waiting_share"]
        remarks.append(f"with our loader {fed:,.1f} images per second, {waiting:.0f} % of a step waits for data")
    if "safety" in row:
        remarks.append(_safety(**row["safety"]))
    for found in row.get("precisions", []):
        label, same = found["prec"] + ", compiled" * ("compile" in found), 100 * found["same_selection"]
        remarks.append(f"{label}: {_seconds(found['seconds'])} per step, {same:.1f} % of the selection as in float32")
    return remarks


def _safety(*, seconds: dict[str, float], steps: int, added_seconds: float, share: float, file_bytes: int) -> str:
    return (
        f"measured separately, a checkpoint of {file_bytes / 2**20:.1f} MiB takes {_seconds(seconds['checkpoint'])} and the guards of a step "
        f"{1e6 * seconds['guards of a step']:.0f} us, together {100 * share:.2g} % of {steps} steps of {_seconds(seconds['plain step'])} (target below 2 %); "
        f"by arithmetic, not measured: {100 * added_seconds / (0.1 * steps):.2f} % of {steps} steps of 0.1 s"
    )


if __name__ == "__main__":
    main()
