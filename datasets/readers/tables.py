"""Tables written by users and other programs: CSV, TSV and, with pandas, Parquet."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from utils.errors import UserError, first_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
Row = tuple[int, list[str]]  # line number from 1, fields


def read_table(
    path: Path, key: str, columns: Mapping[str, Sequence[str]], *, optional: Collection[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Read the rows after the header as (line number, text by column). Fields are not stripped.

    Args:
        key: config key that names the file, for messages.
        columns: accepted other headers by column; further columns of the file are ignored.
        optional: columns that may be missing, and then are missing from every row.

    Raises:
        UserError: no such file, unknown type of file, not UTF-8, a missing or ambiguous column, a row of another
            length, no rows.
    """
    source = f"{key}={path}"
    rows = _read_parquet(path, source) if path.suffix.lower() == ".parquet" else _read_text(path, source)
    _, header = next(rows, (0, []))
    places = _places([name.strip().lower() for name in header], source, columns, optional)
    result = []
    for number, fields in rows:
        if len(fields) != len(header):
            raise UserError(
                f"{source}, line {number}: {len(fields)} fields for {len(header)} columns; quote fields that contain the separator"
            )
        result.append((number, {name: fields[place] for name, place in places.items()}))
    if not result:
        raise UserError(f"{source}: the table has no rows after its header")
    return result


def _places(
    header: list[str], source: str, columns: Mapping[str, Sequence[str]], optional: Collection[str]
) -> dict[str, int]:
    """Index of each column; its own name takes precedence over other accepted headers."""
    places = {}
    for name, others in columns.items():
        accepted = [name] if name in header else others
        found = [i for i, text in enumerate(header) if text in accepted]
        if len(found) > 1:
            raise UserError(
                f"{source}: columns '{header[found[0]]}' and '{header[found[1]]}' could both be '{name}'; rename one"
            )
        if found:
            places[name] = found[0]
        elif name not in optional:
            also = f" (or {', '.join(others)})" if others else ""
            raise UserError(
                f"{source}: expected a column '{name}'{also}, found {', '.join(header)[:200] or 'an empty file'}; name the columns in the first line"
            )
    return places


def _read_text(path: Path, source: str) -> Iterator[Row]:
    delimiter = DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise UserError(f"{source}: unknown type of table '{path.suffix}'; expected {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror or error})") from None
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: {error}; check the quotes") from None


def _read_parquet(path: Path, source: str) -> Iterator[Row]:
    try:
        import pandas
    except ImportError:
        raise UserError(
            f"{source}: Parquet needs pandas and pyarrow; install them, or save the table as .csv"
        ) from None
    try:
        # With numpy's own types, a missing value would turn integers into floats.
        frame = pandas.read_parquet(path, dtype_backend="numpy_nullable")
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except Exception as error:  # pandas and its engines raise many types
        raise UserError(f"{source}: cannot be read as Parquet ({first_line(error)})") from None
    yield 1, [str(name) for name in frame.columns]
    texts = [
        ["" if missing else str(v) for v, missing in zip(frame[c].tolist(), frame[c].isna())] for c in frame.columns
    ]
    yield from ((number, list(fields)) for number, fields in enumerate(zip(*texts), 2))
