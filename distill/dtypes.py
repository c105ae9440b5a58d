"""Names of the dtypes that a model is computed in; for option parsers too, which know no JAX."""

COMPUTE_DTYPES = ("float32", "bfloat16")

AUTO_DTYPE = "auto"
"""The one in which a device is fast: bfloat16 on an accelerator, whose exact float32 products are
many times slower, and float32 on a CPU. A GPU older than Ampere has no bfloat16 products and is
better given float32."""
