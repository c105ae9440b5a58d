"""`distill score`: the most probable tokens of every position of a text."""

import argparse
import math

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.commands.command import (
    Command,
    add_teacher_source,
    add_timeout,
    open_teacher,
    positive_float,
    positive_int,
    some_text,
)
from distill.rows import ScoredRows
from distill.tokenizer import TextTokenizer


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", required=True, type=some_text, metavar="TEXT", help="the prompt to score"
    )
    parser.add_argument(
        "-k",
        "--top-k",
        type=positive_int,
        default=5,
        metavar="K",
        help="most probable tokens of each position (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=positive_float,
        default=1.0,
        metavar="T",
        help="divides the logits (default: %(default)s)",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="score the text as a user's turn in the model's chat template (default: as it is)",
    )
    add_teacher_source(parser)
    add_timeout(parser)


def _execute(arguments: argparse.Namespace) -> None:
    with open_teacher(arguments) as teacher:
        tokenizer = teacher.tokenizer()
        if arguments.chat:
            token_ids = tokenizer.encode_chat([{"role": "user", "content": arguments.text}])
        else:
            token_ids = tokenizer.encode(arguments.text, add_special_tokens=True)
        if len(token_ids) < 2:
            raise ValueError(
                f"--text: must have 2 or more tokens, got {len(token_ids)}: the first token has "
                "no distribution"
            )
        (scores,) = teacher.score([token_ids], arguments.top_k, temperature=arguments.temperature)
    Console().print(score_table(tokenizer, token_ids, scores))


def score_table(tokenizer: TextTokenizer, token_ids: list[int], scores: ScoredRows) -> Table:
    """A row for every scored position: its token, and what the model expected there."""
    table = Table(title="distribution of each token given those before it", title_justify="left")
    table.add_column("row", justify="right")
    table.add_column("token")
    table.add_column("log-prob", justify="right")
    table.add_column("rank", justify="right")
    table.add_column("entropy", justify="right")
    table.add_column("tail", justify="right")
    table.add_column("most probable tokens")
    table.add_row("0", _quoted(tokenizer, token_ids[0]), "", "", "", "", "", style="dim")
    for index in range(len(scores.token_ids)):
        position = scores.first_row + index
        own = token_ids[position]
        table.add_row(
            str(position),
            _quoted(tokenizer, own),
            f"{scores.prompt_log_probs[index]:.3f}",
            _rank(scores.token_ids[index].tolist(), own),
            f"{scores.entropies[index]:.2f}",
            f"{math.exp(scores.tail_log_probs[index]):.1%}",
            _alternatives(tokenizer, scores, index, own),
        )
    return table


def _quoted(tokenizer: TextTokenizer, token_id: int) -> Text:
    # Text, not str: a token may look like markup.
    return Text(repr(tokenizer.token_text(token_id)))


def _rank(support: list[int], token_id: int) -> str:
    return str(support.index(token_id) + 1) if token_id in support else f"> {len(support)}"


def _alternatives(tokenizer: TextTokenizer, scores: ScoredRows, index: int, own: int) -> Text:
    line = Text()
    probabilities = np.exp(scores.log_probs[index])
    for token_id, probability in zip(scores.token_ids[index], probabilities, strict=True):
        if line:
            line.append("  ")
        style = "bold" if token_id == own else ""
        entry = f"{tokenizer.token_text(int(token_id))!r} {probability:.1%}"
        # No-break spaces keep an entry in one piece where the column wraps.
        line.append(entry.replace(" ", "\u00a0"), style=style)
    return line


SCORE = Command(
    name="score",
    summary="the most probable tokens of every position of a text",
    description="Scores a text under a teacher and prints, for every position, the token that is "
    "there with its log-probability and rank, the entropy of the distribution in nats, the "
    "probability outside the K tokens (tail), and the K most probable tokens.",
    add_arguments=_add_arguments,
    execute=_execute,
)
