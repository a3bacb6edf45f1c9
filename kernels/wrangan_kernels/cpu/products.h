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

// C (MR, n·VL) = Σ_k A (K, MR)ᵀ · B (K, NR), or added to it; the sum runs over k in order, whatever
// surrounds it. Not inlined: GCC then keeps all sums in registers.
template <int n, bool add = false>
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
    for (int j = 0; j < n; j++) {
      float* const place = c + m * row + j * VL;
      store(place, add ? load(place) + total[m][j] : total[m][j]);
    }
}

// Rows and columns of VL vectors change places.
inline void transpose(vf v[VL]) {
  for (int round = 1; round < VL; round *= 2) {
    vf next[VL];
#pragma GCC unroll 8
    for (int l = 0; l < VL / 2; l++) {
      next[2 * l] = zip_low(v[l], v[l + VL / 2]);
      next[2 * l + 1] = zip_high(v[l], v[l + VL / 2]);
    }
    for (int l = 0; l < VL; l++) v[l] = next[l];
  }
}

}  // namespace wrangan
