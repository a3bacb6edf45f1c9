// Launches of upfirdn2d and of the addition of an up-sampled image.
#include "launch.cuh"
#include "launch.h"

namespace wrangan {

void upfirdn2d_cuda(Kind kind, const FirShape& shape, int up, int down, const void* x, const float* scale,
                    void* out, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    upfirdn2d(launcher, shape, up, down, static_cast<const T*>(x), scale, static_cast<T*>(out));
  });
}

void add_upsampled_cuda(Kind kind, const FirShape& shape, const void* y, const void* skip, void* out,
                        cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    add_upsampled(launcher, shape, static_cast<const T*>(y), static_cast<const T*>(skip), static_cast<T*>(out));
  });
}

}  // namespace wrangan
