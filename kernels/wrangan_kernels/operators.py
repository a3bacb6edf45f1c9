"""The operators of the namespace `wrangan`: schemas, shapes (fake kernels) and gradients.

Importing this makes them all known. Nothing is computed, and no library is needed for it: compiled
libraries add the kernels (TORCH_LIBRARY_IMPL(wrangan, CPU or CUDA, m)). Gradients are made of the
same operators, or of PyTorch's own, so that they can be differentiated again.
"""

from wrangan_kernels import (  # noqa: F401  (they register themselves)
    convolutions,
    filters,
    modulated,
    random_weight,
    separable,
    styled_conv,
    to_rgb,
)
