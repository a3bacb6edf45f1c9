// Launches of a separable layer's depthwise convolution and of the Haar transform, and of their gradients.
#include "launch.cuh"
#include "launch.h"

namespace wrangan {

void depthwise_cuda(Kind kind, const Maps& maps, const void* x, const float* taps, bool per_image, bool turned,
                    void* out, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    depthwise(launcher, maps, static_cast<const T*>(x), taps, per_image, turned, static_cast<T*>(out));
  });
}

void depthwise_taps_cuda(Kind kind, const Strips& strips, const void* x, const void* grad, float* parts,
                         cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    depthwise_taps(launcher, strips, static_cast<const T*>(x), static_cast<const T*>(grad), parts);
  });
}

void haar_up_cuda(Kind kind, const Maps& maps, const void* x, const float* style, void* out, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    haar_up(launcher, maps, static_cast<const T*>(x), style, static_cast<T*>(out));
  });
}

void haar_up_grad_cuda(Kind kind, const Strips& strips, const void* grad, const void* x, const float* style,
                       void* grad_x, float* parts, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    haar_up_grad(launcher, strips, static_cast<const T*>(grad), static_cast<const T*>(x), style,
                 static_cast<T*>(grad_x), parts);
  });
}

}  // namespace wrangan
