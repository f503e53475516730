"""The paper's tables: run what each needs, skip what is done, and write ours beside the paper's numbers.

    python scripts/reproduce.py --table 1 2 --dry-run
    python scripts/reproduce.py --all --seeds 0,1,2 --set data_root=/data
    python scripts/reproduce.py --table 1 --only dataset=cifar100 method=DeFT noise=sym0.4
    python scripts/reproduce.py --table 1 2 3 --profile smoke     (minutes on a CPU, handwritten digits)

Interrupted or failed: the same command again goes on. A run counts as done when its summary.json was written under the
settings asked for; one that was stopped is resumed. Tables lie in output/reproduce/<profile>/table<k>.md and .csv.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import difflib
import hashlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from paper import (  # noqa: E402 (the path comes first)
    FIGURES,
    PHASE2,
    PROFILES,
    TABLES,
    Cell,
    Job,
    arguments,
    cells,
    chain,
    folder,
    foreign_set,
    selected_set,
)

from utils.config import Config, load_config  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import write_text  # noqa: E402
from utils.run.cli import cli  # noqa: E402

# Settings that say where a run takes place, not what comes out of it.
MACHINE = (
    "resume",
    "device",
    "gpuid",
    "num_workers",
    "data_root",
    "download",
    "weights_dir",
    "noise_file",
    "output_dir",
    "clean_set",
    "report_to",
    "quiet",
)
# What the paper leaves open, and we decided.
NOTES = {
    3: "The paper prints one accuracy; ours is the best of all epochs.",
    4: "The paper prints one accuracy; ours is the best of all epochs.",
    6: "Small-loss has the lower learning rate of severe noise, too.",
    8: "GMM is the baseline of Table 3 (full fine-tuning), judged by its last selection.",
    9: "The paper's caption says sym 0.4, but its rows on text length and epochs fit sym 0.6; they are run so.",
}
FILTERS = ("dataset", "method", "noise", "variant")
STAMP, CONSOLE = "reproduce.json", "console.txt"


class Run(NamedTuple):
    """A job with its seed."""

    job: Job
    seed: int


@dataclass(frozen=True)
class Plan:
    """What the command line asks for."""

    tables: list[int]
    only: dict[str, list[str]]
    seeds: list[int]
    profile: str
    output: Path
    extra: tuple[str, ...]

    def cells(self) -> list[Cell]:
        """The cells to run: those of the tables that `only` lets through."""
        every = [cell for table in self.tables for cell in cells(table, self.profile)]
        return [cell for cell in every if all(getattr(cell, key) in values for key, values in self.only.items())]

    def arguments(self, run: Run) -> list[str]:
        """The run's command line after the script's name."""
        return arguments(run.job, run.seed, self.profile, self.output, self.extra)

    def folder(self, run: Run) -> Path:
        """Where the run writes."""
        return folder(run.job, run.seed, self.output)


@cli
def main(argv: list[str] | None = None) -> None:
    """Print the commands, or run them and write the tables; exit code 1 if a run failed."""
    args = _parser().parse_args(argv)
    plan = read_plan(args)
    os.chdir(ROOT)  # the commands and their paths are relative to it
    if args.dry_run:
        print("\n".join(dry_run(plan)))
        return
    try:
        failures = {} if args.report else run_all(plan)
    except KeyboardInterrupt:
        print("\nstopped; the same command again goes on")
        raise SystemExit(130) from None
    for table in plan.tables:
        print(f"wrote {write_table(table, plan, failures)}")
    if failures:
        print(f"\n{len(failures)} failed or could not start; the same command again tries only these:")
        for run, reason in failures.items():
            print(f"  {plan.folder(run)}: {reason}")
        raise SystemExit(1)


# ------------------------------------------------------------------ the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--table", type=int, nargs="+", choices=range(1, 12), metavar="K", help="tables, 1 to 11")
    which.add_argument("--all", action="store_true", help="all tables")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"run only these cells; keys: {', '.join(FILTERS)}; several values of a key: any of them",
    )
    parser.add_argument("--seeds", default="0", metavar="K,K,..", help="seeds to run and to average over (default: 0)")
    parser.add_argument("--profile", choices=PROFILES, default="paper", help="smoke: handwritten digits, minutes")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="extra",
        metavar="key=value",
        help="settings for every command, e.g. data_root=/data",
    )
    parser.add_argument("--output", type=Path, help="folder of all runs and tables (default: output/reproduce/PROFILE)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--report", action="store_true", help="run nothing, write the tables from what is there")
    return parser


def read_plan(args: argparse.Namespace) -> Plan:
    """The checked command line.

    Raises:
        UserError: an unknown filter, value, seed or setting.
    """
    tables = list(range(1, 12)) if args.all else sorted(set(args.table))
    output = args.output.absolute() if args.output else Path("output/reproduce") / args.profile
    try:
        seeds = sorted({int(text) for text in args.seeds.split(",")})
    except ValueError:
        raise UserError(f"--seeds {args.seeds}: expected whole numbers with commas between, as in 0,1,2") from None
    for setting in args.extra:
        key = setting.partition("=")[0]
        if key in ("seed", "output_dir", "clean_set", "resume"):
            raise UserError(f"--set {setting}: this script sets {key} itself")
    plan = Plan(tables, {}, seeds, args.profile, output, tuple(args.extra))
    return dataclasses.replace(plan, only=read_filters(args.only, plan.cells()))


def read_filters(texts: list[str], every: list[Cell]) -> dict[str, list[str]]:
    """`--only` as values by key.

    Raises:
        UserError: an unknown key, or a value that no cell has.
    """
    result: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in FILTERS:
            raise UserError(f"--only {text}: expected KEY=VALUE with a key of {', '.join(FILTERS)}")
        known = sorted({getattr(cell, key) for cell in every} - {""})
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"--only {text}: no such {key} in these tables{hint} (there are {', '.join(known)})")
        result.setdefault(key, []).append(value)
    return result


# ------------------------------------------------------------------ what to run


def all_runs(plan: Plan) -> list[Run]:
    """Every run once, each after the one whose selected set it reads; seed by seed, so that a first seed comes early."""
    jobs = dict.fromkeys(job for cell in plan.cells() for job in chain(cell.source))
    return [Run(job, seed) for seed in plan.seeds for job in jobs]


def dry_run(plan: Plan) -> Iterator[str]:
    """One block a cell: its commands; of a command that stood further up, its folder."""
    shown: set[Run] = set()
    for cell in plan.cells():
        yield f"# {title(cell)}"
        if isinstance(cell.source, str):
            yield f"# judges {foreign_set(cell.source)}, made elsewhere"
        for run in [Run(job, seed) for seed in plan.seeds for job in chain(cell.source)]:
            if run in shown:
                yield f"# as above: {plan.folder(run)}"
            else:
                yield shlex.join(["python", f"{run.job.script}.py", *plan.arguments(run)])
            shown.add(run)
        yield ""
    if 11 in plan.tables:
        yield from settings_table()


def title(cell: Cell) -> str:
    """A cell in words, with the paper's figures."""
    names = [cell.dataset, cell.noise, cell.variant, cell.method]
    figures = ", ".join(f"{name} {value:g}" for name, value in cell.paper.items())
    return f"Table {cell.table}: {' '.join(filter(None, names))}; paper: {figures}"


