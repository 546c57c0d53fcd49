// shadow: every two bytes of shared and global memory remember their last write and last reads. An access that is not ordered after what it
// conflicts with is a race, whether or not this run went wrong. (Two bytes: neighbours of one byte each count as one.)
#include "internal.h"
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tuple>

namespace cudahost
{
static Cell dynamic_cells[SMEM_LIMIT / CELL_BYTES];
static std::set<std::tuple<CudahostKind, SiteId, SiteId>> told;

Cell *shared_cells(const void *p)
{
    static Cell *static_cells;
    const ptrdiff_t at = (const unsigned char *)p - shared_base();
    if (at >= 0 && at < SMEM_LIMIT) return dynamic_cells + at / CELL_BYTES;
    size_t bytes;
    const unsigned char *base = statics_base(&bytes);
    if (!static_cells) static_cells = (Cell *)calloc(bytes / CELL_BYTES + 1, sizeof(Cell));
    return static_cells + ((const unsigned char *)p - base) / CELL_BYTES;
}

Shadow *shadow_of(Buffer *b)
{
    if (!b->shadow) {
        // In one piece, which the buffer's owner frees; the system gives pages as they are touched.
        const size_t cells = (b->bytes + CELL_BYTES - 1) / CELL_BYTES, sectors = b->bytes / 32 + 2;
        Shadow *s = (Shadow *)calloc(1, sizeof(Shadow) + cells * sizeof(Cell) + sectors * sizeof(Sector));
        if (!s) abort();
        s->cells = (Cell *)(s + 1);
        s->sectors = (Sector *)(s->cells + cells);
        b->shadow = s;
    }
    return (Shadow *)b->shadow;
}

Cell *global_cells(Buffer *b, const void *p)
{
    return shadow_of(b)->cells + ((const unsigned char *)p - b->base) / CELL_BYTES;
}

void shadow_forget()
{
    told.clear();
}

// ---- telling ----
static void tell(CudahostKind kind, const char *does, const void *p, SiteId site, const char *did, const Mark *m)
{
    if (!told.emplace(kind, site, m->site).second) return;
    char name[128], who[64];
    const uint32_t other = block_at(m->time), mine = block_at(block_began);
    if (other == mine)
        snprintf(who, sizeof who, "thread %d", m->thread);
    else
        snprintf(who, sizeof who, "thread %d of block %u", m->thread, other);
    finding(kind, "%s %s at %s; %s %s at %s", does, memory_name(p, name, sizeof name), where_pc(site_pc(site)), who,
            did, where_pc(site_pc(m->site)));
}

static void tell_unwritten(const void *p, SiteId site)
{
    if (!told.emplace(CUDAHOST_UNWRITTEN, site, 0).second) return;
    char name[128];
    finding(CUDAHOST_UNWRITTEN, "reads %s at %s, which this block has not written", memory_name(p, name, sizeof name),
            where_pc(site_pc(site)));
}

// ---- rules ----
static bool ordered(ShadowAccess how, const Mark *m, bool shared, const Thread *t)
{
    if (m->time < (shared ? block_began : launch_began)) return true;
    if (m->time < block_began) return false; // another block
    return how == SHADOW_WARP_READ ? warp_knows(t->warp, m->thread, m->time) : knows(t, m->thread, m->time);
}

static void note_read(Cell *c, Mark mark)
{
    if (c->read.time < block_began || c->read.thread / LANES != mark.thread / LANES) c->read_before = c->read;
    c->read = mark;
}

static void on_read(ShadowAccess how, Cell *c, const void *p, bool shared, const Thread *t, Mark mark)
{
    if (c->pending && c->written.time >= block_began)
        tell(CUDAHOST_ASYNC, "reads", p, mark.site, "copies to it by cp.async, which has not landed,", &c->written);
    else if (shared && c->written.time < block_began)
        tell_unwritten(p, mark.site);
    else if (!ordered(how, &c->written, shared, t))
        tell(CUDAHOST_RACE, "reads", p, mark.site, c->atomic ? "changed it by an atomic" : "wrote it", &c->written);
    note_read(c, mark);
}

static void on_write(ShadowAccess how, Cell *c, const void *p, bool shared, const Thread *t, Mark mark)
{
    const bool atomic = how == SHADOW_ATOMIC;
    if (atomic && shared && c->written.time < block_began) tell_unwritten(p, mark.site);
    const char *does = atomic ? "changes by an atomic" : how == SHADOW_COPY ? "copies by cp.async to" : "writes";
    if (c->pending && c->written.time >= block_began)
        tell(CUDAHOST_ASYNC, does, p, mark.site, "copies to it by cp.async, which has not landed,", &c->written);
    else if (!(atomic && c->atomic) && !ordered(how, &c->written, shared, t))
        tell(CUDAHOST_RACE, does, p, mark.site, c->atomic ? "changed it by an atomic" : "wrote it", &c->written);
    if (!ordered(how, &c->read, shared, t)) tell(CUDAHOST_RACE, does, p, mark.site, "read it", &c->read);
    if (!ordered(how, &c->read_before, shared, t)) tell(CUDAHOST_RACE, does, p, mark.site, "read it", &c->read_before);
    c->written = mark;
    c->atomic = atomic;
    c->pending = how == SHADOW_COPY;
}

void shadow_access(ShadowAccess how, Cell *first, const void *p, size_t bytes, bool shared, const Thread *thread,
                   SiteId site)
{
    const Mark mark = {time_now, (uint16_t)thread->id, site};
    const size_t cells = ((uintptr_t)p % CELL_BYTES + bytes + CELL_BYTES - 1) / CELL_BYTES;
    for (size_t i = 0; i < cells; i++) {
        Cell *c = first + i;
        const void *at = (const unsigned char *)p + i * CELL_BYTES;
        if (how == SHADOW_READ || how == SHADOW_WARP_READ)
            on_read(how, c, at, shared, thread, mark);
        else if (how == SHADOW_LANDED) {
            c->written = mark;
            c->pending = false;
        } else
            on_write(how, c, at, shared, thread, mark);
    }
}
} // namespace cudahost
