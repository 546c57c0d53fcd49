// memory_ops: cp.async and atomics. A copy lands as late as the program allows: when its thread waits for its group; in random order
// some land when they are committed. What reads too early reads poison.
#include "../check/check.h"
#include "internal.h"
#include <string.h>
#include <vector>

namespace cudahost
{
struct Copy {
    void *shared;
    const void *global;
    int bytes, valid;
    unsigned group;
    const void *pc;
};
struct Copies {
    std::vector<Copy> pending; // oldest first
    unsigned group;            // that is open
};
static Copies copies[MAX_THREADS];

void copies_reset()
{
    for (int i = 0; i < block.threads; i++) {
        copies[i].pending.clear();
        copies[i].group = 0;
    }
}

bool copies_pending()
{
    return !copies[now->id].pending.empty();
}

void copy_async(void *shared, const void *global, int bytes, int valid, const char *file, int line)
{
    const Where at = {file, line, __builtin_return_address(0)};
    if (valid < 0 || valid > bytes) {
        finding(CUDAHOST_ASYNC, "cp.async of %d bytes reads %d at %s", bytes, valid, where(at));
        end_launch();
    }
    if (!check_copy(shared, global, bytes, valid, at)) end_launch();
    counts.cp_async++;
    counts.cp_async_bytes += (uint64_t)valid;
    Copies *c = &copies[now->id];
    c->pending.push_back({shared, global, bytes, valid, c->group, at.pc});
}

// Groups up to `last` land.
static void land(Copies *c, unsigned last)
{
    size_t n = 0;
    for (; n < c->pending.size() && c->pending[n].group <= last; n++) {
        const Copy *x = &c->pending[n];
        memcpy(x->shared, x->global, (size_t)x->valid);
        memset((char *)x->shared + x->valid, 0, (size_t)(x->bytes - x->valid));
        check_landed(x->shared, (size_t)x->bytes, x->pc);
    }
    c->pending.erase(c->pending.begin(), c->pending.begin() + (ptrdiff_t)n);
}

void copy_commit()
{
    Copies *c = &copies[now->id];
    if (order == CUDAHOST_RANDOM && random_below(4) == 0) land(c, c->group);
    c->group++;
}

void copy_wait(int pending)
{
    Copies *c = &copies[now->id];
    if (c->group > (unsigned)pending) land(c, c->group - 1 - (unsigned)pending);
}

template <typename U, typename S> static U changed(Atomic op, U old, U value, U compare)
{
    switch (op) {
    case ADD: return old + value;
    case MAX_SIGNED: return (S)old > (S)value ? old : value;
    case MAX_UNSIGNED: return old > value ? old : value;
    case MIN_SIGNED: return (S)old < (S)value ? old : value;
    case MIN_UNSIGNED: return old < value ? old : value;
    case OR: return old | value;
    case AND: return old & value;
    case XOR: return old ^ value;
    case EXCHANGE: return value;
    case COMPARE_SWAP: return old == compare ? value : old;
    }
    return old;
}

template <typename U, typename S> static U apply(Atomic op, void *p, U value, U compare)
{
    U old, next;
    memcpy(&old, p, sizeof old);
    next = changed<U, S>(op, old, value, compare);
    memcpy(p, &next, sizeof next);
    return old;
}

uint64_t atomic(Atomic op, void *p, int bytes, uint64_t value, uint64_t compare)
{
    counts.atomics++;
    if (!check_access(ATOMIC_ACCESS, p, (size_t)bytes, true, __builtin_return_address(0))) end_launch();
    if (bytes == 4) return apply<uint32_t, int32_t>(op, p, (uint32_t)value, (uint32_t)compare);
    return apply<uint64_t, int64_t>(op, p, value, compare);
}
} // namespace cudahost
