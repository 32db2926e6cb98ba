"""Rows of a local table: CSV, TSV, Parquet, or JSON lines. Columns have names, and values keep their types."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import UsageError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"
SUFFIXES = (*DELIMITERS, *JSON_LINES, PARQUET)
LARGEST_FIELD = 2**31 - 1  # characters of a CSV field; the library's default is 131,072


class RawRow(NamedTuple):
    """One row: where it stands, for errors, and its columns."""

    place: str
    fields: dict[str, Any]


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file, in its format by the ending of its name.

    Raises:
        UsageError: a file that cannot be read, an ending that is not known, or a row that does not fit, with the
            file and the line or row.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        yield from _delimited(path, DELIMITERS[suffix])
    elif suffix in JSON_LINES:
        yield from _json_lines(path)
    elif suffix == PARQUET:
        yield from _parquet(path)
    else:
        raise UsageError(f"cannot tell the format of {path}: its name must end in {', '.join(SUFFIXES)}")


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the rows {path} ({error.strerror}): correct data_dir, --from, or the files of the task's stanza"
        ) from None


def _delimited(path: Path, delimiter: str) -> Iterator[RawRow]:
    """Values are texts. The first line names the columns."""
    csv.field_size_limit(LARGEST_FIELD)
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
            raise UsageError(f"{path}, line 1, separates columns by {other!r}: save it with {delimiter!r}")
        if names and not names[0].strip():
            names[0] = "index"  # pandas writes one without a name
        if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
            listed = ", ".join(map(repr, names))
            raise UsageError(f"{path}, line 1, must name each column once, but holds {listed}: correct it")
        for values in filter(None, reader):
            place = f"{path}, line {reader.line_num},"
            if len(values) != len(names):
                count = f"{len(values)} fields for {len(names)} columns"
                raise UsageError(f"{place} has {count}: quote texts that hold {delimiter!r}")
            yield RawRow(place, dict(zip(names, values, strict=True)))
    except csv.Error as error:
        place = f"{path}, line {reader.line_num},"
        raise UsageError(f"{place} is no {path.suffix} row ({error}): correct it") from None


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place for errors, line) of each line of a file in UTF-8 that is not empty."""
    for number, line in enumerate(_text(path).split("\n"), 1):  # other line separators may stand in a text
        if line.strip():
            yield f"{path}, line {number},", line


def _json_lines(path: Path) -> Iterator[RawRow]:
    for place, line in lines(path):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise UsageError(f"{place} is no JSON object: give one object a line")
        yield RawRow(place, fields)


def _parquet(path: Path) -> Iterator[RawRow]:
    from pyarrow import ArrowException, BufferReader, parquet

    try:
        rows = parquet.read_table(BufferReader(read_bytes(path))).to_pylist()
    except (ArrowException, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{path} cannot be read as Parquet ({reason}): write it anew") from None
    for number, fields in enumerate(rows, 1):
        yield RawRow(f"{path}, row {number},", fields)


def _text(path: Path) -> str:
    """A file in UTF-8; a byte order mark is skipped."""
    data = read_bytes(path)
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if utf16 or b"\0" in data:
        line = data.count(b"\n", 0, 0 if utf16 else data.index(b"\0")) + 1
        raise UsageError(f"{path}, line {line}, is not UTF-8 but looks like UTF-16: save the file as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(data) - len(error.object)  # without the byte order mark
        line, column = data.count(b"\n", 0, start) + 1, start - data.rfind(b"\n", 0, start)
        raise UsageError(
            f"{path}, line {line}, is not UTF-8 (byte {data[start]:#04x} at {column}): save the file as UTF-8"
        ) from None
