// What the operators ask of their tensors, and how these become what the kernels take.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>

#include "device.h"
#include "launch.h"

namespace wrangan {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Kind kind_of(const Tensor& x, const char* where) {
  const auto type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, where,
              ": expected float32, float16 or bfloat16 on CUDA, not ", type);
  return type == at::kFloat ? Kind::float32 : (type == at::kHalf ? Kind::float16 : Kind::bfloat16);
}

inline void check_device(const Tensor& x, const Tensor& reference, const char* where) {
  TORCH_CHECK(x.device() == reference.device(), where, ": on ", x.device(), ", the first tensor on ",
              reference.device());
}

// float32 and contiguous: itself, or a copy.
inline Tensor as_float(const Tensor& x, const Tensor& reference, const char* where) {
  check_device(x, reference, where);
  TORCH_CHECK(at::isFloatingType(x.scalar_type()), where, ": expected a float type, not ", x.scalar_type());
  return x.to(at::kFloat).contiguous();
}

inline OptionalTensor as_float(const OptionalTensor& x, const Tensor& reference, const char* where) {
  if (!x.has_value()) return std::nullopt;
  return as_float(*x, reference, where);
}

inline const float* pointer(const OptionalTensor& x) { return x.has_value() ? x->const_data_ptr<float>() : nullptr; }

inline bool is_channels_last(const Tensor& x) {
  return !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

inline at::MemoryFormat layout_of(const Tensor& x) {
  return is_channels_last(x) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline Maps maps_of(const Tensor& x, const char* where) {
  TORCH_CHECK(x.dim() == 4, where, ": expected (B, C, H, W), not ", x.sizes());
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  TORCH_CHECK(x.size(0) * x.size(1) <= most && x.size(1) * x.size(2) * x.size(3) <= most, where,
              ": more than 2^31 numbers an image, or planes: ", x.sizes());
  return {static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), static_cast<int>(x.size(2)),
          static_cast<int>(x.size(3)), is_channels_last(x)};
}

inline Activation activation(double slope, double gain, double clamp) {
  return {static_cast<float>(slope), static_cast<float>(gain), static_cast<float>(clamp)};
}

}  // namespace wrangan
