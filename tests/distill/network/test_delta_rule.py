"""The delta rule in chunks against the rule written down token by token in NumPy, float64."""

from functools import partial

import jax
import numpy as np
import pytest

from distill.network.delta_rule import (
    DeltaTokens,
    chunked_delta_rule,
    recurrent_delta_rule,
    step_delta_rule,
)

ROWS, GROUPS, HEADS, KEY_WIDTH, VALUE_WIDTH = 2, 2, 6, 5, 7

RULES = {
    "chunked": jax.jit(partial(chunked_delta_rule, chunk_tokens=8)),
    "recurrent": jax.jit(recurrent_delta_rule),
}


def gradients(rule):
    def loss(tokens, state, starts, cotangents):
        results = rule(tokens, state, starts)
        pairs = zip(results, cotangents, strict=True)
        return sum((result * cotangent).sum() for result, cotangent in pairs)

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


GRADIENTS = {name: gradients(rule) for name, rule in RULES.items()}


def reference(tokens, state, starts=None):
    """The definition, head by head."""
    queries, keys, values, log_decays, rates = (np.asarray(array, np.float64) for array in tokens)
    row_count, length, head_count = values.shape[:3]
    final = np.array(state, np.float64)
    outputs = np.zeros(values.shape)
    for row in range(row_count):
        for head in range(head_count):
            group = head // (head_count // keys.shape[2])
            memory = final[row, head]
            for t in range(length):
                if starts is not None and starts[t] == t:
                    memory = np.zeros_like(memory)
                key = keys[row, t, group]
                memory = memory * np.exp(log_decays[row, t, head])
                correction = rates[row, t, head] * (values[row, t, head] - memory.T @ key)
                memory = memory + np.outer(key, correction)
                query = queries[row, t, group] / np.sqrt(keys.shape[3])
                outputs[row, t, head] = memory.T @ query
            final[row, head] = memory
    return outputs, final


def draw(length):
    """Tokens, a state and cotangents of the results; decays from none to nearly all."""
    random = np.random.default_rng(length)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    def unit(*shape):
        array = normal(*shape)
        return array / np.linalg.norm(array, axis=-1, keepdims=True)

    tokens = DeltaTokens(
        queries=unit(ROWS, length, GROUPS, KEY_WIDTH),
        keys=unit(ROWS, length, GROUPS, KEY_WIDTH),
        values=normal(ROWS, length, HEADS, VALUE_WIDTH),
        log_decays=-np.exp(2 * normal(ROWS, length, HEADS) - 1),
        rates=1 / (1 + np.exp(2 * normal(ROWS, length, HEADS))),
    )
    state = normal(ROWS, HEADS, KEY_WIDTH, VALUE_WIDTH)
    return tokens, state, (normal(*tokens.values.shape), normal(*state.shape))


def starts_of(lengths):
    return np.repeat(np.cumsum([0, *lengths[:-1]]), lengths).astype(np.int32)


CONTINUED = np.full(35, -1, np.int32)

STARTS = {
    "a row that continues": CONTINUED,
    "one sequence": starts_of([35]),
    "boundaries at chunks": starts_of([8, 16, 8, 3]),
    "boundaries inside chunks": starts_of([3, 2, 11, 1, 13, 5]),
    "sequences of one token": starts_of([1] * 35),
    "a long one between short ones": starts_of([1, 2, 30, 1, 1]),
    "a row that ends, then others": np.concatenate([CONTINUED[:9], 9 + starts_of([4, 22])]),
    "less than a chunk": starts_of([2, 3]),
}


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("rule", RULES)
def test_outputs_and_states_equal_the_definition(rule, name):
    starts = STARTS[name]
    tokens, state, _ = draw(len(starts))
    results = RULES[rule](tokens, state, starts)
    for mine, theirs in zip(results, reference(tokens, state, starts), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=3e-6)


@pytest.mark.parametrize("name", STARTS)
def test_gradients_in_chunks_equal_those_token_by_token(name):
    starts = STARTS[name]
    tokens, state, cotangents = draw(len(starts))
    ours, theirs = (GRADIENTS[rule](tokens, state, starts, cotangents) for rule in RULES)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5, rtol=1e-4)


