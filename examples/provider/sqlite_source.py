"""sqlite:///folder/file.db/table: the rows of a table, as JSON lines."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from peftjob.errors import SourceError
from provider import Body, Listing, RemoteFile, Request


def find(request: Request) -> Listing:
    path, _, table = request.uri.removeprefix("sqlite://").replace("//", "/").rpartition("/")
    if not path.startswith("/") or not table.isidentifier():
        raise SourceError(f"{request.uri} names no table; write sqlite:///folder/file.db/table")
    return Listing([RemoteFile(path=f"{table}.jsonl", open=lambda _: Body(rows(path, table)))])


def rows(path: str, table: str) -> Iterator[bytes]:
    with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        for row in database.execute(f"SELECT * FROM {table}"):
            yield json.dumps(dict(row)).encode() + b"\n"
