"""A GGUF file's metadata and tensors, typed. Knows no JAX."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from distill.errors import ModelError


class GgufFile:
    """A GGUF file, mapped into memory; tensors are dequantised when asked for."""

    def __init__(self, path: Path) -> None:
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path.name} is not a readable GGUF file: {error}") from error
        self.metadata: dict[str, Any] = {
            name: field.contents() for name, field in reader.fields.items()
        }
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture: str = self.require("general.architecture")

    @property
    def tensor_names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._tensors)

    def require(self, key: str) -> Any:
        """A metadata value.

        Raises:
            ModelError: there is none.
        """
        if key not in self.metadata:
            raise ModelError(f"the GGUF metadata lack {key}")
        return self.metadata[key]

    def hyperparameter(self, name: str) -> Any:
        """The value of `{architecture}.{name}`, or None."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def require_hyperparameter(self, name: str) -> Any:
        """The value of `{architecture}.{name}`.

        Raises:
            ModelError: there is none.
        """
        return self.require(f"{self.architecture}.{name}")

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, slowest axis first as in NumPy.

        Raises:
            ModelError: there is no such tensor.
        """
        # GGUF writes the fastest axis first.
        return tuple(int(extent) for extent in reversed(self._tensor(name).shape))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor, dequantised to float32.

        Raises:
            ModelError: there is no such tensor, or its quantisation is not known.
        """
        stored = self._tensor(name)
        try:
            values = gguf.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            raise ModelError(
                f"{name}: GGUF type {stored.tensor_type.name} cannot be dequantised"
            ) from error
        return np.asarray(values, dtype=np.float32).reshape(self.shape(name))

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise ModelError(f"the GGUF file has no tensor {name}")
        return self._tensors[name]