# ------------------------------------------------------------------ running


def run_all(plan: Plan) -> dict[Run, str]:
    """Run what is not done yet, whatever fails; returns the reason of each that failed."""
    runs = all_runs(plan)
    waiting = sum(not is_done(run, plan) for run in runs)
    print(f"{len(runs)} runs, {len(runs) - waiting} of them done", flush=True)
    failures: dict[Run, str] = {}
    started, n_run = time.monotonic(), 0
    for run in runs:
        if is_done(run, plan):
            continue
        n_run += 1
        print(f"[{n_run}/{max(n_run, waiting)}] {plan.folder(run)}", end=" ", flush=True)
        before = time.monotonic()
        reason = why_not(run, plan, failures) or start(run, plan)
        if reason:
            failures[run] = reason
        now = time.monotonic()
        left = (now - started) / n_run * max(0, waiting - n_run)
        print(f"{reason or 'done'}, {clock(now - before)}, about {clock(left)} left", flush=True)
    return failures


def why_not(run: Run, plan: Plan, failures: dict[Run, str]) -> str | None:
    """Why the run cannot start: its selected set is not there."""
    if isinstance(run.job.reads, str) and not foreign_set(run.job.reads).is_file():
        return f"missing: put the selection at {foreign_set(run.job.reads)} (or .npy, .csv)"
    if isinstance(run.job.reads, Job) and (before := Run(run.job.reads, run.seed)) in failures:
        return f"not run, because {plan.folder(before)} failed"
    return None


