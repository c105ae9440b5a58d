"""Every way in which a training request can be wrong: the one table of them.

The tests of the student's edge go through all of it, without a server. Those of the services send
a few rows, to show that a refusal reaches the client and changes nothing. Hazards of scoring and
sampling stand beside the tests of those messages, in tests/distill/rpc.
"""

from tests.support.hazards.chunks import CHUNK_HAZARDS
from tests.support.hazards.examples import EXAMPLE_HAZARDS
from tests.support.hazards.hazard import GOOD_REQUESTS, MAX_TOP_K, VOCAB, Hazard, Request
from tests.support.hazards.headers import HEADER_HAZARDS

HAZARDS: dict[str, Hazard] = EXAMPLE_HAZARDS | HEADER_HAZARDS | CHUNK_HAZARDS
"""What is wrong → the request and its refusal."""

__all__ = ["GOOD_REQUESTS", "HAZARDS", "MAX_TOP_K", "VOCAB", "Hazard", "Request"]
