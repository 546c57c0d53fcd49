// The window holds a line of memory and two slots per member. A collective is one or several rounds: each member writes into
// its slot what the others need, counts its line up to the round's number, waits for the others' lines as far as it needs
// their slots, and reads these. Slots are used in turn, so the next round may begin while others still read this one's; a
// member that has come to round n has done with round n - 1, hence a slot is free again once all have come to the round after
// it. Payloads larger than a slot take more rounds, and memory does not grow with them.
#define _GNU_SOURCE
#include "shm.h"
#include "comm_impl.h"
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    LINE = 128,                   // bytes that processors move at once, with the neighbour that they fetch ahead
    SLOT_BYTES = 256 << 10,       // two members' slots stay in a second-level cache
    SLOTS_TOTAL_BYTES = 16 << 20, // of all members, for many of them
    WIDE_TOTAL_BYTES = 64 << 20,  // the same where one has asked for room
    SMALL_BYTES = 8 << 10, // up to here it is cheaper that every member makes the whole sum than that they share it
    SPINS = 1000,          // some ten microseconds
    AWAKE_MS = 1,          // then a waiting member sleeps: waking up takes it a twentieth of that
};

// Written by its member (arrived) and by those who wait for it (sleepers).
typedef struct Line {
    _Alignas(LINE) _Atomic uint32_t arrived; // the round that the member has come to; wraps around
    _Atomic uint32_t sleepers;
} Line;

struct Shm {
    Line *line;
    char *slots;
    size_t slot_bytes, mapped_bytes; // 0: the memory is the caller's
    int rank, size;
    int fd; // 0: none, or no longer
    bool crowded;
    uint32_t round;  // this member's
    uint32_t all_at; // a round that all are known to have come to
    const void **in; // per member: what is being summed
    size_t piece;    // of an exchange that has begun
    ShmSpan *shares; // per member: of a sum that all make together
};

// ---- the window -------------------------------------------------------------------------------------------------------
static size_t slot_bytes(int size, size_t room)
{
    const size_t total = room ? WIDE_TOTAL_BYTES : SLOTS_TOTAL_BYTES, wanted = room ? ROUND_UP(room, PAGE) : SLOT_BYTES;
    const size_t fair = total / 2 / (size_t)size / PAGE * PAGE;
    const size_t least = ROUND_UP((size_t)size * LINE, PAGE); // a line for each member
    return MAX(MIN(fair, wanted), least);
}

static size_t lines_bytes(int size)
{
    return ROUND_UP((size_t)size * sizeof(Line), PAGE);
}

size_t shm_window_bytes(int size, size_t room)
{
    return lines_bytes(size) + 2 * (size_t)size * slot_bytes(size, room);
}

size_t shm_resident_bytes(int size, size_t room, size_t largest)
{
    enum { AROUND = 64 << 10 }; // of a file's pages, a fault maps some neighbours too
    const size_t used = MIN(slot_bytes(size, room), ROUND_UP(largest, AROUND));
    return lines_bytes(size) + 2 * (size_t)size * used;
}

Shm *shm_attach(void *window, int rank, int size, size_t room, bool crowded)
{
    Shm *g = xcalloc(1, sizeof *g);
    g->line = window;
    g->slots = (char *)window + lines_bytes(size);
    g->slot_bytes = slot_bytes(size, room);
    g->rank = rank;
    g->size = size;
    g->crowded = crowded;
    g->in = xcalloc((size_t)size, sizeof *g->in);
    g->shares = xcalloc((size_t)size, sizeof *g->shares);
    return g;
}

// Memory is asked for here and by whom it belongs to: a window that there is no room for would end the process when it is
// touched, and pages lie near the processor that first does.
static bool back_with_memory(int fd, int rank, int size, size_t room)
{
    const off_t lines = (off_t)lines_bytes(size), mine = 2 * (off_t)slot_bytes(size, room);
    return posix_fallocate(fd, 0, lines) == 0 && posix_fallocate(fd, lines + rank * mine, mine) == 0;
}

static Shm *map_window(int fd, int rank, int size, size_t room, bool crowded)
{
    const size_t bytes = shm_window_bytes(size, room);
    if (!back_with_memory(fd, rank, size, room)) return NULL;
    void *window = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (window == MAP_FAILED) return NULL;
    Shm *g = shm_attach(window, rank, size, room, crowded);
    g->mapped_bytes = bytes;
    return g;
}

