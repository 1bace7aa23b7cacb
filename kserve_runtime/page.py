"""GET /: a page that puts the base model and its adapters side by side. No asset of anyone else."""

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import FastAPI, Response

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class PageRoute:
    """The page, whose own script and style are all that runs on it."""

    def __init__(self) -> None:
        self._html = files("kserve_runtime").joinpath("page.html").read_text(encoding="utf-8")
        self._headers = {
            "Content-Security-Policy": _policy(self._html),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }

    def add_to(self, app: FastAPI) -> None:
        """Add the route, in place of KServe's, which says that the server lives."""
        app.add_api_route("/", self.read, methods=["GET"], include_in_schema=False)

    def read(self) -> Response:
        return Response(self._html, media_type="text/html", headers=self._headers)


def _policy(html: str) -> str:
    hashes = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in _INLINE.findall(html)
    }
    return (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; "
        + "; ".join(f"{tag}-src 'sha256-{digest}'" for tag, digest in hashes.items())
    )
