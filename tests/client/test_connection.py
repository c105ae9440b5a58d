"""A connection ends when it is told to, whatever became of its calls."""

import subprocess
import sys

INTERRUPTED = """
import grpc
from client import connection

connection.CLOSE_SECONDS = 0.2
opened = connection.Connection("127.0.0.1:1", timeout_seconds=5)

def interrupt(_state):
    raise KeyboardInterrupt

grpc._channel._run_channel_spin_thread = interrupt
try:
    opened.channel.unary_stream("/test.Echo/Answer")(b"", timeout=5)
except KeyboardInterrupt:
    opened.close()
    print("closed")
"""
"""Ctrl-C between the birth of a call and the start of the thread that ends it: gRPC's own `close`
then waits for ever."""


def test_ctrl_c_inside_grpc_keeps_neither_the_close_nor_the_process_waiting() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")
