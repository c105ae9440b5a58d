"""Marks of tests that hold on one kind of device."""

import pytest

from distill.kernels.profile import is_on_cpu

only_cpu = pytest.mark.skipif(
    not is_on_cpu(), reason="elsewhere bfloat16 arrays stay as they are, and no layout is pinned"
)
