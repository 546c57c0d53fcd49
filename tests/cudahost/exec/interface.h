// interface: what the executor offers to kernels' sources (through shim.h and emu.h).
#pragma once
#include <cuda_runtime.h>
#include "cudahost.h"

namespace cudahost
{
// The part of the executor's state that kernels read.
struct Visible {
    uint3 thread, block; // of the fiber that runs
    dim3 block_dim, grid_dim;
    unsigned char *smem; // dynamic shared memory
};
extern Visible visible;

void barrier(const char *file, int line);
enum Vote { VOTE_OR, VOTE_AND, VOTE_COUNT };
int barrier_vote(Vote how, bool value, const char *file, int line);
void warp_sync(unsigned mask, const char *file, int line);
uint64_t shuffle(unsigned mask, uint64_t bits, int from_lane, const char *file, int line);
unsigned ballot(unsigned mask, bool value, const char *file, int line);
int lane_id();
// op on a 4- or 8-byte integer at p, as one access; returns what was there
enum Atomic { ADD, MAX_SIGNED, MAX_UNSIGNED, MIN_SIGNED, MIN_UNSIGNED, OR, AND, XOR, EXCHANGE, COMPARE_SWAP };
uint64_t atomic(Atomic op, void *p, int bytes, uint64_t value, uint64_t compare);
void add_kernel(CudahostKernel *kernel);
} // namespace cudahost
