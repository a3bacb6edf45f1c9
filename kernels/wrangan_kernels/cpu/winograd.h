// The drivers of all convolutions by Winograd's method: what is left is a scheme, which says how tiles and
// kernels are transformed (conv3x3.cpp, conv_up.cpp).
//
// A block of tiles goes through all three steps (transform, products over the channels, transform back) in
// one thread, while it is in the cache. Every result is a sum in an order of its own: batch, threads and
// blocks do not change it.
//
// A scheme has: SLOTS, products of a tile; KERNELS, matrices that they are with, kernel_of(slot); data_area
// and result_area, pixels of a plane; write_data, write_result, and, for the kernels' gradient, write_gradient
// and kernel_gradient; kernel_transform of MR kernels at a time.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mul.h>

#include "products.h"
#include "tiles.h"

namespace wrangan {

using at::Tensor;
using c10::optional;

// One for all schemes: they do not run within each other.
inline float* kernel_scratch(int64_t floats) {
  static thread_local Scratch memory;
  return memory.get(floats);
}

inline float* tile_scratch(int64_t floats) {
  static thread_local Scratch memory;
  return memory.get(floats);
}

// Kernels of one image in the transformed domain: [KERNELS][outputs / MR][inputs][MR].
struct Packed {
  int64_t outputs, inputs, step, size;
  Packed(int64_t o, int64_t i, int kernels) : outputs(o), inputs(i) {
    step = rounded(o, MR) * i + 16;  // not a power of two: the streams would share cache lines
    size = step * kernels;
  }
};

// weight (outputs, inputs, 3, 3), or, transposed, (inputs, outputs, 3, 3).
template <typename Scheme>
void pack(const float* weight, bool transposed, const Packed& packed, float* out, int64_t panel) {
  const int64_t row = (transposed ? packed.outputs : packed.inputs) * 9;
  for (int64_t i = 0; i < packed.inputs; i++) {
    float g[9][MR], u[Scheme::KERNELS][MR];
    for (int m = 0; m < MR; m++) {
      const int64_t o = panel * MR + m;
      const float* source = weight + (transposed ? i * row + o * 9 : o * row + i * 9);
      for (int k = 0; k < 9; k++) g[k][m] = o < packed.outputs ? source[k] : 0.f;
    }
    Scheme::kernel_transform(g, u);
    float* place = out + (panel * packed.inputs + i) * MR;
    for (int p = 0; p < Scheme::KERNELS; p++) std::memcpy(place + p * packed.step, u[p], sizeof(u[p]));
  }
}

// How many groups of tiles go through together: few for the cache, many where the kernels are large.
inline int64_t block_groups(int64_t slots, int64_t channels, int64_t groups) {
  const int64_t fitting = (3 << 20) / (slots * 4 * VL * channels);
  const int64_t wanted = std::max<int64_t>(fitting, 4) / NV * NV;
  const int64_t threads = at::get_num_threads();
  const int64_t share = rounded((groups + threads - 1) / threads, NV);
  return std::max<int64_t>(NV, std::min(wanted, share));
}

// One number for each channel of each image; null where there is none.
inline const float* numbers(const optional<Tensor>& given, int64_t batch, int64_t channels, Tensor& holder) {
  if (!given.has_value()) return nullptr;
  TORCH_CHECK(given->dim() == 2 && given->size(0) == batch && given->size(1) == channels,
              "convolution: scale of shape ", given->sizes(), ", expected (", batch, ", ", channels, ")");
  TORCH_CHECK(given->scalar_type() == at::kFloat, "convolution: the scale must be float32");
  holder = given->contiguous();
  return holder.const_data_ptr<float>();
}

inline Tensor scaled(const Tensor& x, const optional<Tensor>& scale) {
  return scale.has_value() ? at::mul(x, scale->unsqueeze(-1).unsqueeze(-1)) : x;
}

// Measured (docs/kernels.md): the transforms of the kernels must spread over enough pixels, and a group of
// tiles must not be half empty. `images`: how many these kernels' gradient is summed over.
inline bool pays(int64_t height, int64_t width, int64_t images, int64_t kernels) {
  if (std::min(height, width) < 16) return false;
  const int64_t pixels = height * width * images;
  return pixels >= 1024 || (pixels >= 256 && kernels <= 40000);
}

inline void check(const Tensor& x, const char* name) {
  TORCH_CHECK(x.scalar_type() == at::kFloat && x.dim() >= 4, name, ": expected float32 of 4 dimensions");
}

// y = scale_out ⊙ conv(scale_in ⊙ x) on a grid of `height` × `width` px; all tensors contiguous.
template <typename Scheme>
void convolve(const Tensor& x, const Tensor& weight, const optional<Tensor>& scale_in,
              const optional<Tensor>& scale_out, bool transposed, const Grid& grid, const Tensor& y) {
  const bool per_image = weight.dim() == 5;
  const int64_t batch = x.size(0), inputs = x.size(1), outputs = y.size(1);
  Tensor held_in, held_out;
  const float* const factors_in = numbers(scale_in, batch, inputs, held_in);
  const float* const factors_out = numbers(scale_out, batch, outputs, held_out);
  const Packed packed(outputs, inputs, Scheme::KERNELS);
  const int64_t panels = rounded(outputs, MR) / MR, sets = per_image ? batch : 1;
  float* const u = kernel_scratch(packed.size * sets);
  const float* const w = weight.const_data_ptr<float>();
  at::parallel_for(0, sets * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++)
      pack<Scheme>(w + n / panels * outputs * inputs * 9, transposed, packed, u + n / panels * packed.size,
                   n % panels);
  });
  // With kernels in common a block may reach over several images.
  const int64_t row = per_image ? grid.groups : grid.groups * batch;
  const int64_t most = block_groups(Scheme::SLOTS, inputs + outputs, row * sets);
  const int64_t blocks = (row + most - 1) / most;
  const float* const in = x.const_data_ptr<float>();
  float* const out = y.mutable_data_ptr<float>();
  const int64_t data_area = Scheme::data_area(grid), result_area = Scheme::result_area(grid);
  at::parallel_for(0, sets * blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t padded = panels * MR, tiles = most * VL;
    const int64_t v_step = most / NV * inputs * NR + 16, m_step = padded * tiles + 16;
    float* const v = tile_scratch(Scheme::SLOTS * (v_step + m_step));
    float* const m = v + Scheme::SLOTS * v_step;
    for (int64_t n = begin; n < end; n++) {
      const int64_t set = n / blocks, first = n % blocks * most, count = std::min(most, row - first);
      const float* const kernel = u + set * packed.size;
      for (int64_t g = 0; g < count; g++) {
        const int64_t image = per_image ? set : (first + g) / grid.groups, group = (first + g) % grid.groups;
        for (int64_t i = 0; i < inputs; i++) {
          const int64_t plane = image * inputs + i;
          Scheme::write_data(in + plane * data_area, grid, group, factors_in ? factors_in[plane] : 1.f,
                             v + (g / NV * inputs + i) * NR + g % NV * VL, v_step);
        }
      }
      for (int p = 0; p < Scheme::SLOTS; p++)
        for (int64_t o = 0; o < panels; o++)
          for (int64_t g = 0; g < count; g += NV) {
            const float* const a = kernel + Scheme::kernel_of(p) * packed.step + o * inputs * MR;
            const float* const b = v + p * v_step + g * VL * inputs;
            float* const c = m + p * m_step + o * MR * tiles + g * VL;
            if (g + 1 < count)
              product<2>(a, b, inputs, c, tiles);
            else
              product<1>(a, b, inputs, c, tiles);
          }
      for (int64_t g = 0; g < count; g++) {
        const int64_t image = per_image ? set : (first + g) / grid.groups, group = (first + g) % grid.groups;
        for (int64_t o = 0; o < outputs; o++) {
          const int64_t plane = image * outputs + o;
          Scheme::write_result(m + o * tiles + g * VL, m_step, factors_out ? factors_out[plane] : 1.f,
                               out + plane * result_area, grid, group);
        }
      }
    }
  });
}

