"""What the server counts, in Prometheus' format. No label holds anything that a client wrote."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from imprompt.serving.engine.loop import Engine, StepReport
from imprompt.serving.engine.ray_engine import RayEngine
from imprompt.serving.jobs import OVER, ServedJob

_SECONDS: tuple[float | int, ...] = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_STEP_SECONDS = (0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers by route and status", "route", "code")
        self.rejected = self._counter("rejected", "Requests refused before any work, by reason", "reason")
        self.jobs = self._counter("jobs", "Jobs that are over, by their state", "status")
        self.images = self._counter("images", "Pictures that were made", "model")
        self.canceled = self._counter("canceled", "Jobs that were canceled, by what they were doing", "stage")
        self.events = self._counter(
            "cache_events", "Models loaded; image encodings found or computed", "event"
        )
        self.queue_wait = self._histogram("queue_wait_seconds", "Time of a job in the queue", _SECONDS)
        self.job_time = self._histogram("job_seconds", "Time of a job from request to end", _SECONDS)
        self.step_time = Histogram(
            "imprompt_step_seconds",
            "Time of one U-Net call",
            ("model", "bucket"),
            buckets=_STEP_SECONDS,
            registry=self.registry,
        )
        self.occupancy = self._histogram(
            "batch_occupancy", "Share of the rows of a U-Net call that somebody needs", (0.25, 0.5, 0.75, 1)
        )

    def watch(self, engine: Engine | RayEngine, restarts: int) -> None:
        """Report the state of an engine at every reading, and how many servers were killed before it."""
        gauges = {
            "queue_depth": ("Pictures that wait", lambda: engine.waiting),
            "running": ("Pictures that are computed", lambda: engine.running),
            "queue_seconds": ("Estimated seconds of work", engine.estimate_seconds),
            "engine_failures": ("How often the engine failed and began anew", lambda: engine.failures),
            "loaded_models": ("Models in memory", lambda: len(engine.store.names)),
            "worker_restarts": ("How often the server was killed and started again", lambda: restarts),
            "memory_bytes": ("Resident memory of the process", read_memory),
        }
        if isinstance(engine, RayEngine):
            gauges["replicas"] = ("Engines that run on the Ray cluster", lambda: engine.replicas)
        for name, (text, read) in gauges.items():
            Gauge(f"imprompt_{name}", text, registry=self.registry).set_function(read)

    def observe_step(self, report: StepReport) -> None:
        """Count one U-Net call."""
        self.step_time.labels(report.model, str(report.bucket)).observe(report.seconds)
        self.occupancy.observe(report.rows / report.bucket)

    def observe_job(self, job: ServedJob) -> None:
        """Count a job that is over."""
        assert job.status in OVER
        self.jobs.labels(job.status).inc()
        self.images.labels(job.plan.served.name).inc(len(job.pictures))
        if job.status == "canceled":
            self.canceled.labels("running" if job.started else "queued").inc()
        if job.started:
            self.queue_wait.observe(job.started - job.created)
        self.job_time.observe(job.ended - job.created)

    def render(self) -> bytes:
        """Return everything as text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"imprompt_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float | int, ...]) -> Histogram:
        return Histogram(f"imprompt_{name}", text, buckets=buckets, registry=self.registry)


def read_memory() -> float:
    """Return the bytes of this process in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * 4096.0
