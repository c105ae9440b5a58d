"""The straightforward path computes what the engines do: otherwise a ratio of times is worth
nothing."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.agreement import (
    DisagreementError,
    check_close,
    check_gradients,
    check_top_k,
)
from benchmarks.cases.student import _by_name
from benchmarks.engine import LORA, OwnScorer, OwnTrainer, first_sequences, training_batch
from benchmarks.naive import NaiveScorer, NaiveTrainer, training_sequences
from benchmarks.naive_model import naive_weights
from benchmarks.workloads import scoring_load, training_load
from distill.models.loading import LoadedModel
from tests.support.suites import slow

LENGTHS = (9, 33, 21)
TOLERANCE = 1e-4


def _naive(model: LoadedModel, parameters: Any = None) -> Any:
    return naive_weights(model.config, model.parameters if parameters is None else parameters)


def test_naive_scores_are_ours(tiny_model: LoadedModel):
    load = scoring_load(LENGTHS, tiny_model.config.vocab_size, top_k=7, wanted_share=0.5)
    scores = OwnScorer(tiny_model).score(load)
    naive = NaiveScorer(tiny_model.config, _naive(tiny_model)).score(load)
    assert len(naive) == len(LENGTHS)
    for index, expected in enumerate(naive):
        rows = scores.prompt(index)
        check_top_k(
            rows["token_ids"],
            rows["log_probs"],
            expected.token_ids,
            expected.log_probs,
            TOLERANCE,
        )
        np.testing.assert_allclose(
            rows["prompt_log_probs"], expected.prompt_log_probs, atol=TOLERANCE
        )
        np.testing.assert_allclose(rows["tail_log_probs"], expected.tail_log_probs, atol=TOLERANCE)


def test_scoring_alone_gives_what_scoring_together_gives(tiny_model: LoadedModel):
    load = scoring_load(LENGTHS, tiny_model.config.vocab_size, top_k=7)
    own = OwnScorer(tiny_model)
    assert own.score_alone(load).mean_log_prob == pytest.approx(
        own.score(load).mean_log_prob, abs=1e-5
    )


@pytest.mark.parametrize(
    ("is_lora", "is_hard"),
    [
        (True, False),
        slow(False, True),
        slow(True, True),
        slow(False, False),
    ],
)
def test_naive_losses_and_gradients_are_ours(tiny_model: LoadedModel, is_lora: bool, is_hard: bool):
    load = training_load(LENGTHS, tiny_model.config.vocab_size, top_k=5, is_hard=is_hard)
    own = OwnTrainer(tiny_model, is_lora=is_lora, token_budget=64)
    trainable = own.initial_trainable()
    loss, gradients = own.forward_backward(trainable, training_batch(load))
    naive = NaiveTrainer(tiny_model.config, _naive(tiny_model), LORA.scale if is_lora else None)
    naive_loss, expected = naive.forward_backward(
        trainable if is_lora else _naive(tiny_model, trainable), load
    )
    check_close("loss", loss, naive_loss, TOLERANCE)
    if not is_lora:
        gradients = _naive(tiny_model, gradients)
    check_gradients(_by_name(gradients), _by_name(expected), 1e-3)


def test_the_first_sub_batch_has_the_shape_of_all(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("benchmarks.naive.TRAINING_TOKENS", 40)
    load = training_load(LENGTHS, tiny_model.config.vocab_size, top_k=5, is_hard=True)
    assert training_sequences(load) == 1
    naive = NaiveTrainer(tiny_model.config, _naive(tiny_model), LORA.scale)
    adapter = OwnTrainer(tiny_model, is_lora=True, token_budget=64).initial_trainable()
    first, _ = naive.forward_backward(adapter, load, first_only=True)
    compiled = naive._gradient._cache_size()
    whole, _ = naive.forward_backward(adapter, load)
    assert naive._gradient._cache_size() == compiled == 1
    parts = [naive.forward_backward(adapter, first_sequences(load, count))[0] for count in (1, 2)]
    assert first == pytest.approx(parts[0], rel=1e-5)
    assert first < parts[1] < whole


def test_a_model_with_rope_scaling_is_refused(tiny_model: LoadedModel):
    from tests.support.tiny_models import LLAMA3_ROPE

    config = dataclasses.replace(tiny_model.config, rope_scaling=LLAMA3_ROPE)
    with pytest.raises(ValueError, match="rope scaling"):
        naive_weights(config, tiny_model.parameters)


def test_a_wrong_token_is_found_where_the_order_is_settled():
    log_probs = np.array([[-1.0, -2.0, -2.00001, -4.0]], np.float32)
    ids = np.array([[5, 6, 7, 8]], np.int32)
    swapped_near = np.array([[5, 7, 6, 8]], np.int32)
    check_top_k(swapped_near, log_probs, ids, log_probs, 1e-3)
    with pytest.raises(DisagreementError, match="1 of 1 settled"):
        check_top_k(np.array([[9, 6, 7, 8]], np.int32), log_probs, ids, log_probs, 1e-3)
    with pytest.raises(DisagreementError, match="off by"):
        check_top_k(ids, log_probs - 0.01, ids, log_probs, 1e-3)


def test_not_a_number_never_agrees():
    with pytest.raises(DisagreementError):
        check_close("loss", float("nan"), 1.0, 1e-3)
    with pytest.raises(DisagreementError):
        check_gradients({"a": np.array([np.nan])}, {"a": np.array([1.0])}, 1e-3)


def test_a_missing_gradient_is_found():
    tensor = np.ones(2)
    with pytest.raises(DisagreementError, match="one side only"):
        check_gradients({"a": tensor}, {"a": tensor, "b": tensor}, 1e-3)


def test_the_programs_that_ran_are_counted_with_their_memory():
    from benchmarks.programs import watch_programs

    function = jax.jit(lambda rows: jax.numpy.sort(rows @ rows, axis=0).sum())
    rows = np.ones((64, 64), np.float32)
    with watch_programs() as programs:
        function(rows)
    assert programs.compile_count == 1
    assert programs.compile_seconds > 0
    assert programs.peak_bytes >= rows.nbytes + 4
    with watch_programs() as again:
        function(rows)
    assert (again.compile_count, again.peak_bytes) == (0, 0)
