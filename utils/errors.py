"""One kind of error for everything a user can put right, shown as one line and exit code 2."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do about it, on one line."""


def cli(main: Callable[..., object]) -> Callable[..., object]:
    """Decorate a script's `main(argv=None)`: a `UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> object:
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapper
