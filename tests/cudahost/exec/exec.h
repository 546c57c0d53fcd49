// exec: the executor's insides, for its own files: the block that runs, its threads as fibers, and where they meet.
// One OS thread; blocks run one after another. Globals on purpose: a fiber switch must not move what they are read through.
#pragma once
#include "interface.h"
#include <string>

namespace cudahost
{
enum { MAX_THREADS = 1024, LANES = 32, MAX_WARPS = MAX_THREADS / LANES, MEETINGS = 8, BARRIERS = 16 };
enum { SMEM_LIMIT = 227 << 10, STATIC_SMEM_ALIGN = 1024 };

// A place in a kernel. Compared by file and line; pc tells apart what was inlined into where, for reports.
struct Where {
    const char *file;
    int line;
    const void *pc;
};

struct Thread {
    void *sp;             // of a fiber that does not run
    unsigned char *stack; // its lowest byte
    void *fake_stack;     // AddressSanitizer's
    uint3 index;
    int id, warp, lane;
    bool ended;
    const char *waits; // for what, while it waits
    Where at;
    unsigned generation; // of the barrier that it waits at
};

// Lanes of a warp that come together for one instruction. The last to come carries it out for all of them.
typedef void Together(void **lane_args, unsigned mask);
struct Meeting {
    unsigned mask, arrived; // arrived 0: free
    const char *op;
    Where at;
    void *arg[LANES];
};

struct Warp {
    unsigned live, ready; // lanes that have not ended; that can run
    Meeting meetings[MEETINGS];
};

struct Barrier {
    int arrived, expected;
    Where at;
    unsigned came[MAX_WARPS], waiting[MAX_WARPS]; // lanes
    int trues;                                    // votes of this generation
    unsigned generation;
    int result[2], voters[2]; // of the last two generations, by parity
};

struct Block {
    int threads, warps, live;
    Thread thread[MAX_THREADS + 1]; // the last one stands for the stack that launches
    Warp warp[MAX_WARPS];
    Barrier barrier[BARRIERS];
};

extern Block block;
extern Thread *now; // the fiber that runs; NULL outside of launches
extern size_t smem_bytes;
extern CudahostOrder order;
extern CudahostCounts counts;

uint32_t random_below(uint32_t n);

// ---- exec.cc ----
[[noreturn]] void end_launch(); // after a finding that leaves nothing to go on with; from a fiber
void pause_thread();            // lets others run first
void meet(unsigned mask, const char *op, bool aligned, void *arg, Where at, Together *run);

// ---- fiber.cc ----
size_t fiber_stack_bytes();
void fibers_open();
void fiber_prepare(Thread *t, void (*entry)());
void fiber_switch(Thread *from, Thread *to, bool ends); // ends: `from` never runs again
void fibers_left();                                     // a launch was given up
void fiber_began();                                     // first thing in entry

// ---- memory.cc ----
struct Buffer {
    unsigned char *base;
    size_t bytes;
    const char *name;
    void *shadow; // check/'s
};
bool is_shared(const void *p, size_t bytes);
Buffer *buffer_of(const void *p); // whose guarded zone p lies in, or NULL
bool inside(const Buffer *b, const void *p, size_t bytes);
void poison_shared(const void *kernel);                         // at a block's begin
void limit_shared(size_t bytes);                                // of dynamic shared memory, for AddressSanitizer
unsigned char *shared_base();                                   // of dynamic shared memory
const char *memory_name(const void *p, char *out, size_t size); // "shared memory + 12", "x + 400"

// ---- symbols.cc ----
struct Variable {
    unsigned char *base;
    size_t bytes;
    bool guard;       // the guard of a variable, not one
    std::string name; // "x of norm<float>"
    std::string symbol;
    const void *kernel; // that it belongs to; NULL: to a device function
};
void symbols_open();
const Variable *static_at(const void *p);           // which __shared__ variable (or guard) p lies in, or NULL
void statics_poison(const void *kernel, int value); // those that this kernel may use
unsigned char *statics_base(size_t *bytes);         // from the first one to the end of the last

// ---- findings.cc ----
void finding(CudahostKind kind, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *where(Where at);          // "file:line (inlined at ...)", kept
const char *where_pc(const void *pc); // the same by address alone
} // namespace cudahost
