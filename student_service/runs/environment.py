"""On what a state was trained: kept beside it as information, for any device may load it."""

from importlib.metadata import PackageNotFoundError, version

import jax

from distill.models.loading import LoadedModel
from distill.network.functional import head_kernel


def training_environment(model: LoadedModel) -> dict[str, str]:
    """The model's compute type, the device, and the versions of what computes."""
    device = jax.devices()[0]
    return {
        "compute_dtype": str(head_kernel(model.config, model.parameters).dtype),
        "platform": device.platform,
        "device_kind": device.device_kind,
        "jax_version": jax.__version__,
        "project_version": _project_version(),
    }


def _project_version() -> str:
    try:
        return version("topk-distill")
    except PackageNotFoundError:
        return "a checkout"
