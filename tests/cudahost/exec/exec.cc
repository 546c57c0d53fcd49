// exec: launches, the scheduler, barriers, and meetings of the lanes of a warp.
#include "exec.h"
#include "../check/check.h"
#include "../emu/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

namespace cudahost
{
Visible visible;
Block block;
Thread *now;
CudahostOrder order;
CudahostCounts counts;

static uint64_t random_state = 1;
static bool given_up; // the launch, after a finding
static const void *kernel_function;
static void (*kernel_call)(void **);
static void **kernel_args;
static Thread *const host = &block.thread[MAX_THREADS];

uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

// ---- scheduling ----
static void run(Thread *t, bool ends = false)
{
    Thread *from = now;
    if (t == from) return;
    counts.switches++;
    now = t;
    visible.thread = t->index;
    fiber_switch(from, t, ends);
}

void end_launch()
{
    given_up = true;
    run(host, true);
    abort();
}

static int nth_bit(unsigned mask, int n)
{
    while (n--) mask &= mask - 1;
    return __builtin_ctz(mask);
}

static Thread *random_ready()
{
    unsigned warps = 0;
    for (int w = 0; w < block.warps; w++)
        if (block.warp[w].ready) warps |= 1u << w;
    if (!warps) return nullptr;
    int w = nth_bit(warps, (int)random_below((uint32_t)__builtin_popcount(warps)));
    unsigned ready = block.warp[w].ready;
    return &block.thread[w * LANES + nth_bit(ready, (int)random_below((uint32_t)__builtin_popcount(ready)))];
}

// Forward: the next lane of this warp, round it, then the next warp. Reverse: the highest lane of the highest warp.
static Thread *next_ready()
{
    if (order == CUDAHOST_RANDOM) return random_ready();
    const bool back = order == CUDAHOST_REVERSE;
    const int first = now == host || back ? 0 : now->warp;
    for (int i = 0; i < block.warps; i++) {
        int w = back ? block.warps - 1 - i : (first + i) % block.warps;
        unsigned ready = block.warp[w].ready;
        if (!ready) continue;
        if (back) return &block.thread[w * LANES + 31 - __builtin_clz(ready)];
        unsigned after = now != host && w == now->warp ? ready & ~((2u << now->lane) - 1) : ready;
        return &block.thread[w * LANES + __builtin_ctz(after ? after : ready)];
    }
    return nullptr;
}

static void deadlock()
{
    char text[640];
    int n = 0, told = 0, waiting = 0;
    Where last = {nullptr, 0, nullptr};
    for (int i = 0; i < block.threads; i++) {
        Thread *t = &block.thread[i];
        if (t->ended) continue;
        waiting++;
        if ((t->at.file == last.file && t->at.line == last.line) || told == 6 || n > 480) continue;
        n += snprintf(text + n, sizeof text - n, "%s from thread %d in %s at %s", told++ ? ";" : "", i, t->waits,
                      where(t->at));
        last = t->at;
    }
    finding(CUDAHOST_DEADLOCK, "none of %d threads can go on:%s", waiting, text);
    end_launch();
}

// Until somebody makes this thread ready again.
static void wait_for(const char *what, Where at)
{
    block.warp[now->warp].ready &= ~(1u << now->lane);
    now->waits = what;
    now->at = at;
    Thread *t = next_ready();
    if (!t) deadlock();
    run(t);
}

void pause_thread()
{
    Thread *t = next_ready();
    if (t) run(t);
}

// ---- barriers ----
static bool same_place(Where a, Where b)
{
    return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file));
}

static void release(Barrier *b)
{
    check_barrier(b->came, b->waiting);
    for (int w = 0; w < block.warps; w++) {
        block.warp[w].ready |= b->waiting[w];
        b->came[w] = b->waiting[w] = 0;
    }
    b->result[b->generation & 1] = b->trues;
    b->voters[b->generation & 1] = b->arrived;
    b->generation++;
    b->arrived = b->trues = 0;
}

