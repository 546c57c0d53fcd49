#include "check.h"
namespace cudahost
{
void check_launch_begin(const CudahostKernel *) {}
void check_launch_end() {}
void check_block_begin() {}
void check_block_end() {}
void check_thread_end() {}
void check_barrier(const unsigned *, const unsigned *) {}
void check_warp_sync(int, unsigned) {}
bool check_access(Access, const void *, size_t, const void *)
{
    return true;
}

// What a GPU refuses, with or without hooks in the kernels.
static bool refuse(CudahostKind kind, const char *what, const void *p, Where at)
{
    char name[128];
    finding(kind, "%s %s at %s", what, memory_name(p, name, sizeof name), where(at));
    return false;
}

bool check_ldmatrix(const void *const *rows, int matrices, Where at)
{
    for (int i = 0; i < 8 * matrices; i++) {
        if ((uintptr_t)rows[i] % 16)
            return refuse(CUDAHOST_MISALIGNED, "ldmatrix of a row that is not 16-byte aligned:", rows[i], at);
        if (!is_shared(rows[i], 16))
            return refuse(CUDAHOST_OUT_OF_BOUNDS, "ldmatrix outside of shared memory:", rows[i], at);
    }
    return true;
}

bool check_copy(const void *shared, const void *global, int bytes, int valid, Where at)
{
    const size_t n = (size_t)bytes;
    if ((uintptr_t)shared % n) return refuse(CUDAHOST_MISALIGNED, "cp.async to", shared, at);
    if (!is_shared(shared, n)) return refuse(CUDAHOST_OUT_OF_BOUNDS, "cp.async to", shared, at);
    if ((uintptr_t)global % n) return refuse(CUDAHOST_MISALIGNED, "cp.async from", global, at);
    if (valid && !inside(buffer_of(global), global, (size_t)valid))
        return refuse(CUDAHOST_OUT_OF_BOUNDS, "cp.async from", global, at);
    return true;
}

void check_landed(const void *, size_t, const void *) {}
} // namespace cudahost
