"""What the tests of the trainer compare with: the dense loss, one example at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from distill.network.adapters import scale_adapter
from distill.network.functional import head_weights, hidden_states
from distill.ops.logits import head_logits


def moved_trainable(trainer, lora):
    """Away from the initial point, where half of a LoRA's gradient is zero."""
    trainable = trainer.initial_trainable(lora)
    if lora is None:
        return trainable
    return jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        trainable,
    )


def run(trainer, trainable, lora, batch):
    """The outcome of a forward and a backward pass, after its last piece."""
    *_, outcome = trainer.forward_backward(trainable, lora, batch)
    return outcome


def dense_loss(model, lora, batch):
    """The loss of the batch as a function of the trainable, one example at a time, no chunks."""

    def loss(trainable):
        parameters, adapter = trainable, None
        if lora is not None:
            parameters, adapter = model.parameters, scale_adapter(trainable, lora.scale)
        total = 0.0
        for example in batch.examples:
            targets = example.targets
            tokens = jnp.asarray(example.input_tokens)[None]
            hidden = hidden_states(model.graph, parameters, tokens, adapter=adapter)[0]
            rows = hidden[example.target_offset : example.target_offset + len(example.token_ids)]
            head = head_weights(model.config, parameters, adapter)
            logits = head_logits(rows, head) / batch.loss.temperature
            dense = jax.nn.log_softmax(logits)
            log_q = jnp.take_along_axis(dense, jnp.asarray(example.token_ids), axis=-1)
            if batch.loss.objective == "cross_entropy":
                losses = -(example.values * log_q).sum(-1)
            else:
                p, p_tail = jnp.exp(targets.log_probs), jnp.exp(targets.tail_log_probs)
                q_tail = 1.0 - jnp.exp(log_q).sum(-1)
                losses = (p * (targets.log_probs - log_q)).sum(-1)
                losses += p_tail * (targets.tail_log_probs - jnp.log(q_tail))
            total += (losses * example.row_weights).sum() / (
                (example.row_weights != 0).sum() if batch.loss.sequence_mean else 1
            )
        return total

    return loss


def assert_trees_close(ours, theirs, relative=1e-4):
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        difference = jnp.linalg.norm((mine - other).ravel())
        assert difference <= relative * (jnp.linalg.norm(other.ravel()) + 1e-6)


def assert_trees_equal(ours, theirs):
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(mine, other)
