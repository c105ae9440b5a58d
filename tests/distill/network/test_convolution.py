"""The causal convolution against the sum written down."""

import jax
import numpy as np
import pytest

from distill.network.convolution import cached_convolution, packed_convolution

CHANNELS, TAPS = 5, 4


def reference(inputs, kernel, starts):
    outputs = np.zeros(inputs.shape)
    for slot in range(len(inputs)):
        for back in range(TAPS):
            if slot - back >= starts[slot]:
                outputs[slot] += np.float64(kernel[TAPS - 1 - back]) * inputs[slot - back]
    return outputs


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def starts_of(lengths):
    return np.repeat(np.cumsum([0, *lengths[:-1]]), lengths).astype(np.int32)


@pytest.mark.parametrize("lengths", [[13], [1, 2, 3, 7], [1] * 13, [3, 10]])
def test_a_token_sees_its_own_sequence_alone(lengths):
    starts = starts_of(lengths)
    inputs, kernel = draw(13, CHANNELS), draw(TAPS, CHANNELS, seed=1)
    outputs = packed_convolution(inputs, kernel, starts)
    np.testing.assert_allclose(outputs, reference(inputs, kernel, starts), atol=1e-6)


def test_gradients_equal_finite_differences():
    starts = starts_of([2, 6])
    inputs, kernel, cotangent = draw(8, CHANNELS), draw(TAPS, CHANNELS, seed=1), draw(8, CHANNELS)

    def loss(inputs, kernel):
        return (packed_convolution(inputs, kernel, starts) * cotangent).sum()

    gradients = jax.grad(loss, argnums=(0, 1))(inputs, kernel)
    # The sum is linear in each: a difference over a whole step is exact.
    for index, gradient in enumerate(gradients):
        direction = draw(*gradient.shape, seed=2)
        moved = [inputs, kernel]
        moved[index] = moved[index] + direction
        difference = (
            (reference(*moved, starts) - reference(inputs, kernel, starts)) * cotangent
        ).sum()
        np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-5)


def test_rows_read_in_pieces_with_padding_are_the_rows_read_at_once():
    lengths = np.array([9, 6])
    inputs, kernel = draw(2, 9, CHANNELS), draw(TAPS, CHANNELS, seed=1)
    state = np.zeros((2, TAPS - 1, CHANNELS), np.float32)
    pieces = []
    for begin, end in ((0, 5), (5, 6), (6, 9)):
        counts = np.clip(lengths - begin, 0, end - begin).astype(np.int32)
        piece = inputs[:, begin:end].copy()
        for row, count in enumerate(counts):
            piece[row, count:] = np.nan
        outputs, state = cached_convolution(piece, kernel, state, counts)
        pieces.append(outputs)
    joined = np.concatenate(pieces, axis=1)
    for row, length in enumerate(lengths):
        alone = reference(inputs[row, :length], kernel, np.zeros(length, np.int32))
        np.testing.assert_allclose(joined[row, :length], alone, atol=1e-6)
        np.testing.assert_array_equal(state[row], inputs[row, length - TAPS + 1 : length])
