// A styled separable convolution and its gradients as one operator each, channels_last:
//     y = leaky_relu(mixing · depthwise3×3(x) + noise + bias)
// The style lies in the depthwise weights. A line of the depthwise result stays in the cache until the 1×1
// convolution has used it, forward and backward, where it is computed anew instead of kept.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "operators.h"
#include "pixels.h"
#include "products.h"

namespace wrangan {
namespace {

constexpr int64_t BANDS = 8;  // of lines, whose sums are taken apart: the result does not depend on the threads
constexpr int64_t LINES = 16;  // of a band, at least: it computes two lines more

struct Shape {
  int64_t batch, inputs, outputs, height, width;
  bool own_depthwise, own_mixing;  // a set of weights for each image

  Shape(const Tensor& x, const Tensor& depthwise, const Tensor& mixing)
      : batch(x.size(0)), inputs(x.size(1)), outputs(mixing.size(-2)), height(x.size(2)), width(x.size(3)),
        own_depthwise(depthwise.size(0) > 1), own_mixing(mixing.size(0) > 1) {}
};

Tensor check(const Tensor& x, const Tensor& depthwise, const Tensor& mixing) {
  for (const Tensor* given : {&x, &depthwise, &mixing})
    TORCH_CHECK(given->scalar_type() == at::kFloat, "separable_conv: expected float32, not ", given->scalar_type());
  const auto fits = [&](const Tensor& t) { return t.size(0) == 1 || t.size(0) == x.size(0); };
  TORCH_CHECK(x.dim() == 4 && depthwise.dim() == 4 && depthwise.size(1) == x.size(1) && depthwise.size(2) == 3 &&
                  depthwise.size(3) == 3 && mixing.dim() == 3 && mixing.size(2) == x.size(1) && fits(depthwise) &&
                  fits(mixing) && x.size(1) % VL == 0 && mixing.size(1) % VL == 0,
              "separable_conv: depthwise ", depthwise.sizes(), " or mixing ", mixing.sizes(), " does not fit x ",
              x.sizes());
  return x.contiguous(at::MemoryFormat::ChannelsLast);
}

// Taps as (9, channels), turned by half a turn for the transposed convolution.
void taps_of(const float* from, int64_t channels, bool turned, float* to) {
  for (int64_t c = 0; c < channels; c++)
    for (int64_t t = 0; t < 9; t++) to[(turned ? 8 - t : t) * channels + c] = from[c * 9 + t];
}

// All weights of the call, packed once.
class Weights {
 public:
  Weights(const Tensor& depthwise, const Tensor& mixing, bool backward)
      : inputs_(depthwise.size(1)), sets_(mixing.size(0)) {
    const int64_t outputs = mixing.size(1);
    packed_ = backward ? Packed{outputs, inputs_, nullptr} : Packed{inputs_, outputs, nullptr};
    size_ = Packed::size(packed_.count, packed_.columns);
    mixing_ = at::empty({sets_, size_}, mixing.options());
    const float* const from = mixing.const_data_ptr<float>();
    float* const to = mixing_.mutable_data_ptr<float>();
    for (int64_t s = 0; s < sets_; s++) {
      const Packed whole{packed_.count, packed_.columns, to + s * size_};
      if (backward) whole.fill(from + s * outputs * inputs_, inputs_, 1);
      else whole.fill(from + s * outputs * inputs_, 1, inputs_);
    }
    taps_ = at::empty({2, depthwise.size(0), 9 * inputs_}, depthwise.options());
    for (int64_t turned = 0; turned < 2; turned++)
      for (int64_t s = 0; s < depthwise.size(0); s++)
        taps_of(depthwise.const_data_ptr<float>() + s * inputs_ * 9, inputs_, turned, place(turned, s));
  }
  const float* taps(int64_t image, bool turned) const { return place(turned, taps_.size(1) > 1 ? image : 0); }
  Packed mixing(int64_t image) const {
    return {packed_.count, packed_.columns, mixing_.mutable_data_ptr<float>() + (sets_ > 1 ? image * size_ : 0)};
  }

