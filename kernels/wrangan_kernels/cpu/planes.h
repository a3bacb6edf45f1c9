// 3×3 convolutions by their definition, for planes that Winograd's method has no use for.
//
// A convolution of stride 1 and a transposed one of stride 2 have in common that pixel p of x meets pixel at(k, p)
// of y by tap k of the weight W (O, I, 9). Three sums follow:
//   spread   y[o, at(k, p)] = Σ_i W[o, i, k] · x[i, p]
//   gather   x[i, p] = Σ_o Σ_k W[o, i, k] · y[o, at(k, p)]         the gradient in x
//   match    W[o, i, k] = Σ_p x[i, p] · y[o, at(k, p)]             the gradient in W
// Where planes are small, reading W is what takes time, and what PyTorch does to it first (copies in another
// order) takes more. Here it is read once, in the order in which it lies. The pixels of all images that share W
// are one row of columns. Every sum has an order of its own: batch and threads do not change it.
#pragma once

#include <vector>

#include "winograd.h"

namespace wrangan {

#if defined(__AVX512F__)
constexpr int NC = 2;  // vectors of columns at a time: 9 · NC sums, or 9 · NC samples, stay in registers
#else
constexpr int NC = 1;
#endif

constexpr int64_t AHEAD = 768;  // floats of the weights that are asked for before their turn

// Which pixel of y meets which of x: at[k · pixels + p], or `area` where it lies outside.
struct Meeting {
  int64_t pixels, area;
  std::vector<int32_t> at;

  // height × width: of x. up: y is 2H + 1 by 2W + 1, else as x.
  Meeting(int64_t height, int64_t width, bool up)
      : pixels(height * width), area(up ? (2 * height + 1) * (2 * width + 1) : height * width), at(9 * pixels) {
    auto place = at.begin();
    for (int64_t k = 0; k < 9; k++)
      for (int64_t h = 0; h < height; h++)
        for (int64_t w = 0; w < width; w++) {
          const int64_t y = up ? 2 * h + k / 3 : h + 1 - k / 3, x = up ? 2 * w + k % 3 : w + 1 - k % 3;
          const bool inside = up || (y >= 0 && y < height && x >= 0 && x < width);
          *place++ = int32_t(inside ? y * (up ? 2 * width + 1 : width) + x : area);
        }
  }
};

// out (9, n·VL) = Σ_c a (count, 9)ᵀ · b (count, n·VL); rows of b and out are `row` and `out_row` apart.
template <int n>
__attribute__((noinline)) void nine_sums(const float* a, const float* b, int64_t count, int64_t row, float* out,
                                         int64_t out_row) {
  vf total[9][n];
  for (int k = 0; k < 9; k++)
    for (int j = 0; j < n; j++) total[k][j] = vf{};
  for (int64_t c = 0; c < count; c++) {
    __builtin_prefetch(a + AHEAD);
    vf right[n];
    for (int j = 0; j < n; j++) {
      right[j] = load(b + j * VL);
      keep(right[j]);
    }
#pragma GCC unroll 9
    for (int k = 0; k < 9; k++)
#pragma GCC unroll 4
      for (int j = 0; j < n; j++) total[k][j] += a[k] * right[j];
    a += 9;
    b += row;
  }
  for (int k = 0; k < 9; k++)
    for (int j = 0; j < n; j++) store(out + k * out_row + j * VL, total[k][j]);
}

// sums (count, n·VL) += a (count, 9) · b (9, n·VL), rows `row` and `b_row` apart.
template <int n>
__attribute__((noinline)) void add_nine(const float* a, const float* b, int64_t b_row, int64_t count, float* sums,
                                        int64_t row) {
  vf right[9][n];
  for (int k = 0; k < 9; k++)
    for (int j = 0; j < n; j++) {
      right[k][j] = load(b + k * b_row + j * VL);
      keep(right[k][j]);
    }
  for (int64_t c = 0; c < count; c++) {
    __builtin_prefetch(a + AHEAD);
#pragma GCC unroll 4
    for (int j = 0; j < n; j++) {
      vf total = load(sums + j * VL);
#pragma GCC unroll 9
      for (int k = 0; k < 9; k++) total += a[k] * right[k][j];
      store(sums + j * VL, total);
    }
    a += 9;
    sums += row;
  }
}

// A plane of `area` pixels, scaled, with a zero behind it for what lies outside.
inline void with_zero(const float* plane, int64_t area, float scale, float* out) {
  for (int64_t p = 0; p < area; p++) out[p] = plane[p] * scale;
  out[area] = 0.f;
}

// What the three sums are over: images with weights in common (sets), and their numbers a channel.
struct Columns {
  int64_t sets, images, pixels, count, row;
  Columns(int64_t batch, bool per_image, int64_t pixels_)
      : sets(per_image ? batch : 1), images(per_image ? 1 : batch), pixels(pixels_), count(images * pixels),
        row(rounded(count, VL)) {}
  // The plane of image m of a set; n counts the channels of all sets.
  int64_t plane(int64_t n, int64_t channels, int64_t m) const {
    return (n / channels * images + m) * channels + n % channels;
  }
};

// The channels of a tensor (B, C, …), and a factor for each plane, if there are any.
class Planes {
  Tensor held_;  // before what points into it