// A group of tiles of VL channels, transformed, with the channels side by side: slot p, tile t and channel
// c go to out[p · step + t · row + c], or, in panels of `wide` channels, `panel` floats apart.
template <typename Transform>
inline void write_channels(int slots, int64_t channels, Transform transform, float* out, int64_t step, int64_t row,
                           int64_t wide, int64_t panel) {
  constexpr int64_t PLACE = VL * VL + 16;
  alignas(64) float buffer[81 * PLACE];
  for (int64_t c = 0; c < VL; c++) {
    if (c < channels)
      transform(c, buffer + c * VL, PLACE);
    else
      for (int p = 0; p < slots; p++) store(buffer + p * PLACE + c * VL, vf{});
  }
  for (int p = 0; p < slots; p++) {
    vf v[VL];
    for (int c = 0; c < VL; c++) v[c] = load(buffer + p * PLACE + c * VL);
    transpose(v);
    for (int t = 0; t < VL; t++) {
      if (wide >= VL) {
        store(out + p * step + t * row, v[t]);
      } else {
        float line[VL];
        store(line, v[t]);
        for (int64_t part = 0; part < VL / wide; part++)
          std::memcpy(out + p * step + part * panel + t * row, line + part * wide, wide * sizeof(float));
      }
    }
  }
}

