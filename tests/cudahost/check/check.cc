// check: takes every access of a kernel apart: whose memory it is, whether it may, what it conflicts with, what it costs.
#include "internal.h"
#include <algorithm>
#include <link.h>
#include <vector>

namespace cudahost
{
void check_launch_begin()
{
    order_launch_begin();
    traffic_launch();
}
void check_launch_end()
{
    for (int w = 0; w < MAX_WARPS; w++) traffic_flush(w);
}
void check_block_begin()
{
    order_block_begin();
}
void check_block_end()
{
    for (int w = 0; w < block.warps; w++) traffic_flush(w);
}
void check_met(int warp)
{
    traffic_flush(warp);
}
void check_clear()
{
    shadow_forget();
    traffic_clear();
}

static bool refuse(CudahostKind kind, const char *what, const void *p, size_t bytes, const char *at)
{
    char name[128];
    finding(kind, "%s %zu bytes: %s at %s", what, bytes, memory_name(p, name, sizeof name), at);
    return false;
}

// ---- constants: what the program itself cannot write, and __constant__ ----
struct Range {
    uintptr_t from, to;
};
static std::vector<Range> constants;

static int add_constants(struct dl_phdr_info *info, size_t, void *)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if ((h->p_type == PT_LOAD && !(h->p_flags & PF_W)) || h->p_type == PT_GNU_RELRO)
            constants.push_back({info->dlpi_addr + h->p_vaddr, info->dlpi_addr + h->p_vaddr + h->p_memsz});
    }
    return 0;
}

extern "C" char __start_cudahost_constant[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cudahost_constant[] __attribute__((weak, visibility("hidden")));

static bool is_constant(const void *p)
{
    const uintptr_t a = (uintptr_t)p;
    if (constants.empty()) {
        dl_iterate_phdr(add_constants, nullptr);
        constants.push_back({(uintptr_t)__start_cudahost_constant, (uintptr_t)__stop_cudahost_constant});
    }
    return std::any_of(constants.begin(), constants.end(), [a](Range r) { return a >= r.from && a < r.to; });
}

static bool is_own(const void *p)
{
    const unsigned char *c = (const unsigned char *)p;
    if (c >= now->stack && c < now->stack + fiber_stack_bytes()) return true;
    const Variable *v = static_at(p);
    if (v && v->guard) return true; // of a __shared__ bf16: its constructor, which does nothing, is to run once
    return c >= (unsigned char *)&visible && c < (unsigned char *)(&visible + 1);
}

// ---- accesses ----
static CudahostTraffic traffic_kind(Access how, bool shared)
{
    if (how == READ) return shared ? CUDAHOST_SHARED_READ : CUDAHOST_GLOBAL_READ;
    return shared ? CUDAHOST_SHARED_WRITE : CUDAHOST_GLOBAL_WRITE;
}

static bool access_shared(Access how, const void *p, size_t bytes, const void *pc)
{
    static const ShadowAccess shadows[] = {SHADOW_READ, SHADOW_WRITE, SHADOW_ATOMIC};
    const SiteId site = site_of(pc, traffic_kind(how, true));
    shadow_access(shadows[how], shared_cells(p), p, bytes, true, now, site);
    if (how != ATOMIC_ACCESS) traffic(site, p, bytes);
    return true;
}

static bool access_global(Access how, Buffer *b, const void *p, size_t bytes, const void *pc)
{
    static const ShadowAccess shadows[] = {SHADOW_READ, SHADOW_WRITE, SHADOW_ATOMIC};
    const SiteId site = site_of(pc, traffic_kind(how, false));
    shadow_access(shadows[how], global_cells(b, p), p, bytes, false, now, site);
    if (how != READ) traffic_touch(b, p, bytes, true);
    if (how != WRITE) traffic_touch(b, p, bytes, false);
    if (how != ATOMIC_ACCESS) traffic(site, p, bytes);
    return true;
}

bool check_access(Access how, const void *p, size_t bytes, bool aligned, const void *pc)
{
    static const char *const does[] = {"reads", "writes", "changes by an atomic"};
    if (is_own(p)) return true;
    if (order == CUDAHOST_RANDOM && random_below(128) == 0) pause_thread();
    if (aligned && (uintptr_t)p % bytes) return refuse(CUDAHOST_MISALIGNED, does[how], p, bytes, where_pc(pc));
    if (!kernels_are_hooked()) return true; // AddressSanitizer looks
    if (is_shared(p, bytes)) return access_shared(how, p, bytes, pc);
    Buffer *b = buffer_of(p);
    if (inside(b, p, bytes)) return access_global(how, b, p, bytes, pc);
    if (how == READ && !b && is_constant(p)) return true;
    return refuse(CUDAHOST_OUT_OF_BOUNDS, does[how], p, bytes, where_pc(pc));
}

bool check_ldmatrix(const void *const *rows, int matrices, Where at)
{
    const SiteId site = site_of(at.pc, CUDAHOST_LDMATRIX);
    for (int i = 0; i < 8 * matrices; i++) {
        if ((uintptr_t)rows[i] % 16) return refuse(CUDAHOST_MISALIGNED, "ldmatrix of", rows[i], 16, where(at));
        if (!is_shared(rows[i], 16)) return refuse(CUDAHOST_OUT_OF_BOUNDS, "ldmatrix of", rows[i], 16, where(at));
        if (!kernels_are_hooked()) continue;
        shadow_access(SHADOW_WARP_READ, shared_cells(rows[i]), rows[i], 16, true, &block.thread[now->warp * LANES + i],
                      site);
        if (i % 8 == 7) traffic_matrix(site, rows + i - 7);
    }
    return true;
}

bool check_copy(const void *shared, const void *global, int bytes, int valid, Where at)
{
    const size_t n = (size_t)bytes, used = (size_t)valid;
    if ((uintptr_t)shared % n) return refuse(CUDAHOST_MISALIGNED, "cp.async writes", shared, n, where(at));
    if (!is_shared(shared, n)) return refuse(CUDAHOST_OUT_OF_BOUNDS, "cp.async writes", shared, n, where(at));
    if ((uintptr_t)global % n) return refuse(CUDAHOST_MISALIGNED, "cp.async reads", global, n, where(at));
    Buffer *b = buffer_of(global);
    if (valid && !inside(b, global, used))
        return refuse(CUDAHOST_OUT_OF_BOUNDS, "cp.async reads", global, used, where(at));
    if (!kernels_are_hooked()) return true;
    const SiteId to = site_of(at.pc, CUDAHOST_SHARED_WRITE), from = site_of(at.pc, CUDAHOST_GLOBAL_READ);
    shadow_access(SHADOW_COPY, shared_cells(shared), shared, n, true, now, to);
    traffic(to, shared, n);
    if (!valid) return true;
    shadow_access(SHADOW_READ, global_cells(b, global), global, used, false, now, from);
    traffic_touch(b, global, used, false);
    traffic(from, global, n);
    return true;
}

void check_landed(const void *shared, size_t bytes, const void *pc)
{
    if (kernels_are_hooked())
        shadow_access(SHADOW_LANDED, shared_cells(shared), shared, bytes, true, now,
                      site_of(pc, CUDAHOST_SHARED_WRITE));
}
} // namespace cudahost
