"""The part of the Hugging Face Hub's protocol that uploads: repositories, LFS objects, commits.

    with UploadHub() as hub:
        env["HF_ENDPOINT"] = hub.url

Files with a suffix of weights go to LFS, as on the Hub; others are in the commit itself. A commit
is there whole or not at all. `refuse` and `damage` make it misbehave.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_a_token_for_tests"
LFS_SUFFIXES = (".safetensors", ".bin")


class UploadHub:
    """A Hub that takes uploads."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        """Name → what it was made with."""
        self.branches: dict[tuple[str, str], str] = {}
        """(repository, branch) → commit."""
        self.commits: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.refuse: list[tuple[str, int]] = []
        """(part of a path, status): the next request whose path has the part is refused."""
        self.damage = False
        """Change a byte of what goes to LFS."""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def files(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch has."""
        return self.commits.get(self.branches.get((repository, branch), ""), {})

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        for number, (part, status) in enumerate(self.refuse):
            if part in path:
                del self.refuse[number]
                return status, {"error": "refused by the test"}
        routes: list[tuple[str, Callable[..., tuple[int, Any]]]] = [
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate),
            (r"POST /api/models/(.+)/branch/(.+)", self._branch),
            (r"POST /api/models/(.+)/preupload/(.+)", self._preupload),
            (r"POST /(.+)\.git/info/lfs/objects/batch", self._batch),
            (r"PUT /lfs/([0-9a-f]{64})", self._store),
            (r"POST /api/models/(.+)/commit/(.+)", self._commit),
            (r"POST /api/models/(.+)/paths-info/(.+)", self._paths),
        ]
        for pattern, route in routes:
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return route(body, *found.groups())
        return 404, {"error": f"no {method} {path}"}

    def _create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "exists", "url": f"{self.url}/{name}"}
        self.repositories[name] = asked
        return 200, {"url": f"{self.url}/{name}"}

    def _validate(self, body: bytes) -> tuple[int, Any]:
        wrong = "base_model: 7" in json.loads(body)["content"]
        errors = [{"message": "base_model must be a string"}] if wrong else []
        return 400 if wrong else 200, {"errors": errors, "warnings": []}

    def _branch(self, body: bytes, name: str, branch: str) -> tuple[int, Any]:
        return (409, {}) if (name, branch) in self.branches else (200, {})

    def _preupload(self, body: bytes, name: str, branch: str) -> tuple[int, Any]:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": files}

    def _batch(self, body: bytes, name: str) -> tuple[int, Any]:
        objects = []
        for item in json.loads(body)["objects"]:
            if item["oid"] not in self.objects:
                item |= {"actions": {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}}
            objects.append(item)
        return 200, {"transfer": "basic", "objects": objects}

    def _store(self, body: bytes, oid: str) -> tuple[int, Any]:
        self.objects[oid] = body[:-1] + bytes([body[-1] ^ 1]) if self.damage else body
        return 200, {}

    def _commit(self, body: bytes, name: str, branch: str) -> tuple[int, Any]:
        files = dict(self.files(name, branch))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[name, branch] = oid
        page = f"{self.url}/{name}/commit/{oid}"
        return 200, {"success": True, "commitOid": oid, "commitUrl": page, "hookOutput": ""}

    def _paths(self, body: bytes, name: str, commit: str) -> tuple[int, Any]:
        asked = parse_qs(body.decode())["paths"]
        return 200, [_entry(path, self.commits[commit][path]) for path in asked]


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LFS_SUFFIXES):
        oid = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
    return entry


def _handler(hub: UploadHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            path = unquote(urlsplit(self.path).path)
            login = self.headers.get("Authorization")
            if login != f"Bearer {TOKEN}" and not path.startswith("/lfs/"):
                status, data = 401, {"error": "a login is needed"}
            else:
                status, data = hub.answer(self.command, path, body)
            answer = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_PUT = do_GET = do_POST  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, *args: object) -> None:
            """Nothing on the terminal."""

    return Handler
