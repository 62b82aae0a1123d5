"""What can go wrong, as types.

One tree serves the workers, the service and the SDK: a class is a problem type, its HTTP status and whether the
same request may succeed later. The service writes an error as an RFC 9457 problem, the SDK raises the same class
again from it.

    OnOffError
    ├── RequestError                 the request is at fault; sending it again will not help
    │   ├── MalformedRequest         400  not JSON, or JSON no request can be made of
    │   ├── Unauthorized             401
    │   ├── UnknownModel             404  no such model or pair is served
    │   ├── UnknownStream            404  no such stream to go on with, and no seed to write it again
    │   ├── NotFound                 404  no such route or resource
    │   ├── MethodNotAllowed         405
    │   ├── NotAcceptable            406  the answer exists only in another representation
    │   ├── RequestTimeout           408  the body did not arrive in time
    │   ├── PayloadTooLarge          413
    │   ├── UnsupportedMediaType     415
    │   ├── InvalidField             422  a field is wrong: which, and why
    │   │   ├── ContextExceeded      422  prompt + tokens do not fit the smaller context of the pair
    │   │   └── LimitExceeded        422  more positions, items or bytes than the service allows
    │   ├── HeadersTooLarge          431
    │   └── Overloaded               429  the queue is full (retryable)
    ├── ServiceError                 the service is at fault
    │   ├── InternalError            500
    │   ├── WorkerUnavailable        503  the pair's worker is starting (retryable)
    │   ├── WorkerLost               503  the worker died while it held the request (retryable)
    │   ├── OutOfMemory              503  the device cannot hold this now (retryable)
    │   ├── ShuttingDown             503  (retryable)
    │   ├── DeadlineExceeded         504  (retryable)
    │   └── BadGateway               502, 504  a proxy before the service had no answer of it (SDK only, retryable)
    ├── TransportError               no HTTP answer came at all (SDK only, retryable)
    ├── StreamTruncated              a stream ended without `done` or `error` (SDK only, retryable)
    ├── RunError                     a run over a data set cannot go on (SDK and CLI only)
    │   ├── DataError                the data set cannot be read as asked: which row and column, and why
    │   ├── OutputError              the folder cannot be written
    │   ├── RunMismatch              the folder holds a run of another configuration
    │   └── RunLocked                another process writes to the folder (retryable)
    └── LoadError                    a model or pair cannot be served (operator)
        ├── ConfigurationError       the configuration is wrong
        ├── PairMismatch             the two models do not share a tokenizer
        ├── UnsupportedModel         an architecture the backend cannot run exactly
        └── MissingDependency        an optional package is not installed
"""

from __future__ import annotations

from typing import Any, ClassVar

PROBLEM_PREFIX = "urn:rl-onoff:problem:"


class OnOffError(Exception):
    """Base of every error this project raises on purpose.

    `detail` is one or two sentences for a person: what is wrong, and the limit or the fix where there is one.
    `extensions` are further members of the problem (RFC 9457, section 3.2), for example `errors` or `limit`.
    """

    slug: ClassVar[str] = "error"
    title: ClassVar[str] = "Error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        request_id: str | None = None,
        retry_after: float | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after
        self.extensions = extensions

    def problem(self) -> dict[str, Any]:
        """The error as the members of a `application/problem+json` body."""
        return {
            "type": PROBLEM_PREFIX + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "retryable": self.retryable,
            **({} if self.retry_after is None else {"retry_after": self.retry_after}),
            **self.extensions,
        }


class RequestError(OnOffError):
    slug, title, status = "bad-request", "Bad request", 400


class MalformedRequest(RequestError):
    slug, title, status = "malformed-request", "Malformed request", 400


class Unauthorized(RequestError):
    slug, title, status = "unauthorized", "No valid API key", 401


class UnknownModel(RequestError):
    slug, title, status = "unknown-model", "Unknown model", 404


class UnknownStream(RequestError):
    slug, title, status = "unknown-stream", "Unknown stream", 404


class NotFound(RequestError):
    slug, title, status = "not-found", "Not found", 404


class MethodNotAllowed(RequestError):
    slug, title, status = "method-not-allowed", "Method not allowed", 405


class NotAcceptable(RequestError):
    slug, title, status = "not-acceptable", "Not acceptable", 406


class RequestTimeout(RequestError):
    slug, title, status = "request-timeout", "Request timeout", 408


class PayloadTooLarge(RequestError):
    slug, title, status = "payload-too-large", "Payload too large", 413


class UnsupportedMediaType(RequestError):
    slug, title, status = "unsupported-media-type", "Unsupported media type", 415


