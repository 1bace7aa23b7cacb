"""A container's readiness probe."""

import http.client
import time

from peftjob.local.store import Body


class Probe:
    """httpGet readiness on loopback; a container without one is ready when it runs."""

    def __init__(self, container: Body) -> None:
        probe = container.get("readinessProbe") or {}
        get = probe.get("httpGet") or {}
        self._path = get.get("path")
        named = {
            entry.get("name"): entry["containerPort"] for entry in container.get("ports") or ()
        }
        port = get.get("port") or 0
        self._port = int(named.get(port, port))
        self._period_s = float(probe.get("periodSeconds") or 10)
        self._timeout_s = float(probe.get("timeoutSeconds") or 1)
        self._next = 0.0
        self._ready = self._path is None

    def succeeds(self) -> bool:
        """Whether the last probe did; asks again where the period has passed."""
        if self._path is None or time.monotonic() < self._next:
            return self._ready
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
        try:
            connection.request("GET", self._path)
            self._ready = 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            self._ready = False
        finally:
            connection.close()
        # Until it is ready the answer is wanted soon; a period later is early enough after that.
        self._next = time.monotonic() + (self._period_s if self._ready else 0.2)
        return self._ready
