// check: what the executor and the emulated instructions tell the checkers.
#pragma once
#include "../exec/exec.h"

namespace cudahost
{
bool kernels_are_hooked();
void check_launch_begin();
void check_launch_end();
void check_block_begin();
void check_block_end();
void check_clear();
// Lanes `came` to a barrier, of which `waited` go on now
void check_barrier(const unsigned came[MAX_WARPS], const unsigned waited[MAX_WARPS]);
void check_warp_sync(int warp, unsigned mask);
void check_met(int warp); // all lanes of a warp stand at the same instruction

// Accesses of the running thread. false: it must not be carried out (there is a finding).
enum Access { READ, WRITE, ATOMIC_ACCESS };
bool check_access(Access how, const void *p, size_t bytes, bool aligned, const void *pc);
// rows[8 * matrices], 16 bytes each, by the whole warp
bool check_ldmatrix(const void *const *rows, int matrices, Where at);
bool check_copy(const void *shared, const void *global, int bytes, int valid, Where at); // cp.async begins
void check_landed(const void *shared, size_t bytes, const void *pc);                     // and is done
} // namespace cudahost