class InvalidField(RequestError):
    """A field is wrong. `field` is its dotted path as in the JSON body, for example `items.0.solution`."""

    slug, title, status = "invalid-field", "Invalid field", 422

    def __init__(self, detail: str, *, field: str | None = None, **extensions: Any) -> None:
        if field is not None:
            extensions.setdefault("errors", [{"field": field, "message": detail}])
            detail = f"{field}: {detail}"
        super().__init__(detail, **extensions)


class ContextExceeded(InvalidField):
    slug, title = "context-exceeded", "Context exceeded"


class LimitExceeded(InvalidField):
    slug, title = "limit-exceeded", "Limit exceeded"


class HeadersTooLarge(RequestError):
    slug, title, status = "headers-too-large", "Request headers too large", 431


class Overloaded(RequestError):
    slug, title, status, retryable = "overloaded", "Too many requests", 429, True


class ServiceError(OnOffError):
    slug, title, status = "service-error", "Service error", 500


class InternalError(ServiceError):
    slug, title, status = "internal-error", "Internal error", 500


class WorkerUnavailable(ServiceError):
    slug, title, status, retryable = "worker-unavailable", "Worker not ready", 503, True


class WorkerLost(ServiceError):
    slug, title, status, retryable = "worker-lost", "Worker lost", 503, True


class OutOfMemory(ServiceError):
    slug, title, status, retryable = "out-of-memory", "Out of memory", 503, True


class ShuttingDown(ServiceError):
    slug, title, status, retryable = "shutting-down", "Shutting down", 503, True


class DeadlineExceeded(ServiceError):
    slug, title, status, retryable = "deadline-exceeded", "Deadline exceeded", 504, True


class BadGateway(ServiceError):
    slug, title, status, retryable = "bad-gateway", "A proxy got no answer", 502, True


class TransportError(OnOffError):
    slug, title, status, retryable = "transport-error", "No answer", 503, True


class StreamTruncated(OnOffError):
    slug, title, status, retryable = "stream-truncated", "Stream truncated", 502, True


class RunError(OnOffError):
    slug, title, status = "run-error", "The run cannot go on", 400


class DataError(RunError):
    slug, title = "data-error", "Bad data"


class OutputError(RunError):
    slug, title, status = "output-error", "The output cannot be written", 500


class RunMismatch(RunError):
    slug, title = "run-mismatch", "Another run"


class RunLocked(RunError):
    slug, title, status, retryable = "run-locked", "In use", 409, True


class LoadError(OnOffError):
    slug, title, status = "load-error", "Cannot load", 500


class ConfigurationError(LoadError):
    slug, title = "configuration-error", "Wrong configuration"


class PairMismatch(LoadError):
    slug, title = "pair-mismatch", "The models do not share a tokenizer"


class UnsupportedModel(LoadError):
    slug, title = "unsupported-model", "Unsupported model"


class MissingDependency(LoadError):
    """An optional package is missing; the message holds the command that installs it."""

    slug, title = "missing-dependency", "Missing dependency"

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingDependency:
        return cls(f"{purpose} needs {package}: pip install 'rl-onoff[{extra}]'")


def _tree(root: type[OnOffError]) -> dict[str, type[OnOffError]]:
    found = {root.slug: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


_BY_SLUG = _tree(OnOffError)


def from_problem(problem: dict[str, Any], *, retry_after: float | None = None) -> OnOffError:
    """The exception a problem stands for.

    A type this version does not know becomes a `RequestError` or `ServiceError` by its status, so an older SDK
    still raises something it can handle. `retryable` of the problem wins over the class's; `retry_after`, the header's,
    over the problem's member of that name, which is all that the error of a stream has.
    """
    known = {"type", "title", "status", "detail", "instance", "request_id", "retryable", "retry_after"}
    slug = str(problem.get("type", "")).removeprefix(PROBLEM_PREFIX)
    raw_status = problem.get("status")
    status = raw_status if type(raw_status) is int else 500
    cls = _BY_SLUG.get(slug) or (RequestError if 400 <= status < 500 else ServiceError)
    error = cls.__new__(cls)
    OnOffError.__init__(
        error,
        str(problem.get("detail") or problem.get("title") or f"HTTP {status}"),
        request_id=problem.get("request_id"),
        retry_after=_seconds(problem.get("retry_after")) if retry_after is None else retry_after,
    )
    error.extensions = {key: value for key, value in problem.items() if key not in known}
    # A problem may come from a newer service: its own status and retryability are the truth, not our class's.
    error.status = status  # type: ignore[misc]
    error.retryable = bool(problem.get("retryable", cls.retryable))  # type: ignore[misc]
    return error


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value <= 1e9 else None
