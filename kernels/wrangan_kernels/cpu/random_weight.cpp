// The weights of each image, θ = μ + σ ⊙ offset, and their energy over the taps, which demodulation asks for; and the
// gradient in the offset: each in one pass over what PyTorch's operations pass over four or five times.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

namespace wrangan {
namespace {

using at::Tensor;
using c10::optional;

constexpr int64_t LINES = 16;       // kernels at a time
constexpr int64_t GRAIN = 1 << 15;  // numbers that are worth a thread

inline void check(const Tensor& given, const char* name) {
  TORCH_CHECK(given.scalar_type() == at::kFloat && given.is_contiguous(), "random_weight: ", name,
              " must be float32 and contiguous");
}

// `work(weights, count, row)` for `count` kernels of image `image` from kernel `first` on, in parallel.
template <typename Work>
void for_lines(int64_t batch, int64_t lines, int64_t taps, Work work) {
  const int64_t blocks = (lines + LINES - 1) / LINES;
  at::parallel_for(0, batch * blocks, std::max<int64_t>(1, GRAIN / (LINES * taps)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / blocks, first = n % blocks * LINES;
      work(image, first, std::min(LINES, lines - first));
    }
  });
}

// mu (O, I, k, k), std the same or none, offset (B, O, I, k, k) → θ (B, O, I, k, k), Σθ² (B, O, I).
std::tuple<Tensor, Tensor> random_weight(const Tensor& mu, const optional<Tensor>& std, const Tensor& offset) {
  check(mu, "mu");
  check(offset, "the offset");
  TORCH_CHECK(mu.dim() == 4 && offset.dim() == 5 && offset.sizes().slice(1) == mu.sizes(), "random_weight: offsets ",
              offset.sizes(), " do not fit weights ", mu.sizes());
  if (std.has_value()) {
    check(*std, "std");
    TORCH_CHECK(std->sizes() == mu.sizes(), "random_weight: std ", std->sizes(), " for weights ", mu.sizes());
  }
  const int64_t batch = offset.size(0), lines = mu.size(0) * mu.size(1), taps = mu.size(2) * mu.size(3);
  const Tensor weight = at::empty(offset.sizes(), offset.options());
  const Tensor energy = at::empty({batch, mu.size(0), mu.size(1)}, offset.options());
  const float* const m = mu.const_data_ptr<float>();
  const float* const s = std.has_value() ? std->const_data_ptr<float>() : nullptr;
  const float* const e = offset.const_data_ptr<float>();
  float* const theta = weight.mutable_data_ptr<float>();
  float* const sums = energy.mutable_data_ptr<float>();
  for_lines(batch, lines, taps, [&](int64_t image, int64_t first, int64_t count) {
    const int64_t from = first * taps, numbers = count * taps, base = image * lines * taps + from;
    float* const out = theta + base;
    for (int64_t j = 0; j < numbers; j++) out[j] = m[from + j] + (s ? s[from + j] * e[base + j] : e[base + j]);
    float total[LINES] = {};
    for (int64_t k = 0; k < taps; k++)
      for (int64_t l = 0; l < count; l++) total[l] += out[l * taps + k] * out[l * taps + k];
    std::copy(total, total + count, sums + image * lines + first);
  });
  return {weight, energy};
}

// (∂/∂θ + 2θ · ∂/∂energy) ⊙ σ: the gradient in the offset.
Tensor random_weight_backward(const Tensor& grad_weight, const Tensor& grad_energy, const Tensor& weight,
                              const optional<Tensor>& std) {
  check(grad_weight, "grad_weight");
  check(grad_energy, "grad_energy");
  check(weight, "weight");
  if (std.has_value()) check(*std, "std");
  TORCH_CHECK(weight.dim() == 5 && grad_weight.sizes() == weight.sizes() &&
                  grad_energy.sizes() == weight.sizes().slice(0, 3) &&
                  (!std.has_value() || std->sizes() == weight.sizes().slice(1)),
              "random_weight_backward: gradients ", grad_weight.sizes(), " and ", grad_energy.sizes(), " for weights ",
              weight.sizes());
  const int64_t lines = weight.size(1) * weight.size(2), taps = weight.size(3) * weight.size(4);
  const Tensor result = at::empty(weight.sizes(), weight.options());
  const float* const g = grad_weight.const_data_ptr<float>();
  const float* const sums = grad_energy.const_data_ptr<float>();
  const float* const theta = weight.const_data_ptr<float>();
  const float* const s = std.has_value() ? std->const_data_ptr<float>() : nullptr;
  float* const out = result.mutable_data_ptr<float>();
  for_lines(weight.size(0), lines, taps, [&](int64_t image, int64_t first, int64_t count) {
    const int64_t from = first * taps, base = image * lines * taps + from;
    for (int64_t l = 0; l < count; l++) {
      const float twice = 2.f * sums[image * lines + first + l];
      for (int64_t k = 0; k < taps; k++) {
        const int64_t j = l * taps + k;
        const float total = g[base + j] + twice * theta[base + j];
        out[base + j] = s ? total * s[from + j] : total;
      }
    }
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("random_weight", &random_weight);
  m.impl("random_weight_backward", &random_weight_backward);
}

}  // namespace wrangan
