"""Metrics of the requests of runs to models."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from nanoagent.telemetry.metrics.labels import OTHER_MODEL

if TYPE_CHECKING:
    from nanoagent.telemetry.metrics.definitions import Definitions
    from nanoagent.telemetry.metrics.labels import ModelLabels


class ModelMetrics:
    """Counts requests to models, and the tokens that they used.

    Args:
        define: Defines the metrics.
        labels: The `model` labels that are in use.
    """

    def __init__(self, define: Definitions, labels: ModelLabels) -> None:
        self._labels = labels
        tokens = define.counter(
            "worker_llm_tokens_total", "Tokens used by runs, by kind (prompt, completion)", "model", "kind"
        )
        # A separate metric, so that a sum over worker_llm_tokens_total counts each token once.
        token_parts = define.counter(
            "worker_llm_token_parts_total",
            "Tokens in worker_llm_tokens_total that are cached prompt tokens, or reasoning tokens",
            *("model", "part"),
        )
        requests = define.counter(
            "worker_llm_requests_total",
            "Model requests of runs, by outcome (ok, error, cut, refused)",
            *("model", "outcome"),
        )
        seconds = define.histogram(
            "worker_llm_request_seconds", "Duration of a model request that was forwarded", "model"
        )
        self._tokens_by = cache(tokens.labels)
        self._token_parts_by = cache(token_parts.labels)
        self._requests_by = cache(requests.labels)
        self._seconds_by = cache(seconds.labels)

    def request(self, model: str | None, outcome: str, seconds: float | None = None) -> None:
        """Count a request of a run to the gateway, at the end of the request.

        Args:
            model: The model, see `ModelLabels.label`; None if it did not answer and its name is not a label.
            outcome: A constant of the gateway: ok, error, cut or refused.
            seconds: The duration; None if the request was not forwarded.
        """
        label = self._label(model)
        self._requests_by(label, outcome).inc()
        if seconds is not None:
            self._seconds_by(label).observe(seconds)

    def tokens(
        self, model: str | None, prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0
    ) -> None:
        """Count the tokens of a request.

        Args:
            model: As for `request`.
            prompt: Tokens of the prompt.
            completion: Tokens of the answer.
            cached: Tokens of the prompt that came from the model server's cache.
            reasoning: Reasoning tokens of the answer.
        """
        label = self._label(model)
        self._tokens_by(label, "prompt").inc(prompt)
        self._tokens_by(label, "completion").inc(completion)
        for part, count in (("cached", cached), ("reasoning", reasoning)):
            if count:
                self._token_parts_by(label, part).inc(count)

    def _label(self, model: str | None) -> str:
        return OTHER_MODEL if model is None else self._labels.label(model)
