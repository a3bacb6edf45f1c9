// The operators of kernels/wrangan_kernels/cuda for tensors of the CPU: the real checks, shapes and layouts, and the
// kernels' bodies run by the launcher of the tests. Built by tests/kernels_cuda_host.py.

#define WRANGAN_ON_HOST
#include "kernels_cuda_launcher.h"

#include "operators.cpp"
#include "separable_operators.cpp"

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

void depthwise_cuda(Kind kind, const Maps& maps, const void* x, const float* taps, bool per_image, bool turned,
                    void* out, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    depthwise(launcher, maps, static_cast<const T*>(x), taps, per_image, turned, static_cast<T*>(out));
  });
}

void depthwise_taps_cuda(Kind kind, const Strips& strips, const void* x, const void* grad, float* parts,
                         cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    depthwise_taps(launcher, strips, static_cast<const T*>(x), static_cast<const T*>(grad), parts);
  });
}

void haar_up_cuda(Kind kind, const Maps& maps, const void* x, const float* style, void* out, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    haar_up(launcher, maps, static_cast<const T*>(x), style, static_cast<T*>(out));
  });
}

void haar_up_grad_cuda(Kind kind, const Strips& strips, const void* grad, const void* x, const float* style,
                       void* grad_x, float* parts, cudaStream_t) {
  typed(kind, [&](auto& launcher, auto zero) {
    using T = decltype(zero);
    haar_up_grad(launcher, strips, static_cast<const T*>(grad), static_cast<const T*>(x), style,
                 static_cast<T*>(grad_x), parts);
  });
}

}  // namespace wrangan