// The gradient of `convolve` in the weight; result (O, I, 3, 3), or (B, O, I, 3, 3) per image.
// The products are of channels with channels, and sums over the tiles, a chunk of them at a time.
template <typename Scheme>
void correlate(const Tensor& x, const Tensor& grad, const optional<Tensor>& scale_in,
               const optional<Tensor>& scale_out, bool per_image, const Grid& grid, const Tensor& result) {
  constexpr int SLOTS = Scheme::SLOTS, KERNELS = Scheme::KERNELS;
  const int64_t batch = x.size(0), inputs = x.size(1), outputs = grad.size(1), sets = per_image ? batch : 1;
  Tensor held_in, held_out;
  const float* const factors_in = numbers(scale_in, batch, inputs, held_in);
  const float* const factors_out = numbers(scale_out, batch, outputs, held_out);
  const int64_t row = grid.groups * (per_image ? 1 : batch);
  const int64_t data_area = Scheme::data_area(grid), result_area = Scheme::result_area(grid);
  const int64_t in_blocks = (inputs + VL - 1) / VL, out_blocks = (outputs + VL - 1) / VL;
  const int64_t ins = rounded(inputs, NR), outs = out_blocks * VL;
  const int64_t fitting = (6 << 20) / (SLOTS * 4 * VL * (ins + outs));
  const int64_t most = std::min(row, std::max<int64_t>(fitting, 8)), tiles = most * VL;
  // Odd steps in units of cache lines, here too.
  const int64_t v_step = ins * tiles + 16, d_step = outs * tiles + 16, c_step = outs * ins + 16;
  float* const v = kernel_scratch(SLOTS * (v_step + d_step) + KERNELS * c_step);
  float* const d = v + SLOTS * v_step;
  float* const c = d + SLOTS * d_step;
  const float* const in = x.const_data_ptr<float>();
  const float* const g_in = grad.const_data_ptr<float>();
  float* const out = result.mutable_data_ptr<float>();
  for (int64_t set = 0; set < sets; set++) {
    for (int64_t first = 0; first < row; first += most) {
      const int64_t count = std::min(most, row - first);
      at::parallel_for(0, (in_blocks + out_blocks) * count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) {
          const int64_t block = n / count, g = n % count;
          const int64_t image = per_image ? set : (first + g) / grid.groups, group = (first + g) % grid.groups;
          if (block < in_blocks) {
            const int64_t plane = image * inputs + block * VL;
            const auto transform = [&](int64_t k, float* to, int64_t step) {
              Scheme::write_data(in + (plane + k) * data_area, grid, group, factors_in ? factors_in[plane + k] : 1.f,
                                 to, step);
            };
            float* const to = v + (block / NV * tiles + g * VL) * NR + block % NV * VL;
            write_channels(SLOTS, std::min<int64_t>(VL, inputs - block * VL), transform, to, v_step, NR, NR, 0);
          } else {
            const int64_t plane = image * outputs + (block - in_blocks) * VL;
            const auto transform = [&](int64_t k, float* to, int64_t step) {
              Scheme::write_gradient(g_in + (plane + k) * result_area, grid, group,
                                     factors_out ? factors_out[plane + k] : 1.f, to, step);
            };
            float* const to = d + (block - in_blocks) * VL * tiles + g * VL * MR;
            write_channels(SLOTS, std::min<int64_t>(VL, outputs - (block - in_blocks) * VL), transform, to, d_step, MR,
                           MR, tiles * MR);
          }
        }
      });
      // One sum after the other for each chunk: the order does not depend on the threads.
      const int64_t panels = outs / MR, parts = std::max<int64_t>(1, panels / 4);
      at::parallel_for(0, KERNELS * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) {
          const int64_t q = n % KERNELS, from = panels * (n / KERNELS) / parts, to = panels * (n / KERNELS + 1) / parts;
          float* const sums = c + q * c_step;
          if (first == 0) std::memset(sums + from * MR * ins, 0, (to - from) * MR * ins * sizeof(float));
          for (int p = 0; p < SLOTS; p++) {
            if (Scheme::kernel_of(p) != q) continue;
            for (int64_t i = 0; i < in_blocks; i += NV)
              for (int64_t o = from; o < to; o++) {
                const float* const a = d + p * d_step + o * tiles * MR;
                const float* const b = v + p * v_step + i * VL * tiles;
                float* const place = sums + o * MR * ins + i * VL;
                if (i + 1 < in_blocks)
                  product<2, true>(a, b, count * VL, place, ins);
                else
                  product<1, true>(a, b, count * VL, place, ins);
              }
          }
        }
      });
    }
    at::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; o++)
        for (int64_t i = 0; i < inputs; i += VL) {
          vf m[KERNELS], g[9];
          for (int k = 0; k < KERNELS; k++) m[k] = load(c + k * c_step + o * ins + i);
          Scheme::kernel_gradient(m, g);
          float* const place = out + ((set * outputs + o) * inputs + i) * 9;
          const int64_t many = std::min<int64_t>(VL, inputs - i);
          for (int64_t l = 0; l < many; l++)
            for (int k = 0; k < 9; k++) place[l * 9 + k] = g[k][l];
        }
    });
  }
}

}  // namespace wrangan
