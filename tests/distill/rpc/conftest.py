"""A server that tests of statuses and of the guard call."""

from collections.abc import Iterator

import pytest

from tests.distill.rpc.served_methods import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
