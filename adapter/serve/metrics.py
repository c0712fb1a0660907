"""What the gateway counts, for Prometheus. No label is a caller's to choose."""

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from adapter.serve.exchange import Exchange
from adapter.serve.gate import Engine, Gate, told_of

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)


class Metrics:
    """One gateway's. `observe` is told each exchange."""

    def __init__(self, gate: Gate):
        self.registry = CollectorRegistry()
        common = {"registry": self.registry}
        self._requests = Counter("corrector_requests", "Requests by what became of them.",
                                 ["protocol", "mode", "action", "why"], **common)
        self._seconds = Histogram("corrector_seconds", "Of a request, in all, until the API's last byte, and the adapter's.",
                                  ["part"], buckets=SECONDS, **common)
        self._tokens = Counter("corrector_api_tokens", "Tokens as the API counts them.", ["kind"], **common)
        self._cost = Counter("corrector_api_dollars", "What the API takes, where its price is known.", **common)
        self.observer_errors = Counter("corrector_observer_errors", "Exchanges that an observer failed on.", **common)
        self.in_flight = Gauge("corrector_requests_in_flight", "Requests that are being answered.", **common)
        engine = gate.engine
        for name, about, read in (
            ("corrector_engine_up", "1 while the adapter's engine answers.", lambda: engine.up),
            ("corrector_engine_starts", "How often it was started.", lambda: engine.starts),
            ("corrector_lora_swaps", "How often a LoRA was put in place.", lambda: engine.swaps),
            ("corrector_lora_step", "Of the LoRA that answers.", lambda: engine.step),
            ("corrector_threshold", "Least confidence of an override; NaN: none.", lambda: _told(engine, "threshold")),
            ("corrector_temperature", "Of the calibration; NaN: there is none.", lambda: _told(engine, "temperature")),
            ("corrector_reload_refused", "1 where the last reload took no other LoRA.", lambda: bool(engine.refused)),
            ("corrector_adapter_in_flight", "Questions that the adapter has in hand.", lambda: gate.asking)):
            Gauge(name, about, **common).set_function(read)

    def observe(self, done: Exchange) -> None:
        """Count one."""
        self._requests.labels(done.protocol, done.mode, done.action, done.why).inc()
        for part, seconds in (("all", done.seconds), ("api", done.api_seconds), ("adapter", done.adapter_seconds)):
            if seconds is not None:
                self._seconds.labels(part).observe(seconds)
        for kind, tokens in (("input", done.input_tokens), ("output", done.output_tokens)):
            self._tokens.labels(kind).inc(tokens or 0)
        self._cost.inc(done.cost or 0)

    def page(self) -> tuple[bytes, str]:
        """What Prometheus reads, and its content type."""
        return prometheus.generate_latest(self.registry), prometheus.CONTENT_TYPE_LATEST


def _told(engine: Engine, name: str) -> float:
    value = told_of(engine.calibration)[name]
    return float("nan") if value is None else value
