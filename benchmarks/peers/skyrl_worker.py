"""Baseline (c): the JAX backend ("tx") of the PyPI package skyrl, in its own environment.

Hard targets go through its backend's own `forward_backward`. It takes no soft targets and gives no
top-K of a prompt (both are refused), so those two are put together from its model, its attention,
its LoRA layers and its logits, compiled, in the way in which its backend does the rest. It has two
adapter slots, the fewest it can, of the adapter's own rank.
"""

import sys
import typing
from typing import Any

import numpy as np
import typing_extensions

if sys.version_info < (3, 12):
    # The package declares its types in a way that Pydantic takes from Python 3.12 on.
    typing.TypedDict = typing_extensions.TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from skyrl.backends.jax import JaxBackend, JaxBackendConfig
from skyrl.tinker import types
from skyrl.tx.utils.models import load_safetensors

from benchmarks.peers.protocol import SCORE, TRAIN, Task, padded, serve

RUN = "run"


class SkyrlWorker:
    """One backend, and the task at hand."""

    def load(self, directory: str, dtype: str, threads: int) -> None:
        """Remember the model: a backend fixes the rank and the sub-batch when it is made."""
        del dtype, threads  # as the directory says, and all cores
        self._directory = directory
        self._backend: Any = None

    def prepare(self, task: Task) -> None:
        """Make the backend, load the adapter, and do the task once: that compiles everything."""
        if task.kind not in (SCORE, TRAIN):
            raise NotImplementedError(f"{task.kind} is not measured here")
        self._task = task
        if self._backend is None:
            self._backend = self._make_backend()
        if task.kind == TRAIN:
            if not task.options["is_lora"]:
                raise NotImplementedError("the backend trains adapters only")
            self._load_adapter(task)
        if task.kind == SCORE:
            self._step = self._scoring()
        elif not task.options["is_hard"]:
            self._step = self._soft_gradient()
        self.run()

    def run(self) -> float:
        """The whole task."""
        with jax.set_mesh(self._backend.mesh):
            if self._task.kind == SCORE:
                return self._score()
            return self._train_hard() if self._task.options["is_hard"] else self._train_soft()

    def _make_backend(self) -> Any:
        settings = JaxBackendConfig(max_lora_adapters=2, max_lora_rank=16, train_micro_batch_size=4)
        return JaxBackend(self._directory, settings)

    def _load_adapter(self, task: Task) -> None:
        backend, options = self._backend, task.options
        if not backend.has_model(RUN):
            spec = types.LoraConfig(rank=options["rank"], alpha=options["alpha"], seed=0)
            backend.create_model(RUN, spec)
        self._adapter_index = backend.models[RUN].adapter_index
        with jax.set_mesh(backend.mesh):
            load_safetensors(
                options["adapter"],
                backend.model_config,
                backend.model,
                skip_lora=False,
                prefix="base_model.model.",
                filter_fn=lambda path: (
                    ("lora_A" in path or "lora_B" in path) and "embed_tokens" not in path
                ),
                adapter_index=self._adapter_index,
                rank=options["rank"],
            )

    def _arrays(self, here: slice) -> tuple[Any, Any]:
        rows = self._task.sequences[here]
        longest = max(len(row) for row in self._task.sequences)
        mask = padded([np.ones(len(row), np.int32) for row in rows], longest)
        return padded(rows, longest), mask

    def _hidden(self, model: Any, token_ids: Any, mask: Any, adapters: Any) -> Any:
        output = model(token_ids, attention_mask=mask, adapter_indices=adapters, is_training=True)
        return output.last_hidden_state

    def _scoring(self) -> Any:
        top_k, graph = self._task.options["top_k"], self._backend.graphdef

        @jax.jit
        def score(lora: Any, rest: Any, token_ids: Any, mask: Any) -> Any:
            model = nnx.merge(graph, lora, rest)
            logits = model.compute_logits(self._hidden(model, token_ids, mask, None))
            # As one matrix: XLA's CPU backend has a quick top_k for that alone.
            values, ids = jax.lax.top_k(logits.reshape(-1, logits.shape[-1]), top_k)
            values, ids = (array.reshape(*token_ids.shape, top_k) for array in (values, ids))
            following = jnp.roll(token_ids, -1, axis=1)
            own = model.logits_to_logprobs(logits, following)
            return values - jax.nn.logsumexp(logits, axis=-1, keepdims=True), ids, own

        return score

    def _score(self) -> float:
        backend, task, total, count = self._backend, self._task, 0.0, 0
        for here in task.sub_batches(backend.model_config.vocab_size):
            outputs = self._step(backend.lora_params, backend.non_lora_params, *self._arrays(here))
            values, _, _ = (np.asarray(output) for output in outputs)
            for index, row in enumerate(range(here.start, here.stop)):
                wanted = slice(task.options["score_from"][row] - 1, len(task.sequences[row]) - 1)
                total += float(values[index, wanted].sum(dtype=np.float64))
                count += values[index, wanted].size
        return total / count

    def _train_hard(self) -> float:
        task = self._task
        count = len(task.sequences)
        batch = types.PreparedModelPassBatch(
            all_model_inputs=[
                types.ModelInput(chunks=[types.EncodedTextChunk(tokens=row.tolist())])
                for row in task.sequences
            ],
            all_targets=[ids[:, 0].tolist() for ids in task.targets["ids"]],
            all_token_weights=[values[:, 0].tolist() for values in task.targets["values"]],
            all_sampling_logprobs=[[]] * count,
            all_advantages=[[]] * count,
            all_values=[[]] * count,
            all_returns=[[]] * count,
            all_model_ids=[RUN] * count,
            all_loss_fns=["cross_entropy"] * count,
            all_loss_fn_configs=[None] * count,
            request_batch_slices=[("request", RUN, 0, count)],
        )
        (result,) = self._backend.forward_backward(batch).values()
        _wait(self._backend.accumulated_grads)
        losses = [output["elementwise_loss"]["data"] for output in result.loss_fn_outputs]
        return float(np.mean(np.concatenate(losses)))

    def _soft_gradient(self) -> Any:
        graph = self._backend.graphdef

        def loss(lora: Any, rest: Any, batch: dict[str, Any]) -> Any:
            model = nnx.merge(graph, lora, rest)
            token_ids, mask = batch["token_ids"], batch["mask"]
            adapters = jnp.full(token_ids.shape[:1], batch["adapter_index"])
            hidden = self._hidden(model, token_ids, mask, adapters)
            logits = model.compute_logits(hidden, adapters)
            log_probs = jnp.take_along_axis(
                jax.nn.log_softmax(logits, axis=-1), batch["ids"], axis=-1
            )
            support = jnp.minimum(jax.nn.logsumexp(log_probs, axis=-1), -1e-7)
            tail_gap = batch["tails"] - jnp.log(-jnp.expm1(support))
            losses = (jnp.exp(batch["values"]) * (batch["values"] - log_probs)).sum(-1)
            return ((losses + jnp.exp(batch["tails"]) * tail_gap) * mask).sum()

        return jax.jit(jax.value_and_grad(loss))

    def _train_soft(self) -> float:
        backend, task, total = self._backend, self._task, 0.0
        gradients = None
        for here in task.sub_batches(backend.model_config.vocab_size):
            token_ids, mask = self._arrays(here)
            length = token_ids.shape[1]
            batch = {name: padded(rows[here], length) for name, rows in task.targets.items()}
            batch |= {"token_ids": token_ids, "mask": mask, "adapter_index": self._adapter_index}
            value, more = self._step(backend.lora_params, backend.non_lora_params, batch)
            gradients = more if gradients is None else jax.tree.map(jnp.add, gradients, more)
            total += float(value)
        _wait(gradients)
        return total / sum(len(row) for row in task.sequences)


def _wait(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        leaf.block_until_ready()


if __name__ == "__main__":
    serve(SkyrlWorker)