 private:
  float* place(bool turned, int64_t set) const {
    return taps_.mutable_data_ptr<float>() + (turned * taps_.size(1) + set) * 9 * inputs_;
  }
  int64_t inputs_, sets_, size_;
  Packed packed_;
  Tensor mixing_, taps_;
};

// The lines around `y` of one image (height, width, channels); beyond the edges a line of zeros.
void around(const float* image, int64_t y, int64_t height, int64_t line, const float* zeros, const float* lines[3]) {
  for (int64_t k = 0; k < 3; k++) {
    const int64_t at = y + k - 1;
    lines[k] = at >= 0 && at < height ? image + at * line : zeros;
  }
}

Tensor separable_conv(const Tensor& x_given, const Tensor& depthwise_given, const Tensor& mixing_given,
                      const optional<Tensor>& noise_given, const Tensor& bias_given, double slope) {
  const Tensor x = check(x_given, depthwise_given, mixing_given);
  const Tensor depthwise = depthwise_given.contiguous(), mixing = mixing_given.contiguous();
  const Tensor bias = bias_given.contiguous();
  const Shape s(x, depthwise, mixing);
  TORCH_CHECK(bias.numel() == s.outputs && bias.scalar_type() == at::kFloat, "separable_conv: bias ", bias.sizes());
  Tensor noise;
  if (noise_given.has_value()) {
    noise = noise_given->contiguous();
    TORCH_CHECK(noise.scalar_type() == at::kFloat && noise.numel() == noise.size(0) * s.height * s.width &&
                    (noise.size(0) == 1 || noise.size(0) == s.batch),
                "separable_conv: noise ", noise.sizes(), " for x ", x.sizes());
  }
  Tensor y = at::empty({s.batch, s.outputs, s.height, s.width}, x.options(), at::MemoryFormat::ChannelsLast);
  const Weights weights(depthwise, mixing, false);
  const std::vector<float> zeros(s.width * s.inputs);
  const float* const in = x.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  const int64_t line = s.width * s.inputs, area = s.height * s.width;
  const int64_t grain = std::max<int64_t>(1, (1 << 20) / (s.width * s.inputs * s.outputs));
  at::parallel_for(0, s.batch * s.height, grain, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    float* const middle = scratch.get(line);
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / s.height, row = n % s.height;
      const float* lines[3];
      around(in + image * area * s.inputs, row, s.height, line, zeros.data(), lines);
      depthwise_line(lines, weights.taps(image, false), s.width, s.inputs, middle);
      Epilogue after{bias.const_data_ptr<float>(), nullptr, static_cast<float>(slope)};
      if (noise.defined())
        after.noise = noise.const_data_ptr<float>() + (noise.size(0) > 1 ? image * area : 0) + row * s.width;
      weights.mixing(image).product<Result::activated>(s.width, middle, out + n * s.width * s.outputs, after);
    }
  });
  return y;
}

// One band of lines of one image, backward.
struct Band {
  const Shape& s;
  const Weights& weights;
  const float *x, *y, *grad;  // of the image
  const float* zeros;
  float slope;
  float *grad_x, *taps, *mixing, *noise, *bias;  // where the results go; null: not needed

  // outside: gradient at the layer's sum before the activation, (width, outputs).
  void inside(int64_t row, float* outside) const {
    const int64_t count = s.width * s.outputs;
    const float *g = grad + row * count, *seen = y + row * count;
    for (int64_t n = 0; n < count; n += VL) store(outside + n, load(seen + n) > 0.f ? load(g + n) : load(g + n) * slope);
  }

  void sums(int64_t row, const float* outside) const {
    for (int64_t p = 0; noise && p < s.width; p++) {
      vf total{};
      for (int64_t c = 0; c < s.outputs; c += VL) total += load(outside + p * s.outputs + c);
      noise[row * s.width + p] = sum(total);
    }
    for (int64_t c = 0; bias && c < s.outputs; c += VL) {
      vf total{};
      for (int64_t p = 0; p < s.width; p++) total += load(outside + p * s.outputs + c);
      store(bias + c, load(bias + c) + total);
    }
  }

  void run(int64_t image, int64_t first, int64_t end) const {
    static thread_local Scratch scratch;
    const int64_t line = s.width * s.inputs;
    // Gradients at the depthwise result: three lines that change places.
    const int64_t least = 4 * line + s.width * s.outputs;
    float* const base = scratch.get(least + outer_room(s.outputs, s.width));
    float *const middle = base + 3 * line, *const outside = base + 4 * line, *const room = base + least;
    const auto place = [&](int64_t row) -> float* { return base + row % 3 * line; };
    const Packed back = weights.mixing(image);
    for (int64_t row = std::max<int64_t>(first - 1, 0); row <= end; row++) {
      if (row < s.height) {
        inside(row, outside);
        if (grad_x || taps) back.product<Result::plain>(s.width, outside, place(row));
        if (row >= first && row < end) {
          sums(row, outside);
          const float* lines[3];
          around(x, row, s.height, line, zeros, lines);
          if (taps) depthwise_taps_line(place(row), lines, s.width, s.inputs, taps);
          if (mixing) {
            depthwise_line(lines, weights.taps(image, false), s.width, s.inputs, middle);
            add_outer(s.outputs, s.inputs, outside, middle, s.width, mixing, room);
          }
        }
      }
      const int64_t ready = row - 1;
      if (!grad_x || ready < first || ready >= end) continue;
      const float* lines[3];
      for (int64_t k = 0; k < 3; k++) {
        const int64_t at = ready + k - 1;
        lines[k] = at >= 0 && at < s.height ? place(at) : zeros;
      }
      depthwise_line(lines, weights.taps(image, true), s.width, s.inputs, grad_x + ready * line);
    }
  }
};

