"""Answers as NumPy: arrays by the names of the message, and what breaks the contract is refused."""

import copy

import numpy as np
import pytest

from client.errors import BrokenStreamError
from client.parsing import parse_batch_result, parse_completion, parse_rows
from client.results import METRIC_NAMES
from distill.tensors import encode_floats, encode_int32
from distill.v1 import scoring_pb2, training_pb2


def sequence(**fields) -> scoring_pb2.SampledSequence:
    return scoring_pb2.SampledSequence(
        **{
            "sample_index": 1,
            "token_ids": encode_int32(np.array([3, 4])),
            "log_probs": encode_floats(np.array([-1.0, -2.0])),
            "stop_reason": scoring_pb2.STOP_REASON_LENGTH,
            "text": "ab",
            **fields,
        }
    )


def test_a_completion_has_its_arrays_and_its_reason_by_name() -> None:
    completion = parse_completion(sequence())
    assert (completion.prompt_index, completion.sample_index) == (0, 1)
    assert (completion.stop_reason, completion.text) == ("length", "ab")
    assert completion.token_ids.tolist() == [3, 4]
    assert completion.log_probs.dtype == np.float32


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"token_ids": None}, r"sequence\.token_ids\.shape"),
        ({"log_probs": encode_floats(np.zeros((1, 2)))}, r"sequence\.log_probs\.shape"),
        ({"stop_reason": 0}, r"sequence\.stop_reason: StopReason has no value 0"),
    ],
)
def test_a_completion_that_breaks_the_contract_is_refused(fields, problem) -> None:
    with pytest.raises(BrokenStreamError, match=problem):
        parse_completion(sequence(**fields))


def test_rows_of_a_service_that_lack_an_array_are_refused() -> None:
    ids, values = encode_int32(np.zeros((1, 2))), encode_floats(np.zeros((1, 2)))
    given = dict.fromkeys(
        ("prompt_log_probs", "tail_log_probs", "entropies"), encode_floats(np.zeros(1))
    )
    chunk = scoring_pb2.TopKChunk(token_ids=ids, log_probs=values, **given)
    assert len(parse_rows(chunk)) == 1
    for name in given:
        lacking = scoring_pb2.TopKChunk()
        lacking.CopyFrom(chunk)
        lacking.ClearField(name)
        with pytest.raises(BrokenStreamError, match=f"rows of prompt 0 without {name}"):
            parse_rows(lacking)


def test_an_absent_metric_is_a_key_error_and_an_absent_array_none() -> None:
    message = training_pb2.BatchResult(
        loss=1.5,
        metrics=training_pb2.BatchMetrics(tail_bucket_kl=0.0),
        examples=[training_pb2.ExampleResult(loss=1.5, row_losses=encode_floats(np.ones(3)))],
    )
    result = parse_batch_result(message)
    assert result.metrics == {"tail_bucket_kl": 0.0}
    assert set(result.metrics) < set(METRIC_NAMES)
    with pytest.raises(KeyError, match="teacher_entropy"):
        result.metrics["teacher_entropy"]
    (example,) = result.examples
    assert example.log_probs is None
    assert example.row_losses.tolist() == [1, 1, 1]


def test_scalars_of_a_batch_result_are_attributes_and_nothing_else_is() -> None:
    result = parse_batch_result(training_pb2.BatchResult(loss=2.0, row_count=3), replayed=True)
    assert (result.loss, result.totals.row_count, result.replayed) == (2.0, 3, True)
    assert copy.deepcopy(result) == result
    with pytest.raises(AttributeError, match="los"):
        _ = result.los
