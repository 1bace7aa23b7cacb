"""The newest numbers as Prometheus text, on GET /metrics of rank 0."""

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from peftjob.progress import Progress, Result

log = logging.getLogger("llm_trainer")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "peftjob_training_"
_METRICS = {
    "step": ("step", "gauge", 1, "Optimiser steps done."),
    "total_steps": ("steps", "gauge", 1, "Optimiser steps of the whole training."),
    "epoch": ("epoch", "gauge", 1, "Passes over the dataset."),
    "loss": ("loss", "gauge", 1, "Mean loss since the line before, in nats."),
    "eval_loss": ("eval_loss", "gauge", 1, "Mean loss of the held-out rows, in nats."),
    "eval_perplexity": ("eval_perplexity", "gauge", 1, "exp(eval_loss)."),
    "eval_accuracy": ("eval_accuracy", "gauge", 1, "Share of the held-out targets ranked first."),
    "learning_rate": ("learning_rate", "gauge", 1, "Of the last step."),
    "grad_norm": ("grad_norm", "gauge", 1, "Of the last step, before clipping."),
    "tokens": ("tokens_total", "counter", 1, "Tokens seen, on all ranks, without padding."),
    "tokens_per_s": ("tokens_per_second", "gauge", 1, "On all ranks, since the line before."),
    "mfu": ("mfu_ratio", "gauge", 1, "Model FLOPs a second over the device's peak."),
    "memory_mb": ("memory_peak_bytes", "gauge", 2**20, "Peak memory of rank 0."),
    "eta_s": ("eta_seconds", "gauge", 1, "Until the last step, without evaluations."),
}
"""Field of a progress record → name, type, factor, help."""


class Prometheus:
    """The newest value of each field, and the server that shows them."""

    def __init__(self, server: "_Server", labels: Mapping[str, str]) -> None:
        self._server = server
        self._labels = _labels(labels)
        self._values: dict[str, float] = {}
        server.show = self.text
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def write(self, record: Progress | Result) -> None:
        """Take the fields that the record has; the others keep their values."""
        if isinstance(record, Result):
            return
        values = ((field, getattr(record, field)) for field in _METRICS)
        # One assignment: a request on another thread sees a record whole or not at all.
        self._values = {**self._values, **{k: v for k, v in values if v is not None}}

    def resume_at(self, step: int) -> None:
        """Nothing was kept."""

    def close(self, *, failed: bool = False) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def text(self) -> str:
        """The exposition format, version 0.0.4."""
        lines, values = [], self._values
        for field, (name, kind, factor, said) in _METRICS.items():
            if field in values:
                full = f"{_PREFIX}{name}"
                lines += [
                    f"# HELP {full} {said}",
                    f"# TYPE {full} {kind}",
                    f"{full}{self._labels} {_number(values[field] * factor)}",
                ]
        return "".join(line + "\n" for line in lines)


def serve(port: int, *, host: str, labels: Mapping[str, str]) -> Prometheus | None:
    """Listen; None, and a line in the log, where the port can't be had.

    Args:
        port: 0 takes any that is free.
        host: the pod's address; empty means every one of this machine's.
    """
    try:
        server = _Server(port, host)
    except OSError as err:
        log.warning(
            "no metrics are served: port %d of %s can't be had (%s); training goes on; choose "
            "another training.metrics_port",
            port,
            host or "this machine",
            err.strerror or err,
        )
        return None
    made = Prometheus(server, labels)
    log.info("metrics at http://%s:%d/metrics", host or socket.gethostname(), made.port)
    return made


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    show: Callable[[], str]

    def __init__(self, port: int, host: str) -> None:
        if ":" in host or (not host and socket.has_dualstack_ipv6()):
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # Pods have IPv4 addresses, IPv6 ones, or both.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(BaseHTTPRequestHandler):
    server_version = "peftjob"
    sys_version = ""
    timeout = 10.0

    def do_GET(self) -> None:
        found = self.path.partition("?")[0] == "/metrics"
        assert isinstance(self.server, _Server)
        text = self.server.show() if found else "see /metrics\n"
        body = text.encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {
        name: value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def _number(value: float) -> str:
    # Python writes inf and nan in lower case, which the format takes as well.
    return repr(float(value))