 public:
  const float* data;
  int64_t channels;
  const float* factors;
  Planes(const Tensor& given, const optional<Tensor>& scale)
      : data(given.const_data_ptr<float>()), channels(given.size(1)),
        factors(numbers(scale, given.size(0), channels, held_)) {}
  float factor(int64_t plane) const { return factors ? factors[plane] : 1.f; }
};

// Measured (docs/kernels.md): where the definition is quicker than PyTorch's convolutions.
// One image alone is worth it up to more pixels: the weights are then all that takes time.
inline bool small(int64_t images, int64_t height, int64_t width, bool up, bool transposed) {
  return height * width <= (up ? (transposed ? 64 : 256) : images == 1 ? 64 : 16);
}
inline bool matches(int64_t height, int64_t width) { return height * width <= 1024; }

// Of how many items a thread is worth waking for, if each costs so many products.
inline int64_t grain(int64_t products) { return std::max<int64_t>(1, 100000 / std::max<int64_t>(1, products)); }

inline void spread(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
                   const optional<Tensor>& scale_out, const Meeting& meeting, const Tensor& y) {
  const Columns columns(x.size(0), weight.dim() == 5, meeting.pixels);
  const Planes in(x, scale_in), to(y, scale_out);
  const int64_t inputs = in.channels, outputs = to.channels, area = meeting.area;
  const int64_t row = columns.row, pixels = columns.pixels;
  const float* const w = weight.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  float* const b = kernel_scratch(columns.sets * inputs * row);
  at::parallel_for(0, columns.sets * inputs, grain(row), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      float* const line = b + n * row;
      for (int64_t m = 0; m < columns.images; m++) {
        const int64_t plane = columns.plane(n, inputs, m);
        const float scale = in.factor(plane);
        for (int64_t p = 0; p < pixels; p++) line[m * pixels + p] = in.data[plane * pixels + p] * scale;
      }
      std::fill(line + columns.count, line + row, 0.f);
    }
  });
  at::parallel_for(0, columns.sets * outputs, grain(inputs * 9 * row), [&](int64_t begin, int64_t end) {
    float* const sums = tile_scratch(9 * row + area + 1);
    float* const plane = sums + 9 * row;
    for (int64_t n = begin; n < end; n++) {
      const float* const a = w + n * inputs * 9;
      const float* const from = b + n / outputs * inputs * row;
      int64_t c = 0;
      for (; c + NC * VL <= row; c += NC * VL) nine_sums<NC>(a, from + c, inputs, row, sums + c, row);
      for (; c < row; c += VL) nine_sums<1>(a, from + c, inputs, row, sums + c, row);
      for (int64_t m = 0; m < columns.images; m++) {
        const int64_t place = columns.plane(n, outputs, m);
        std::fill(plane, plane + area + 1, 0.f);
        for (int64_t k = 0; k < 9; k++) {
          const int32_t* const at = meeting.at.data() + k * pixels;
          const float* const part = sums + k * row + m * pixels;
          for (int64_t p = 0; p < pixels; p++) plane[at[p]] += part[p];
        }
        const float scale = to.factor(place);
        for (int64_t p = 0; p < area; p++) out[place * area + p] = plane[p] * scale;
      }
    }
  });
}

