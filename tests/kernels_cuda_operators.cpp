// The operators of kernels/cuda for tensors of the CPU: the real checks, shapes and layouts, and the
// kernels' bodies run by the launcher of the tests. Built by tests/kernels_cuda_host.py.

#define WRANGAN_ON_HOST
#include "kernels_cuda_launcher.h"

#include "operators.cpp"

namespace wrangan {
namespace {

template <class Visit>
void typed(Kind kind, Visit visit) {
  HostLauncher launcher;
  with_type(kind, [&](auto type) { visit(launcher, typename decltype(type)::type{}); });
}

}  // namespace

void upfirdn2d_cuda(Kind kind, const FirShape& shape, int up, int down, const void* x, const float* scale,
                    void* out, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    upfirdn2d(launcher, shape, up, down, static_cast<const T*>(x), scale, static_cast<T*>(out));
  });
}

void add_upsampled_cuda(Kind kind, const FirShape& shape, const void* y, const void* skip, void* out,
                        cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    add_upsampled(launcher, shape, static_cast<const T*>(y), static_cast<const T*>(skip), static_cast<T*>(out));
  });
}

void fir_act_cuda(Kind kind, const FirShape& shape, const void* x, const ActPointers& end, void* out,
                  cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    const ActEnd<T> made{static_cast<T*>(out), end.scale,           end.bias, end.noise,
                         end.strength,         end.noise_per_image, end.act};
    fir_act(launcher, shape, static_cast<const T*>(x), made);
  });
}

void act_grad_cuda(Kind kind, const Maps& maps, const void* grad, const void* y, const float* scale,
                   Activation act, void* grad_x, void* grad_pre, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    act_grad(launcher, maps, static_cast<const T*>(grad), static_cast<const T*>(y), scale, act,
             static_cast<T*>(grad_x), static_cast<T*>(grad_pre));
  });
}

void fir_act_grad_cuda(Kind kind, const FirShape& shape, const void* grad, const void* y, const float* scale,
                       Activation act, void* grad_x, void* grad_pre, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    fir_act_grad(launcher, shape, static_cast<const T*>(grad), static_cast<const T*>(y), scale, act,
                 static_cast<T*>(grad_x), static_cast<T*>(grad_pre));
  });
}

void modulated_weight_cuda(Kind kind, const WeightTerms& terms, void* weight, float* demod, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    modulated_weight(launcher, terms, static_cast<decltype(zero)*>(weight), demod);
  });
}

void modulated_weight_grad_cuda(Kind kind, const WeightTerms& terms, const void* grad, const float* demod,
                                const WeightGrads& to, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    modulated_weight_grad(launcher, terms, static_cast<const decltype(zero)*>(grad), demod, to);
  });
}

}  // namespace wrangan
