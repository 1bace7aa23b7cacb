"""Kubernetes objects in one SQLite file, shared by every process that uses the cluster.

What a real API server keeps in etcd: bodies with uid, creationTimestamp, generation and a
resourceVersion that grows with every write. Each call is one transaction, so a process killed at
any point leaves whole objects behind.
"""

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Body = dict[str, Any]

REMEMBERED_VERSIONS = 5000
"""For how many versions a watch still learns of a deletion."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    plural TEXT, namespace TEXT, name TEXT, uid TEXT, version INTEGER, body TEXT,
    PRIMARY KEY (plural, namespace, name));
CREATE TABLE IF NOT EXISTS deleted (version INTEGER PRIMARY KEY, plural TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS counter (version INTEGER);
CREATE TABLE IF NOT EXISTS supervised (
    uid TEXT PRIMARY KEY, plural TEXT, namespace TEXT, name TEXT, done INTEGER);
INSERT INTO counter SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM counter);
"""


class ApiError(Exception):
    """What an API server answers with an HTTP status other than 2xx."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Supervised:
    """An object that a supervisor looks after until it is done."""

    uid: str
    plural: str
    namespace: str
    name: str


def now() -> str:
    """The time as Kubernetes writes it: UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def not_found(plural: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{plural} "{name}" not found')


class Store:
    """The objects of one cluster. Safe to use from several processes and threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            path.touch(mode=0o600)
        with self._connect() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(_SCHEMA)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # A connection for each call: connections must not cross threads or forks, and opening
        # one takes a fraction of a millisecond.
        db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            yield db
        finally:
            db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connect() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    def create(self, plural: str, namespace: str, body: Body, *, supervise: bool = False) -> Body:
        """Add an object; with `supervise`, note that it needs a supervisor.

        Raises:
            ApiError: 409 where the name is taken.
        """
        body = json.loads(json.dumps(body))
        metadata = body.setdefault("metadata", {})
        name = metadata["name"]
        metadata.update(
            name=name,
            namespace=namespace,
            uid=str(uuid.uuid4()),
            creationTimestamp=now(),
            generation=1,
        )
        with self._transaction() as db:
            if _row(db, plural, namespace, name) is not None:
                raise ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')
            _write(db, plural, body)
            if supervise:
                row = (metadata["uid"], plural, namespace, name)
                db.execute("INSERT INTO supervised VALUES (?, ?, ?, ?, 0)", row)
        return body

    def get(self, plural: str, namespace: str, name: str) -> Body:
        """Raises ApiError 404 where there is none."""
        body = self.find(plural, namespace, name)
        if body is None:
            raise not_found(plural, name)
        return body

    def find(self, plural: str, namespace: str, name: str) -> Body | None:
        with self._connect() as db:
            return _row(db, plural, namespace, name)

    def all(self, plural: str, namespace: str | None = None) -> list[Body]:
        """All objects of a kind, by name; `namespace` None means in all namespaces."""
        query = "SELECT body FROM objects WHERE plural = ?"
        values = [plural]
        if namespace is not None:
            query += " AND namespace = ?"
            values.append(namespace)
        with self._connect() as db:
            rows = db.execute(query + " ORDER BY namespace, name", values).fetchall()
        return [json.loads(body) for (body,) in rows]

    def version(self) -> int:
        """The newest resourceVersion."""
        with self._connect() as db:
            return int(db.execute("SELECT version FROM counter").fetchone()[0])

    def changes(self, plural: str, since: int) -> list[tuple[int, str, Body]]:
        """What happened after version `since`: (version, MODIFIED or DELETED, body), in order."""
        with self._connect() as db:
            rows = db.execute(
                "SELECT version, 'MODIFIED', body FROM objects WHERE plural = ? AND version > ? "
                "UNION ALL "
                "SELECT version, 'DELETED', body FROM deleted WHERE plural = ? AND version > ? "
                "ORDER BY 1",
                (plural, since, plural, since),
            ).fetchall()
        return [(version, kind, json.loads(body)) for version, kind, body in rows]

    def modify(
        self, plural: str, namespace: str, name: str, change: Callable[[Body], Body | None]
    ) -> Body:
        """Read, change and write an object in one transaction.

        `change` may edit the body in place or return another. Nothing is written, and the
        resourceVersion stays, where the outcome equals what was there.

        Raises:
            ApiError: 404 where there is none; whatever `change` raises.
        """
        with self._transaction() as db:
            before = _row(db, plural, namespace, name)
            if before is None:
                raise not_found(plural, name)
            after = json.loads(json.dumps(before))
            after = change(after) or after
            if after == before:
                return before
            if after.get("spec") != before.get("spec"):
                after["metadata"]["generation"] = before["metadata"]["generation"] + 1
            _write(db, plural, after)
        return after

    def delete(self, plural: str, namespace: str, name: str) -> Body:
        """Remove an object and return what it was. Raises ApiError 404 where there is none."""
        with self._transaction() as db:
            body = _row(db, plural, namespace, name)
            if body is None:
                raise not_found(plural, name)
            db.execute(
                "DELETE FROM objects WHERE plural = ? AND namespace = ? AND name = ?",
                (plural, namespace, name),
            )
            record = (_next_version(db), plural, json.dumps(body))
            db.execute("INSERT INTO deleted VALUES (?, ?, ?)", record)
            db.execute("DELETE FROM deleted WHERE version < ?", (record[0] - REMEMBERED_VERSIONS,))
        return body

    def owned(self, plural: str, uid: str) -> list[Body]:
        """The objects of a kind that name `uid` as an owner."""
        return [
            body
            for body in self.all(plural)
            if any(ref.get("uid") == uid for ref in body["metadata"].get("ownerReferences") or ())
        ]

    def unsupervised(self) -> list[Supervised]:
        """What still needs a supervisor, whether it has one or not."""
        with self._connect() as db:
            rows = db.execute(
                "SELECT uid, plural, namespace, name FROM supervised WHERE done = 0"
            ).fetchall()
        return [Supervised(*row) for row in rows]

    def set_done(self, uid: str, *, done: bool) -> None:
        """Note that nothing is left to do for an object, or that there is again."""
        with self._transaction() as db:
            db.execute("UPDATE supervised SET done = ? WHERE uid = ?", (int(done), uid))


def generated_name(metadata: Body) -> str:
    prefix = metadata.get("generateName")
    if not prefix:
        raise ApiError(422, "Invalid", "metadata.name: Required value: name or generateName")
    return f"{prefix}{uuid.uuid4().hex[:5]}"


def _row(db: sqlite3.Connection, plural: str, namespace: str, name: str) -> Body | None:
    row = db.execute(
        "SELECT body FROM objects WHERE plural = ? AND namespace = ? AND name = ?",
        (plural, namespace, name),
    ).fetchone()
    body: Body | None = json.loads(row[0]) if row else None
    return body


def _next_version(db: sqlite3.Connection) -> int:
    db.execute("UPDATE counter SET version = version + 1")
    return int(db.execute("SELECT version FROM counter").fetchone()[0])


def _write(db: sqlite3.Connection, plural: str, body: Body) -> None:
    version = _next_version(db)
    metadata = body["metadata"]
    metadata["resourceVersion"] = str(version)
    values = (plural, metadata["namespace"], metadata["name"], metadata["uid"], version)
    db.execute(
        "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)", (*values, json.dumps(body))
    )
