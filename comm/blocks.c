// blocks: rows of memory with gaps between them, as a sequence of bytes.
#include "comm_impl.h"
#include <string.h>

size_t block_bytes(const CommBlock *b, size_t size)
{
    return b->rows * b->count * size;
}

typedef struct Runs {
    char *at;
    size_t run, stride; // bytes
} Runs;

static Runs runs_of(const CommBlock *b, size_t size)
{
    const bool gapless = b->stride == b->count;
    return (Runs){b->at, (gapless ? b->rows : 1) * b->count * size, b->stride * size};
}

void block_pack(void *to, const CommBlock *b, size_t size, size_t from, size_t n)
{
    const Runs r = runs_of(b, size);
    char *at = to;
    for (size_t row = n ? from / r.run : 0, skip = n ? from % r.run : 0; n; row++, skip = 0) {
        const size_t some = MIN(r.run - skip, n);
        memcpy(at, r.at + row * r.stride + skip, some);
        at += some;
        n -= some;
    }
}

void block_unpack(const CommBlock *b, size_t size, size_t from, size_t n, const void *packed)
{
    const Runs r = runs_of(b, size);
    const char *at = packed;
    for (size_t row = n ? from / r.run : 0, skip = n ? from % r.run : 0; n; row++, skip = 0) {
        const size_t some = MIN(r.run - skip, n);
        memcpy(r.at + row * r.stride + skip, at, some);
        at += some;
        n -= some;
    }
}

void block_copy(const CommBlock *to, const CommBlock *b, size_t size)
{
    const Runs r = runs_of(b, size);
    const size_t all = block_bytes(b, size);
    for (size_t done = 0; done < all; done += r.run)
        block_unpack(to, size, done, r.run, r.at + done / r.run * r.stride);
}
