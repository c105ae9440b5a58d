"""What the table of objectives says of each is what its function does."""

import numpy as np
import pytest

from distill.ops.objectives import OBJECTIVES
from tests.distill.ops.objective_cases import (
    DISTRIBUTION_OBJECTIVES,
    gradient_of_logits,
    losses_from_logits,
    random_rows,
)


@pytest.mark.parametrize("name", DISTRIBUTION_OBJECTIVES)
def test_an_objective_depends_on_the_teachers_tail_where_the_table_says_so_and_nowhere_else(name):
    *rows, tail = random_rows(seed=1)
    other = np.full_like(tail, -7.0)
    for function in (losses_from_logits, gradient_of_logits):
        is_same = np.array_equal(function(name, *rows, tail), function(name, *rows, other))
        assert is_same != OBJECTIVES[name].reads_tail


def test_only_objectives_that_read_a_tail_need_one_above_nothing():
    needing = {name for name, spec in OBJECTIVES.items() if spec.needs_teacher_tail}
    assert needing < {name for name, spec in OBJECTIVES.items() if spec.reads_tail}
