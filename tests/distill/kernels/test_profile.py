"""The profile of a device is made once, and the default device's is that of its platform."""

import jax
import pytest

from distill.kernels.profile import ACCELERATOR, CPU, device_profile, profile_of


def test_the_profile_is_that_of_the_default_device_and_made_once():
    assert device_profile() == profile_of(jax.devices()[0].platform)
    assert device_profile() is device_profile()


@pytest.mark.parametrize(
    ("platform", "profile"), [("cpu", CPU), ("gpu", ACCELERATOR), ("tpu", ACCELERATOR)]
)
def test_every_platform_but_a_cpu_is_an_accelerator(platform, profile):
    assert profile_of(platform) == profile


def test_what_each_kind_of_device_is_given_stays_as_measured():
    budgets = [
        (
            profile.scoring_token_budget,
            profile.shared_prefix_token_budget,
            profile.prompt_piece_tokens,
            profile.auto_compute_dtype,
        )
        for profile in (CPU, ACCELERATOR)
    ]
    assert budgets == [(1024, 2048, 1024, "float32"), (16384, 16384, 16384, "bfloat16")]
