"""What the server has done, as Prometheus reads it and as JSON.

Lesson: lessons/24_serving
"""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from nanochat.serving.answers import Answer
from nanochat.serving.pool import Pool

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one application, in a registry of its own."""

    def __init__(self, pool: Pool):
        self._pool = pool
        self._started = time.monotonic()
        self._registry = CollectorRegistry()
        of = self._registry
        self._requests = Counter("nanochat_requests", "Requests answered", ["path", "status"], registry=of)
        self._seconds = Histogram("nanochat_request_seconds", "Whole requests", ["path"], buckets=SECONDS, registry=of)
        self._first = Histogram("nanochat_first_token_seconds", "Until a token came", buckets=SECONDS, registry=of)
        self._read = Counter("nanochat_prompt_tokens", "Tokens read", registry=of)
        self._written = Counter("nanochat_completion_tokens", "Tokens written", registry=of)
        of.register(_PoolCollector(pool))

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; paths that are not ours are one."""
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """An answer has begun."""
        self._first.observe(seconds)

    def answered(self, answer: Answer) -> None:
        """An answer has ended."""
        self._read.inc(answer.usage["prompt_tokens"])
        self._written.inc(answer.usage["completion_tokens"])

    def text(self) -> bytes:
        """Prometheus' format."""
        return generate_latest(self._registry)

    def stats(self) -> dict[str, object]:
        """The pool and each of its workers."""
        workers = [
            {
                "index": worker.index,
                "ready": worker.ready,
                "restarts": worker.restarts,
                "running": worker.running,
                "max_rows": worker.max_rows,
                "facts": dict(worker.facts),
                "engine": dict(worker.stats),
            }
            for worker in self._pool.workers
        ]
        return {
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "draining": self._pool.draining,
            "running": self._pool.running,
            "waiting": self._pool.waiting,
            "workers": workers,
        }


class _PoolCollector(Collector):
    """What is read off the pool when it is asked for."""

    def __init__(self, pool: Pool):
        self._pool = pool

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Gauges."""
        pool = self._pool
        yield GaugeMetricFamily("nanochat_waiting_prompts", "Prompts in the queue", value=pool.waiting)
        by_worker: dict[str, tuple[str, list[float]]] = {
            "running_samples": ("Samples being written", [worker.running for worker in pool.workers]),
            "worker_ready": ("Whether it takes requests", [int(worker.ready) for worker in pool.workers]),
            "worker_restarts": ("How often it died", [worker.restarts for worker in pool.workers]),
        }
        for name in sorted({name for worker in pool.workers for name in worker.stats}):
            values = [worker.stats.get(name) for worker in pool.workers]
            numbers = [float(value) if isinstance(value, int | float) else 0.0 for value in values]
            by_worker[f"engine_{name}"] = (f"The engine's {name}", numbers)
        for name, (text, numbers) in by_worker.items():
            family = GaugeMetricFamily(f"nanochat_{name}", text, labels=["worker"])
            for worker, number in zip(pool.workers, numbers, strict=True):
                family.add_metric([str(worker.index)], number)
            yield family
