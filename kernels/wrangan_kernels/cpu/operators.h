// The operators of other files that a whole layer is made of.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace wrangan {

using at::Tensor;
using c10::optional;

Tensor conv3x3(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
               const optional<Tensor>& scale_out, bool transposed);
Tensor conv3x3_weight_grad(const Tensor& x, const Tensor& grad, const optional<Tensor>& scale_in,
                           const optional<Tensor>& scale_out, bool per_image);
Tensor conv3x3_up(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
                  const optional<Tensor>& scale_out, bool transposed);
Tensor conv3x3_up_weight_grad(const Tensor& x, const Tensor& grad, const optional<Tensor>& scale_in,
                              const optional<Tensor>& scale_out, bool per_image);
Tensor upfirdn2d(const Tensor& x, const Tensor& kernel, int64_t up, int64_t down, int64_t before, int64_t after);
Tensor add_upsampled(const Tensor& y, const Tensor& skip, const Tensor& kernel);
Tensor fir_act(const Tensor& x, const optional<Tensor>& kernel, int64_t before, int64_t after,
               const optional<Tensor>& noise, const optional<Tensor>& strength, const optional<Tensor>& scale,
               const optional<Tensor>& bias, double slope, double gain, double clamp);
std::tuple<Tensor, Tensor> fir_act_backward(const Tensor& grad, const Tensor& y, const optional<Tensor>& kernel,
                                            int64_t before, int64_t after, const optional<Tensor>& scale, double slope,
                                            double gain, double clamp, int64_t height, int64_t width);
Tensor plane_dot(const Tensor& a, const Tensor& b);

}  // namespace wrangan