// x: the planes that the others call y, (B, O, area); y: (B, I, pixels).
inline void gather(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
                   const optional<Tensor>& scale_out, const Meeting& meeting, const Tensor& y) {
  const Columns columns(x.size(0), weight.dim() == 5, meeting.pixels);
  const Planes in(x, scale_in), to(y, scale_out);
  const int64_t inputs = in.channels, outputs = to.channels, area = meeting.area;
  const int64_t row = columns.row, pixels = columns.pixels;
  const float* const w = weight.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  float* const b = kernel_scratch(columns.sets * inputs * 9 * row);
  at::parallel_for(0, columns.sets * inputs, grain(9 * row), [&](int64_t begin, int64_t end) {
    float* const plane = tile_scratch(area + 1);
    for (int64_t n = begin; n < end; n++) {
      float* const lines = b + n * 9 * row;
      for (int64_t m = 0; m < columns.images; m++) {
        const int64_t place = columns.plane(n, inputs, m);
        with_zero(in.data + place * area, area, in.factor(place), plane);
        for (int64_t k = 0; k < 9; k++)
          for (int64_t p = 0; p < pixels; p++)
            lines[k * row + m * pixels + p] = plane[meeting.at[k * pixels + p]];
      }
      for (int64_t k = 0; k < 9; k++) std::fill(lines + k * row + columns.count, lines + (k + 1) * row, 0.f);
    }
  });
  // Sums of a block stay in the first cache while the weights stream by.
  const int64_t wide = std::min<int64_t>(row, 8 * VL), threads = at::get_num_threads();
  const int64_t high = std::max<int64_t>(1, std::min((outputs + threads - 1) / threads, 6144 / wide));
  const int64_t across = (row + wide - 1) / wide, down = (outputs + high - 1) / high;
  at::parallel_for(0, columns.sets * across * down, 1, [&](int64_t begin, int64_t end) {
    float* const sums = tile_scratch(high * wide);
    for (int64_t n = begin; n < end; n++) {
      // Blocks of one set and one range of channels follow each other: their weights are still in the cache.
      const int64_t set = n / (across * down), first = n / across % down * high, left = n % across * wide;
      const int64_t count = std::min(high, outputs - first), width = std::min(wide, row - left);
      std::fill(sums, sums + count * width, 0.f);
      for (int64_t o = 0; o < inputs; o++) {
        const float* const a = w + ((set * inputs + o) * outputs + first) * 9;
        const float* const from = b + (set * inputs + o) * 9 * row + left;
        int64_t c = 0;
        for (; c + NC * VL <= width; c += NC * VL) add_nine<NC>(a, from + c, row, count, sums + c, width);
        for (; c < width; c += VL) add_nine<1>(a, from + c, row, count, sums + c, width);
      }
      for (int64_t i = 0; i < count; i++)
        for (int64_t c = left; c < std::min(left + width, columns.count); c++) {
          const int64_t place = columns.plane(set * outputs + first + i, outputs, c / pixels);
          out[place * pixels + c % pixels] = sums[i * width + c - left] * to.factor(place);
        }
    }
  });
}

// x (B, I, pixels), grad (B, O, area), result (O, I, 9) summed over the batch, or (B, O, I, 9).
inline void match(const Tensor& x, const Tensor& grad, const optional<Tensor>& scale_in,
                  const optional<Tensor>& scale_out, bool per_image, const Meeting& meeting, const Tensor& result) {
  const Columns columns(x.size(0), per_image, meeting.pixels);
  const Planes in(x, scale_in), from_y(grad, scale_out);
  const int64_t batch = x.size(0), inputs = in.channels, outputs = from_y.channels, area = meeting.area;
  const int64_t row = rounded(inputs, VL), pixels = columns.pixels;
  float* const out = result.mutable_data_ptr<float>();
  // The channels of x side by side, pixel by pixel.
  float* const b = kernel_scratch(batch * pixels * row);
  at::parallel_for(0, batch, grain(pixels * row), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++)
      for (int64_t p = 0; p < pixels; p += VL)
        for (int64_t i = 0; i < row; i += VL) {
          vf v[VL];
          for (int64_t l = 0; l < VL; l++) {
            const int64_t plane = m * inputs + i + l;
            v[l] = vf{};
            if (i + l >= inputs) continue;
            const float* const from = in.data + plane * pixels + p;
            if (p + VL <= pixels)
              v[l] = load(from);
            else
              for (int64_t q = 0; q < pixels - p; q++) v[l][q] = from[q];
            v[l] *= in.factor(plane);
          }
          transpose(v);
          for (int64_t l = 0; l < std::min<int64_t>(VL, pixels - p); l++) store(b + (m * pixels + p + l) * row + i, v[l]);
        }
  });
  at::parallel_for(0, columns.sets * outputs, grain(inputs * 9 * columns.count), [&](int64_t begin, int64_t end) {
    float* const a = tile_scratch(9 * columns.count + area + 1);
    float* const plane = a + 9 * columns.count;
    for (int64_t n = begin; n < end; n++) {
      for (int64_t m = 0; m < columns.images; m++) {
        const int64_t place = columns.plane(n, outputs, m);
        with_zero(from_y.data + place * area, area, from_y.factor(place), plane);
        for (int64_t p = 0; p < pixels; p++)
          for (int64_t k = 0; k < 9; k++) a[(m * pixels + p) * 9 + k] = plane[meeting.at[k * pixels + p]];
      }
      const float* const from = b + n / outputs * columns.count * row;
      for (int64_t i = 0; i < row; i += NC * VL) {
        float sums[9 * NC * VL];
        if (i + NC * VL <= row)
          nine_sums<NC>(a, from + i, columns.count, row, sums, NC * VL);
        else
          nine_sums<1>(a, from + i, columns.count, row, sums, NC * VL);
        const int64_t many = std::min<int64_t>(NC * VL, inputs - i);
        for (int64_t l = 0; l < many; l++)
          for (int k = 0; k < 9; k++) out[(n * inputs + i + l) * 9 + k] = sums[k * NC * VL + l];
      }
    }
  });
}

}  // namespace wrangan
