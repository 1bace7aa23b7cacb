"""A small Hugging Face Hub on loopback, for tests: a folder served by the Hub's protocol.

    python tests/hub_server.py --root DIR [--port 0] [--token TOKEN]     prints its URL and serves

or in a test:

    with HubServer(tmp_path) as hub:
        env["HF_ENDPOINT"] = hub.url

    DIR/models/org/name/…           the main branch of a model
    DIR/models/org/name@v1/…        its revision v1
    DIR/datasets/org/name/…         a dataset
    …/.gated, …/.private            (files) only who shows the token gets in

It answers what huggingface_hub, transformers and datasets ask when they download: info with and
without blobs, tree, paths-info, refs, resolve with Range. Files over 4 KiB and weights are in
LFS, so their sha256 is listed; others have their git blob id. `faults` make answers go wrong;
`requests` records what was asked.
"""

import argparse
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_a_token_for_tests"
LFS_FROM_BYTES = 4096
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".gz", ".zst")
HIDDEN = (".gated", ".private")


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests whose target contains `match`."""

    match: str
    times: int = 1_000_000
    status: int = 0
    """Answer with this status and nothing else."""
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with `status`, or instead of the usual ones of the same name."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Send no more after so many bytes of the body, until the server stops."""
    reset: bool = False
    """What `cut_after` closes is reset."""
    damage: bool = False
    """Change one byte of the body, not its length."""
    body: bytes = b""
    """Sent with `status`."""
    longer: int = 0
    """Announce so many more bytes than there are, or fewer."""
    hang_up: bool = False
    """Answer as usual and close the connection without having said so."""
    drip_s: float = 0.0
    """Send the body a byte at a time, with this pause."""
    drip_head: bool = False
    """Send the headers so, and no body."""
    silent: bool = False
    """Send nothing at all, until the server stops."""
    method: str = "GET"
    """`*` is any."""


@dataclass
class Answer:
    """What is sent back."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    """The Content-Length of an answer to HEAD; None is the size of the body."""

    @property
    def size(self) -> int:
        if self.announced is not None:
            return self.announced
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)

    def read(self, first: int, last: int) -> bytes:
        """The bytes from `first` to `last`, both included."""
        if isinstance(self.body, bytes):
            return self.body[first : last + 1]
        with self.body.open("rb") as file:
            file.seek(first)
            return file.read(last + 1 - first)


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    target: str
    headers: dict[str, str]
    """By lower-case name."""


class Server:
    """An HTTP server on loopback that answers by `answer`, with Range and faults on top."""

    ranges = True
    """Whether Range is obeyed."""
    chunked = False
    """Whether the length of a body is kept back."""
    answered: Callable[[tuple[str, int]], object] | None = None
    """Called with the address of who is answered."""
    watch: Callable[[int], object] | None = None
    """Called with the bytes of all bodies sent so far, a little at a time."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        self.requests: list[Asked] = []
        self.faults: list[Fault] = []
        self.sent_bytes = 0
        self.left_early = 0
        """Answers with `drip_s` whose end was not waited for."""
        self.stopping = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._http = ThreadingHTTPServer((host, port), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, asked: Asked) -> Answer:
        """The answer when nothing goes wrong."""
        raise NotImplementedError

    def fault_for(self, asked: Asked) -> Fault | None:
        """Take one use of the first fault that fits."""
        with self._one_at_a_time:
            for fault in self.faults:
                fits = fault.match in asked.target and fault.method in (asked.method, "*")
                if fault.times and fits:
                    fault.times -= 1
                    return fault
        return None

    def asked_for(self, match: str, method: str = "GET") -> list[Asked]:
        """The requests whose target contains `match`."""
        return [one for one in self.requests if match in one.target and one.method == method]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.sent_body = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            if self.sent_body:
                headers["body"] = self.sent_body.decode()
            asked = Asked(self.command, self.path, headers)
            server.requests.append(asked)
            if server.answered is not None:
                server.answered(self.client_address)
            fault = server.fault_for(asked) or Fault(match="")
            if fault.silent:
                server.stopping.wait(30)
                self.close_connection = True
            elif fault.status:
                self._send(Answer(fault.status, fault.body), fault)
            else:
                self._send(server.answer(asked), fault)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def _send(self, answer: Answer, fault: Fault) -> None:
            size, status = answer.size, answer.status
            first, last = 0, size - 1
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if span and status == 200 and server.ranges:
                first, last = int(span[1]), min(int(span[2] or size), size - 1)
                status = 206 if first < size else 416
                answer.headers["Content-Range"] = (
                    f"bytes {first}-{last}/{size}" if status == 206 else f"bytes */{size}"
                )
                if status == 416:
                    first, last = 0, -1
            self.send_response(status)
            if server.ranges:
                self.send_header("Accept-Ranges", "bytes")
            for name, value in (answer.headers | fault.headers).items():
                self.send_header(name, value)
            if server.chunked and status == 200:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(last + 1 - first + fault.longer))
            if fault.drip_head:
                self._drip(b"".join(self._headers_buffer), fault.drip_s)
                return
            self.end_headers()
            if self.command != "HEAD":
                self._send_body(answer, first, last, fault)
            if fault.longer or fault.hang_up:
                self.close_connection = True

        def _drip(self, data: bytes, pause_s: float) -> None:
            self.close_connection = True
            try:
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    if server.stopping.wait(pause_s):
                        return
            except ConnectionError:
                server.left_early += 1

        def _send_body(self, answer: Answer, first: int, last: int, fault: Fault) -> None:
            sent, framed = 0, server.chunked and answer.status == 200
            step = 1024 * 1024
            if server.watch is not None:
                # What counts as sent is not far ahead of what is read.
                step = 16 * 1024
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, step)
            if fault.drip_s:
                self._drip(answer.read(first, last), fault.drip_s)
                return
            while first <= last:
                chunk = answer.read(first, min(last, first + step - 1))
                if fault.damage and first == 0:
                    chunk = bytes([chunk[0] ^ 1]) + chunk[1:]
                end = fault.stall_after if fault.cut_after is None else fault.cut_after
                stops = end is not None and sent + len(chunk) > end
                try:
                    if framed:
                        self.wfile.write(b"%x\r\n" % len(chunk))
                    self.wfile.write(chunk[: end - sent] if end is not None and stops else chunk)
                    if framed and not stops:
                        self.wfile.write(b"\r\n")
                    self.wfile.flush()
                except (BrokenPipeError, ConnectionResetError):
                    stops = True
                if stops:
                    if fault.stall_after is not None:
                        server.stopping.wait(30)
                    if fault.reset:
                        linger = struct.pack("ii", 1, 0)
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        self.connection.close()
                    self.close_connection = True
                    return
                first += len(chunk)
                sent += len(chunk)
                with server._one_at_a_time:
                    server.sent_bytes += len(chunk)
                if server.watch is not None:
                    server.watch(server.sent_bytes)
            if framed:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the tests' output clean; `requests` has it all."""

    return Handler


