import re

import pytest

from distill.rpc.address import channel_target, split_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("localhost:1", "localhost", 1),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("teacher.internal:65535", "teacher.internal", 65535),
        ("[::1]:50051", "::1", 50051),
    ],
)
def test_a_host_and_a_port_are_split_and_are_a_target(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)
    assert channel_target(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "localhost",
        "",
        "127.0.0.1:",
        "host:name",
        "::1",
        "[::1]",
        "http://a:1",
        ":1",
        "a:65536",
        "a:1\n",
    ],
)
def test_what_grpc_would_read_otherwise_is_refused(address: str) -> None:
    message = re.escape(f"must be HOST:PORT with a port up to 65535, got {address!r}")
    for read in (split_address, channel_target):
        with pytest.raises(ValueError, match=message):
            read(address)


@pytest.mark.parametrize(
    "address",
    ["dns:///teacher", "unix:/run/t.sock", "ipv4:10.0.0.1:1,10.0.0.2:1", "xds:///teacher"],
)
def test_the_targets_of_grpc_pass_as_they_are_and_are_no_host_and_port(address: str) -> None:
    assert channel_target(address) == address
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        split_address(address)
