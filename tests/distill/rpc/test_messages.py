"""Values reach the fields of their names, and a forgotten one is noticed."""

from types import SimpleNamespace

import numpy as np
import pytest

from distill.rpc.messages import message_from
from distill.tensors import decode_floats
from distill.v1 import training_pb2


def test_attributes_become_the_fields_of_their_names() -> None:
    info = SimpleNamespace(
        name="a", step=3, sequence_number=7, size_bytes=9, created_unix_seconds=1.5, other=0
    )
    message = message_from(training_pb2.Checkpoint, info, weights_version="v")
    assert message == training_pb2.Checkpoint(
        name="a",
        step=3,
        sequence_number=7,
        size_bytes=9,
        created_unix_seconds=1.5,
        weights_version="v",
    )


def test_a_field_that_nobody_gives_is_noticed() -> None:
    with pytest.raises(TypeError, match=r"BatchSeconds\.compute is given by nobody"):
        message_from(training_pb2.BatchSeconds, targets=1.0, queue=2.0)
    with pytest.raises(TypeError, match=r"ExampleResult\.row_losses is given by nobody"):
        message_from(training_pb2.ExampleResult, loss=1.0, log_probs=None)


def test_a_value_that_the_message_does_not_have_is_noticed() -> None:
    with pytest.raises(ValueError, match="wait"):
        message_from(training_pb2.BatchSeconds, targets=1.0, queue=2.0, compute=3.0, wait=4.0)


def test_arrays_become_tensors_and_none_is_left_out() -> None:
    example = SimpleNamespace(loss=1.0, log_probs=np.ones((2, 3), np.float32), row_losses=None)
    message = message_from(training_pb2.ExampleResult, example)
    assert decode_floats(message.log_probs, "log_probs", (2,)).shape == (2, 3)
    assert not message.HasField("row_losses")
