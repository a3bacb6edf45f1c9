// Launches of FIR + scale + noise + bias + leaky ReLU + gain + clamp, and of its backward pass.
#include "launch.cuh"
#include "launch.h"

namespace wrangan {

void fir_act_cuda(Kind kind, const FirShape& shape, const void* x, const ActPointers& end, void* out,
                  cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    const ActEnd<T> typed{static_cast<T*>(out), end.scale,           end.bias, end.noise,
                          end.strength,         end.noise_per_image, end.act};
    fir_act(launcher, shape, static_cast<const T*>(x), typed);
  });
}

void act_grad_cuda(Kind kind, const Maps& maps, const void* grad, const void* y, const float* scale,
                   Activation act, void* grad_x, void* grad_pre, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    act_grad(launcher, maps, static_cast<const T*>(grad), static_cast<const T*>(y), scale, act,
             static_cast<T*>(grad_x), static_cast<T*>(grad_pre));
  });
}

void fir_act_grad_cuda(Kind kind, const FirShape& shape, const void* grad, const void* y, const float* scale,
                       Activation act, void* grad_x, void* grad_pre, cudaStream_t stream) {
  with_type(kind, [&](auto type) {
    using T = typename decltype(type)::type;
    CudaLauncher launcher{stream};
    fir_act_grad(launcher, shape, static_cast<const T*>(grad), static_cast<const T*>(y), scale, act,
                 static_cast<T*>(grad_x), static_cast<T*>(grad_pre));
  });
}

}  // namespace wrangan
