"""A client of the OCI distribution API, for one repository.

Blobs stream in both directions in bounded memory. What is there is not uploaded again, what is
read is checked, and the tag moves last. A login goes to the registry's own origin and to its token
server, and to no address that either redirects to.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import requests

from peftjob.errors import NotFoundError, RegistryError
from peftjob.oci.auth import authorization, find_login, parse_challenge, refused
from peftjob.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    MAX_JSON_BYTES,
    Descriptor,
    digest_of,
)
from peftjob.oci.reference import is_digest
from peftjob.oci.store import CHUNK_BYTES
from peftjob.oci.transport import (
    TransientError,
    error_detail,
    exchange,
    new_session,
    read_body,
    reason_of,
    retrying,
)

_MAX_REDIRECTS = 5
_ACCEPT = ", ".join((MANIFEST, DOCKER_MANIFEST, INDEX, DOCKER_INDEX))
_API_HOSTS = {"docker.io": "registry-1.docker.io"}


class Registry:
    """One repository of a registry."""

    def __init__(
        self,
        host: str,
        repository: str,
        *,
        plain_http: bool,
        use_proxies: bool = True,
        env: Mapping[str, str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent yet.

        Args:
            use_proxies: follow HTTP_PROXY and its like; not for registries on this machine.
            env: where files with logins are looked up; None is this process's environment.
        """
        scheme = "http" if plain_http else "https"
        self._host = host
        self._repository = repository
        self._base = f"{scheme}://{_API_HOSTS.get(host, host)}/v2/{repository}/"
        self._plain_http = plain_http
        self._env = os.environ if env is None else env
        self._sleep = sleep
        self._session = new_session(use_environment=use_proxies)
        self._authorization: str | None = None

    def has_blob(self, blob: Descriptor) -> bool:
        """Ask with HEAD. See Store."""
        what = f"look for {blob.digest} in {self._host}/{self._repository}"

        def ask() -> bool:
            with self._exchange("HEAD", self._blob_url(blob), what=what) as response:
                if response.status_code not in (200, 404):
                    raise self._refusal(what, response)
                return response.status_code == 200

        return retrying(what, ask, sleep=self._sleep)

    def open_blob(self, blob: Descriptor, *, scratch: Path) -> BinaryIO:
        """Download into an unnamed file in `scratch`. See Store."""
        what = f"pull {blob.digest} from {self._host}/{self._repository}"
        file: BinaryIO = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  the caller closes it

        def download() -> None:
            file.seek(0)
            file.truncate()
            with self._exchange("GET", self._blob_url(blob), what=what) as response:
                if response.status_code != 200:
                    raise RegistryError(f"can't {what}: the registry lost it; push the image again")
                _receive(response, file, blob, what)

        try:
            retrying(what, download, sleep=self._sleep)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file

    def put_blob(self, blob: Descriptor, source: Path) -> None:
        """Upload in one streamed request. See Store."""
        what = f"push {blob.digest} to {self._host}/{self._repository}"

        def upload() -> None:
            with self._exchange("POST", self._base + "blobs/uploads/", what=what) as response:
                if response.status_code != 202:
                    raise self._refusal(what, response)
                place = self._next_url(response, what)
            # The place may have a query of the registry's own, which has to stay.
            place += f"{'&' if urlsplit(place).query else '?'}digest={quote(blob.digest, safe='')}"
            with source.open("rb") as file:
                headers = {"Content-Type": "application/octet-stream"}
                with self._exchange("PUT", place, what=what, headers=headers, body=file) as done:
                    if done.status_code != 201:
                        raise self._refusal(what, done)

        retrying(what, upload, sleep=self._sleep)

    def get_manifest(self, version: str) -> bytes:
        """The manifest of a tag or a digest. See Store."""
        joint = "@" if is_digest(version) else ":"
        name = f"{self._host}/{self._repository}{joint}{version}"

        def get() -> bytes:
            with self._exchange(
                "GET", self._manifest_url(version), what=f"pull {name}", headers={"Accept": _ACCEPT}
            ) as response:
                if response.status_code == 404:
                    raise NotFoundError(
                        f"no image {name}{error_detail(response)}; check the name and the tag"
                    )
                if response.status_code != 200:
                    raise self._refusal(f"pull {name}", response)
                body = read_body(response, MAX_JSON_BYTES)
                expected = version if is_digest(version) else _named_digest(response)
            if expected and digest_of(body) != expected:
                raise RegistryError(
                    f"the registry sent another manifest than {expected} for {name}; don't trust it"
                )
            return body

        return retrying(f"pull {name}", get, sleep=self._sleep)

    def put_manifest(self, body: bytes, *, tag: str) -> None:
        """Let the tag point to the manifest. See Store."""
        what = f"push {self._host}/{self._repository}:{tag}"

        def put() -> None:
            with self._exchange(
                "PUT",
                self._manifest_url(tag),
                what=what,
                headers={"Content-Type": MANIFEST},
                body=body,
            ) as response:
                if response.status_code != 201:
                    raise self._refusal(what, response)
                stored = _named_digest(response)
            if stored and stored != digest_of(body):
                raise RegistryError(
                    f"the registry changed the manifest of {what.removeprefix('push ')} (it has "
                    f"{stored}); use a registry that keeps OCI manifests as they are"
                )

        retrying(what, put, sleep=self._sleep)

    def close(self) -> None:
        """Give connections back."""
        self._session.close()

    def _blob_url(self, blob: Descriptor) -> str:
        return f"{self._base}blobs/{blob.digest}"

    def _manifest_url(self, version: str) -> str:
        return f"{self._base}manifests/{version}"

    def _exchange(
        self,
        method: str,
        url: str,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO | None = None,
    ) -> requests.Response:
        """Send one request; answer one 401, and follow redirects of what only reads.

        401 that the login does not answer and 403 are raised at once; other answers are returned.
        """
        login_tried = False
        redirects = 0
        while True:
            sent = dict(headers or {})
            ours = _origin(url) == _origin(self._base)
            if ours and self._authorization:
                sent["Authorization"] = self._authorization
            if body is not None and not isinstance(body, bytes):
                body.seek(0)
            response = exchange(self._session, method, url, what=what, headers=sent, body=body)
            status = response.status_code
            if status == 401 and ours and not login_tried:
                response.close()
                # A token is for some actions and some minutes; any request may need a new one.
                self._authorization = self._answer(response.headers.get("WWW-Authenticate", ""))
                login_tried = True
            elif status in (301, 302, 303, 307, 308) and method in ("GET", "HEAD"):
                redirects += 1
                if redirects > _MAX_REDIRECTS:
                    raise RegistryError(f"can't {what}: redirected in a circle; check the name")
                url = self._next_url(response, what)
                response.close()
            elif status in (401, 403):
                raise self._refusal(what, response)
            else:
                return response

    def _answer(self, header: str) -> str:
        challenge = parse_challenge(header)
        if challenge is None:
            raise RegistryError(
                f"{self._host} asks for a login of a kind that is neither Basic nor Bearer; use a "
                "registry that takes one of them"
            )
        login = find_login(self._host, self._repository, self._env)
        answer = authorization(
            challenge,
            login,
            session=self._session,
            host=self._host,
            repository=self._repository,
            allow_http=self._plain_http,
        )
        if answer is None:
            raise RegistryError(refused(self._host, login))
        return answer

    def _next_url(self, response: requests.Response, what: str) -> str:
        """Where the answer sends us to; never from https to something that can be overheard."""
        url = urljoin(response.url, response.headers.get("Location", ""))
        if urlsplit(url).scheme not in ("https", "http" if self._plain_http else "https"):
            raise RegistryError(
                f"can't {what}: the registry sends on to an address that is not https; correct the "
                "address that it is configured with"
            )
        return url

    def _refusal(self, what: str, response: requests.Response) -> RegistryError:
        """The one line for an answer that no attempt will change."""
        status = response.status_code
        detail = error_detail(response)
        if status == 401:
            login = find_login(self._host, self._repository, self._env)
            return RegistryError(f"can't {what}: {refused(self._host, login)}")
        if status == 403:
            return RegistryError(
                f"can't {what}: the login has no right to{detail}; ask who runs the registry for it"
            )
        if status == 404:
            return RegistryError(
                f"can't {what}: no such repository{detail}; make it first, or correct the name"
            )
        return RegistryError(f"can't {what}: the registry answered status {status}{detail}")


def _receive(response: requests.Response, file: BinaryIO, blob: Descriptor, what: str) -> None:
    """Write the body to the file and check it; what is too short is worth another attempt."""
    received = hashlib.sha256()
    size_bytes = 0
    try:
        for chunk in response.iter_content(CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > blob.size_bytes:
                break
            received.update(chunk)
            file.write(chunk)
    except requests.RequestException as err:
        raise TransientError(reason_of(err)) from err
    if size_bytes < blob.size_bytes:
        raise TransientError(f"it ended after {size_bytes} of {blob.size_bytes} bytes")
    if size_bytes > blob.size_bytes or f"sha256:{received.hexdigest()}" != blob.digest:
        raise RegistryError(
            f"can't {what}: the registry sent other bytes than that digest; don't trust it"
        )


def _named_digest(response: requests.Response) -> str | None:
    digest = response.headers.get("Docker-Content-Digest", "")
    return digest if is_digest(digest) else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
