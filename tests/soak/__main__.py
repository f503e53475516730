"""Stress test: killed runs, full disks, damaged files, random settings. Its table is in docs/reliability.md.

    python -m tests.soak --results soak --out docs/reliability.md                 # everything, hours
    python -m tests.soak --results soak --only kills,faults --out docs/reliability.md
    python -m tests.soak --results soak --only damages --out docs/reliability.md  # at the same time, on another core
    python -m tests.soak --kills 5 --terms 2 --faults 2 --damages 10 --configs 200   # a smoke test

Each part writes its counts into the folder of --results; the table is made of all that are there. Everything takes
place in a temporary folder, on the digits and a tiny CLIP. A trial fails if it ends in a traceback, hangs, runs foreign
code, leaves a half-written file, or completes with another result than the undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import open_clip

import datasets.readers.digits
import utils.run.device
from tests.conftest import write_tiny_settings
from tests.soak.configs import random_settings
from tests.soak.damages import damage_files, write_inputs
from tests.soak.faults import fault_runs, kill_runs
from tests.soak.table import PARTS, collect, markdown, write_table
from tests.soak.trials import Table, time_out


def main(argv: list[str] | None = None) -> None:
    """Run the chosen parts, print the table and write it; exit code 1 if a trial failed."""
    args = arguments(argv)
    out, results = (path and path.resolve() for path in (args.out, args.results))
    memory = Path("/dev/shm")  # syncing to a disk would take most of the time
    work = Path(tempfile.mkdtemp(prefix="soak-", dir=memory if memory.is_dir() else None))
    results = results or work / "results"
    results.mkdir(parents=True, exist_ok=True)
    start = Path.cwd()
    os.chdir(work)
    try:
        failures = run_parts(args, results)
    finally:
        os.chdir(start)
    text = markdown(collect(results))
    print(f"\n{text}")
    for failure in failures[:50]:
        print("FAILED", failure)
    if out is not None:
        write_table(out, text)
    if failures:
        print(f"the failed inputs are in {work}")
        raise SystemExit(1)
    shutil.rmtree(work)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts (default: {','.join(PARTS)})")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs (default: 50)")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs (default: 20)")
    parser.add_argument("--faults", type=int, default=20, help="trials of each fault (default: 20)")
    parser.add_argument("--damages", type=int, default=106, help="trials of each kind of file (default: 106)")
    parser.add_argument("--configs", type=int, default=10000, help="random settings (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--results", type=Path, help="folder of the parts' counts (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="file whose content after the line '<!-- measured -->' is replaced")
    args = parser.parse_args(argv)
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(PARTS):
        parser.error(f"--only: unknown part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    return args


def run_parts(args: argparse.Namespace, results: Path) -> list[str]:
    """Run the chosen parts in the working folder, write their counts, and return the failures."""
    # These are the same in every run, and take longer than the rest of a short one.
    for module, name in (
        (open_clip, "SimpleTokenizer"),
        (datasets.readers.digits, "load_digits"),
        (utils.run.device, "version"),
        (utils.run.device, "_git_commit"),
    ):
        setattr(module, name, functools.cache(getattr(module, name)))
    signal.signal(signal.SIGALRM, time_out)
    write_tiny_settings()
    with contextlib.redirect_stdout(io.StringIO()):
        write_inputs()
    failures: list[str] = []
    for part in args.only:
        began = time.perf_counter()
        table, failed = run_part(part, args)
        failures += failed
        print(f"{part}: {time.perf_counter() - began:.0f} s", flush=True)
        (results / f"{part}-{args.seed}.json").write_text(json.dumps(table, indent=1) + "\n")
    return failures


def run_part(part: str, args: argparse.Namespace) -> tuple[Table, list[str]]:
    """Run one part with a random stream of its own: its counts and failures."""
    rng = random.Random(f"{part} {args.seed}")
    if part == "damages":
        return damage_files(rng, args.damages)
    if part == "configs":
        return random_settings(rng, args.configs)
    if part == "faults":
        table = fault_runs(rng, args.faults)
    else:
        table = {s.name: kill_runs(rng, s, n) for s, n in ((signal.SIGKILL, args.kills), (signal.SIGTERM, args.terms))}
    return table, [f"{row}: {dict(counts)}" for row, counts in table.items() if counts["failed"] or counts["differs"]]


if __name__ == "__main__":
    main()
