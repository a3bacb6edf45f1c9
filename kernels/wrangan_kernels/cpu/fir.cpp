// FIR resampling and the tail of a layer (StyleGAN2, Karras et al. 2020, appendix B), a row at a time.
//
// A separable filter goes over each input row once, horizontally; the rows that an output row needs stay
// in the cache, and what follows (scale, noise, bias, leaky ReLU, gain, clamp) happens before it leaves.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <type_traits>
#include <vector>

#include "operators.h"

namespace wrangan {
namespace {

constexpr int MOST = 8;  // taps

// The kernel, turned for a correlation, and its two factors where it has them.
template <typename T>
struct Filter {
  int taps = 0;
  bool separable = false;
  T whole[MOST][MOST], down_column[MOST], along_row[MOST];

  Filter(const Tensor& given, bool turned) {
    TORCH_CHECK(given.dim() == 2 && given.size(0) == given.size(1) && given.size(0) >= 1 && given.size(0) <= MOST,
                "the FIR kernel has shape ", given.sizes(), "; expected a square of 1 to 8 taps");
    TORCH_CHECK(given.scalar_type() == at::kFloat, "the FIR kernel must be float32");
    const Tensor kernel = given.contiguous();
    const float* const k = kernel.const_data_ptr<float>();
    taps = static_cast<int>(kernel.size(0));
    int row = 0, column = 0;
    for (int a = 0; a < taps; a++)
      for (int b = 0; b < taps; b++) {
        whole[a][b] = turned ? k[(taps - 1 - a) * taps + taps - 1 - b] : k[a * taps + b];
        if (std::abs(whole[a][b]) > std::abs(whole[row][column])) row = a, column = b;
      }
    const T pivot = whole[row][column];
    separable = pivot != 0;
    for (int a = 0; a < taps && separable; a++) {
      down_column[a] = whole[a][column] / pivot;
      along_row[a] = whole[row][a];
    }
    for (int a = 0; a < taps; a++)
      for (int b = 0; b < taps && separable; b++)
        separable = std::abs(down_column[a] * along_row[b] - whole[a][b]) <= 1e-7 * std::abs(pivot);
  }
};

// Both, made once for all planes.
struct Filters {
  Filter<float> single;
  Filter<double> twice;
  Filters(const Tensor& given, bool turned) : single(given, turned), twice(given, turned) {}
  template <typename T>
  const Filter<T>& of() const {
    if constexpr (std::is_same_v<T, float>)
      return single;
    else
      return twice;
  }
};

struct Resampling {
  int up, down, before, after;
  int64_t height, width, out_height, out_width;

