// Matrix products in the transformed domain, and the memory that they work in.
#pragma once

#include <cstdlib>
#include <new>

#include "vectors.h"

namespace wrangan {

#if defined(__AVX512F__)
constexpr int MR = 8;  // output channels at a time
#else
constexpr int MR = 4;
#endif
constexpr int NV = 2;        // groups of tiles at a time
constexpr int NR = NV * VL;  // tiles at a time

inline int64_t rounded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Memory that a thread keeps for its next call: pages that are fresh each time cost as much as the work.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  float* get(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, rounded(floats * 4, 64)));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = floats;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

// C (MR, n·VL) = Σ_k A (K, MR)ᵀ · B (K, NR); the sum runs over k in order, whatever surrounds it.
template <int n>
__attribute__((noinline)) void product(const float* a, const float* b, int64_t count, float* c, int64_t row) {
  vf total[MR][n];
  for (int m = 0; m < MR; m++)
    for (int j = 0; j < n; j++) total[m][j] = vf{};
  for (int64_t k = 0; k < count; k++) {
    vf right[n];
    for (int j = 0; j < n; j++) {
      right[j] = load(b + j * VL);
      keep(right[j]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 4
      for (int j = 0; j < n; j++) total[m][j] += a[m] * right[j];
    a += MR;
    b += NR;
  }
  for (int m = 0; m < MR; m++)
    for (int j = 0; j < n; j++) store(c + m * row + j * VL, total[m][j]);
}

constexpr int MO = 2, MI = VL / MO;  // a block of inner products: as many as a vector has lanes

// The sums of the lanes of VL vectors, as one vector: neighbours are added until one is left.
inline vf lane_sums(vf v[VL]) {
  for (int many = VL / 2; many > 0; many /= 2)
#pragma GCC unroll 8
    for (int l = 0; l < many; l++) v[l] = evens(v[2 * l], v[2 * l + 1]) + odds(v[2 * l], v[2 * l + 1]);
  return v[0];
}

// c (MO, MI) += A (MO, T) · B (MI, T)ᵀ, T a multiple of VL. B is to stay in the first cache.
static __attribute__((noinline)) void inner_products(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t count, float* c,
                           int64_t c_row) {
  vf total[VL];
  for (auto& v : total) v = vf{};
  for (int64_t k = 0; k < count; k += VL) {
    vf left[MO];
    for (int m = 0; m < MO; m++) {
      left[m] = load(a + m * a_row + k);
      keep(left[m]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < MI; j++) {
      vf right = load(b + j * b_row + k);
      keep(right);
#pragma GCC unroll 2
      for (int m = 0; m < MO; m++) total[m * MI + j] += left[m] * right;
    }
  }
  float sums[VL];
  store(sums, lane_sums(total));
  for (int m = 0; m < MO; m++)
    for (int j = 0; j < MI; j++) c[m * c_row + j] += sums[m * MI + j];
}

}  // namespace wrangan
