"""The operators of the namespace `wrangan`: schemas, shapes (fake kernels) and gradients.

Importing this module registers all of them. It computes nothing and needs no library: compiled
libraries add the kernels (TORCH_LIBRARY_IMPL(wrangan, CPU or CUDA, m)). Gradients consist of the
same operators, or of PyTorch's, so that they can be differentiated again.
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
