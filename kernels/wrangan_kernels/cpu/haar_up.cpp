// x · style and the inverse Haar transform in one pass, and its gradients in another, channels_last: of C channels
// at (H, W) the first C/4 are the low band, and for each of these three neighbours the high ones; they become C/4
// channels at (2H, 2W).

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "operators.h"
#include "vectors.h"

namespace wrangan {
namespace {

constexpr int64_t BANDS = 16;  // of lines, whose sums are taken apart: the result does not depend on the threads

void check(const Tensor& x, const Tensor& style) {
  for (const Tensor* given : {&x, &style})
    TORCH_CHECK(given->scalar_type() == at::kFloat, "haar_up: expected float32, not ", given->scalar_type());
  TORCH_CHECK(x.dim() == 4 && x.size(1) % (4 * VL) == 0 && style.dim() == 2 && style.size(0) == x.size(0) &&
                  style.size(1) == x.size(1),
              "haar_up: style ", style.sizes(), " does not fit x ", x.sizes());
}

// Every third element of three vectors, from the k-th on.
inline vf every_third(const vf v[3], int k) {
  vi first, second;
  for (int l = 0; l < VL; l++) {
    const int at = 3 * l + k;
    first[l] = at < 2 * VL ? at : 0;
    second[l] = at < 2 * VL ? l : at - VL;
  }
  return shuffle(shuffle(v[0], v[1], first), v[2], second);
}

// The k-th of the three vectors in which the elements of `v` take turns.
inline vf taking_turns(const vf v[3], int k) {
  vi first, second;
  for (int l = 0; l < VL; l++) {
    const int at = k * VL + l, from = at / 3;
    first[l] = at % 3 == 1 ? VL + from : from;
    second[l] = at % 3 == 2 ? VL + from : l;
  }
  return shuffle(shuffle(v[0], v[1], first), v[2], second);
}

inline void load_bands(const float* pixel, int64_t c, int64_t quarter, vf bands[4]) {
  bands[0] = load(pixel + c);
  const vf high[3] = {load(pixel + quarter + 3 * c), load(pixel + quarter + 3 * c + VL),
                      load(pixel + quarter + 3 * c + 2 * VL)};
  for (int k = 0; k < 3; k++) bands[1 + k] = every_third(high, k);
}

inline void store_bands(float* pixel, int64_t c, int64_t quarter, const vf bands[4]) {
  store(pixel + c, bands[0]);
  for (int k = 0; k < 3; k++) store(pixel + quarter + 3 * c + k * VL, taking_turns(bands + 1, k));
}

Tensor haar_up(const Tensor& x_given, const Tensor& style_given) {
  check(x_given, style_given);
  const Tensor x = x_given.contiguous(at::MemoryFormat::ChannelsLast), style = style_given.contiguous();
  const int64_t channels = x.size(1), quarter = channels / 4, height = x.size(2), width = x.size(3);
  Tensor y = at::empty({x.size(0), quarter, 2 * height, 2 * width}, x.options(), at::MemoryFormat::ChannelsLast);
  const float* const in = x.const_data_ptr<float>();
  const float* const factors = style.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  at::parallel_for(0, x.size(0) * height, std::max<int64_t>(1, (1 << 15) / (width * channels)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const float* const s = factors + n / height * channels;
      for (int64_t c = 0; c < quarter; c += VL) {
        vf style_of[4];
        load_bands(s, c, quarter, style_of);
        for (vf& v : style_of) v *= 0.5f;
        const float* pixel = in + n * width * channels;
        float* top = out + 2 * n * 2 * width * quarter + c;
        float* bottom = top + 2 * width * quarter;
        for (int64_t p = 0; p < width; p++) {
          vf b[4];
          load_bands(pixel, c, quarter, b);
          for (int k = 0; k < 4; k++) b[k] *= style_of[k];
          const vf upper = b[0] + b[1], lower = b[0] - b[1], right = b[2] + b[3], corner = b[2] - b[3];
          store(top, upper + right);
          store(top + quarter, upper - right);
          store(bottom, lower + corner);
          store(bottom + quarter, lower - corner);
          pixel += channels, top += 2 * quarter, bottom += 2 * quarter;
        }
      }
    }
  });
  return y;
}

// needed: x, style. What is not is an empty tensor.
std::tuple<Tensor, Tensor> haar_up_backward(const Tensor& grad_given, const Tensor& x_given, const Tensor& style_given,
                                            std::array<bool, 2> needed) {
  check(x_given, style_given);
  const Tensor x = x_given.contiguous(at::MemoryFormat::ChannelsLast), style = style_given.contiguous();
  const Tensor grad = grad_given.contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t batch = x.size(0), channels = x.size(1), quarter = channels / 4, height = x.size(2), width = x.size(3);
  TORCH_CHECK(grad.dim() == 4 && grad.size(0) == batch && grad.size(1) == quarter && grad.size(2) == 2 * height &&
                  grad.size(3) == 2 * width,
              "haar_up_backward: grad ", grad.sizes(), " does not fit x ", x.sizes());
  const Tensor none = at::empty({0}, x.options());
  Tensor grad_x = needed[0] ? at::empty(x.sizes(), x.options(), at::MemoryFormat::ChannelsLast) : none;
  Tensor grad_style = needed[1] ? at::zeros(style.sizes(), x.options()) : none;
  const float* const in = x.const_data_ptr<float>();
  const float* const g = grad.const_data_ptr<float>();
  const float* const factors = style.const_data_ptr<float>();
  float* const out = needed[0] ? grad_x.mutable_data_ptr<float>() : nullptr;
  const int64_t bands = std::min(BANDS, height);
  std::vector<float> sums(needed[1] ? batch * bands * channels : 0);
  at::parallel_for(0, batch * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      const int64_t image = n / bands, band = n % bands;
      const float* const s = factors + image * channels;
      for (int64_t row = height * band / bands; row < height * (band + 1) / bands; row++) {
        const int64_t line = image * height + row;
        for (int64_t c = 0; c < quarter; c += VL) {
          vf style_of[4], total[4] = {};
          load_bands(s, c, quarter, style_of);
          const float* top = g + 2 * line * 2 * width * quarter + c;
          const float* bottom = top + 2 * width * quarter;
          const float* pixel = in + line * width * channels;
          float* to = out ? out + line * width * channels : nullptr;
          for (int64_t p = 0; p < width; p++) {
            const vf a = load(top), b = load(top + quarter), d = load(bottom), e = load(bottom + quarter);
            const vf upper = a + b, right = a - b, lower = d + e, corner = d - e;
            vf v[4] = {(upper + lower) * 0.5f, (upper - lower) * 0.5f, (right + corner) * 0.5f, (right - corner) * 0.5f};
            if (needed[1]) {
              vf seen[4];
              load_bands(pixel, c, quarter, seen);
              for (int k = 0; k < 4; k++) total[k] += v[k] * seen[k];
            }
            if (to) {
              for (int k = 0; k < 4; k++) v[k] *= style_of[k];
              store_bands(to, c, quarter, v);
              to += channels;
            }
            pixel += channels, top += 2 * quarter, bottom += 2 * quarter;
          }
          if (!needed[1]) continue;
          vf before[4];
          load_bands(sums.data() + n * channels, c, quarter, before);
          for (int k = 0; k < 4; k++) before[k] += total[k];
          store_bands(sums.data() + n * channels, c, quarter, before);
        }
      }
    }
  });
  if (needed[1]) {
    float* const to = grad_style.mutable_data_ptr<float>();
    for (int64_t n = 0; n < batch * bands; n++)
      for (int64_t c = 0; c < channels; c++) to[n / bands * channels + c] += sums[n * channels + c];
  }
  return {grad_x, grad_style};
}

}  // namespace

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("haar_up", &haar_up);
  m.impl("haar_up_backward", &haar_up_backward);
}

}  // namespace wrangan