def test_a_row_read_in_pieces_is_the_row_read_at_once():
    tokens, state, _ = draw(35)
    whole, final = RULES["chunked"](tokens, state, CONTINUED)
    pieces = []
    for begin, end in ((0, 17), (17, 18), (18, 35)):
        piece = DeltaTokens(*(array[:, begin:end] for array in tokens))
        outputs, state = RULES["chunked"](piece, state, CONTINUED[begin:end])
        pieces.append(outputs)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=3e-6)
    np.testing.assert_allclose(state, final, atol=3e-6)


def test_nothing_passes_from_one_sequence_of_a_pack_to_another():
    tokens, state, _ = draw(35)
    starts = starts_of([10, 25])
    packed, _ = RULES["chunked"](tokens, state, starts)
    louder = tokens.values.copy()
    louder[:, :10] *= 1e15
    spoiled, _ = RULES["chunked"](tokens._replace(values=louder), state, starts)
    np.testing.assert_array_equal(packed[:, 10:], spoiled[:, 10:])


def test_a_token_without_rate_and_decay_leaves_the_state():
    tokens, state, _ = draw(35)
    is_real = (np.arange(35) < 17)[:, None]
    padded = tokens._replace(log_decays=tokens.log_decays * is_real, rates=tokens.rates * is_real)
    real = DeltaTokens(*(array[:, :17] for array in tokens))
    _, after_real = RULES["chunked"](real, state, CONTINUED[:17])
    _, after_padding = RULES["chunked"](padded, state, CONTINUED)
    np.testing.assert_allclose(after_padding, after_real, atol=1e-6)


def test_equal_keys_at_full_rate_are_solved_to_the_last_digits():
    # The powers of this system have entries up to 10^18 although its inverse has none above 1.
    tokens, state, _ = draw(64)
    tokens = tokens._replace(
        keys=np.broadcast_to(tokens.keys[:, :1], tokens.keys.shape),
        log_decays=0 * tokens.log_decays,
        rates=np.ones_like(tokens.rates),
    )
    results = jax.jit(partial(chunked_delta_rule, chunk_tokens=64))(tokens, state)
    for mine, theirs in zip(results, reference(tokens, state), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-6)


def test_strong_decays_cost_later_weak_ones_no_digits():
    tokens, state, _ = draw(64)
    decays = np.where(np.arange(64) % 16 < 8, -300, -1e-3).astype(np.float32)
    tokens = tokens._replace(log_decays=np.broadcast_to(decays[:, None], (ROWS, 64, HEADS)))
    results = jax.jit(partial(chunked_delta_rule, chunk_tokens=64))(tokens, state)
    for mine, theirs in zip(results, reference(tokens, state), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=3e-6)


def test_one_step_is_one_token():
    tokens, state, _ = draw(1)
    results = step_delta_rule(tokens, state)
    for mine, theirs in zip(results, reference(tokens, state), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)


def test_gradients_equal_finite_differences():
    starts = STARTS["a row that ends, then others"]
    tokens, state, cotangents = draw(len(starts))
    analytic, analytic_state = GRADIENTS["chunked"](tokens, state, starts, cotangents)
    fields = [np.asarray(array, np.float64) for array in (*tokens, state)]

    def loss(values):
        results = reference(DeltaTokens(*values[:5]), values[5], starts)
        return sum((a * b).sum() for a, b in zip(results, cotangents, strict=True))

    random = np.random.default_rng(3)
    for index, gradient in enumerate((*analytic, analytic_state)):
        direction = random.normal(size=fields[index].shape)
        step = 1e-5
        ends = []
        for sign in (1, -1):
            moved = list(fields)
            moved[index] = fields[index] + sign * step * direction
            ends.append(loss(moved))
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), expected, rtol=3e-5)


def test_memory_for_the_gradient_grows_with_the_tokens():
    tokens, state, _ = draw(4096)

    def loss(tokens, state):
        return chunked_delta_rule(tokens, state)[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(tokens, state).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < 10 * sum(array.nbytes for array in tokens)
    # Of the [C, C] matrices of all chunks and heads, several each, not one is kept.
    assert temporaries < 4096 * 64 * ROWS * HEADS * 4
