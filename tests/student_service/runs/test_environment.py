"""What a checkpoint says of the place where it was trained."""

import jax

from student_service.runs.environment import training_environment


def test_the_environment_is_that_of_the_model_and_of_the_process(in_process):
    assert training_environment(in_process.model) == {
        "compute_dtype": "float32",
        "platform": jax.devices()[0].platform,
        "device_kind": jax.devices()[0].device_kind,
        "jax_version": jax.__version__,
        "project_version": "0.1.0",
    }
