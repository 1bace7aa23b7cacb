"""Where a bucket is asked for and with which keys.

The keys: of the request's environment, else what the usual chain of AWS finds (profiles, a service
account's role, the node's role). Without any, public buckets can be read.

May import botocore, peftjob.{errors,source_uris} and the standard library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from peftjob.errors import SourceError
from peftjob.source_uris import holds_login

DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How S3 is asked."""

    endpoint: str
    """With its scheme, without a slash at the end."""
    region: str
    by_path: bool
    """Whether a bucket is a folder of the endpoint rather than a host below it."""
    credentials: Any = field(repr=False)
    """Of botocore, which renews those that expire; None for none."""

    def address(self, bucket: str) -> str:
        """The URL of a bucket, without a slash at the end."""
        # A certificate for *.s3.… is not one for a name with dots in it.
        if self.by_path or "." in bucket:
            return f"{self.endpoint}/{bucket}"
        scheme, _, host = self.endpoint.partition("://")
        return f"{scheme}://{bucket}.{host}"

    def signed(self, method: str, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The headers with a signature of theirs, version 4."""
        if self.credentials is None:
            return headers
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        # S3 refuses what has an x-amz-* header that isn't signed. Proxies may change any other, so
        # none of those is.
        own = {name: text for name, text in headers.items() if name.lower().startswith("x-amz-")}
        signed = AWSRequest(method=method, url=url, headers={"Host": urlsplit(url).netloc, **own})
        S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(signed)
        return {**headers, **{name: str(value) for name, value in signed.headers.items()}}

    @property
    def advice(self) -> str:
        """What to do when access is denied."""
        if self.credentials is None:
            return "no keys were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return "check that the keys are right and may list and read it"


def access_of(env: Mapping[str, str]) -> Access:
    """What the environment, else AWS's own files and services, say.

    Raises:
        SourceError: botocore is missing, or a profile or an endpoint can't be used.
    """
    try:
        import anycrc  # noqa: F401  (provider.checksums needs it, and too late to say so)
        import botocore.credentials
        import botocore.exceptions
        import botocore.session
    except ImportError as err:
        raise SourceError(
            "s3:// needs botocore and anycrc, which are not both installed here; "
            "pip install 'peftjob[s3]'"
        ) from err
    try:
        session = botocore.session.Session()
        profile = session.get_scoped_config() if session.full_config else {}
        key, secret = env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")
        if key and secret:
            credentials = botocore.credentials.Credentials(
                key, secret, env.get("AWS_SESSION_TOKEN") or None
            )
        else:
            credentials = session.get_credentials()
    except botocore.exceptions.BotoCoreError as err:
        raise SourceError(f"the keys for S3 can't be found: {err}") from err
    region = (
        env.get("AWS_REGION")
        or env.get("AWS_DEFAULT_REGION")
        or profile.get("region")
        or DEFAULT_REGION
    )
    own = (
        env.get("AWS_ENDPOINT_URL_S3")
        or env.get("AWS_ENDPOINT_URL")
        or profile.get("endpoint_url")
        or ""
    ).rstrip("/")
    parts = urlsplit(own)
    if holds_login(own):
        raise SourceError(
            "AWS_ENDPOINT_URL has a login in it; give http(s)://host:port, and the keys in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if own and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise SourceError(f"AWS_ENDPOINT_URL is {own!r}; give http(s)://host:port")
    return Access(
        endpoint=own or f"https://s3.{region}.amazonaws.com{'.cn' if region[:3] == 'cn-' else ''}",
        region=region,
        by_path=bool(own),
        credentials=credentials,
    )
