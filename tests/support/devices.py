"""Marks of tests that hold on one kind of device."""

import pytest

from distill.kernels.profile import CPU, device_profile

only_cpu = pytest.mark.skipif(
    device_profile() != CPU,
    reason="elsewhere bfloat16 arrays stay as they are, and no layout is pinned",
)