static void arrive(int id, int expected, bool waits, bool vote, Where at)
{
    Barrier *b = &block.barrier[id];
    if (b->arrived == 0) {
        b->at = at;
        b->expected = expected;
    } else if (id == 0 ? !same_place(b->at, at) : b->expected != expected) {
        finding(CUDAHOST_DIVERGENCE, "comes to a barrier at %s while %d threads wait at %s", where(at), b->arrived,
                where(b->at));
        end_launch();
    }
    counts.barriers++;
    unsigned bit = 1u << now->lane;
    now->generation = b->generation;
    b->came[now->warp] |= bit;
    if (waits) b->waiting[now->warp] |= bit;
    b->trues += vote;
    b->arrived++;
    if (b->arrived == (id == 0 ? block.live : expected))
        release(b);
    else if (waits)
        wait_for("a barrier", at);
}

void barrier(const char *file, int line)
{
    arrive(0, 0, true, false, {file, line, __builtin_return_address(0)});
}

int barrier_vote(Vote how, bool value, const char *file, int line)
{
    arrive(0, 0, true, value, {file, line, __builtin_return_address(0)});
    const Barrier *b = &block.barrier[0];
    const int trues = b->result[now->generation & 1], voters = b->voters[now->generation & 1];
    return how == VOTE_COUNT ? trues : how == VOTE_OR ? trues > 0 : trues == voters;
}

void named_barrier(int id, int threads, bool wait, const char *file, int line)
{
    Where at = {file, line, __builtin_return_address(0)};
    if (id < 1 || id >= BARRIERS || threads <= 0 || threads % LANES || threads > block.warps * LANES) {
        finding(CUDAHOST_LAUNCH, "barrier %d of %d threads at %s: ids are 1 to 15, counts multiples of 32", id, threads,
                where(at));
        end_launch();
    }
    arrive(id, threads, wait, false, at);
}

// ---- meetings ----
static Meeting *meeting_of(unsigned mask, Warp *w)
{
    Meeting *spare = nullptr;
    for (Meeting &m : w->meetings) {
        if (m.arrived && m.mask == mask) return &m;
        if (!m.arrived) spare = &m;
    }
    if (spare) spare->mask = mask;
    return spare;
}

static void refuse_mask(unsigned mask, const char *op, Where at, const Warp *w)
{
    if (!(mask >> now->lane & 1)) {
        finding(CUDAHOST_MASK, "lane %d is not in the mask %08x of its own %s at %s", now->lane, mask, op, where(at));
        end_launch();
    }
    if (mask & ~w->live) {
        finding(CUDAHOST_MASK, "%s at %s waits for lanes %08x, which have ended", op, where(at), mask & ~w->live);
        end_launch();
    }
}

// aligned: all lanes must be at the same place in the source, not only at the same instruction
void meet(unsigned mask, const char *op, bool aligned, void *arg, Where at, Together *together)
{
    Warp *w = &block.warp[now->warp];
    refuse_mask(mask, op, at, w);
    Meeting *m = meeting_of(mask, w);
    if (!m) abort(); // 32 lanes cannot be in more meetings than there are
    if (m->arrived == 0) {
        m->op = op;
        m->at = at;
    } else if (strcmp(m->op, op) || (aligned && !same_place(m->at, at))) {
        finding(CUDAHOST_DIVERGENCE, "lane %d executes %s at %s while lanes %08x of its warp wait in %s at %s",
                now->lane, op, where(at), m->arrived, m->op, where(m->at));
        end_launch();
    }
    m->arg[now->lane] = arg;
    m->arrived |= 1u << now->lane;
    if (m->arrived != mask) {
        wait_for(op, at);
        return;
    }
    together(m->arg, mask);
    m->arrived = 0;
    w->ready |= mask;
    if (mask == w->live) check_met(now->warp);
}

