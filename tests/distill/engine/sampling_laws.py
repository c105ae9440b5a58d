"""What the tests of sampling share."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distill.engine.samples import SampleJob
from distill.samples import Sample

DenseLogits = Callable[..., NDArray[np.float64]]

RunJob = Callable[[SampleJob], dict[tuple[int, int], Sample]]
"""All samples of a job by (prompt index, sample index)."""


def assert_same(first: Sample, second: Sample) -> None:
    np.testing.assert_array_equal(first.token_ids, second.token_ids)
    np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-5)
