"""How a script ends: one line and exit code 2 for everything a user can put right, 130 or 143 when it is stopped."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable

from utils.locks import release_locks
from utils.stopping import StopRequestError, stop_signals


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do about it, on one line."""


def cli(main: Callable[..., object]) -> Callable[..., object]:
    """Decorate a script's `main(argv=None)`: a `UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> object:
        try:
            with stop_signals():
                return main(argv)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None
        except StopRequestError as stop:
            print(f"stopped by {stop}; to go on: {_command(argv)}", file=sys.stderr)
            raise SystemExit(stop.code) from None
        finally:
            release_locks()

    return wrapper


def _command(argv: list[str] | None) -> str:
    """The command line of this process, with --resume."""
    words = ["python", *(sys.argv if argv is None else [sys.argv[0], *argv])]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])
