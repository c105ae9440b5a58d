"""The compiled functions of sampling, shared by all jobs of a model."""

from distill.engine.compiled import CompiledFunctions
from distill.engine.decoding import (
    decode_block,
    grow_cache,
    place_prompt,
    prompt_row,
    read_prompts,
    take_rows,
)


class DecodingFunctions:
    """The functions of `decoding`, compiled. Those that fill a cache write it in place."""

    def __init__(self) -> None:
        self._compiled = CompiledFunctions()
        add = self._compiled.add
        self.read_prompts = add(read_prompts, static_argnames="graph", donate_argnames="cache")
        self.prompt_row = add(prompt_row)
        self.place_prompt = add(place_prompt, donate_argnames="cache")
        self.take_rows = add(take_rows)
        self.grow_cache = add(grow_cache, static_argnames="slot_count")
        self.decode_block = add(
            decode_block, static_argnames=("graph", "config"), donate_argnames="cache"
        )

    @property
    def compile_count(self) -> int:
        """Shapes compiled so far."""
        return self._compiled.compile_count
