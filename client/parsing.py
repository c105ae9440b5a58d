"""Messages to NumPy. A malformed tensor is the service's fault, not the caller's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from google.protobuf.message import Message

from client.errors import BrokenStreamError
from client.results import BatchResult, ExampleResult, Sample
from distill.enum_names import enum_name
from distill.errors import InvalidFieldError
from distill.rows import ScoredRows, as_scored
from distill.samples import StopReason
from distill.tensors import decode_floats, decode_int32
from distill.tokenizer import TextTokenizer
from distill.v1 import scoring_pb2, tensor_pb2, training_pb2
from distill.wire import rows_from_message

Parsed = TypeVar("Parsed", Sample, ExampleResult)


@contextmanager
def _service_arrays() -> Iterator[None]:
    try:
        yield
    except (InvalidFieldError, ValueError) as error:
        raise BrokenStreamError(f"the service sent {error}") from None


def parse_tokenizer(message: scoring_pb2.Tokenizer) -> TextTokenizer:
    """The tokenizer that a service sent."""
    return TextTokenizer(
        tokenizer_json=message.tokenizer_json,
        chat_template=message.chat_template,
        bos_token=message.bos_token,
        eos_token=message.eos_token,
        end_token_ids=tuple(message.end_token_ids),
    )


@_service_arrays()
def parse_rows(message: scoring_pb2.TopKChunk) -> ScoredRows:
    """The distributions of consecutive rows.

    Raises:
        BrokenStreamError: the arrays do not describe the same rows, or one is absent.
    """
    return as_scored(rows_from_message(message, "chunk"))


def parse_completion(message: scoring_pb2.SampledSequence) -> Sample:
    """A finished sample.

    Raises:
        BrokenStreamError: an array of a wrong rank, or no stop reason of the contract.
    """
    try:
        stop_reason = StopReason(enum_name(scoring_pb2.StopReason, message.stop_reason))
    except ValueError as error:
        raise BrokenStreamError(f"sequence.stop_reason: {error}") from None
    return _parse(message, Sample, "sequence", stop_reason=stop_reason)


def parse_batch_result(message: training_pb2.BatchResult, *, replayed: bool = False) -> BatchResult:
    """The result of a batch.

    Raises:
        BrokenStreamError: an array of a wrong rank.
    """
    examples = tuple(_parse(each, ExampleResult, "example") for each in message.examples)
    # Their arrays are copied: kept twice, log-probs of large batches would fill the memory.
    del message.examples[:]
    return BatchResult(
        totals=message,
        metrics={descriptor.name: value for descriptor, value in message.metrics.ListFields()},
        examples=examples,
        replayed=replayed,
    )


@_service_arrays()
def _parse(message: Message, result_type: type[Parsed], field: str, **known: object) -> Parsed:
    """A dataclass with the names of a message's fields, whose tensors are arrays or None.

    Args:
        message: what came.
        result_type: its fields with an array say in their metadata which ranks it may have, and
            whether it may be absent.
        field: the message's name, for the error.
        known: fields that are not to be read from the message.
    """
    values: dict[str, Any] = dict(known)
    for each in fields(result_type):
        if each.name in values:
            continue
        value = getattr(message, each.name)
        if each.metadata.get("optional") and not message.HasField(each.name):
            value = None
        elif each.metadata:
            is_float = isinstance(value, tensor_pb2.FloatTensor)
            decode: Any = decode_floats if is_float else decode_int32
            value = decode(value, f"{field}.{each.name}", each.metadata["ranks"])
        values[each.name] = value
    return result_type(**values)
