"""The client of a service: what a teacher's and a student's have in common."""

from abc import abstractmethod
from types import TracebackType
from typing import ClassVar, Self

from client.connection import Connection, Role
from client.model import Model
from client.parsing import parse_tokenizer
from client.retry import DEFAULT_RETRY, RetryPolicy
from distill.tokenizer import TextTokenizer
from distill.v1.scoring_pb2 import ModelInfo


class ServiceClient(Model):
    """A connection to a service, whose model it describes, scores with and samples from.

    A context manager; safe to use from many threads. Every call has a deadline, of
    `timeout_seconds` unless the call is given its own, and raises `client.errors.ServiceError` on
    any status other than OK.

    A service that restarts or is busy is waited for: UNAVAILABLE, and RESOURCE_EXHAUSTED with a
    delay after which to come again, are retried until the deadline, or as `retry` says. After a few
    seconds a warning of the logger "client.retry" says what is waited for.
    """

    role: ClassVar[Role]
    """Which of the two services it is."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 300.0,
        retry: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """Open a channel to the service; it connects on the first call.

        Args:
            address: HOST:PORT.
            timeout_seconds: default deadline of a call.
            retry: how a call is repeated that the service cannot answer now.

        Raises:
            ValueError: the address is not HOST:PORT, nor one of gRPC's own targets.
        """
        self._connection = Connection(
            address, self.role, timeout_seconds=timeout_seconds, retry=retry
        )
        self._tokenizer: TextTokenizer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in progress fail."""
        self._connection.close()

    def model_info(self, *, timeout_seconds: float | None = None) -> ModelInfo:
        """Describe the model and the limits of the service, without the tokenizer."""
        return self._describe(timeout_seconds, include_tokenizer=False)

    def tokenizer(self, *, timeout_seconds: float | None = None) -> TextTokenizer:
        """The service's tokenizer, asked for once: the client needs no model files."""
        if self._tokenizer is None:
            described = self._describe(timeout_seconds, include_tokenizer=True)
            self._tokenizer = parse_tokenizer(described.tokenizer)
        return self._tokenizer

    @abstractmethod
    def _describe(self, timeout_seconds: float | None, *, include_tokenizer: bool) -> ModelInfo:
        """Ask the service for the description of its model."""
