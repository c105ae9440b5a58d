"""Names of the dtypes that a model is computed in. Knows no JAX: option parsers use them too."""

COMPUTE_DTYPES = ("float32", "bfloat16")

AUTO_DTYPE = "auto"
"""The dtype in which a device is fast: float32 on a CPU, and bfloat16 on an accelerator, whose
exact float32 products are many times slower. A GPU older than Ampere has no bfloat16 products and
is better given float32."""
