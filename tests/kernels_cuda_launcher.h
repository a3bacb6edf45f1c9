// Runs blocks of kernels/wrangan_kernels/cuda on the CPU, one after the other; in each phase the threads likewise.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>

#include "dispatch.cuh"

namespace wrangan {

// 1: threads from first to last; -1: from last to first. What comes out must not depend on it.
inline int order = 1;
inline int blocks_run = 0;
inline char last_error[128] = "";

struct HostLauncher {
  template <class Block, int P>
  static void phases(Block& block, int round) {
    if constexpr (P < Block::PHASES) {
      for (int i = 0; i < THREADS; ++i) {
        block.template phase<P>(order > 0 ? i : THREADS - 1 - i, round);
      }
      phases<Block, P + 1>(block, round);
    }
  }

  template <class Block>
  void run(const typename Block::Arguments& arguments, int blocks, int shared_bytes) const {
    if (shared_bytes > SHARED_BYTES) std::abort();
    // Behind it lies a part that no thread may touch.
    const int guard = 256, numbers = shared_bytes / 4;
    auto* shared = static_cast<float*>(::operator new(shared_bytes + guard * 4, std::align_val_t{32}));
    const float poison = std::numeric_limits<float>::signaling_NaN();
    for (int i = 0; i < blocks; ++i) {
      const int place = order > 0 ? i : blocks - 1 - i;
      std::fill(shared, shared + numbers, poison);
      std::fill(shared + numbers, shared + numbers + guard, 12345.0f);
      Block block(arguments, place, reinterpret_cast<unsigned char*>(shared));
      for (int round = 0; round < block.rounds(); ++round) phases<Block, 0>(block, round);
      for (int k = 0; k < guard; ++k) {
        if (shared[numbers + k] != 12345.0f) std::snprintf(last_error, sizeof last_error, "shared memory overrun");
      }
    }
    blocks_run += blocks;
    ::operator delete(shared, std::align_val_t{32});
  }
};

}  // namespace wrangan
