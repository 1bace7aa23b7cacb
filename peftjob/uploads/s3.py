"""s3://bucket/prefix: each file an object below the prefix, of any service that speaks S3.

Buckets know no transaction. What loaders look for first, adapter_config.json, goes last, and one
that is there already goes away first: at no time is there a mixture that can be loaded. Objects
below the prefix that are not of the folder stay.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from peftjob.errors import RegistryError, RegistryUnavailableError, UsageError
from peftjob.source_uris import holds_login

PART_BYTES = 16 << 20
"""A larger file goes in parts of this size, each tried again alone."""
LAST = "adapter_config.json"

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CHUNK_BYTES = 1 << 20
_TEMPORARY = frozenset(
    {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
)


def upload(folder: Path, names: Sequence[str], uri: str, env: Mapping[str, str]) -> str:
    """Upload the files. See peftjob.uploads; errors are those of its upload."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{uri!r} names no bucket; write s3://bucket/prefix")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    with _as_errors(uri):
        objects = _Objects(_client(env), bucket, prefix)
        missing = [name for name in names if not objects.has(folder / name, name)]
        if missing and LAST in names:
            objects.remove(LAST)
            missing = [*(name for name in missing if name != LAST), LAST]
        for name in missing:
            objects.put(folder / name, name)
            if not objects.has(folder / name, name):
                raise RegistryError(
                    f"{uri} has other bytes of {name} than were sent; upload it again"
                )
    return f"s3://{bucket}/{prefix}"


class _Objects:
    """The objects below a prefix."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def has(self, path: Path, name: str) -> bool:
        """Whether the object is there and has the bytes of the file."""
        from botocore.exceptions import ClientError

        try:
            head = self._client.head_object(**self._named(name))
        except ClientError as err:
            if _code(err) in ("404", "NoSuchKey", "NotFound"):
                return False
            raise
        if head["ContentLength"] != path.stat().st_size:
            return False
        etag = head["ETag"].strip('"')
        if head.get("ServerSideEncryption", "AES256") == "AES256" and etag in _etags(path):
            return True
        # Encrypted, or uploaded in parts of another size: the ETag says nothing of the content.
        return self._read_back(name) == _digest(path)

    def remove(self, name: str) -> None:
        """Remove the object; it need not be there."""
        self._client.delete_object(**self._named(name))

    def put(self, path: Path, name: str) -> None:
        """Upload a file, in one part or several; the service checks each against its MD5."""
        with path.open("rb") as file:
            if path.stat().st_size <= PART_BYTES:
                self._client.put_object(**self._named(name), **_body(file.read(PART_BYTES)))
            else:
                self._put_parts(file, name)

    def _put_parts(self, file: BinaryIO, name: str) -> None:
        named = self._named(name)
        upload_id = self._client.create_multipart_upload(**named)["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            while data := file.read(PART_BYTES):
                number = len(parts) + 1
                done = self._client.upload_part(
                    **named, UploadId=upload_id, PartNumber=number, **_body(data)
                )
                parts.append({"ETag": done["ETag"], "PartNumber": number})
            self._client.complete_multipart_upload(
                **named, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            # Parts of an upload that never ends cost money and are in no listing.
            self._client.abort_multipart_upload(**named, UploadId=upload_id)
            raise

    def _read_back(self, name: str) -> str:
        digest = hashlib.sha256()
        body = self._client.get_object(**self._named(name))["Body"]
        for chunk in body.iter_chunks(_CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()

    def _named(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}


def _client(env: Mapping[str, str]) -> Any:
    try:
        import botocore.session
        from botocore.config import Config
    except ImportError as err:
        raise UsageError(
            "s3:// needs botocore, which is not installed here; pip install 'peftjob[s3]'"
        ) from err
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    config = Config(
        connect_timeout=10,
        read_timeout=120,
        retries={"mode": "standard", "max_attempts": 5},
        # What is not Amazon's knows neither buckets as hosts nor checksums in trailers.
        s3={"addressing_style": "path" if endpoint else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    key, secret = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
    if endpoint and holds_login(endpoint):
        raise UsageError(
            "AWS_ENDPOINT_URL has a login in it; give http(s)://host:port, and the keys in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise UsageError(f"AWS_ENDPOINT_URL is {endpoint!r}; give http(s)://host:port")
    return botocore.session.Session().create_client(
        "s3",
        region_name=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
        endpoint_url=endpoint or None,
        aws_access_key_id=key if secret else None,
        aws_secret_access_key=secret if key else None,
        aws_session_token=(env.get("AWS_SESSION_TOKEN") or None) if key and secret else None,
        config=config,
    )


def _body(data: bytes) -> dict[str, Any]:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Body": data, "ContentMD5": base64.b64encode(md5).decode()}


def _etags(path: Path) -> tuple[str, str]:
    """The ETag of the file as one object, and in parts as `put` makes them."""
    whole = hashlib.md5(usedforsecurity=False)
    parts = []
    with path.open("rb") as file:
        while data := file.read(PART_BYTES):
            whole.update(data)
            parts.append(hashlib.md5(data, usedforsecurity=False).digest())
    joint = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return whole.hexdigest(), f"{joint}-{len(parts)}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code(err: Any) -> str:
    return str(err.response.get("Error", {}).get("Code", ""))


@contextmanager
def _as_errors(uri: str) -> Iterator[None]:
    """What botocore raises, as one line of ours."""
    try:
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
            NoCredentialsError,
        )
    except ImportError:
        yield  # _client says so
        return
    try:
        yield
    except ClientError as err:
        code, status = _code(err), err.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if code in _TEMPORARY or status >= 500 or status == 429:
            raise RegistryUnavailableError(
                f"can't upload to {uri}: the service answered {code or status}; try again later"
            ) from err
        advice = {
            "NoSuchBucket": "make the bucket first, or correct its name",
            "AccessDenied": "the keys may not write there; ask who owns the bucket",
            "403": "the keys may not read there; ask who owns the bucket",
            "InvalidAccessKeyId": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not that of AWS_ACCESS_KEY_ID",
        }.get(code, "see what the service says of this code")
        raise RegistryError(f"can't upload to {uri}: {code or status}; {advice}") from err
    except NoCredentialsError as err:
        raise RegistryError(
            f"can't upload to {uri}: no keys were found; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from err
    except (ConnectionError, HTTPClientError) as err:
        raise RegistryUnavailableError(
            f"can't upload to {uri}: no answer; see that AWS_ENDPOINT_URL is right and up"
        ) from err
    except BotoCoreError as err:
        text = " ".join(str(err).split())
        raise RegistryError(f"can't upload to {uri}: {text}; check AWS_ENDPOINT_URL") from err
