// hooks: what -fsanitize=thread makes a compiler call before every access of a kernel. The runtime that belongs to it is not linked: these
// are all there is. (Under AddressSanitizer kernels have its checks instead.)
#include "check.h"

using namespace cudahost;

static bool hooked;
bool cudahost::kernels_are_hooked()
{
    return hooked;
}
bool cudahost_hooked(void)
{
    return hooked;
}

#if !defined(__SANITIZE_ADDRESS__)
static inline void hook(Access how, const void *p, size_t bytes, bool aligned, const void *pc)
{
    if (!now) return; // code of the host in the same file
    if (!check_access(how, p, bytes, aligned, pc)) end_launch();
}

#define PC __builtin_return_address(0)
#define HOOK(name, how, n, aligned)                                                                                    \
    void name(void *p)                                                                                                 \
    {                                                                                                                  \
        hook(how, p, n, aligned, PC);                                                                                  \
    }
#define HOOKS(n)                                                                                                       \
    HOOK(__tsan_read##n, READ, n, true)                                                                                \
    HOOK(__tsan_write##n, WRITE, n, true)                                                                              \
    HOOK(__tsan_unaligned_read##n, READ, n, false)                                                                     \
    HOOK(__tsan_unaligned_write##n, WRITE, n, false)

extern "C" {
void __tsan_init(void) // called by every file that has hooks, before main
{
    hooked = true;
}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
// The guard of a static variable whose constructor does nothing: a __shared__ array of bf16
unsigned char __tsan_atomic8_load(const volatile void *p, int)
{
    return *(const volatile unsigned char *)p;
}
HOOK(__tsan_read1, READ, 1, true)
HOOK(__tsan_write1, WRITE, 1, true)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void *p, size_t bytes)
{
    hook(READ, p, bytes, false, PC);
}
void __tsan_write_range(void *p, size_t bytes)
{
    hook(WRITE, p, bytes, false, PC);
}
}
#endif
