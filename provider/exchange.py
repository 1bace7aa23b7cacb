"""One request over HTTP, to an address that was checked, and what becomes of its errors.

May import requests, urllib3, peftjob.errors and provider.{base,sessions}.
"""

from collections.abc import Mapping
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3

from peftjob.errors import SourceError
from provider.base import Unavailable, shown
from provider.sessions import Sessions

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
"""The longest silence within an answer."""


def send(
    sessions: Sessions,
    method: str,
    at: SplitResult,
    headers: Mapping[str, str],
    address: str | None,
) -> requests.Response:
    """The answer, its body not read and no redirect followed.

    Args:
        address: where to connect to; None is wherever the host's name leads.

    Raises:
        SourceError: the URL can't be used, or the host's certificate can't be verified.
        Unavailable: no answer.
    """
    url = at._replace(fragment="").geturl()
    if address is not None:
        headers = {**headers, "Host": at.netloc}

    def sent(session: requests.Session) -> requests.Response:
        return session.request(
            method,
            url,
            headers=dict(headers),
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )

    try:
        session, used = sessions.get(at.scheme, at.netloc, address)
        try:
            return sent(session)
        except requests.exceptions.ConnectionError as err:
            if not used or isinstance(err, requests.exceptions.Timeout):
                raise
            # It was kept open too long for the server: that is no failure.
            return sent(sessions.renewed(at.scheme, at.netloc, address))
    except requests.exceptions.SSLError as err:
        if "CERTIFICATE_VERIFY_FAILED" not in str(err):
            raise Unavailable(f"the TLS connection to {at.hostname} failed") from err
        raise SourceError(
            f"the certificate of {at.hostname} can't be verified; if it is your own authority's, "
            "name its bundle in REQUESTS_CA_BUNDLE"
        ) from err
    except requests.exceptions.Timeout as err:
        raise Unavailable(f"{at.netloc} did not answer in time") from err
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as err:
        raise SourceError(f"{shown(url)} is no usable address: {err}") from err
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as err:
        raise Unavailable(f"{at.netloc} can't be reached") from err


def follow(at: SplitResult, location: str) -> SplitResult:
    """Where a redirect leads. Raises SourceError where it must not."""
    target = split(urljoin(at.geturl(), location))
    if at.scheme == "https" and target.scheme == "http":
        raise SourceError(
            f"{at.hostname} redirects from https to http ({shown(target.geturl())}); refused"
        )
    return target


def split(url: str) -> SplitResult:
    """The parts of a URL. Raises SourceError where it is no address of a host, or has a login."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as err:
        raise SourceError(f"{shown(url)} is no usable address: {err}") from err
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceError(f"{shown(url)} is no http or https address of a host")
    if parts.username is not None or parts.password is not None:
        raise SourceError(f"{shown(url)} holds a login, and logins don't belong in addresses")
    return parts