class FileServer(Server):
    """Serves `files`, by path without the leading slash."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.files: dict[str, bytes | Path] = {}
        self.headers = {"ETag": '"1"'}
        super().__init__(host=host)

    def answer(self, asked: Asked) -> Answer:
        body = self.files.get(asked.target.partition("?")[0].lstrip("/"))
        if body is None:
            return Answer(404)
        return Answer(body=body, headers=dict(self.headers))


class HubServer(Server):
    """The Hub; see the module's docstring."""

    def __init__(
        self, root: Path, *, port: int = 0, host: str = "127.0.0.1", token: str = TOKEN
    ) -> None:
        self.root = root
        self.token = token
        self._digests: dict[tuple[Path, int, int], tuple[str, str]] = {}
        super().__init__(port, host)

    def answer(self, asked: Asked) -> Answer:
        target = urlsplit(asked.target)
        path = unquote(target.path)
        routes: list[tuple[str, Callable[[Asked, Path, re.Match[str]], Answer]]] = [
            (r"/api/(models|datasets)/(.+?)/tree/([^/]+)/?(?P<path>.*)", self._tree),
            (r"/api/(models|datasets)/(.+?)/paths-info/([^/]+)", self._paths_info),
            (r"/api/(models|datasets)/(.+?)/refs()", self._refs),
            (r"/api/(models|datasets)/(.+?)/revision/(.+)", self._info),
            (r"/api/(models|datasets)/(.+?)()", self._info),
            (r"/(datasets/)?(.+?)/resolve/([^/]+)/(?P<path>.+)", self._file),
        ]
        for pattern, route in routes:
            match = re.fullmatch(pattern, path)
            if match:
                return self._within_repo(asked, match, route)
        return _error(404, "EntryNotFound")

    def commit(self, kind: str, name: str, revision: str = "main") -> str:
        """The commit of a revision; `kind` is models or datasets."""
        return self._commit(self._folders(kind, name)[revision])

    def _within_repo(
        self,
        asked: Asked,
        match: re.Match[str],
        route: Callable[[Asked, Path, re.Match[str]], Answer],
    ) -> Answer:
        kind = (match[1] or "models").rstrip("/")
        revision = unquote(match[3]) or "main"
        folders = self._folders(kind, match[2])
        main = folders.get("main")
        login = asked.headers.get("authorization")
        if login and login != f"Bearer {self.token}":
            answer = _error(401, "")
            answer.headers["X-Error-Message"] = "Invalid credentials in Authorization header"
            return answer
        if main is None or ((main / ".private").exists() and not login):
            return _error(404 if login else 401, "RepoNotFound")
        by_commit = {self._commit(folder): folder for folder in folders.values()}
        folder = folders.get(revision) or by_commit.get(revision)
        if folder is None:
            return _error(404, "RevisionNotFound")
        if (main / ".gated").exists() and not login and route == self._file:
            return _error(401, "GatedRepo")
        return route(asked, folder, match)

    def _folders(self, kind: str, name: str) -> dict[str, Path]:
        main = self.root / kind / name
        if ".." in name or not main.is_dir():
            return {}
        others = {
            folder.name.partition("@")[2]: folder for folder in main.parent.glob(f"{main.name}@*")
        }
        return {"main": main, **others}

    def _names(self, folder: Path) -> list[str]:
        names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        return sorted(name for name in names if name not in HIDDEN)

    def _oids(self, path: Path) -> tuple[str, str]:
        """sha256 of the content, and its git blob id."""
        facts = path.stat()
        key = (path, facts.st_mtime_ns, facts.st_size)
        if key not in self._digests:
            sha256 = hashlib.sha256()
            sha1 = hashlib.sha1(f"blob {facts.st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(1024 * 1024):
                    sha256.update(chunk)
                    sha1.update(chunk)
            self._digests[key] = sha256.hexdigest(), sha1.hexdigest()
        return self._digests[key]

    def _commit(self, folder: Path) -> str:
        lines = [f"{self._oids(folder / name)[0]} {name}\n" for name in self._names(folder)]
        return hashlib.sha1("".join([folder.name, *lines]).encode()).hexdigest()

    def _is_lfs(self, path: Path) -> bool:
        return path.suffix in LFS_SUFFIXES or path.stat().st_size > LFS_FROM_BYTES

    def _info(self, asked: Asked, folder: Path, match: re.Match[str]) -> Answer:
        blobs = parse_qs(urlsplit(asked.target).query).get("blobs", ["false"])[0].lower() == "true"
        siblings: list[dict[str, Any]] = []
        for name in self._names(folder):
            item: dict[str, Any] = {"rfilename": name}
            if blobs:
                sha256, sha1 = self._oids(folder / name)
                size = (folder / name).stat().st_size
                item |= {"size": size, "blobId": sha1}
                if self._is_lfs(folder / name):
                    item["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 130}
            siblings.append(item)
        gated = "manual" if (folder / ".gated").exists() else False
        return _json(
            {
                "_id": "0",
                "id": match[2],
                "sha": self._commit(folder),
                "private": (folder / ".private").exists(),
                "gated": gated,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _tree(self, asked: Asked, folder: Path, match: re.Match[str]) -> Answer:
        query = parse_qs(urlsplit(asked.target).query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        top = match["path"].rstrip("/")
        prefix = f"{top}/" if top else ""
        names = [name for name in self._names(folder) if name.startswith(prefix)]
        if not names:
            return _error(404, "EntryNotFound")
        entries, folders = [], set()
        for name in names:
            inner = name[len(prefix) :].split("/")
            depth = len(inner) if recursive else min(len(inner), 2)
            folders |= {prefix + "/".join(inner[:end]) for end in range(1, depth)}
            if recursive or len(inner) == 1:
                entries.append(self._entry(folder, name))
        return _json(
            [*({"type": "directory", "path": p, "oid": "0" * 40} for p in folders), *entries]
        )

    def _paths_info(self, asked: Asked, folder: Path, match: re.Match[str]) -> Answer:
        body = asked.headers.get("body", "")
        wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        names = self._names(folder)
        found = [self._entry(folder, name) for name in wanted if name in names]
        found += [
            {"type": "directory", "path": name, "oid": "0" * 40}
            for name in wanted
            if name and any(other.startswith(name.rstrip("/") + "/") for other in names)
        ]
        return _json(found)

    def _entry(self, folder: Path, name: str) -> dict[str, Any]:
        sha256, sha1 = self._oids(folder / name)
        size = (folder / name).stat().st_size
        entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": sha1}
        if self._is_lfs(folder / name):
            entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 130}
        return entry

    def _refs(self, asked: Asked, folder: Path, match: re.Match[str]) -> Answer:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": self._commit(path)}
            for name, path in self._folders(match[1], match[2]).items()
        ]
        return _json({"branches": branches, "tags": [], "converts": []})

    def _file(self, asked: Asked, folder: Path, match: re.Match[str]) -> Answer:
        commit = self._commit(folder)
        if match["path"] not in self._names(folder):
            answer = _error(404, "EntryNotFound")
            answer.headers["X-Repo-Commit"] = commit
            return answer
        path = folder / match["path"]
        sha256, sha1 = self._oids(path)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{sha1}"'}
        if self._is_lfs(path):
            size = str(path.stat().st_size)
            headers |= {"ETag": f'"{sha256}"', "X-Linked-Etag": f'"{sha256}"'}
            headers["X-Linked-Size"] = size
        return Answer(body=path, headers=headers)


def _json(data: Any) -> Answer:
    return Answer(body=json.dumps(data).encode(), headers={"Content-Type": "application/json"})


def _error(status: int, code: str) -> Answer:
    return Answer(status, b'{"error": "refused"}', {"X-Error-Code": code} if code else {})


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a folder as a Hugging Face Hub.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1", help="in a container: 0.0.0.0")
    parser.add_argument("--token", default=TOKEN)
    args = parser.parse_args()
    hub = HubServer(args.root, port=args.port, host=args.host, token=args.token)
    hub.start()
    print(hub.url, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        hub.stop()


if __name__ == "__main__":
    main()
