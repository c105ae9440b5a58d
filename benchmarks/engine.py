"""This project's own side: the engines as the services call them, with the services' defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import ScoringLoad, TrainingLoad
from distill.arrays import Int32Array
from distill.engine.sampler import Sampler
from distill.engine.samples import SampleJob
from distill.engine.scorer import Scorer
from distill.engine.scoring_jobs import ScoreJob
from distill.engine.weights import base_weights
from distill.models.loading import LoadedModel
from distill.network.adapters import ADAPTER_TARGETS, LoraSpec
from distill.rows import Rows
from distill.samples import Sample
from student_service.training.batch import (
    LossSettings,
    NamedTokens,
    TrainingBatch,
    TrainingExample,
)
from student_service.training.trainer import Trainer

MICRO_BATCH_TOKENS = 1024
"""The student service's default."""

LORA = LoraSpec(rank=16, alpha=32.0, target_modules=ADAPTER_TARGETS, seed=0)


@dataclass(frozen=True, kw_only=True)
class OwnScores:
    """What scoring gave, by prompt."""

    chunks: list[list[Rows]]
    """Of each prompt, in order."""

    def prompt(self, index: int) -> dict[str, NDArray[Any]]:
        """token_ids, log_probs, prompt_log_probs and tail_log_probs of a prompt's rows."""
        names = ("token_ids", "log_probs", "prompt_log_probs", "tail_log_probs")
        chunks = self.chunks[index]
        return {name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in names}

    @property
    def mean_log_prob(self) -> float:
        """Over all rows and ranks."""
        parts = [chunk.log_probs for chunks in self.chunks for chunk in chunks]
        return sum(float(part.sum(dtype=np.float64)) for part in parts) / sum(
            part.size for part in parts
        )


class OwnScorer:
    """Scores a workload."""

    def __init__(self, model: LoadedModel) -> None:
        self._scorer = Scorer(model)
        self._weights = base_weights(model)

    def score(self, load: ScoringLoad) -> OwnScores:
        """As one request."""
        return self._collect(load, [_score_jobs(load)])

    def score_alone(self, load: ScoringLoad) -> OwnScores:
        """As many requests, one after the other."""
        return self._collect(load, [[job] for job in _score_jobs(load)])

    def _collect(self, load: ScoringLoad, requests: list[list[ScoreJob]]) -> OwnScores:
        chunks: list[list[Rows]] = [[] for _ in load.prompts]
        for jobs in requests:
            for chunk in self._scorer.score(jobs, self._weights):
                chunks[chunk.prompt_index].append(chunk)
        return OwnScores(chunks=chunks)


class OwnTrainer:
    """Trains on a workload."""

    def __init__(self, model: LoadedModel, *, is_lora: bool, token_budget: int) -> None:
        self._trainer = Trainer(model, token_budget=token_budget, remat=False)
        self._lora = LORA if is_lora else None

    def initial_trainable(self) -> Any:
        """All weights, or an adapter whose `b` is random: at zero `a` would have no gradient."""
        trainable = self._trainer.initial_trainable(self._lora)
        return trainable if self._lora is None else with_random_b(trainable)

    def forward_backward(self, trainable: Any, batch: TrainingBatch) -> tuple[float, Any]:
        """The summed loss and its gradient, waited for."""
        *_, outcome = self._trainer.forward_backward(trainable, self._lora, batch)
        assert outcome is not None
        return outcome.batch.loss, waited_for(outcome.gradients)


class OwnSampler:
    """Samples a fixed number of tokens."""

    def __init__(self, model: LoadedModel) -> None:
        self._sampler = Sampler(model)
        self._weights = base_weights(model)

    def sample(self, prompts: tuple[Int32Array, ...], new_tokens: int) -> int:
        """All prompts as one request; returns the tokens generated."""
        job = SampleJob(prompts=prompts, max_tokens=new_tokens, ignore_end_tokens=True)
        pieces = self._sampler.sample(job, self._weights)
        return sum(len(piece.token_ids) for piece in pieces if isinstance(piece, Sample))


def waited_for(tree: Any) -> Any:
    """The tree, once its arrays are computed."""
    return jax.tree.map(lambda leaf: leaf.block_until_ready(), tree)


def with_random_b(adapter: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, Any]:
    """An adapter that does something, deterministic."""
    generator = np.random.default_rng(0)
    return {
        target: {
            "a": pair["a"],
            "b": jnp.asarray(0.01 * generator.standard_normal(pair["b"].shape), pair["b"].dtype),
        }
        for target, pair in adapter.items()
    }


def training_batch(load: TrainingLoad) -> TrainingBatch:
    """The workload as the student service hands it to its trainer."""
    examples = []
    for tokens, ids, values, tails in zip(
        load.sequences, load.target_ids, load.target_values, load.tail_log_probs, strict=True
    ):
        row_count = len(tokens)
        targets = (
            NamedTokens(token_ids=ids, weights=values, hard=True)
            if load.is_hard
            else Rows(
                prompt_index=0,
                first_row=1,
                token_ids=ids,
                log_probs=values,
                prompt_log_probs=np.zeros(row_count, np.float32),
                tail_log_probs=tails,
                entropies=np.zeros(row_count, np.float32),
                most_probable=True,
            )
        )
        examples.append(
            TrainingExample(
                input_tokens=tokens,
                target_offset=0,
                targets=targets,
                row_weights=np.ones(row_count, np.float32),
            )
        )
    objective = "cross_entropy" if load.is_hard else "tail_bucket"
    return TrainingBatch(loss=LossSettings(objective=objective), examples=tuple(examples))


def first_sequences(load: TrainingLoad, count: int) -> TrainingLoad:
    """A smaller workload."""
    return replace(
        load,
        sequences=load.sequences[:count],
        target_ids=load.target_ids[:count],
        target_values=load.target_values[:count],
        tail_log_probs=load.tail_log_probs[:count],
    )


def _score_jobs(load: ScoringLoad) -> list[ScoreJob]:
    return [
        ScoreJob(
            prompt_index=row,
            token_ids=prompt,
            score_from=first,
            top_k=load.top_k,
            temperature=1.0,
        )
        for row, (prompt, first) in enumerate(zip(load.prompts, load.score_from, strict=True))
    ]
