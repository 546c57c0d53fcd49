// fake: libcudahost.so, what stands in for libcudart, libcublasLt and libnccl when it is preloaded (../run.sh). The program is the one
// that nvcc built; its kernels are run by the executor, from the same sources built for the host.
//
// Work is put on streams and carried out by one thread, when somebody waits or asks, in an order that is as far from the order of
// submission as streams and events allow: chosen at random by CUDAHOST_SEED. Who forgot an event reads what is not there yet.
// Misuse that hardware would answer with an error is answered with it; misuse that it would leave to luck ends the program.
//
//   CUDAHOST_SEED=N        another order (default 1); 0: in the order of submission
//   CUDAHOST_ORDER=NAME    of threads in kernels: forward, reverse, random (default by seed: random)
//   CUDAHOST_DEVICES=N     how many GPUs there seem to be (default 8)
//   CUDAHOST_MEMORY=MIB    of each of them (default 4096)
//   CUDAHOST_PATIENCE=S    how long nothing may move while somebody waits (default 120)
//   CUDAHOST_NCCL_LOST=N   the communicators of this rank are well N times, when asked, and then have lost a peer
//   CUDAHOST_FORGET=WHAT   as if the program had forgotten to: waits (of streams, for events), queries (of events, by the host)
#pragma once
#include "cudahost.h"
#include <cuda_runtime_api.h>
#include <functional>
#include <mutex>

namespace fake
{
// ---- streams.cc ----
// One piece of work. step is called when everything before it on its stream is done, again and again until it returns true.
struct Work {
    std::function<bool()> step;
    const char *what;
};
void submit(cudaStream_t stream, Work work);
void submit(cudaStream_t stream, const char *what, std::function<void()> run);
// Does some of what is possible, until done() or nothing is left to do that could help; false in the latter case.
void run_until(const char *who, const std::function<bool()> &done);
void run_some();                  // what an asynchronous GPU may have got done meanwhile: a piece of work, or none
bool idle();                      // nothing is submitted that is not done
extern std::recursive_mutex lock; // held by every entry point, and by work that runs
uint32_t random_below(uint32_t n);
int seed();

// ---- errors ----
cudaError_t error(cudaError_t e);                                              // remembered for cudaGetLastError
void break_device(const char *fmt, ...) __attribute__((format(printf, 1, 2))); // says so; every call fails from now on
[[noreturn]] void misuse(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

int env(const char *name, int otherwise);
int current_device();
} // namespace fake

#define FAKE_ENTRY std::lock_guard<std::recursive_mutex> entry_(fake::lock)
