"""The commands of `distill`, one module each."""

from client.commands.command import Command
from client.commands.convert import CONVERT
from client.commands.demo import DEMO
from client.commands.demo_compress import DEMO_COMPRESS
from client.commands.info import INFO
from client.commands.models import MODELS
from client.commands.prune import PRUNE
from client.commands.runs import CHECKPOINTS, RUNS
from client.commands.sample import SAMPLE
from client.commands.score import SCORE

COMMANDS: tuple[Command, ...] = (
    DEMO,
    DEMO_COMPRESS,
    SCORE,
    SAMPLE,
    INFO,
    RUNS,
    CHECKPOINTS,
    MODELS,
    CONVERT,
    PRUNE,
)
"""In the order of `distill --help`."""
