// hooks: what -fsanitize=thread makes a compiler call before every access of a kernel. The runtime that belongs to it is not linked: these
// are all there is. (Under AddressSanitizer kernels have its checks instead.)
#if !defined(__SANITIZE_ADDRESS__)
#include "check.h"

using namespace cudahost;

static inline void hook(Access how, const void *p, size_t bytes, const void *pc)
{
    if (!now) return; // code of the host in the same file
    if (!check_access(how, p, bytes, pc)) end_launch();
}

#define PC __builtin_return_address(0)
#define HOOKS(n)                                                                                                       \
    void __tsan_read##n(void *p)                                                                                       \
    {                                                                                                                  \
        hook(READ, p, n, PC);                                                                                          \
    }                                                                                                                  \
    void __tsan_write##n(void *p)                                                                                      \
    {                                                                                                                  \
        hook(WRITE, p, n, PC);                                                                                         \
    }
#define UNALIGNED_HOOKS(n)                                                                                             \
    void __tsan_unaligned_read##n(void *p)                                                                             \
    {                                                                                                                  \
        hook(READ, p, n, PC);                                                                                          \
    }                                                                                                                  \
    void __tsan_unaligned_write##n(void *p)                                                                            \
    {                                                                                                                  \
        hook(WRITE, p, n, PC);                                                                                         \
    }

extern "C" {
void __tsan_init(void) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
UNALIGNED_HOOKS(2)
UNALIGNED_HOOKS(4)
UNALIGNED_HOOKS(8)
UNALIGNED_HOOKS(16)
void __tsan_read_range(void *p, size_t bytes)
{
    hook(READ, p, bytes, PC);
}
void __tsan_write_range(void *p, size_t bytes)
{
    hook(WRITE, p, bytes, PC);
}
}
#endif
