"""Tables that users write or export: CSV, TSV and, where pandas is installed, Parquet."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from utils.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
Row = tuple[int, list[str]]  # line number from 1, fields


def read_table(
    path: Path, key: str, columns: Mapping[str, Sequence[str]], *, optional: Collection[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """(line number, text by column) of every row, the header left out. Fields keep the blanks around them.

    Args:
        key: the setting that names the file, for messages.
        columns: other headers that a column may go by; those beyond `columns` are ignored.
        optional: columns that need not be there; they are then missing from every row.

    Raises:
        UserError: no such file, another kind of file, not UTF-8, a column that is missing or there twice, a row of
            another length, no row at all.
    """
    source = f"{key}={path}"
    rows = _read_parquet(path, source) if path.suffix.lower() == ".parquet" else _read_text(path, source)
    _, header = next(rows, (0, []))
    places = _places([name.strip().lower() for name in header], source, columns, optional)
    result = []
    for number, fields in rows:
        if len(fields) != len(header):
            raise UserError(
                f"{source}, line {number}: {len(fields)} fields under {len(header)} columns; quote fields that hold the separator"
            )
        result.append((number, {name: fields[place] for name, place in places.items()}))
    if not result:
        raise UserError(f"{source}: the table has no rows below its header")
    return result


def _places(
    header: list[str], source: str, columns: Mapping[str, Sequence[str]], optional: Collection[str]
) -> dict[str, int]:
    """Where each column stands; its own name goes before the others it may go by."""
    places = {}
    for name, others in columns.items():
        found = [i for i, text in enumerate(header) if text == name] or [
            i for i, text in enumerate(header) if text in others
        ]
        if len(found) > 1:
            raise UserError(
                f"{source}: the columns '{header[found[0]]}' and '{header[found[1]]}' could both be '{name}'; rename one"
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
        raise UserError(f"{source}: a table of unknown kind '{path.suffix}'; give a file {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
    except FileNotFoundError:
        raise UserError(f"{source}: there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: the text is not UTF-8; save it as UTF-8") from None
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
        frame = pandas.read_parquet(path, dtype_backend="numpy_nullable")  # else a gap turns whole numbers into 3.0
    except FileNotFoundError:
        raise UserError(f"{source}: there is no such file") from None
    except Exception as error:  # pandas and its engines fail in many ways
        raise UserError(f"{source}: cannot be read as Parquet ({(str(error).splitlines() or [''])[0]})") from None
    yield 1, [str(name) for name in frame.columns]
    texts = [["" if gap else str(v) for v, gap in zip(frame[c].tolist(), frame[c].isna())] for c in frame.columns]
    yield from ((number, list(fields)) for number, fields in enumerate(zip(*texts), 2))
