"""GET /metrics, in place of KServe's, which knows the process alone."""

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from kserve_runtime.metrics import Metrics


class MetricRoutes:
    """Handlers of the routes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def add_to(self, app: FastAPI) -> None:
        app.add_api_route("/metrics", self.read, methods=["GET"], tags=["Metrics"])

    def read(self) -> Response:
        return Response(self._metrics.to_text(), media_type=CONTENT_TYPE_LATEST)
