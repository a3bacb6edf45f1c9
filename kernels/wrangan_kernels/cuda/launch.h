// The kernels as operators.cpp calls them: pointers to device memory, the type in `kind`, a stream.
// Nothing is checked here, allocated or waited for.
#pragma once

#if !defined(WRANGAN_ON_HOST)
#include <cuda_runtime_api.h>
#endif

#include "dispatch.cuh"

namespace wrangan {

// Of the activation's end: what is null is left out.
struct ActPointers {
  const float *scale, *bias, *noise, *strength;
  bool noise_per_image;
  Activation act;
};

void upfirdn2d_cuda(Kind kind, const FirShape& shape, int up, int down, const void* x, const float* scale,
                    void* out, cudaStream_t stream);
void add_upsampled_cuda(Kind kind, const FirShape& shape, const void* y, const void* skip, void* out,
                        cudaStream_t stream);
void fir_act_cuda(Kind kind, const FirShape& shape, const void* x, const ActPointers& end, void* out,
                  cudaStream_t stream);
// grad_x may be null.
void act_grad_cuda(Kind kind, const Maps& maps, const void* grad, const void* y, const float* scale,
                   Activation act, void* grad_x, void* grad_pre, cudaStream_t stream);
// Where one_pass(shape).
void fir_act_grad_cuda(Kind kind, const FirShape& shape, const void* grad, const void* y, const float* scale,
                       Activation act, void* grad_x, void* grad_pre, cudaStream_t stream);
void modulated_weight_cuda(Kind kind, const WeightTerms& terms, void* weight, float* demod, cudaStream_t stream);
void modulated_weight_grad_cuda(Kind kind, const WeightTerms& terms, const void* grad, const float* demod,
                                const WeightGrads& to, cudaStream_t stream);
// channels_last; taps (1 or B, C, 3, 3).
void depthwise_cuda(Kind kind, const Maps& maps, const void* x, const float* taps, bool per_image, bool turned,
                    void* out, cudaStream_t stream);
void depthwise_taps_cuda(Kind kind, const Strips& strips, const void* x, const void* grad, float* parts,
                         cudaStream_t stream);
void haar_up_cuda(Kind kind, const Maps& maps, const void* x, const float* style, void* out, cudaStream_t stream);
// grad_x and parts may be null.
void haar_up_grad_cuda(Kind kind, const Strips& strips, const void* grad, const void* x, const float* style,
                       void* grad_x, float* parts, cudaStream_t stream);

}  // namespace wrangan