def start(run: Run, plan: Plan) -> str | None:
    """Run the command, or let it go on if it was stopped; returns why it failed, or None."""
    place, mark = plan.folder(run), fingerprint(run, plan)
    resumes = read_stamp(place) == mark and (place / "checkpoint.pt").is_file()
    if not resumes:  # an old summary must not pass for that of the new settings
        (place / "summary.json").unlink(missing_ok=True)
    arguments = [*plan.arguments(run), *["--resume"] * resumes]
    write_text(place / STAMP, json.dumps({"fingerprint": mark, "script": run.job.script, "arguments": arguments}))
    with (place / CONSOLE).open("w", encoding="utf-8") as console:
        command = [sys.executable, str(ROOT / f"{run.job.script}.py"), *arguments]
        code = subprocess.run(command, cwd=ROOT, stdout=console, stderr=subprocess.STDOUT).returncode
    if code == 0 and (place / "summary.json").is_file():
        return None
    said = (place / CONSOLE).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = f"ended by signal {-code}" if code < 0 else said[-1] if said else "no output"
    return f"{reason} (exit code {code}, see {place / CONSOLE})"


def is_done(run: Run, plan: Plan) -> bool:
    """Whether the run has finished under these very settings, on this very selected set."""
    place = plan.folder(run)
    return (place / "summary.json").is_file() and read_stamp(place) == fingerprint(run, plan)


def fingerprint(run: Run, plan: Plan) -> str:
    """Hash of all that decides the run's result: script, resolved settings, and the content of the set it reads."""
    cfg: Config = load_config(plan.arguments(run), script=run.job.script)
    settings = {key: value for key, value in dataclasses.asdict(cfg).items() if key not in MACHINE}
    path = selected_set(run.job, run.seed, plan.output) if run.job.script in PHASE2 else None
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None
    return hashlib.sha256(json.dumps([run.job.script, settings, content], sort_keys=True).encode()).hexdigest()


