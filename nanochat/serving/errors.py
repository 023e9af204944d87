"""A refusal as a client sees it: OpenAI's error object, with the status that its libraries understand.

Lesson: lessons/24_serving
"""

from dataclasses import dataclass, field

from nanochat.serving.pool import FailureKind, GenerationError


@dataclass(eq=False)  # not frozen: Python sets an exception's traceback
class ApiError(Exception):
    """What went wrong, in one sentence; `param` names the field. A client's mistake is never 500 or above."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The message alone."""
        return self.message

    def body(self) -> dict[str, object]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


_FAILURES: dict[FailureKind, tuple[int, str, str | None]] = {
    "refused": (400, "invalid_request_error", None),
    "overflow": (400, "invalid_request_error", "context_length_exceeded"),
    "broken": (500, "server_error", None),
    "busy": (503, "server_error", "server_busy"),
    "stopping": (503, "server_error", "server_stopping"),
    "late": (503, "server_error", "timeout"),
}


def of_generation(failure: GenerationError) -> ApiError:
    """What the client of a job that failed is told."""
    status, kind, code = _FAILURES[failure.kind]
    return ApiError(status, failure.message, type=kind, code=code, headers=again_after(1) if status == 503 else {})


def busy(message: str) -> ApiError:
    """Too much is asked of the server as a whole."""
    return ApiError(503, message, type="server_error", code="server_busy", headers=again_after(1))


def too_many(message: str, seconds: int) -> ApiError:
    """Too much is asked by this client."""
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=again_after(seconds))


def again_after(seconds: int) -> dict[str, str]:
    """The header that says when to come again."""
    return {"Retry-After": str(seconds)}
