"""What a user can put right. Imports nothing."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do about it, on one line."""


def first_line(error: BaseException, most: int = 120) -> str:
    """The first line of another library's error, or its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:most]


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch says so in several ways."""
    words = ("allocate memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
