"""A state has names of its own in files, and comes back from them unchanged or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill.errors import CorruptDataError
from student_service.runs.run_state import RunState, from_named_arrays, named_arrays
from student_service.training.optimizer import AdamWSettings, adamw_step, as_arrays, initial_moments


def tree(value):
    return {
        "q_proj": {"a": jnp.full((2, 3), value), "b": jnp.full((3, 2), value + 1)},
        "scale": jnp.full((4,), value + 2),
    }


@pytest.fixture(scope="module")
def state():
    """After a step, so that all arrays differ, with a gradient of the next one."""
    trainable, gradient = tree(1.0), tree(0.5)
    stepped = adamw_step(
        trainable,
        initial_moments(trainable),
        gradient,
        jnp.float32(1),
        as_arrays(AdamWSettings(learning_rate=0.1)),
    )
    return RunState(
        trainable=stepped.trainable,
        optimizer_state=stepped.optimizer_state,
        gradient_sum=tree(7.0),
        weights_version="run:1",
    )


PATHS = ("q_proj/a", "q_proj/b", "scale")
SECTIONS = ("parameters", "first_moments", "second_moments", "gradient_sum")


def test_every_array_has_a_name_of_this_project(state):
    arrays = named_arrays(state)
    assert sorted(arrays) == sorted(
        ["adam_step_count", *(f"{section}/{path}" for section in SECTIONS for path in PATHS)]
    )
    adam = state.optimizer_state[0]
    for section, expected in zip(
        SECTIONS, (state.trainable, adam.mu, adam.nu, state.gradient_sum), strict=True
    ):
        np.testing.assert_array_equal(arrays[f"{section}/q_proj/b"], expected["q_proj"]["b"])
        np.testing.assert_array_equal(arrays[f"{section}/scale"], expected["scale"])
    assert arrays["adam_step_count"] == 1
    assert len({array.tobytes() for array in arrays.values()}) == len(arrays)


@pytest.mark.parametrize("has_gradient", [False, True])
def test_a_state_comes_back_as_it_was(state, has_gradient):
    arrays = named_arrays(state)
    if not has_gradient:
        arrays = {name: each for name, each in arrays.items() if "gradient_sum" not in name}
    blank = RunState(
        trainable=tree(0.0), optimizer_state=initial_moments(tree(0.0)), weights_version="run:0"
    )
    restored = from_named_arrays(blank, arrays, has_gradient=has_gradient)
    expected = {
        "trainable": state.trainable,
        "optimizer_state": state.optimizer_state,
        "gradient_sum": state.gradient_sum if has_gradient else None,
    }
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_a_restored_state_steps_as_the_saved_one_does(state):
    restored = from_named_arrays(state, named_arrays(state), has_gradient=True)
    settings = as_arrays(AdamWSettings(learning_rate=0.1, weight_decay=0.1))
    one, other = (
        adamw_step(*arrays, jnp.float32(2), settings)
        for arrays in (
            tuple(restored.values()),
            (state.trainable, state.optimizer_state, state.gradient_sum),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_array_of_the_optimizer_has_a_name():
    """Another version of optax, or another chain, must not lose a part of the state in silence."""
    trainable = tree(0.0)
    like = RunState(
        trainable=trainable,
        optimizer_state=initial_moments(trainable),
        weights_version="run:0",
    )
    leaves = len(jax.tree.leaves((like.trainable, like.optimizer_state)))
    assert len(named_arrays(like)) == leaves
    other = optax.chain(optax.scale_by_adam(), optax.trace(decay=0.9)).init(trainable)
    with pytest.raises(TypeError, match="no name in files"):
        named_arrays(RunState(trainable=trainable, optimizer_state=other, weights_version="run:0"))


DAMAGE = {
    "missing": (
        lambda arrays: arrays.pop("parameters/q_proj/a"),
        r"'parameters/q_proj/a': expected float32 \[2, 3\], found none",
    ),
    "unknown": (
        lambda arrays: arrays.update({"parameters/k_proj/a": np.zeros(2, np.float32)}),
        r"'parameters/k_proj/a': expected none, found float32 \[2\]",
    ),
    "another shape": (
        lambda arrays: arrays.update({"first_moments/scale": np.zeros((1, 4), np.float32)}),
        r"'first_moments/scale': expected float32 \[4\], found float32 \[1, 4\]",
    ),
    "another type": (
        lambda arrays: arrays.update({"second_moments/scale": np.zeros(4, np.float16)}),
        r"'second_moments/scale': expected float32 \[4\], found float16 \[4\]",
    ),
    "a count of another type": (
        lambda arrays: arrays.update({"adam_step_count": np.float32(1)}),
        r"'adam_step_count': expected int32 \[\], found float32 \[\]",
    ),
    "a part of a gradient": (
        lambda arrays: arrays.pop("gradient_sum/scale"),
        r"'gradient_sum/scale': expected float32 \[4\], found none",
    ),
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_an_array_that_is_not_as_expected_is_data_loss_and_named(state, damage):
    arrays = named_arrays(state)
    break_it, message = DAMAGE[damage]
    break_it(arrays)
    with pytest.raises(CorruptDataError, match=message):
        from_named_arrays(state, arrays, has_gradient=True)


@pytest.mark.parametrize("has_gradient", [False, True])
def test_a_gradient_is_there_exactly_where_rows_were_counted(state, has_gradient):
    arrays = named_arrays(state)
    if has_gradient:
        arrays = {name: each for name, each in arrays.items() if "gradient_sum" not in name}
    with pytest.raises(CorruptDataError, match="'gradient_sum/q_proj/a'"):
        from_named_arrays(state, arrays, has_gradient=has_gradient)
