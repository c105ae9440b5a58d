"""The array types that signatures name. NumPy alone."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Int32Array = NDArray[np.int32]
BoolArray = NDArray[np.bool_]
