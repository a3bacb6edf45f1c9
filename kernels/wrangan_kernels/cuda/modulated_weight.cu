// Launches of the weights of each image and of their gradients.
#include "launch.cuh"
#include "launch.h"

namespace wrangan {

void modulated_weight_cuda(Kind kind, const WeightTerms& terms, void* weight, float* demod, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    modulated_weight(launcher, terms, static_cast<T*>(weight), demod);
  });
}

void modulated_weight_grad_cuda(Kind kind, const WeightTerms& terms, const void* grad, const float* demod,
                                const WeightGrads& to, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    modulated_weight_grad(launcher, terms, static_cast<const T*>(grad), demod, to);
  });
}

}  // namespace wrangan
