"""Kill runs at every file-system event, repeat the command, compare with the undisturbed run.

    python -m tests.soak.events             # every event of every run
    python -m tests.soak.events --most 5    # five events of each run

A Python audit hook counts each opening for writing, renaming, deletion, creation of a directory and change of mode below the
working directory, and kills the process before the chosen one. The same command, without --resume, must then end with
the bytes of the undisturbed run and leave no unfinished file anywhere.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

import main_baseline
import main_phase1
import main_phase2
import main_real_phase1
import main_small_loss
from tests.conftest import outcome, write_tiny_settings
from tests.soak.trials import start

Main = Callable[[list[str]], object]
RUNS: dict[str, tuple[Main, list[str]]] = {
    "phase 1": (main_phase1.main, []),
    "real phase 1": (main_real_phase1.main, []),
    "phase 2": (main_phase2.main, ["clean_set=given.npy", "finetune=true", "vpt_deep=false"]),
    "small-loss": (main_small_loss.main, ["--strategy", "small_loss"]),
    "label-match": (main_small_loss.main, ["--strategy", "label_match"]),
    "GMM": (main_baseline.main, ["--lnl_methods", "GMM"]),
    "ELR": (main_baseline.main, ["--lnl_methods", "ELR"]),
    "TURN": (main_baseline.main, ["--lnl_methods", "TURN"]),
}
SETTINGS = ("--cfg", "tiny.yaml", "overwrite=false", "num_workers=0", "max_steps=2", "epochs=2", "clean_set=run.pt")
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink")


def command(name: str) -> tuple[Main, list[str]]:
    """The main of a run and its command line."""
    main, settings = RUNS[name]
    return main, [*SETTINGS, *settings, "output_dir=run"]


class Hook:
    """Audit hook that kills the process before the file-system event number `at`; 0 counts only, into `events`."""

    def __init__(self, at: int) -> None:
        self.at, self.here, self.seen = at, f"{Path.cwd()}{os.sep}", 0

    def __call__(self) -> None:
        """Start to watch."""
        torch.set_num_threads(1)
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple) -> None:
        """Count an event below the working directory."""
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in EVENTS) or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(self.here):  # noqa: PTH100 (no Path in a hook)
            return
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.at:
            os.write(self.counter, b".")

    counter = -1


def fresh(folder: Path) -> None:
    """Make an empty working directory with the settings of the tiny model, and go there."""
    folder.mkdir()
    os.chdir(folder)
    write_tiny_settings()
    np.save("given.npy", np.arange(1297) % 3 > 0)


def undisturbed(name: str, folder: Path) -> tuple[dict, int]:
    """The outcome of the run, and the number of its events."""
    fresh(folder)
    main, argv = command(name)
    hook = Hook(0)
    hook.counter = os.open(folder.with_suffix(".events"), os.O_WRONLY | os.O_CREAT)
    assert start(main, argv, hook).end() == "0"
    os.close(hook.counter)
    return outcome("run"), folder.with_suffix(".events").stat().st_size


def kill(name: str, at: int, folder: Path) -> dict | None:
    """Kill a run at an event and repeat its command: the outcome, with what it left unfinished; None: not killed."""
    fresh(folder)
    main, argv = command(name)
    if start(main, argv, Hook(at)).end() != str(-signal.SIGKILL):
        return None
    if not Path("run/summary.json").is_file():  # else it had finished
        assert start(main, argv).end() == "0", (name, at)
    return outcome("run") | {"left": sorted(str(p) for p in Path().rglob("*.unfinished"))}


def kills(name: str, most: int, folder: Path) -> Iterable[tuple[int, bool]]:
    """(event, same as undisturbed with nothing left) for at most that many events, spread over the run."""
    expected, n = undisturbed(name, folder / "whole")
    events = range(1, n + 1) if n <= most else sorted({1 + i * (n - 1) // max(1, most - 1) for i in range(most)})
    for at in events:
        found = kill(name, at, folder / str(at))
        assert found is not None, (name, at, n)
        yield at, found == expected | {"left": []}


def main() -> None:
    """Kill every run and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10**6, help="events per run (default: all)")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="these runs")
    args = parser.parse_args()
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            counts: Counter = Counter()
            for at, same in kills(name, args.most, Path(folder)):
                counts["events"] += 1
                if not same:
                    counts["different"] += 1
                    print(f"{name}: differs after a kill at event {at}", flush=True)
            print(f"| {name} | {counts['events']} | {counts['different']} |", flush=True)
            os.chdir("/")


if __name__ == "__main__":
    main()
