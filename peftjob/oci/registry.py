"""A client of the OCI distribution API, for one repository.

Blobs stream in both directions in bounded memory. What is there is not uploaded again, what is
read is checked, and the tag moves last.
"""

import hashlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import BinaryIO
from urllib.parse import quote, urljoin

import requests

from peftjob.errors import NotFoundError, RegistryError
from peftjob.oci.connection import Connection
from peftjob.oci.download import blob_chunks, wrong_bytes
from peftjob.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    MAX_JSON_BYTES,
    Descriptor,
    digest_of,
    media_type_of,
    parse_object,
)
from peftjob.oci.reference import is_digest
from peftjob.oci.transport import error_detail, read_body, retrying
from peftjob.oci.upload import Upload, send_unnamed

_ACCEPT = ", ".join((MANIFEST, DOCKER_MANIFEST, INDEX, DOCKER_INDEX))
_MAX_PAGES = 100
"""Of a list of tags, a thousand on each."""


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
            plain_http: speak no TLS; a certificate for the host in a certs.d folder wins over it.
            use_proxies: follow HTTP_PROXY and its like; not for registries on this machine.
            env: where files with logins are looked up; None is this process's environment.
        """
        self._connection = Connection(
            host,
            repository,
            plain_http=plain_http,
            use_proxies=use_proxies,
            env=env,
            sleep=sleep,
        )

    def connect(self) -> Connection:
        """A connection of the caller's own, with the login of this one."""
        return self._connection.another()

    def has_blob(self, blob: Descriptor) -> bool:
        """Ask with HEAD. See Store."""
        what = f"push to {self._connection.place}"
        url = self._connection.url(f"blobs/{blob.digest}")

        def ask() -> bool:
            with self._connection.send("HEAD", url, what=what) as response:
                if response.status_code not in (200, 404):
                    raise self._connection.refusal(what, response)
                return response.status_code == 200

        return retrying(what, ask, sleep=self._connection.sleep)

    def read_blob(self, blob: Descriptor) -> Generator[bytes]:
        """Download, going on where a connection breaks. See Store."""
        received = hashlib.sha256()
        for chunk in blob_chunks(self._connection, blob):
            received.update(chunk)
            yield chunk
        if f"sha256:{received.hexdigest()}" != blob.digest:
            raise wrong_bytes(f"pull {blob.digest} from {self._connection.place}")

    def put_blob(self, blob: Descriptor, source: BinaryIO) -> None:
        """Upload in one streamed request, or in chunks. See Store."""
        Upload(self._connection, blob, source).run()

    def put_unnamed(self, chunks: Generator[bytes], digest: Callable[[], str]) -> bool:
        """Digest while sending. See Store."""
        return send_unnamed(self._connection, chunks, digest)

    def mount_blob(self, blob: Descriptor, repository: str) -> bool:
        """Let the registry take the blob over from another repository of it; whether it did.

        Where it did not, nothing has happened, and the blob has to be put: a login that may not
        read the other repository is no error, and of one that may not write here the put tells.
        """
        what = f"mount {blob.digest} of {repository} in {self._connection.place}"
        query = f"?mount={quote(blob.digest, safe='')}&from={quote(repository, safe='')}"
        url = self._connection.url("blobs/uploads/") + query

        def mount() -> bool:
            with self._connection.send("POST", url, what=what) as response:
                # 202 opens an upload instead, which the registry forgets when nothing comes.
                return response.status_code == 201

        try:
            return retrying(what, mount, sleep=self._connection.sleep)
        except RegistryError:
            return False

    def get_manifest(self, version: str) -> bytes:
        """The manifest of a tag or a digest. See Store."""
        name = f"{self._connection.place}{'@' if is_digest(version) else ':'}{version}"
        what = f"pull {name}"
        url = self._connection.url(f"manifests/{version}")

        def get() -> bytes:
            with self._connection.send(
                "GET", url, what=what, headers={"Accept": _ACCEPT}
            ) as response:
                if response.status_code == 404:
                    raise NotFoundError(
                        f"no image {name}{error_detail(response)}; check the name and the tag"
                    )
                if response.status_code != 200:
                    raise self._connection.refusal(what, response)
                body = read_body(response, MAX_JSON_BYTES)
                expected = version if is_digest(version) else _named_digest(response)
            if expected and digest_of(body) != expected:
                raise RegistryError(
                    f"the registry sent another manifest than {expected} for {name}; don't trust it"
                )
            return body

        return retrying(what, get, sleep=self._connection.sleep)

    def put_manifest(self, body: bytes, *, version: str) -> None:
        """Store the manifest; a tag moves to it. See Store."""
        joint = "@" if is_digest(version) else ":"
        what = f"push {self._connection.place}{joint}{version}"
        url = self._connection.url(f"manifests/{version}")
        headers = {"Content-Type": media_type_of(body)}

        def put() -> None:
            with self._connection.send("PUT", url, what=what, headers=headers, body=body) as reply:
                if reply.status_code != 201:
                    raise self._connection.refusal(what, reply)
                stored = _named_digest(reply)
            if stored and stored != digest_of(body):
                raise RegistryError(
                    f"the registry changed the manifest of {what.removeprefix('push ')} (it has "
                    f"{stored}); use a registry that keeps OCI manifests as they are"
                )

        retrying(what, put, sleep=self._connection.sleep)

    def tags(self) -> list[str]:
        """All tags, page by page. See Store."""
        what = f"list the tags of {self._connection.place}"
        found: list[str] = []
        url: str | None = self._connection.url("tags/list?n=1000")
        for _ in range(_MAX_PAGES):
            if url is None:
                break
            names, url = self._tags_page(url, what)
            found += names
        return sorted(set(found))

    def lists_referrers(self, digest: str) -> bool:
        """Whether the registry itself knows which manifests name another as their subject.

        Where it doesn't (the API is of 2024), who pushes such a manifest keeps an index of them
        under a tag of its own.
        """
        what = f"list what refers to {digest} in {self._connection.place}"
        url = self._connection.url(f"referrers/{digest}")

        def ask() -> bool:
            with self._connection.send("GET", url, what=what) as response:
                return response.status_code == 200

        return retrying(what, ask, sleep=self._connection.sleep)

    def close(self) -> None:
        """Give connections back."""
        self._connection.close()

    def _tags_page(self, url: str, what: str) -> tuple[list[str], str | None]:
        def get() -> tuple[list[str], str | None]:
            with self._connection.send("GET", url, what=what) as response:
                if response.status_code == 404:
                    raise NotFoundError(f"no repository {self._connection.place}; check the name")
                if response.status_code != 200:
                    raise self._connection.refusal(what, response)
                body = read_body(response, MAX_JSON_BYTES)
                more = response.links.get("next", {}).get("url")
            where = f"the list of {self._connection.place}"
            names = parse_object(body, where=where).get("tags") or []
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise RegistryError(f"{where} holds no names; ask who runs the registry")
            return names, urljoin(url, more) if more else None

        return retrying(what, get, sleep=self._connection.sleep)


def _named_digest(response: requests.Response) -> str | None:
    digest = response.headers.get("Docker-Content-Digest", "")
    return digest if is_digest(digest) else None
