"""The decoder that every family is: embedding, a stack of layers, a final norm.

Layers that have the same parameters in the same shapes are of one *kind*. A model is a period of
kinds, repeated: `config.period`, ("layer",) for most, ("linear", "linear", "linear", "full") for a
hybrid. The parameters of the layers of a kind are stacked on a leading axis, and the stack runs as
one `lax.scan` over the periods: one period is compiled, whatever their number.

- Parameters: {"layers": tree of [L, ...]} where there is one kind, else {"layers": {kind: tree of
  [layers of that kind, ...]}}.
- Adapters: {target: {"a": [n, in, r], "b": [n, r, out]}}, n the number of layers that have the
  target, in the model's order and whatever their kind. Which those are: `projections.layers_with`.
- The cache: {kind: what its mixer remembers}, with a leading axis as its parameters have.
- Numbers in which layers of one kind differ (`config.layer_attention`: a window, a rotary base) are
  arrays that are scanned beside the parameters. A number that all layers share is a constant: a
  model without windows computes no mask for them.

A kind is built of a *mixer*, which mixes tokens, such as attention, and an *mlp*; the config names
both. A new one is registered here, in `MIXERS` or `MLPS`, and in `projections`, with those of its
projections that an adapter can update. A family names its weights by kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from distill.network.attention import Attention, CachePlace, PackPlace
from distill.network.config import LayerAttention, ModelConfig, RotaryBase
from distill.network.delta_net import DeltaNet
from distill.network.experts import SparseMLP
from distill.network.gradient_memory import keep, kept_for_gradient
from distill.network.layer_kinds import LayerKind
from distill.network.layer_stack import StackedAdapter, Stacks, run_layers
from distill.network.layers import Embedding, GatedMLP, LayerAdapter, model_norm
from distill.network.packing import Segments
from distill.network.rotary import rotary_angles

NO_WINDOW = 1 << 30
"""The window of a layer that has none, where others have one: longer than any sequence."""

Angles: TypeAlias = tuple[jax.Array, jax.Array]


class MixerState(Protocol):
    """What a mixer remembers: a dataclass of arrays [n, B, ...], of n layers and B rows."""

    def grown(self, slot_count: int) -> "MixerState":
        """With room for more tokens in each row."""


class Mixer(Protocol):
    """What mixes the tokens of a sequence; built as `Mixer(config, kind, dtype, rngs=rngs)`."""

    @staticmethod
    def empty_state(
        config: ModelConfig, layer_count: int, row_count: int, slot_count: int, dtype: DTypeLike
    ) -> Any:
        """The state of `layer_count` layers and of rows that have no tokens yet."""

    def packed(self, hidden: jax.Array, place: PackPlace, adapter: LayerAdapter) -> jax.Array:
        """Map the normed hidden states [1, N, D] of a pack to the values that are added to it."""

    def cached(
        self,
        hidden: jax.Array,
        place: CachePlace,
        state: Any,
        layer: jax.Array,
        adapter: LayerAdapter,
    ) -> tuple[jax.Array, Any]:
        """The same for tokens [B, T, D] that continue rows. `layer` is the index in the state."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """What the layers remember of the tokens seen so far.

    It does not say how many tokens a row has: the caller knows that.
    """

    parts: tuple[dict[str, Any], ...]
    """Of each part of the stack, by kind: a `MixerState` of the part's layers of that kind."""


LayerParts: TypeAlias = Sequence[tuple[Stacks, StackedAdapter]]
"""The stack of layers cut into parts, in order: each has its parameters by kind, and its adapter.

Each part is one scan. `engine.layer_parts` says which cut is quick on which device.
"""


MIXERS: Mapping[str, type[Mixer]] = {"attention": Attention, "delta_net": DeltaNet}
"""By `LayerKind.mixer`."""

MLPS: Mapping[str, Any] = {"dense": GatedMLP, "sparse": SparseMLP}
"""By `LayerKind.mlp`."""