  Resampling(int64_t h, int64_t w, int64_t taps, int64_t u, int64_t d, int64_t b, int64_t a)
      : up(u), down(d), before(b), after(a), height(h), width(w) {
    TORCH_CHECK(u >= 1 && d >= 1, "up and down must be 1 or more");
    out_height = floor_divided(h * u + b + a - taps, d) + 1;
    out_width = floor_divided(w * u + b + a - taps, d) + 1;
    TORCH_CHECK(out_height >= 0 && out_width >= 0, "upfirdn2d: the padding leaves nothing of ", h, "×", w, " px");
  }
  static int64_t floor_divided(int64_t n, int64_t d) { return n >= 0 ? n / d : -((d - 1 - n) / d); }
};

template <typename T, int K>
inline void correlate_row(const T* line, const T* taps, int count, int down, int64_t width, T* out) {
  if (K > 0 && down == 1) {
    for (int64_t x = 0; x < width; x++) {
      T s = taps[0] * line[x];
      for (int b = 1; b < K; b++) s += taps[b] * line[x + b];
      out[x] = s;
    }
    return;
  }
  for (int64_t x = 0; x < width; x++) {
    T s = taps[0] * line[x * down];
    for (int b = 1; b < count; b++) s += taps[b] * line[x * down + b];
    out[x] = s;
  }
}

// Working memory of one thread.
template <typename T>
struct Rows {
  std::vector<T> line, kept, sums;
  std::vector<int64_t> held;
};

// Calls finish(y, row) with each filtered row; `finish` may change the row.
template <typename T, typename Finish>
void filter_plane(const T* in, const Resampling& r, const Filter<T>& f, Rows<T>& rows, Finish finish) {
  const int taps = f.taps;
  const int64_t length = (r.out_width - 1) * r.down + taps;  // samples that a row needs
  // Separable: rows after the horizontal pass; else rows with zeros inserted.
  const int64_t kept = f.separable ? r.out_width : length;
  rows.line.assign(length, T(0));
  rows.kept.resize(kept * taps);
  rows.sums.resize(r.out_width);
  rows.held.assign(taps, -1);
  const auto fetch = [&](int64_t y) -> const T* {
    const int slot = static_cast<int>(y % taps);
    T* const place = rows.kept.data() + slot * kept;
    if (rows.held[slot] == y) return place;
    rows.held[slot] = y;
    const T* const source = in + y * r.width;
    // The padding stays zero, and so do the samples between.
    const int64_t first = r.before >= 0 ? 0 : (-r.before + r.up - 1) / r.up;
    const int64_t last = std::min(r.width, Resampling::floor_divided(length - 1 - r.before, r.up) + 1);
    T* const line = f.separable ? rows.line.data() : place;
    if (!f.separable) std::fill(line, line + length, T(0));
    if (r.up == 1) {
      if (last > first) std::copy(source + first, source + last, line + first + r.before);
    } else {
      for (int64_t x = first; x < last; x++) line[x * r.up + r.before] = source[x];
    }
    if (!f.separable) return place;
    if (taps == 4)
      correlate_row<T, 4>(line, f.along_row, 4, r.down, r.out_width, place);
    else
      correlate_row<T, 0>(line, f.along_row, taps, r.down, r.out_width, place);
    return place;
  };
  T* const sums = rows.sums.data();
  for (int64_t y = 0; y < r.out_height; y++) {
    const T* near[MOST];
    int which[MOST], count = 0;
    for (int a = 0; a < taps; a++) {
      const int64_t position = y * r.down + a - r.before;
      if (position < 0 || position % r.up || position / r.up >= r.height) continue;
      near[count] = fetch(position / r.up);
      which[count++] = a;
    }
    if (f.separable && count == 4) {
      const T w0 = f.down_column[which[0]], w1 = f.down_column[which[1]];
      const T w2 = f.down_column[which[2]], w3 = f.down_column[which[3]];
      const T *const n0 = near[0], *const n1 = near[1], *const n2 = near[2], *const n3 = near[3];
      for (int64_t x = 0; x < r.out_width; x++) sums[x] = w0 * n0[x] + w1 * n1[x] + w2 * n2[x] + w3 * n3[x];
    } else {
      std::fill(sums, sums + r.out_width, T(0));
      for (int n = 0; n < count; n++) {
        const T* const row = near[n];
        if (f.separable) {
          const T w = f.down_column[which[n]];
          for (int64_t x = 0; x < r.out_width; x++) sums[x] += w * row[x];
          continue;
        }
        for (int b = 0; b < taps; b++) {
          const T w = f.whole[which[n]][b];
          for (int64_t x = 0; x < r.out_width; x++) sums[x] += w * row[x * r.down + b];
        }
      }
    }
    finish(y, sums);
  }
}

// Planes go to the threads one by one.
template <typename T, typename Work>
void each_plane_of(int64_t planes, Work work) {
  at::parallel_for(0, planes, 1, [&](int64_t begin, int64_t end) {
    Rows<T> rows;
    for (int64_t n = begin; n < end; n++) work(n, rows);
  });
}

template <typename Work>
void each_plane(const Tensor& like, int64_t planes, Work work) {
  if (like.scalar_type() == at::kFloat) return each_plane_of<float>(planes, work);
  TORCH_CHECK(like.scalar_type() == at::kDouble, "expected float32 or float64 on the CPU, not ", like.scalar_type());
  each_plane_of<double>(planes, work);
}

Tensor laid_out_as(const Tensor& like, const Tensor& y) {
  const bool last = like.dim() == 4 && !like.is_contiguous() && like.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? y.contiguous(at::MemoryFormat::ChannelsLast) : y;
}

}  // namespace

Tensor upfirdn2d(const Tensor& given, const Tensor& kernel, int64_t up, int64_t down, int64_t before, int64_t after) {
  TORCH_CHECK(given.dim() == 4, "upfirdn2d: x has ", given.dim(), " dimensions, expected 4");
  const Tensor x = given.contiguous();
  const Resampling r(x.size(2), x.size(3), kernel.size(0), up, down, before, after);
  Tensor y = at::empty({x.size(0), x.size(1), r.out_height, r.out_width}, x.options());
  if (y.numel() == 0) return y;
  const Filters filters(kernel, true);
  each_plane(x, x.size(0) * x.size(1), [&]<typename T>(int64_t n, Rows<T>& rows) {
    const Filter<T> filter = filters.template of<T>();  // a copy: to the compiler, results could overlap the shared one
    T* const out = y.mutable_data_ptr<T>() + n * r.out_height * r.out_width;
    filter_plane(x.const_data_ptr<T>() + n * r.height * r.width, r, filter, rows,
                 [&](int64_t row, const T* sums) { std::copy(sums, sums + r.out_width, out + row * r.out_width); });
  });
  return laid_out_as(given, y);
}

Tensor add_upsampled(const Tensor& given, const Tensor& skip_given, const Tensor& kernel) {
  const Tensor y = given.contiguous(), skip = skip_given.contiguous();
  const int64_t extra = kernel.size(0) - 2;
  const Resampling r(skip.size(2), skip.size(3), kernel.size(0), 2, 1, (extra + 1) / 2 + 1, extra / 2);
  TORCH_CHECK(y.dim() == 4 && y.size(0) == skip.size(0) && y.size(1) == skip.size(1) && y.size(2) == r.out_height &&
                  y.size(3) == r.out_width && y.scalar_type() == skip.scalar_type(),
              "add_upsampled: skip ", skip.sizes(), " does not fit y ", y.sizes());
  Tensor result = at::empty(y.sizes(), y.options());
  const Filters filters(kernel, true);
  each_plane(y, y.size(0) * y.size(1), [&]<typename T>(int64_t n, Rows<T>& rows) {
    const Filter<T> filter = filters.template of<T>();  // a copy: to the compiler, results could overlap the shared one
    const int64_t offset = n * r.out_height * r.out_width;
    const T* const old = y.const_data_ptr<T>() + offset;
    T* const out = result.mutable_data_ptr<T>() + offset;
    filter_plane(skip.const_data_ptr<T>() + n * r.height * r.width, r, filter, rows, [&](int64_t row, const T* sums) {
      for (int64_t i = 0; i < r.out_width; i++) out[row * r.out_width + i] = old[row * r.out_width + i] + sums[i];
    });
  });
  return laid_out_as(given, result);
}

namespace {

// One number for each channel or image, in the type of the sums; an undefined tensor where there is none.
Tensor numbers(const optional<Tensor>& given, int64_t count, const char* name, const Tensor& like) {
  if (!given.has_value()) return Tensor();
  TORCH_CHECK(given->numel() == count, "fir_act: ", name, " has ", given->numel(), " numbers, expected ", count);
  return given->to(like.scalar_type()).contiguous();
}

template <typename T>
const T* at_or_null(const Tensor& numbers) {
  return numbers.defined() ? numbers.const_data_ptr<T>() : nullptr;
}

}  // namespace

Tensor fir_act(const Tensor& given, const optional<Tensor>& kernel, int64_t before, int64_t after,
               const optional<Tensor>& noise, const optional<Tensor>& strength, const optional<Tensor>& scale,
               const optional<Tensor>& bias, double slope, double gain, double clamp) {
  TORCH_CHECK(given.dim() == 4, "fir_act: x has ", given.dim(), " dimensions, expected 4");
  const Tensor x = given.contiguous();
  const int64_t batch = x.size(0), channels = x.size(1), taps = kernel.has_value() ? kernel->size(0) : 1;
  const Resampling r(x.size(2), x.size(3), taps, 1, 1, before, after);
  TORCH_CHECK(kernel.has_value() || (before == 0 && after == 0), "fir_act: padding needs a kernel");
  TORCH_CHECK(noise.has_value() == strength.has_value(), "fir_act: noise and its strength belong together");
  const bool own = noise.has_value() && noise->size(0) > 1;
  const int64_t area = r.out_height * r.out_width;
  Tensor y = at::empty({batch, channels, r.out_height, r.out_width}, x.options());
  if (y.numel() == 0) return y;
  const Tensor a = numbers(noise, own ? batch * area : area, "noise", x), b = numbers(strength, 1, "strength", x);
  const Tensor c = numbers(scale, batch * channels, "scale", x), d = numbers(bias, channels, "bias", x);
  std::optional<Filters> filters;
  if (kernel.has_value()) filters.emplace(*kernel, true);
  each_plane(x, batch * channels, [&]<typename T>(int64_t n, Rows<T>& rows) {
    const int64_t image = n / channels, channel = n % channels;
    const T *const maps = at_or_null<T>(a), *const amount = at_or_null<T>(b);
    const T *const factors = at_or_null<T>(c), *const biases = at_or_null<T>(d);
    const T factor = factors ? factors[n] : T(1), shift = biases ? biases[channel] : T(0);
    const T by = amount ? *amount : T(0), steep = static_cast<T>(gain), flat = static_cast<T>(gain * slope);
    const T most = static_cast<T>(clamp);
    T* const out = y.mutable_data_ptr<T>() + n * area;
    const auto finish = [&](int64_t row, const T* sums) {
      T* const line = out + row * r.out_width;
      if (maps) {
        const T* const map = maps + (own ? image * area : 0) + row * r.out_width;
        for (int64_t i = 0; i < r.out_width; i++) {
          const T v = sums[i] * factor + (by * map[i] + shift);
          line[i] = v * (v > 0 ? steep : flat);
        }
      } else {
        for (int64_t i = 0; i < r.out_width; i++) {
          const T v = sums[i] * factor + shift;
          line[i] = v * (v > 0 ? steep : flat);
        }
      }
      if (clamp >= 0)
        for (int64_t i = 0; i < r.out_width; i++) line[i] = line[i] > most ? most : (line[i] < -most ? -most : line[i]);
    };
    const T* const in = x.const_data_ptr<T>() + n * r.height * r.width;
    if (kernel.has_value()) {
      const Filter<T> filter = filters->template of<T>();
      filter_plane(in, r, filter, rows, finish);
    } else {
      for (int64_t row = 0; row < r.out_height; row++) finish(row, in + row * r.width);
    }
  });
  return laid_out_as(given, y);
}

std::tuple<Tensor, Tensor> fir_act_backward(const Tensor& grad_given, const Tensor& y_given,
                                            const optional<Tensor>& kernel, int64_t before, int64_t after,
                                            const optional<Tensor>& scale, double slope, double gain, double clamp,
                                            int64_t height, int64_t width) {
  const Tensor grad = grad_given.contiguous(), y = y_given.contiguous();
  TORCH_CHECK(grad.dim() == 4 && grad.sizes() == y.sizes(), "fir_act_backward: grad ", grad.sizes(),
              " does not fit y ", y.sizes());
  const int64_t batch = y.size(0), channels = y.size(1), area = y.size(2) * y.size(3);
  const int64_t taps = kernel.has_value() ? kernel->size(0) : 1;
  const Resampling r(y.size(2), y.size(3), taps, 1, 1, taps - 1 - before,
                     height - y.size(2) + before);  // H' + start + end − taps + 1 = height
  TORCH_CHECK(r.out_height == height && r.out_width == width, "fir_act_backward: ", height, "×", width,
              " px do not fit grad ", grad.sizes());
  Tensor pre = at::empty(y.sizes(), y.options());
  // Without filter and scale both gradients are the same, and only one is given.
  const bool both = kernel.has_value() || scale.has_value();
  Tensor back = both ? at::empty({batch, channels, height, width}, y.options()) : at::empty({0}, y.options());
  if (y.numel() == 0) return {back.zero_(), pre};
  const Tensor a = numbers(scale, batch * channels, "scale", y);
  std::optional<Filters> filters;
  if (kernel.has_value()) filters.emplace(*kernel, false);
  each_plane(y, batch * channels, [&]<typename T>(int64_t n, Rows<T>& rows) {
    const T* const factors = at_or_null<T>(a);
    const T factor = factors ? factors[n] : T(1), steep = static_cast<T>(gain), flat = static_cast<T>(gain * slope);
    const T most = static_cast<T>(clamp);
    const T* const g = grad.const_data_ptr<T>() + n * area;
    const T* const values = y.const_data_ptr<T>() + n * area;
    T* const p = pre.mutable_data_ptr<T>() + n * area;
    if (clamp >= 0)
      for (int64_t i = 0; i < area; i++)
        p[i] = std::abs(values[i]) >= most ? T(0) : g[i] * (values[i] > 0 ? steep : flat);
    else
      for (int64_t i = 0; i < area; i++) p[i] = g[i] * (values[i] > 0 ? steep : flat);
    if (!both) return;
    T* const out = back.mutable_data_ptr<T>() + n * height * width;
    if (!kernel.has_value()) {
      for (int64_t i = 0; i < area; i++) out[i] = p[i] * factor;
      return;
    }
    const Filter<T> filter = filters->template of<T>();
    filter_plane(p, r, filter, rows, [&](int64_t row, const T* sums) {
      for (int64_t i = 0; i < width; i++) out[row * width + i] = sums[i] * factor;
    });
  });
  return {laid_out_as(y_given, back), laid_out_as(y_given, pre)};
}

// Σ a·b over each plane: (B, C, …) → (B, C).
Tensor plane_dot(const Tensor& a_given, const Tensor& b_given) {
  TORCH_CHECK(a_given.sizes() == b_given.sizes() && a_given.dim() > 2, "plane_dot: shapes ", a_given.sizes(), " and ",
              b_given.sizes());
  const Tensor a = a_given.contiguous(), b = b_given.contiguous();
  const int64_t planes = a.size(0) * a.size(1), area = planes ? a.numel() / planes : 0;
  Tensor result = at::empty({a.size(0), a.size(1)}, a.options());
  if (planes == 0) return result;
  each_plane(a, planes, [&]<typename T>(int64_t n, Rows<T>&) {
    constexpr int64_t WIDE = 64;  // partial sums: for the vectors, and for accuracy
    const T* const p = a.const_data_ptr<T>() + n * area;
    const T* const q = b.const_data_ptr<T>() + n * area;
    T parts[WIDE] = {};
    int64_t i = 0;
    for (; i + WIDE <= area; i += WIDE)
      for (int64_t k = 0; k < WIDE; k++) parts[k] += p[i + k] * q[i + k];
    for (; i < area; i++) parts[0] += p[i] * q[i];
    double total = 0;
    for (const T part : parts) total += part;
    result.mutable_data_ptr<T>()[n] = static_cast<T>(total);
  });
  return result;
}

TORCH_LIBRARY_IMPL(wrangan, CPU, m) {
  m.impl("upfirdn2d", &upfirdn2d);
  m.impl("add_upsampled", &add_upsampled);
  m.impl("fir_act", &fir_act);
  m.impl("fir_act_backward", &fir_act_backward);
  m.impl("plane_dot", &plane_dot);
}

}  // namespace wrangan
