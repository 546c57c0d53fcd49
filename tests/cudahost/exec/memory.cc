// memory: shared memory of the block, device buffers with guard zones, and whose an address is.
#include "exec.h"
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace cudahost
{
enum { GUARD = 4096, ALIGN = 256, CANARY = 0xa5, POISON = 0xff };

alignas(STATIC_SMEM_ALIGN) static unsigned char dynamic_shared[SMEM_LIMIT + 1024];
size_t smem_bytes;

// ---- shared ----
unsigned char *shared_base()
{
    return dynamic_shared;
}

void limit_shared(size_t bytes)
{
    smem_bytes = bytes;
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, bytes);
    ASAN_POISON_MEMORY_REGION(dynamic_shared + bytes, sizeof dynamic_shared - bytes);
}

void poison_shared(const void *kernel)
{
    memset(dynamic_shared, POISON, smem_bytes);
    statics_poison(kernel, POISON);
}

bool is_shared(const void *p, size_t bytes)
{
    const unsigned char *c = (const unsigned char *)p;
    if (c >= dynamic_shared && c + bytes <= dynamic_shared + smem_bytes) return true;
    const Variable *v = static_at(p);
    return v && !v->guard && c + bytes <= v->base + v->bytes;
}

// ---- global ----
static std::vector<Buffer *> buffers; // by address

static auto first_above(const void *p)
{
    return std::upper_bound(buffers.begin(), buffers.end(), (const unsigned char *)p,
                            [](const unsigned char *q, const Buffer *b) { return q < b->base - GUARD; });
}

static size_t guard_behind(const Buffer *b)
{
    return (b->bytes + ALIGN - 1) / ALIGN * ALIGN + GUARD - b->bytes;
}

Buffer *buffer_of(const void *p)
{
    const unsigned char *c = (const unsigned char *)p;
    auto it = first_above(p);
    if (it == buffers.begin()) return nullptr;
    Buffer *b = *(it - 1);
    return c < b->base + b->bytes + guard_behind(b) ? b : nullptr;
}

bool inside(const Buffer *b, const void *p, size_t bytes)
{
    const unsigned char *c = (const unsigned char *)p;
    return b && c >= b->base && c + bytes <= b->base + b->bytes;
}

const char *memory_name(const void *p, char *out, size_t size)
{
    const unsigned char *c = (const unsigned char *)p;
    const Buffer *b = buffer_of(p);
    const Variable *v = static_at(p);
    if (is_shared(p, 1) && c >= dynamic_shared && c < dynamic_shared + sizeof dynamic_shared)
        snprintf(out, size, "dynamic shared memory + %td", c - dynamic_shared);
    else if (v && !v->guard)
        snprintf(out, size, "%s + %td", v->name.c_str(), c - v->base);
    else if (b)
        snprintf(out, size, "%s%+td of %zu bytes", b->name, c - b->base, b->bytes);
    else if (c >= dynamic_shared && c < dynamic_shared + sizeof dynamic_shared)
        snprintf(out, size, "dynamic shared memory + %td of %zu bytes", c - dynamic_shared, smem_bytes);
    else {
        for (int i = 0; i < block.threads; i++)
            if (c >= block.thread[i].stack && c < block.thread[i].stack + fiber_stack_bytes()) {
                snprintf(out, size, "a local variable of thread %d", i);
                return out;
            }
        snprintf(out, size, "address %p", p);
    }
    return out;
}

static void check_guard(const Buffer *b, const unsigned char *p, size_t n)
{
    ASAN_UNPOISON_MEMORY_REGION(p, n);
    for (size_t i = 0; i < n; i++)
        if (p[i] != CANARY) {
            finding(CUDAHOST_OUT_OF_BOUNDS, "%s%+td of %zu bytes was written to; found when it was freed", b->name,
                    p + i - b->base, b->bytes);
            return;
        }
}
} // namespace cudahost

using namespace cudahost;

void *cudahost_alloc(size_t bytes, const char *name)
{
    Buffer *b = new Buffer{nullptr, bytes, name, nullptr};
    const size_t all = GUARD + bytes + guard_behind(b);
    unsigned char *p = (unsigned char *)aligned_alloc(GUARD, (all + GUARD - 1) / GUARD * GUARD);
    if (!p) abort();
    b->base = p + GUARD;
    memset(p, CANARY, all);
    memset(b->base, POISON, bytes);
    ASAN_POISON_MEMORY_REGION(p, GUARD);
    ASAN_POISON_MEMORY_REGION(b->base + bytes, guard_behind(b));
    buffers.insert(first_above(b->base), b);
    return b->base;
}

void cudahost_free(void *p)
{
    if (!p) return;
    Buffer *b = buffer_of(p);
    if (!b || b->base != p) abort();
    check_guard(b, b->base - GUARD, GUARD);
    check_guard(b, b->base + b->bytes, guard_behind(b));
    buffers.erase(std::find(buffers.begin(), buffers.end(), b));
    free(b->base - GUARD);
    free(b->shadow);
    delete b;
}

bool cudahost_is_device(const void *p, size_t bytes)
{
    return inside(buffer_of(p), p, bytes);
}
