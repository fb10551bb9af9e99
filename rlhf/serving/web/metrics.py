"""The numbers of the service for Prometheus, in a registry of their own: requests, and what the engine reports."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

# Routes with a row of their own. All others, which anybody may invent, share one.
ROUTES = (
    "/health",
    "/login",
    "/metrics",
    "/v1/chat/completions",
    "/v1/classify",
    "/v1/completions",
    "/v1/models",
    "/v1/score",
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class EngineCollector:
    """Reads the engine's numbers when Prometheus asks for them. report: name -> number, or a non-number to skip."""

    def __init__(self, report: Callable[[], dict]):
        self.report = report

    def collect(self) -> Iterator[Metric]:
        for name, value in self.report().items():
            if isinstance(value, int | float):
                description = f"The engine's {name.replace('_', ' ')}"
                yield GaugeMetricFamily(f"rlhf_engine_{name}", description, value=value)

    def describe(self) -> list[Metric]:
        return []  # known only once the engine reports


class ServiceMetrics:
    """report: of the engine, see EngineCollector."""

    def __init__(self, report: Callable[[], dict]):
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(report))
        self.requests = Counter(
            "rlhf_http_requests",
            "Finished requests",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "rlhf_http_request_seconds",
            "Time to the last byte",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.open = Gauge("rlhf_http_requests_open", "Requests under way", registry=self.registry)

    def count(self, method: str, path: str, status: int, seconds: float) -> None:
        route = route_of(path)
        # A client may invent methods.
        if method not in METHODS:
            method = "other"
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def route_of(path: str) -> str:
    """One of a fixed set of names, so that no client can make new rows."""
    if path in ROUTES:
        return path
    if path.startswith("/v1/models/"):
        return "/v1/models"
    if path.startswith("/gradio_api/"):
        return "gradio"
    return "page" if path == "/" else "other"
