"""Runs disturbed by signals and by faults of the machine, then resumed and compared with the undisturbed ones."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.soak.trials import Child, Table, TrialRun, shares

SKIPPED = "not possible here"


def kill_runs(rng: random.Random, number: int, tries: int) -> Counter:
    """Send runs a signal at random moments between start and end, resume them until they end, and compare."""
    counts: Counter = Counter()
    for name, share in shares(tries).items():
        trial, done = TrialRun(name, f"-signal{number}"), 0
        while done < share:
            run = started(trial, rng)
            code = run.end(number)
            if code == "0":  # it had ended before the signal: compare, and start again
                trial.compare(counts)
                continue
            done += 1
            expected = {str(-number)} if number == signal.SIGKILL else {str(128 + number), str(-number)}
            counts["stopped" if code in expected else "failed"] += 1
            counts["had a checkpoint"] += Path(trial.folder, "checkpoint.pt").exists()
            counts["while saving"] += any(Path(trial.folder).glob(".*"))
        counts["failed"] += trial.start().end() != "0"
        trial.compare(counts)
        print(f"{signal.Signals(number).name}, up to {name:<14} {dict(counts)}", flush=True)
    return counts


def started(trial: TrialRun, rng: random.Random, before: Callable[[], object] = lambda: None) -> Child:
    """The run at a random moment between its start and its end."""
    run = trial.start(before)
    run.wait(rng.uniform(0, 1) * trial.seconds)
    return run


# ---------------------------------------------------- each fault: the run's exit code


def full_disk(trial: TrialRun, rng: random.Random) -> str:
    """Files cannot grow beyond a random size: settings, log, checkpoint, whichever comes first."""
    largest = max(p.stat().st_size for p in Path(f"{trial.folder}-whole").iterdir())
    limit = int(1024 * (largest / 1024) ** rng.uniform(0, 1))  # what the run writes to stderr must fit into its log

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    return trial.start(limit_files).end()


def full_file_system(trial: TrialRun, rng: random.Random) -> str:
    """A file system of 2 MB that another process fills at a random moment."""
    Path(trial.folder).mkdir()
    if not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", trial.folder):
        return SKIPPED
    run = started(trial, rng)
    with contextlib.suppress(OSError), Path(trial.folder, "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    code = run.end()
    Path(trial.folder, "filler").unlink()
    shutil.copytree(trial.folder, f"{trial.folder}-kept")
    subprocess.run(["umount", "--lazy", trial.folder], check=True)
    shutil.rmtree(trial.folder)
    Path(f"{trial.folder}-kept").rename(trial.folder)
    return code


def vanished_directory(trial: TrialRun, rng: random.Random) -> str:
    """The run directory is moved away at a random moment and returns after the end of the run."""
    run = started(trial, rng)
    if not Path(trial.folder).exists():
        return run.end()
    Path(trial.folder).rename("away")
    code = run.end()
    shutil.rmtree(trial.folder, ignore_errors=True)
    Path("away").rename(trial.folder)
    return code


def read_only_directory(trial: TrialRun, rng: random.Random) -> str:
    """The run directory, with the files of an earlier run, is read-only."""
    started(trial, rng).end(signal.SIGKILL)
    Path(trial.folder).mkdir(exist_ok=True)
    if not mount("--bind", trial.folder, trial.folder) or not mount("-o", "remount,bind,ro", trial.folder):
        return SKIPPED
    code = trial.start().end()
    subprocess.run(["umount", "--lazy", trial.folder], check=True)
    return code


def jumping_clock(trial: TrialRun, rng: random.Random) -> str:
    """The system clock shows random times, before and after a SIGTERM."""

    def jump() -> None:
        clock = random.Random(seed)
        time.time = lambda: clock.uniform(0, 4.1e9)  # 1970 to 2100
        time.time_ns = lambda: int(time.time() * 1e9)

    seed = rng.randrange(10**6)
    code = started(trial, rng, jump).end(signal.SIGTERM)
    seed += 1
    return trial.start(jump).end() if code in ("143", "-15") else code


def mount(*arguments: str) -> bool:
    """Mount; whether that is allowed here."""
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


FAULTS: dict[str, Callable[[TrialRun, random.Random], str]] = {
    "files that cannot grow": full_disk,
    "full file system": full_file_system,
    "vanished run directory": vanished_directory,
    "read-only run directory": read_only_directory,
    "clock that jumps": jumping_clock,
}


def fault_runs(rng: random.Random, tries: int) -> Table:
    """Apply each fault to runs; then resume them without it, and compare."""
    table: Table = {fault: Counter() for fault in FAULTS}
    trials = {name: TrialRun(name, "-fault") for name in shares(tries)}
    for fault, apply in FAULTS.items():
        counts = table[fault]
        for name in (name for name, share in shares(tries).items() for _ in range(share)):
            code = apply(trials[name], rng)
            if code == SKIPPED:
                shutil.rmtree(trials[name].folder)
                continue
            counts[{"0": "completed", "2": "one line"}.get(code, "failed")] += 1
            counts["failed"] += trials[name].start().end() != "0"
            trials[name].compare(counts)
        print(f"{fault:<32} {dict(counts)}", flush=True)
    return table
