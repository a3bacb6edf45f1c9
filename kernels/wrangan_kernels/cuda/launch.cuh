// Runs blocks on the GPU, on a given stream, without waiting for them.
#pragma once

#include <cuda_runtime.h>

#include "dispatch.cuh"

namespace wrangan {

template <class Block>
__global__ void __launch_bounds__(THREADS) run_block(const __grid_constant__ typename Block::Arguments arguments) {
  extern __shared__ __align__(32) unsigned char shared[];
  Block block(arguments, static_cast<int>(blockIdx.x), shared);
  const int thread = static_cast<int>(threadIdx.x), rounds = block.rounds();
  for (int round = 0; round < rounds; ++round) {
    block.template phase<0>(thread, round);
    if constexpr (Block::PHASES > 1) {
      __syncthreads();
      block.template phase<1>(thread, round);
    }
    if constexpr (Block::PHASES > 2) {
      __syncthreads();
      block.template phase<2>(thread, round);
    }
    if constexpr (Block::PHASES > 3) {
      __syncthreads();
      block.template phase<3>(thread, round);
    }
    if (round + 1 < rounds) __syncthreads();
  }
}

struct CudaLauncher {
  cudaStream_t stream;

  template <class Block>
  void run(const typename Block::Arguments& arguments, int blocks, int shared_bytes) const {
    static_assert(Block::PHASES <= 4);
    run_block<Block><<<blocks, THREADS, shared_bytes, stream>>>(arguments);
  }
};

}  // namespace wrangan
