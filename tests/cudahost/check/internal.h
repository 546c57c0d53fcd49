// internal: how the parts of the checkers see each other.
#pragma once
#include "check.h"

namespace cudahost
{
// ---- order.cc: what happened before what ----
// Time counts synchronisations, over blocks and launches; accesses between two of them have the same time. Of the past a thread
// knows, by barriers and __syncwarp, what each other thread of its block did up to some time.
typedef uint32_t Time;
extern Time time_now, block_began, launch_began;
void order_launch_begin();
void order_block_begin();
bool knows(const Thread *t, int other, Time when); // what thread `other` of the same block did at `when`
bool warp_knows(int warp, int other, Time when);   // all lanes of the warp do
uint32_t block_at(Time when);                      // which block of this launch, as a linear index

// ---- shadow.cc: the last accesses of every two bytes of shared and global memory ----
typedef uint16_t SiteId;
struct Mark {
    Time time; // 0: never
    uint16_t thread;
    SiteId site;
};
struct Cell {
    Mark written, read, read_before; // read_before: the last read by another warp than `read`'s
    bool atomic, pending;            // of `written`: an atomic; a cp.async that has not landed
};
enum { CELL_BYTES = 2 };
enum ShadowAccess { SHADOW_READ, SHADOW_WRITE, SHADOW_ATOMIC, SHADOW_COPY, SHADOW_LANDED, SHADOW_WARP_READ };
// `first`: the cell of p. thread: who accesses (of SHADOW_WARP_READ all lanes of its warp do)
void shadow_access(ShadowAccess how, Cell *first, const void *p, size_t bytes, bool shared, const Thread *thread,
                   SiteId site);
Cell *shared_cells(const void *p);
Cell *global_cells(Buffer *b, const void *p);
void shadow_forget(); // which findings have been told

// ---- traffic.cc: what a warp's accesses cost ----
SiteId site_of(const void *pc, CudahostTraffic kind);
const void *site_pc(SiteId site);
void traffic(SiteId site, const void *p, size_t bytes);    // by the running thread
void traffic_matrix(SiteId site, const void *const *rows); // eight rows of ldmatrix
void traffic_flush(int warp);                              // its lanes have met: begin anew
void traffic_touch(Buffer *b, const void *p, size_t bytes, bool write);
void traffic_launch(); // a launch begins
void traffic_clear();

struct Sector {
    uint32_t read_in, written_in; // launches
};
struct Shadow {
    Cell *cells;
    Sector *sectors;
};
Shadow *shadow_of(Buffer *b);
} // namespace cudahost