Shm *shm_make_window(ShmName *name, int size, size_t room, bool crowded)
{
    static _Atomic unsigned made;
    snprintf(name->memory, sizeof name->memory, "attune-%ld-%u-%llx", (long)getpid(), made++,
             (unsigned long long)(now_ms() * 1e6));
    const int fd = memfd_create(name->memory, MFD_CLOEXEC);
    Shm *g = NULL;
    if (fd >= 0 && ftruncate(fd, (off_t)shm_window_bytes(size, room)) == 0) g = map_window(fd, 0, size, room, crowded);
    if (g)
        g->fd = fd;
    else if (fd >= 0)
        close(fd);
    snprintf(name->path, sizeof name->path, "/proc/%d/fd/%d", (int)getpid(), fd);
    return g;
}

// Where process numbers are not the maker's (another container on the same machine), the path leads to something else.
static bool is_named(int fd, const char *memory)
{
    char link[128] = "";
    const ssize_t n = readlink(tmpf("/proc/self/fd/%d", fd), link, sizeof link - 1);
    return n > 0 && streq(link, tmpf("/memfd:%s (deleted)", memory));
}

Shm *shm_join_window(const ShmName *name, int rank, int size, size_t room, bool crowded)
{
    const int fd = open(name->path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return NULL;
    Shm *g = is_named(fd, name->memory) ? map_window(fd, rank, size, room, crowded) : NULL;
    close(fd);
    return g;
}

void shm_close_door(Shm *g)
{
    if (g->fd > 0) close(g->fd);
    g->fd = 0;
}

void shm_close(Shm *g)
{
    if (!g) return;
    shm_close_door(g);
    if (g->mapped_bytes) munmap(g->line, g->mapped_bytes);
    free(g->in);
    free(g->shares);
    free(g);
}

// ---- rounds -----------------------------------------------------------------------------------------------------------
static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool has_come(const Shm *g, int r, uint32_t round)
{
    return (int32_t)(atomic_load_explicit(&g->line[r].arrived, memory_order_acquire) - round) >= 0;
}

// Waiting awake, for the members of a step that are nearly equal in speed: at first by the processor's own means, then
// leaving the core to whoever else wants it.
static bool comes_soon(const Shm *g, int r, uint32_t round)
{
    for (int i = 0; i < SPINS; i++) {
        if (has_come(g, r, round)) return true;
        relax();
    }
    for (double start = now_ms(); now_ms() - start < AWAKE_MS;) {
        if (has_come(g, r, round)) return true;
        sched_yield();
    }
    return false;
}

// A member that announces itself looks for sleepers after it has counted up; one that goes to sleep says so before the
// kernel compares the count: one of the two sees the other.
static void wait_for(Shm *g, int r, uint32_t round)
{
    if (has_come(g, r, round) || (!g->crowded && comes_soon(g, r, round))) return;
    Line *l = &g->line[r];
    while (!has_come(g, r, round)) {
        atomic_fetch_add(&l->sleepers, 1);
        const uint32_t seen = atomic_load(&l->arrived);
        if ((int32_t)(seen - round) < 0) syscall(SYS_futex, &l->arrived, FUTEX_WAIT, seen, NULL, NULL, 0);
        atomic_fetch_sub(&l->sleepers, 1);
    }
}

static void announce(Shm *g)
{
    Line *l = &g->line[g->rank];
    atomic_store(&l->arrived, g->round);
    if (atomic_load(&l->sleepers)) syscall(SYS_futex, &l->arrived, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void wait_for_all(Shm *g, uint32_t round)
{
    if (g->all_at == round) return;
    for (int i = 1; i < g->size; i++) wait_for(g, (g->rank + i) % g->size, round);
    g->all_at = round;
}

static char *slot_of(const Shm *g, int r)
{
    return g->slots + ((size_t)r * 2 + g->round % 2) * g->slot_bytes;
}

// The next round, with this member's slot free to be written.
static char *next_round(Shm *g)
{
    wait_for_all(g, g->round);
    g->round++;
    return slot_of(g, g->rank);
}

// ---- collectives ------------------------------------------------------------------------------------------------------
void shm_barrier(Shm *g)
{
    g->round++;
    announce(g);
    wait_for_all(g, g->round);
}

void shm_broadcast(Shm *g, void *x, size_t bytes, int root, bool takes)
{
    for (size_t first = 0; first < bytes; first += g->slot_bytes) {
        const size_t n = MIN(g->slot_bytes, bytes - first);
        char *at = (char *)x + first;
        if (g->rank == root) {
            memcpy(next_round(g), at, n);
            announce(g);
            continue;
        }
        g->round++; // writes nothing, so the others' reading need not be waited for
        announce(g);
        if (!takes) continue;
        wait_for(g, root, g->round);
        memcpy(at, slot_of(g, root), n);
    }
}

// Piece k of a span that is cut into pieces of `piece` elements; empty past its end.
static ShmSpan piece_of(const ShmSpan *s, size_t k, size_t piece)
{
    const size_t first = MIN(s->first + k * piece, s->end);
    return (ShmSpan){first, MIN(first + piece, s->end)};
}

static size_t rounds_for(const Shm *g, const ShmSpan *span, size_t piece)
{
    size_t longest = 0;
    for (int r = 0; r < g->size; r++) longest = MAX(longest, span[r].end - span[r].first);
    return (longest + piece - 1) / piece;
}

void shm_all_gather(Shm *g, void *x, const ShmSpan *span, size_t size, bool takes)
{
    const size_t piece = g->slot_bytes / size, rounds = rounds_for(g, span, piece);
    for (size_t k = 0; k < rounds; k++) {
        const ShmSpan mine = piece_of(&span[g->rank], k, piece);
        char *own = next_round(g);
        memcpy(own, (char *)x + mine.first * size, (mine.end - mine.first) * size);
        announce(g);
        for (int i = 1; takes && i < g->size; i++) {
            const int r = (g->rank + i) % g->size;
            const ShmSpan his = piece_of(&span[r], k, piece);
            if (his.first == his.end) continue;
            wait_for(g, r, g->round);
            memcpy((char *)x + his.first * size, slot_of(g, r), (his.end - his.first) * size);
        }
    }
}

// A slot holds a piece for each member. Room for one is of whole lines, so that no two members' pieces share one.
static size_t piece_for_each(const Shm *g, size_t size)
{
    return g->slot_bytes / (size_t)g->size / LINE * LINE / size;
}

// A slot begins with the size of its member's largest block: all exchange as often as the largest of all takes.
static size_t largest_of_all(Shm *g)
{
    size_t most = 0;
    wait_for_all(g, g->round);
    for (int r = 0; r < g->size; r++) {
        size_t his;
        memcpy(&his, slot_of(g, r), sizeof his);
        most = MAX(most, his);
    }
    return most;
}

// What member `from` has for `to`, in its slot: nobody has anything for itself.
static char *piece_for(const Shm *g, int from, int to, size_t piece)
{
    return slot_of(g, from) + LINE + (size_t)(to > from ? to - 1 : to) * piece;
}

static void show_pieces(Shm *g, const CommBlock *out, size_t size, size_t at, size_t piece)
{
    size_t largest = 0;
    char *own = next_round(g);
    for (int i = 1; i < g->size; i++) {
        const int r = (g->rank + i) % g->size;
        const size_t bytes = block_bytes(&out[r], size);
        if (at < bytes) block_pack(piece_for(g, g->rank, r, piece), &out[r], size, at, MIN(piece, bytes - at));
        largest = MAX(largest, bytes);
    }
    memcpy(own, &largest, sizeof largest);
    announce(g);
}

static void take_pieces(Shm *g, const CommBlock *in, size_t size, size_t at, size_t piece)
{
    for (int i = 1; i < g->size; i++) {
        const int r = (g->rank + i) % g->size;
        const size_t bytes = block_bytes(&in[r], size);
        if (at >= bytes) continue;
        wait_for(g, r, g->round);
        block_unpack(&in[r], size, at, MIN(piece, bytes - at), piece_for(g, r, g->rank, piece));
    }
}

void shm_exchange(Shm *g, const CommBlock *out, const CommBlock *in, size_t size)
{
    const size_t piece = (g->slot_bytes - LINE) / (size_t)MAX(g->size - 1, 1) / LINE * LINE;
    size_t most = 1; // until all have told
    for (size_t at = 0; at < most; at += piece) {
        show_pieces(g, out, size, at, piece);
        if (at == 0) most = largest_of_all(g);
        take_pieces(g, in, size, at, piece);
    }
}

bool shm_exchange_begin(Shm *g, size_t bytes, void **room)
{
    g->piece = ROUND_UP(MAX(bytes, 1), LINE);
    if (g->piece > (g->slot_bytes - LINE) / (size_t)MAX(g->size - 1, 1)) return false;
    next_round(g);
    for (int r = 0; r < g->size; r++)
        if (r != g->rank) room[r] = piece_for(g, g->rank, r, g->piece);
    return true;
}

void shm_exchange_end(Shm *g, const CommBlock *in, size_t size)
{
    announce(g);
    take_pieces(g, in, size, 0, g->piece);
}

static void reduce_scatter(Shm *g, void *x, const ShmSpan *span, DType t, ReduceOp op)
{
    const size_t size = dtype_size(t), piece = piece_for_each(g, size), rounds = rounds_for(g, span, piece);
    for (size_t k = 0; k < rounds; k++) {
        char *own = next_round(g);
        for (int r = 0; r < g->size; r++) {
            const ShmSpan his = piece_of(&span[r], k, piece);
            if (r != g->rank)
                memcpy(own + (size_t)r * piece * size, (char *)x + his.first * size, (his.end - his.first) * size);
        }
        announce(g);
        const ShmSpan mine = piece_of(&span[g->rank], k, piece);
        if (mine.first == mine.end) continue;
        wait_for_all(g, g->round);
        char *at = (char *)x + mine.first * size;
        for (int r = 0; r < g->size; r++) g->in[r] = r == g->rank ? at : slot_of(g, r) + (size_t)g->rank * piece * size;
        reduce_ranks(at, g->in, g->size, mine.end - mine.first, t, op);
    }
}

void shm_reduce_scatter(Shm *g, void *x, const ShmSpan *span, DType t)
{
    reduce_scatter(g, x, span, t, REDUCE_SUM);
}

// One round: who wants the sum makes it all by itself.
static void reduce_alone(Shm *g, void *x, size_t count, DType t, ReduceOp op, bool takes)
{
    memcpy(next_round(g), x, count * dtype_size(t));
    announce(g);
    if (!takes) return;
    wait_for_all(g, g->round);
    for (int r = 0; r < g->size; r++) g->in[r] = r == g->rank ? x : slot_of(g, r);
    reduce_ranks(x, g->in, g->size, count, t, op);
}

// Two rounds: each member makes the sum of its share, and the shares are gathered.
static void reduce_together(Shm *g, void *x, size_t count, DType t, ReduceOp op, bool takes)
{
    const size_t share = piece_for_each(g, dtype_size(t));
    for (int r = 0; r < g->size; r++)
        g->shares[r] = (ShmSpan){MIN((size_t)r * share, count), MIN(((size_t)r + 1) * share, count)};
    reduce_scatter(g, x, g->shares, t, op);
    shm_all_gather(g, x, g->shares, dtype_size(t), takes);
}

// Each slot's worth goes all the way before the next begins: it stays in the caches meanwhile.
static void reduce(Shm *g, void *x, size_t count, DType t, ReduceOp op, bool takes)
{
    const size_t size = dtype_size(t);
    const bool alone = g->size <= 2 || count * size <= SMALL_BYTES;
    const size_t step = alone ? g->slot_bytes / size : piece_for_each(g, size) * (size_t)g->size;
    for (size_t first = 0; first < count; first += step) {
        const size_t n = MIN(step, count - first);
        (alone ? reduce_alone : reduce_together)(g, (char *)x + first * size, n, t, op, takes);
    }
}

void shm_all_reduce(Shm *g, void *x, size_t count, DType t, ReduceOp op)
{
    reduce(g, x, count, t, op, true);
}

void shm_reduce(Shm *g, void *x, size_t count, DType t, ReduceOp op)
{
    reduce(g, x, count, t, op, g->rank == 0);
}