// parts (n, size) → to (sets, size), each the sum of its n / sets parts in their order.
void gather(const std::vector<float>& parts, int64_t size, Tensor& to) {
  const int64_t sets = to.size(0), each = static_cast<int64_t>(parts.size()) / size / sets;
  float* const out = to.mutable_data_ptr<float>();
  for (int64_t set = 0; set < sets; set++)
    for (int64_t n = 0; n < each; n++) {
      const float* const from = parts.data() + (set * each + n) * size;
      for (int64_t k = 0; k < size; k++) out[set * size + k] += from[k];
    }
}

// needed: x, depthwise, mixing, noise, bias. What is not is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> separable_conv_backward(
    const Tensor& grad_given, const Tensor& y_given, const Tensor& x_given, const Tensor& depthwise_given,
    const Tensor& mixing_given, int64_t noise_maps, double slope, std::array<bool, 5> needed) {
  const Tensor x = check(x_given, depthwise_given, mixing_given);
  const Tensor depthwise = depthwise_given.contiguous(), mixing = mixing_given.contiguous();
  const Shape s(x, depthwise, mixing);
  const Tensor grad = grad_given.contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor y = y_given.contiguous(at::MemoryFormat::ChannelsLast);
  TORCH_CHECK(grad.sizes() == y.sizes() && y.size(0) == s.batch && y.size(1) == s.outputs && y.size(2) == s.height &&
                  y.size(3) == s.width && noise_maps >= 0 && noise_maps <= s.batch,
              "separable_conv_backward: grad ", grad.sizes(), " or y ", y.sizes(), " does not fit x ", x.sizes());
  const int64_t bands = std::max<int64_t>(1, std::min(BANDS, s.height / LINES)), parts = s.batch * bands;
  const int64_t area = s.height * s.width, pairs = s.inputs * s.outputs;
  const Tensor none = at::empty({0}, x.options());
  Tensor grad_x = none, grad_depthwise = none, grad_mixing = none, grad_noise = none, grad_bias = none;
  if (needed[0]) grad_x = at::empty(x.sizes(), x.options(), at::MemoryFormat::ChannelsLast);
  const bool noisy = needed[3] && noise_maps > 0;
  std::vector<float> taps(needed[1] ? parts * 9 * s.inputs : 0), mixed(needed[2] ? parts * pairs : 0);
  std::vector<float> noise(noisy ? s.batch * area : 0), bias(needed[4] ? parts * s.outputs : 0);
  const std::vector<float> zeros(s.width * s.inputs);
  const Weights weights(depthwise, mixing, true);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / bands, band = n % bands;
      const Band work{s, weights, x.const_data_ptr<float>() + image * area * s.inputs,
                      y.const_data_ptr<float>() + image * area * s.outputs,
                      grad.const_data_ptr<float>() + image * area * s.outputs, zeros.data(), static_cast<float>(slope),
                      needed[0] ? grad_x.mutable_data_ptr<float>() + image * area * s.inputs : nullptr,
                      needed[1] ? taps.data() + n * 9 * s.inputs : nullptr,
                      needed[2] ? mixed.data() + n * pairs : nullptr, noisy ? noise.data() + image * area : nullptr,
                      needed[4] ? bias.data() + n * s.outputs : nullptr};
      work.run(image, s.height * band / bands, s.height * (band + 1) / bands);
    }
  });
  if (needed[1]) {
    Tensor turned = at::zeros({depthwise.size(0), 9, s.inputs}, x.options());
    gather(taps, 9 * s.inputs, turned);
    grad_depthwise = turned.transpose(1, 2).reshape(depthwise.sizes());
  }
  if (needed[2]) {
    grad_mixing = at::zeros(mixing.sizes(), x.options());
    gather(mixed, pairs, grad_mixing);
  }
  if (noisy) {
    grad_noise = at::zeros({noise_maps, 1, s.height, s.width}, x.options());
    gather(noise, area, grad_noise);
  }
  if (needed[4]) {
    grad_bias = at::zeros({1, s.outputs}, x.options());
    gather(bias, s.outputs, grad_bias);
    grad_bias = grad_bias.flatten();
  }
  return {grad_x, grad_depthwise, grad_mixing, grad_noise, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("separable_conv", &separable_conv);
  m.impl("separable_conv_backward", &separable_conv_backward);
}

}  // namespace wrangan
