"""How a script ends: one line and exit code 2 for everything a user can put right, 130 or 143 when it is stopped."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from utils.config import load_config
from utils.errors import UserError, is_out_of_memory
from utils.run.locks import release_locks
from utils.run.signals import StopRequestError, stop_signals


def answer_early(name: str, script: str) -> None:
    """In a module that runs as a script (`name` is its `__name__`): answer --help and refuse wrong settings at once.

    The imports after it take seconds, so a typo need not wait for them. `main` reads the settings again.
    """
    if name == "__main__":
        cli(lambda argv: load_config(argv, script=script))()


def cli(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a script's `main(argv=None)`: what the user can put right becomes one line on stderr and exit code 2.

    That is every `UserError`, and wherever else a disk, a folder or the memory fails.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None, *args: Any) -> Any:
        with contextlib.suppress(AttributeError, ValueError):  # not every stand-in for a stream can
            sys.stdout.reconfigure(errors="backslashreplace")  # the name of a folder need not be UTF-8
        try:
            with stop_signals():
                return main(argv, *args)
        except UserError as error:
            _refuse(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _refuse(f"{where}{error.strerror or error}: check the disk or directory, or choose another")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            found = " ".join(str(error).split())[:200] or "MemoryError"
            _refuse(f"out of memory: these settings ask for more than there is ({found})")
        except StopRequestError as stop:
            resumes = Path(main.__code__.co_filename).stem.startswith("main_")
            print(f"stopped by {stop}{f'; to go on: {_command(argv)}' if resumes else ''}", file=sys.stderr)
            raise SystemExit(stop.code) from None
        finally:
            release_locks()

    return wrapper


def _refuse(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _command(argv: list[str] | None) -> str:
    """The command line of this process, with --resume."""
    words = ["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])