class DecoderLayer(nnx.Module):
    """A mixer and an MLP, each behind a norm and beside a residual connection."""

    def __init__(
        self,
        config: ModelConfig,
        kind: LayerKind,
        dtype: DTypeLike,
        mixer: Any,
        mlp: Any,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.mixer_name = kind.mixer
        self.has_output_norms = config.block_output_norms
        self.input_norm = model_norm(config)
        setattr(self, kind.mixer, mixer(config, kind, dtype, rngs=rngs))
        self.post_attention_norm = model_norm(config)
        self.mlp = mlp(config, kind, dtype, rngs=rngs)
        if config.block_output_norms:
            self.attention_output_norm = model_norm(config)
            self.mlp_output_norm = model_norm(config)

    def __call__(self, hidden: jax.Array, place: PackPlace, adapter: LayerAdapter) -> jax.Array:
        """Map a pack [1, N, D] to [1, N, D]."""
        return self._finish(
            hidden, self._mixer.packed(self.input_norm(hidden), place, adapter), adapter
        )

    def with_cache(
        self,
        hidden: jax.Array,
        place: CachePlace,
        state: Any,
        layer: jax.Array,
        adapter: LayerAdapter,
    ) -> tuple[jax.Array, Any]:
        """Map [B, T, D]; `layer` is the index in the stack of the state."""
        mixed, state = self._mixer.cached(self.input_norm(hidden), place, state, layer, adapter)
        return self._finish(hidden, mixed, adapter), state

    def _finish(self, hidden: jax.Array, mixed: jax.Array, adapter: LayerAdapter) -> jax.Array:
        if self.has_output_norms:
            mixed = self.attention_output_norm(mixed)
        hidden = hidden + mixed
        output = self.mlp(self.post_attention_norm(hidden), adapter)
        if self.has_output_norms:
            output = self.mlp_output_norm(output)
        result: jax.Array = hidden + output
        return result

    @property
    def _mixer(self) -> Mixer:
        mixer: Mixer = getattr(self, self.mixer_name)
        return mixer


class _LayerNumbers:
    """The numbers that layers may differ in: an array where they differ, a constant otherwise."""

    def __init__(self, config: ModelConfig, positions: jax.Array) -> None:
        each = config.layer_attention or (LayerAttention(),) * config.layer_count
        rotaries: list[RotaryBase] = list(dict.fromkeys(layer.rotary for layer in each))
        windows = {layer.window for layer in each}
        angles = [rotary_angles(config, positions, rotary) for rotary in rotaries]
        self._window = next(iter(windows)) if len(windows) == 1 else None
        self._angles: Angles = angles[0]
        self._scanned: dict[str, np.ndarray[Any, Any]] = {}
        if len(windows) > 1:
            self._scanned["window"] = np.array(
                [NO_WINDOW if layer.window is None else layer.window for layer in each], np.int32
            )
        if len(rotaries) > 1:
            cosines, sines = zip(*angles, strict=True)
            self._angles = (jnp.stack(cosines), jnp.stack(sines))
            self._scanned["rotary"] = np.array(
                [rotaries.index(layer.rotary) for layer in each], np.int32
            )

    def scanned(self, first: int, count: int) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays [count, ...] of consecutive layers; empty where all layers are alike."""
        return {name: array[first : first + count] for name, array in self._scanned.items()}

    def of_layer(self, numbers: Mapping[str, jax.Array]) -> tuple[Angles, Any]:
        """The angles and the window of a layer, from its part of the scanned arrays."""
        cosine, sine = self._angles
        if "rotary" in numbers:
            cosine, sine = cosine[numbers["rotary"]], sine[numbers["rotary"]]
        return (cosine, sine), numbers.get("window", self._window)


class Decoder(nnx.Module):
    """A whole model. Its state, split off, is the parameter tree; the rest is the graph."""

    def __init__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            dtype,
            is_scaled=config.scaled_embedding,
            rngs=rngs,
        )
        stacks = {kind.name: self._stack(kind, dtype, rngs) for kind in config.kinds}
        self.layers = nnx.Dict(stacks) if len(stacks) > 1 else next(iter(stacks.values()))
        self.norm = model_norm(config)
        if not config.tied_head:
            self.lm_head = Embedding(config.vocab_size, config.hidden_size, dtype, rngs=rngs)

    def _stack(self, kind: LayerKind, dtype: DTypeLike, rngs: nnx.Rngs) -> Any:
        mixer, mlp = MIXERS[kind.mixer], MLPS[kind.mlp]
        return nnx.vmap(
            lambda layer_rngs: DecoderLayer(self.config, kind, dtype, mixer, mlp, rngs=layer_rngs),
            in_axes=0,
            out_axes=0,
        )(rngs.split(len(self.config.layers_of(kind))))

    def __call__(
        self,
        token_ids: jax.Array,
        segments: Segments,
        adapter: StackedAdapter | None,
        *,
        remat: bool,
    ) -> jax.Array:
        """Normed hidden states [N, D] of a pack of tokens [N]."""
        config = self.config
        graphs, stacks = self._split_layers()
        numbers = _LayerNumbers(config, segments.positions)

        def step(
            hidden: jax.Array, kind: LayerKind, parameters: Any, adapter: Any, own: Any, _index: Any
        ) -> jax.Array:
            def compute(hidden: jax.Array, parameters: Any, adapter: Any, own: Any) -> jax.Array:
                layer: DecoderLayer = nnx.merge(graphs[kind.name], parameters)
                angles, window = numbers.of_layer(own)
                return layer(keep(hidden), PackPlace(segments, angles, window), adapter)

            run = kept_for_gradient(compute, kind, remat=remat)
            result: jax.Array = run(hidden, parameters, adapter, own)
            return result

        hidden = run_layers(
            config,
            config.period * (config.layer_count // len(config.period)),
            step,
            self.embed_tokens(token_ids)[None],
            stacks,
            adapter or {},
            numbers.scanned(0, config.layer_count),
        )
        normed: jax.Array = self.norm(hidden)[0]
        return normed

    def with_cache(
        self,
        token_ids: jax.Array,
        positions: jax.Array,
        cache: Cache,
        adapter: StackedAdapter | None,
        parts: LayerParts | None,
        token_counts: jax.Array | None,
    ) -> tuple[jax.Array, Cache]:
        """Normed hidden states [B, T, D] of tokens at positions [B, T], and the grown cache."""
        config = self.config
        graphs, stacks = self._split_layers()
        numbers = _LayerNumbers(config, positions)

        def step(
            carry: Any, kind: LayerKind, parameters: Any, adapter: Any, own: Any, index: Any
        ) -> Any:
            hidden, states = carry
            layer: DecoderLayer = nnx.merge(graphs[kind.name], parameters)
            place = CachePlace(positions, *numbers.of_layer(own), token_counts)
            hidden, state = layer.with_cache(hidden, place, states[kind.name], index, adapter)
            return hidden, {**states, kind.name: state}

        hidden = self.embed_tokens(token_ids)
        grown = []
        first = 0
        for (part, part_adapter), states in zip(
            parts or [(stacks, adapter or {})], cache.parts, strict=True
        ):
            count = sum(jax.tree.leaves(stack)[0].shape[0] for stack in part.values())
            hidden, part_states = run_layers(
                config,
                [config.kind_of(layer) for layer in range(first, first + count)],
                step,
                (hidden, states),
                part,
                part_adapter,
                numbers.scanned(first, count),
                with_index=True,
            )
            grown.append(part_states)
            first += count
        return self.norm(hidden), Cache(parts=tuple(grown))

    def _split_layers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Graph and stacked parameters of each kind."""
        kinds = self.config.kinds
        modules = self.layers if len(kinds) > 1 else {kinds[0].name: self.layers}
        split = {kind.name: nnx.split(modules[kind.name]) for kind in kinds}
        return (
            {name: graph for name, (graph, _) in split.items()},
            {name: state for name, (_, state) in split.items()},
        )


def stacks_by_kind(config: ModelConfig, layers: Mapping[str, Any]) -> dict[str, Any]:
    """A model's `parameters["layers"]` by kind, also where there is only one."""
    kinds = config.kinds
    return dict(layers) if len(kinds) > 1 else {kinds[0].name: layers}