struct Shuffle {
    uint64_t value, result;
    int from;
    Where at;
};
static void do_shuffle(void **args, unsigned mask)
{
    counts.shuffles++;
    for (int l = 0; l < LANES; l++) {
        if (!(mask >> l & 1)) continue;
        Shuffle *s = (Shuffle *)args[l];
        if (mask >> s->from & 1)
            s->result = ((Shuffle *)args[s->from])->value;
        else {
            finding(CUDAHOST_MASK, "lane %d shuffles at %s from lane %d, which is not in the mask %08x", l,
                    where(s->at), s->from, mask);
            end_launch();
        }
    }
}
uint64_t shuffle(unsigned mask, uint64_t bits, int from_lane, const char *file, int line)
{
    Shuffle s = {bits, 0, from_lane & 31, {file, line, __builtin_return_address(0)}};
    meet(mask, "shuffle", false, &s, s.at, do_shuffle);
    return s.result;
}

struct Ballot {
    bool value;
    unsigned result;
};
static void do_ballot(void **args, unsigned mask)
{
    counts.votes++;
    unsigned result = 0;
    for (int l = 0; l < LANES; l++)
        if (mask >> l & 1 && ((Ballot *)args[l])->value) result |= 1u << l;
    for (int l = 0; l < LANES; l++)
        if (mask >> l & 1) ((Ballot *)args[l])->result = result;
}
unsigned ballot(unsigned mask, bool value, const char *file, int line)
{
    Ballot v = {value, 0};
    meet(mask, "vote", false, &v, {file, line, __builtin_return_address(0)}, do_ballot);
    return v.result;
}

static void do_warp_sync(void **, unsigned mask)
{
    counts.warp_syncs++;
    check_warp_sync(now->warp, mask);
}
void warp_sync(unsigned mask, const char *file, int line)
{
    int nothing = 0;
    meet(mask, "__syncwarp", false, &nothing, {file, line, __builtin_return_address(0)}, do_warp_sync);
}

int lane_id()
{
    return now->lane;
}

// ---- a thread's life ----
static void thread_end()
{
    Thread *t = now;
    Warp *w = &block.warp[t->warp];
    const unsigned bit = 1u << t->lane;
    if (copies_pending()) finding(CUDAHOST_ASYNC, "ends with cp.async under way");
    for (Meeting &m : w->meetings)
        if (m.arrived && m.mask & bit) {
            finding(CUDAHOST_MASK, "ends while lanes %08x of its warp wait for it in %s at %s", m.arrived, m.op,
                    where(m.at));
            end_launch();
        }
    t->ended = true;
    w->live &= ~bit;
    w->ready &= ~bit;
    block.live--;
    Barrier *b = &block.barrier[0];
    if (block.live && b->arrived == block.live) release(b);
}

static void thread_main()
{
    fiber_began();
    kernel_call(kernel_args);
    thread_end();
    if (block.live == 0) run(host, true);
    Thread *t = next_ready();
    if (!t) deadlock();
    run(t, true);
    abort();
}

static void block_begin(int threads)
{
    block.threads = block.live = threads;
    block.warps = (threads + LANES - 1) / LANES;
    memset(block.barrier, 0, sizeof block.barrier);
    memset(block.warp, 0, sizeof block.warp);
    for (int i = 0; i < threads; i++) {
        Thread *t = &block.thread[i];
        const dim3 d = visible.block_dim;
        t->index = make_uint3(i % d.x, i / d.x % d.y, i / (d.x * d.y));
        t->id = i;
        t->warp = i / LANES;
        t->lane = i % LANES;
        t->ended = false;
        t->fake_stack = nullptr;
        block.warp[t->warp].live |= 1u << t->lane;
        block.warp[t->warp].ready |= 1u << t->lane;
        fiber_prepare(t, thread_main);
    }
    copies_reset();
    poison_shared(kernel_function);
    check_block_begin();
}

static std::vector<uint32_t> block_order(uint32_t n)
{
    std::vector<uint32_t> o(n);
    for (uint32_t i = 0; i < n; i++) o[i] = order == CUDAHOST_REVERSE ? n - 1 - i : i;
    if (order == CUDAHOST_RANDOM)
        for (uint32_t i = n; i-- > 1;) std::swap(o[i], o[random_below(i + 1)]);
    return o;
}

