"""The families' modules by name. What needs no JAX is in `hf_families`."""

from distill.errors import ModelError
from distill.models.decoder import Decoder
from distill.models.gemma3.modeling import Gemma3
from distill.models.llama.modeling import Llama
from distill.models.mistral.modeling import Mistral
from distill.models.qwen2.modeling import Qwen2
from distill.models.qwen3.modeling import Qwen3
from distill.models.qwen3_5.modeling import Qwen35
from distill.models.qwen3_5_moe.modeling import Qwen35Moe
from distill.models.qwen3_moe.modeling import Qwen3Moe
from distill.models.smollm3.modeling import SmolLM3

MODEL_CLASSES: dict[str, type[Decoder]] = {
    "llama": Llama,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3Moe,
    "mistral": Mistral,
    "smollm3": SmolLM3,
    "gemma3_text": Gemma3,
    "qwen3_5_text": Qwen35,
    "qwen3_5_moe_text": Qwen35Moe,
}


def model_class(family: str) -> type[Decoder]:
    """The NNX module of a family.

    Raises:
        ModelError: there is none of that name.
    """
    if family not in MODEL_CLASSES:
        known = ", ".join(MODEL_CLASSES)
        raise ModelError(f"model family {family!r} is not supported; supported: {known}")
    return MODEL_CLASSES[family]