def read_stamp(place: Path) -> str | None:
    """The fingerprint that the folder's run was started with."""
    try:
        return json.loads((place / STAMP).read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clock(seconds: float) -> str:
    """`75 s`, `12 min` or `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------ results


class Entry(NamedTuple):
    """One figure of a cell: ours over the seeds, or why there is none."""

    cell: Cell
    figure: str
    paper: float
    ours: list[float]
    missing: str | None

    @property
    def text(self) -> str:
        """`98.70 ± 0.10 (98.75, -0.05)`: mean and deviation over the seeds, then the paper's figure and the difference."""
        if not self.ours:
            return f"missing ({self.paper:.2f})"
        mean = statistics.fmean(self.ours)
        deviation = f" ± {statistics.stdev(self.ours):.2f}" if len(self.ours) > 1 else ""
        return f"{mean:.2f}{deviation} ({self.paper:.2f}, {mean - self.paper:+.2f})"


def entries(table: int, plan: Plan, failures: dict[Run, str]) -> list[Entry]:
    """All figures of a table, whatever `only` leaves out of running."""
    result = []
    for cell in cells(table, plan.profile):
        summaries, missing = results(cell, plan, failures)
        for figure, paper in cell.paper.items():
            ours = [value for s in summaries if (value := s.get(FIGURES[figure])) is not None]
            result.append(Entry(cell, figure, paper, ours, missing))
    return result


def results(cell: Cell, plan: Plan, failures: dict[Run, str]) -> tuple[list[dict], str | None]:
    """The summaries of a cell's runs, and what is missing among them."""
    if isinstance(cell.source, str):
        return judge(foreign_set(cell.source), cell, plan)
    summaries, missing = [], []
    for run in [Run(cell.source, seed) for seed in plan.seeds]:
        if is_done(run, plan):
            summaries.append(json.loads((plan.folder(run) / "summary.json").read_text(encoding="utf-8")))
        else:
            missing.append(f"seed {run.seed}: {failures.get(run) or why_not(run, plan, {}) or 'not run'}")
    return summaries, "; ".join(missing) or None


def judge(path: Path, cell: Cell, plan: Plan) -> tuple[list[dict], str | None]:
    """Precision, recall and F1 of a selected set that another method made."""
    if not path.is_file():
        return [], f"missing: put the selection at {path} (or .npy, .csv)"
    from datasets import build_data  # these load torch, which nothing else here needs
    from utils.metrics import selection_quality
    from utils.selection.selected_set import load_clean_set

    try:
        cfg = load_config(["--cfg", f"config/PEFT/{cell.dataset}.yaml", *plan.extra], script="main_real_phase1")
        train = build_data(cfg).train
        return [selection_quality(load_clean_set(path, train.ids, train.fingerprint()), train.is_clean)], None
    except UserError as error:
        return [], str(error)


# ------------------------------------------------------------------ tables


def write_table(table: int, plan: Plan, failures: dict[Run, str]) -> Path:
    """Write table<k>.md and table<k>.csv; returns the path of the former."""
    path = plan.output / f"table{table}.md"
    if table == 11:
        rows = TABLES["table11"]["rows"]
        keys = list(dict.fromkeys(key for settings in rows.values() for key in settings))
        lines = [("backbone", *keys), *((name, *(s.get(key, "") for key in keys)) for name, s in rows.items())]
        write_text(path.with_suffix(".csv"), as_csv(lines))
        write_text(path, "\n".join(settings_table()) + "\n")
        return path
    found = entries(table, plan, failures)
    write_text(path.with_suffix(".csv"), as_csv(csv_rows(found)))
    write_text(path, as_markdown(table, found, plan))
    return path


def csv_rows(found: list[Entry]) -> Iterator[tuple]:
    """Long form: one line a figure."""
    yield ("table", "dataset", "variant", "method", "noise", "figure", "ours", "deviation", "seeds", "paper",
           "difference", "missing")  # fmt: skip
    for e in found:
        c = e.cell
        mean = statistics.fmean(e.ours) if e.ours else ""
        deviation = statistics.stdev(e.ours) if len(e.ours) > 1 else ""
        difference = mean - e.paper if e.ours else ""
        yield (c.table, c.dataset, c.variant, c.method, c.noise, e.figure, mean, deviation, len(e.ours), e.paper,
               difference, e.missing or "")  # fmt: skip


def as_csv(rows: Iterable[tuple]) -> str:
    """Rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def position(entry: Entry) -> tuple[str, str, str]:
    """(section, row, column) of a figure, near to where the paper has it."""
    cell = entry.cell
    if cell.table == 3:
        return entry.figure, cell.method, cell.dataset
    if cell.table == 4:
        return entry.figure, cell.method, cell.variant
    if cell.table == 8:
        return cell.dataset, cell.method, entry.figure
    if cell.table == 9:
        return f"{cell.dataset}, {cell.noise}", cell.variant, entry.figure
    return f"{cell.dataset}, {entry.figure}", cell.method, cell.noise


def as_markdown(table: int, found: list[Entry], plan: Plan) -> str:
    """The table as the paper lays it out, a section a data set and figure, and below it why entries are missing."""
    sections: dict[str, dict[str, dict[str, Entry]]] = {}
    for entry in found:
        section, row, column = position(entry)
        sections.setdefault(section, {}).setdefault(row, {})[column] = entry
    reasons = list(dict.fromkeys(entry.missing for entry in found if entry.missing))
    lines = [f"# Table {table}: {TABLES[f'table{table}']['title']}", "", *notes(table, plan), ""]
    for section, rows in sections.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines += [f"## {section}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in rows.items():
            shown = [with_reason(row[column], reasons) if column in row else "" for column in columns]
            lines.append(f"| {name} | {' | '.join(shown)} |")
        lines.append("")
    if reasons:
        lines += ["Missing:", "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def with_reason(entry: Entry, reasons: list[str]) -> str:
    """The entry's text, with the number of the reason why seeds are missing."""
    return f"{entry.text} [{reasons.index(entry.missing) + 1}]" if entry.missing else entry.text


def notes(table: int, plan: Plan) -> list[str]:
    """What a reader has to know about the numbers."""
    deviation = " ± standard deviation" if len(plan.seeds) > 1 else ""
    lines = [f"Ours{deviation} (the paper's, difference), in percent; seeds {', '.join(map(str, plan.seeds))}."]
    if table in NOTES:
        lines.append(NOTES[table])
    if plan.profile == "smoke":
        lines.append(
            "Smoke profile: the handwritten digits and their backbone stand in for every data set and backbone, idn 0.4"
            " for real-world noise. The differences say nothing about the paper."
        )
        if table in (3, 8):
            lines.append("Label-match's selection stands in for those of RoLT, UNICON, LongReMix and ProMix.")
    return lines


def settings_table() -> list[str]:
    """Table 11: the optimisers with which Table 4 is run."""
    lines = [f"# Table 11: {TABLES['table11']['title']}", ""]
    for name, settings in TABLES["table11"]["rows"].items():
        lines.append(f"* {name}: {', '.join(f'{key} {value:}' for key, value in settings.items())}")
    return [*lines, ""]


if __name__ == "__main__":
    main()