static bool launch_is_valid(const CudahostLaunch *l)
{
    const unsigned *g = l->grid, *b = l->block;
    const uint64_t threads = (uint64_t)b[0] * b[1] * b[2];
    const bool ok = threads >= 1 && threads <= MAX_THREADS && b[2] <= 64 && g[0] && g[1] && g[2] && g[0] < 1u << 31 &&
                    g[1] < 1u << 16 && g[2] < 1u << 16 && l->smem_bytes <= SMEM_LIMIT;
    if (!ok)
        finding(CUDAHOST_LAUNCH, "grid (%u,%u,%u), block (%u,%u,%u), %zu bytes of shared memory: no GPU takes this",
                g[0], g[1], g[2], b[0], b[1], b[2], l->smem_bytes);
    return ok;
}

static CudahostKernel *kernels;
void add_kernel(CudahostKernel *kernel)
{
    kernel->next = kernels;
    kernels = kernel;
}
} // namespace cudahost

using namespace cudahost;

const CudahostKernel *cudahost_kernels(void)
{
    return kernels;
}

bool cudahost_on_host(void)
{
    return true;
}

void cudahost_order(CudahostOrder o, uint64_t seed)
{
    order = o;
    random_state = seed * 0x9e3779b97f4a7c15u + 1;
}

CudahostCounts cudahost_counts(void)
{
    return counts;
}

static CudahostListener *listener;
static void *listener_context;
void cudahost_listen(CudahostListener *l, void *context)
{
    listener = l;
    listener_context = context;
}

static void listener_tell(const CudahostKernel *kernel, const CudahostLaunch *l, CudahostCounts before_counts,
                          CudahostTotals before_totals)
{
    // Both are nothing but counters.
    CudahostCounts c = counts;
    CudahostTotals t = cudahost_totals();
    for (size_t i = 0; i < sizeof c / sizeof(uint64_t); i++) ((uint64_t *)&c)[i] -= ((uint64_t *)&before_counts)[i];
    for (size_t i = 0; i < sizeof t / sizeof(uint64_t); i++) ((uint64_t *)&t)[i] -= ((uint64_t *)&before_totals)[i];
    listener(listener_context, kernel, l, &c, &t);
}

static void run_blocks(const CudahostLaunch *l)
{
    for (uint32_t i : block_order(l->grid[0] * l->grid[1] * l->grid[2])) {
        visible.block = make_uint3(i % l->grid[0], i / l->grid[0] % l->grid[1], i / (l->grid[0] * l->grid[1]));
        block_begin((int)(l->block[0] * l->block[1] * l->block[2]));
        counts.blocks++;
        counts.threads += (uint64_t)block.threads;
        now = host;
        run(next_ready());
        if (given_up) break;
        check_block_end();
    }
    now = nullptr;
}

bool cudahost_launch(const CudahostKernel *kernel, const CudahostLaunch *l, void **args)
{
    if (now) abort(); // no kernel launches kernels
    if (!launch_is_valid(l)) return false;
    fibers_open();
    symbols_open();
    const CudahostCounts before_counts = counts;
    const CudahostTotals before_totals = cudahost_totals();
    visible.block_dim = dim3(l->block[0], l->block[1], l->block[2]);
    visible.grid_dim = dim3(l->grid[0], l->grid[1], l->grid[2]);
    visible.smem = shared_base();
    limit_shared(l->smem_bytes);
    kernel_function = kernel->function;
    kernel_call = kernel->call;
    kernel_args = args;
    given_up = false;
    counts.launches++;
    check_launch_begin();
    run_blocks(l);
    if (given_up) fibers_left();
    check_launch_end();
    limit_shared(0);
    if (listener) listener_tell(kernel, l, before_counts, before_totals);
    return !given_up;
}
