"""A script's end: one line per problem and exit code 2 for everything the user can fix, 130 or 143 when it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from utils.config import SCRIPTS, SettingsError, load_config
from utils.errors import UserError, is_out_of_memory
from utils.run.locks import release_locks
from utils.run.signals import StopRequestError, stop_signals


def answer_early(name: str, script: str | Callable[[list[str] | None], object]) -> None:
    """In a module that runs as a script (`name` is its `__name__`): answer --help and refuse wrong settings at once.

    The imports that follow take seconds, which a typo need not wait for. `main` reads the command line again.

    Args:
        script: the name under which `load_config` reads the settings, or a function that reads the command line.
    """
    if name == "__main__":
        cli(script if callable(script) else lambda argv: load_config(argv, script=script))()


def cli(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a script's `main(argv=None)`: what the user can fix becomes one line on stderr and exit code 2.

    That is every `UserError`, and a disk, directory or memory that fails anywhere else.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(AttributeError, ValueError):  # not every replacement of a stream has it
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # file names need not be UTF-8
        try:
            with stop_signals():
                return main(argv, *args, **kwargs)
        except SettingsError as error:
            _refuse(*error.problems)
        except UserError as error:
            _refuse(str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _refuse(f"{where}{error.strerror or error}: check the disk or directory, or choose another")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            found = " ".join(str(error).split())[:200] or "MemoryError"
            _refuse(f"out of memory: these settings need more than is available ({found})")
        except StopRequestError as stop:
            resumes = Path(main.__code__.co_filename).stem in SCRIPTS
            print(f"stopped by {stop}{f'; to resume: {_command(argv)}' if resumes else ''}", file=sys.stderr)
            raise SystemExit(stop.code) from None
        finally:
            release_locks()

    return wrapper


class Parser(argparse.ArgumentParser):
    """The command line of a script that is not a main; the module's docstring is its --help."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        """Refuse a command line.

        Raises:
            UserError: always.
        """
        raise UserError(f"command line: {message} (--help explains it)")


def _refuse(*problems: str) -> NoReturn:
    for problem in problems:
        print(f"error: {' '.join(problem.split())}", file=sys.stderr)
    raise SystemExit(2) from None


def _command(argv: list[str] | None) -> str:
    """The command line of this process, with --resume."""
    words = ["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])
