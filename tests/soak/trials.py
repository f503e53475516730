"""Runs in processes of their own, and runs in this process whose end is classified."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import main_baseline
import main_phase1
import main_phase2
from tests.conftest import outcome

BASE = ("--cfg", "tiny.yaml", "num_workers=0")
TIMEOUT = 300  # seconds after which a run counts as hanging
Table = dict[str, Counter]  # counts of how trials ended, by row


class Malicious:
    """A pickle that creates a file when it is loaded without care."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


# ------------------------------------------------------------ in a child process


@dataclass
class Child:
    """A run in a process of its own."""

    process: int
    log: Path
    code: int | None = None  # minus the signal's number if a signal ended it

    def wait(self, seconds: float = TIMEOUT) -> bool:
        """Wait at most that long; whether it has ended."""
        end = time.monotonic() + seconds
        while self.code is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(0.002)
        return True

    def end(self, number: int | None = None) -> str:
        """Send a signal and wait for the end; returns the exit code, or the name of a failure."""
        if number is not None and self.code is None:
            os.kill(self.process, number)
        if not self.wait():
            os.kill(self.process, signal.SIGKILL)
            self.wait()
            return "hang"
        errors = self.log.read_text(errors="replace")
        if "Traceback" in errors:
            print(errors[-3000:], flush=True)
            return "traceback"
        refused = self.code == 2 and (errors.strip().splitlines() or [""])[-1].startswith("error: ")
        return "no error line" if self.code == 2 and not refused else str(self.code)


def start(main: Callable, argv: list[str], before: Callable[[], object] = lambda: None) -> Child:
    """Fork a run, in which `before` is called first. Its imports are done, so signals hit the run itself."""
    log = Path("child.log").absolute()
    sys.stdout.flush()
    process = os.fork()
    if process:
        return Child(process, log)
    code = 1
    try:
        for stream, name in ((1, os.devnull), (2, log)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        before()
        main(argv)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


RUNS = {
    "phase 1": (main_phase1.main, ["clean_set={folder}.pt"]),
    "phase 2": (main_phase2.main, ["clean_set=given.npy", "finetune=true", "vpt_deep=false"]),
    "GMM": (main_baseline.main, ["--lnl_methods", "GMM", "clean_set={folder}.pt"]),
}


class TrialRun:
    """A run in `folder` that is disturbed, and the undisturbed one in `folder`-whole to compare it with."""

    def __init__(self, name: str, suffix: str) -> None:
        self.main, self.settings = RUNS[name]
        self.folder = name.replace(" ", "") + suffix
        began = time.perf_counter()
        assert start(self.main, self.command(f"{self.folder}-whole")).end() == "0"
        self.seconds = time.perf_counter() - began
        self.expected = outcome(f"{self.folder}-whole")

    def command(self, folder: str) -> list[str]:
        """The command line of the run in a folder."""
        settings = [setting.format(folder=folder) for setting in self.settings]
        return [*BASE, "epochs=6", "batch_size=32", *settings, f"output_dir={folder}"]

    def start(self, before: Callable[[], object] = lambda: None) -> Child:
        """Start or resume it."""
        return start(self.main, [*self.command(self.folder), "--resume"], before)

    def compare(self, counts: Counter) -> None:
        """Compare the finished run with the undisturbed one, count the result, and delete the run."""
        counts["compared"] += 1
        counts["differs"] += outcome(self.folder) != self.expected
        shutil.rmtree(self.folder)
        for suffix in (".pt", ".json"):
            Path(self.folder + suffix).unlink(missing_ok=True)


def shares(tries: int) -> dict[str, int]:
    """Number of trials of each run that has any, `tries` in all."""
    return {name: n for i, name in enumerate(RUNS) if (n := tries // len(RUNS) + (i < tries % len(RUNS)))}


# --------------------------------------------------------------- in this process


class HangError(BaseException):
    """A trial timed out; a BaseException, so that no script catches it."""


def time_out(number: int, frame: FrameType | None) -> None:
    """Handler of SIGALRM."""
    raise HangError


def try_main(main: Callable, argv: list[str]) -> tuple[str, str]:
    """("ran", "refused" or a failure, the lines on stderr)."""
    errors = io.StringIO()
    signal.alarm(TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(argv)
        return "ran", ""
    except SystemExit as stop:
        lines = errors.getvalue().strip().splitlines()
        if stop.code in (0, None):
            return "ran", ""
        refused = stop.code == 2 and lines and lines[-1].startswith("error: ")
        return ("refused" if refused else f"exit code {stop.code}"), "\n".join(lines)
    except BaseException as error:
        return f"traceback: {type(error).__name__}", str(error)[:300]
    finally:
        signal.alarm(0)
