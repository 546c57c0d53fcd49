// traffic: what the accesses of a warp cost. The k-th time that a lane comes to an instruction since its warp last met counts as one request
// with the k-th time of the other lanes. A request to global memory costs the 32-byte sectors that it touches; one to shared memory
// as many wavefronts as different words lie in one bank, in parts of 128 bytes (8 lanes of 16 bytes, 16 of 8, 32 of 4). A lane's 32
// bytes in two loads, one soon after the other, are one request: what the first one brings is in L1 for the second.
#include "internal.h"
#include <algorithm>
#include <stdlib.h>
#include <string.h>
#include <unordered_map>
#include <vector>

namespace cudahost
{
enum { SECTOR = 32, BANKS = 32, WORD = 4, RECENT = 8 };

struct Site {
    const void *pc;
    CudahostTraffic kind;
    uint64_t requests, bytes, cost, ideal;
};
struct Request {
    unsigned lanes;
    uint32_t bytes; // of each lane
    uintptr_t at[LANES];
};
struct Track { // of one site by one warp
    bool touched;
    uint32_t visits[LANES];
    std::vector<Request> requests;
};

static std::vector<Site> sites(1);       // 0 is none
static Request reads[MAX_WARPS][RECENT]; // of global memory, the latest; lanes 0: none, or it has been continued
static unsigned n_reads[MAX_WARPS];
static std::unordered_map<uintptr_t, SiteId> site_ids;
static std::vector<Track> tracks[MAX_WARPS];
static std::vector<SiteId> touched[MAX_WARPS];
static uint32_t launch_number;
static CudahostTotals totals;

SiteId site_of(const void *pc, CudahostTraffic kind)
{
    static uintptr_t last_key;
    static SiteId last;
    const uintptr_t key = (uintptr_t)pc * 8 + kind;
    if (key == last_key) return last;
    auto found = site_ids.find(key);
    if (found == site_ids.end()) {
        if (sites.size() > UINT16_MAX) abort();
        found = site_ids.emplace(key, (SiteId)sites.size()).first;
        sites.push_back({pc, kind, 0, 0, 0, 0});
    }
    last_key = key;
    return last = found->second;
}

const void *site_pc(SiteId site)
{
    return sites[site].pc;
}

static bool is_shared_kind(CudahostTraffic kind)
{
    return kind >= CUDAHOST_SHARED_READ;
}

// ---- costs ----
// Pairs of [begin, end) addresses, sorted; returns how many different bytes
static size_t union_bytes(const uintptr_t *at, int n, uint32_t bytes)
{
    size_t total = 0;
    uintptr_t end = 0;
    for (int i = 0; i < n; i++) {
        const uintptr_t from = std::max(at[i], end);
        end = std::max(end, at[i] + bytes);
        total += end > from ? end - from : 0;
    }
    return total;
}

static size_t sectors_of(const uintptr_t *at, int n, uint32_t bytes)
{
    size_t count = 0;
    uintptr_t next = 0; // the first sector that is not counted yet
    for (int i = 0; i < n; i++) {
        const uintptr_t first = std::max(at[i] / SECTOR, next), last = (at[i] + bytes - 1) / SECTOR;
        if (last >= first) count += last - first + 1;
        next = std::max(next, last + 1);
    }
    return count;
}

// Of one part: the largest number of different words in a bank
static size_t conflicts(uintptr_t *words, int n)
{
    std::sort(words, words + n);
    n = (int)(std::unique(words, words + n) - words);
    unsigned char in_bank[BANKS] = {}, most = 0;
    for (int i = 0; i < n; i++) most = std::max(most, ++in_bank[words[i] % BANKS]);
    return most;
}

static void cost_shared(const Request *r, Site *s)
{
    const int step = r->bytes <= WORD ? LANES : (int)(LANES * WORD / r->bytes);
    const int words_each = r->bytes <= WORD ? 1 : (int)(r->bytes / WORD);
    for (int first = 0; first < LANES; first += std::max(step, 1)) {
        uintptr_t words[LANES * 4];
        int n = 0;
        for (int l = first; l < first + step && l < LANES; l++)
            for (int i = 0; r->lanes >> l & 1 && i < words_each && n < LANES * 4; i++)
                words[n++] = r->at[l] / WORD + (unsigned)i;
        if (!n) continue;
        const size_t wavefronts = conflicts(words, n);
        s->cost += wavefronts;
        s->ideal++;
        totals.wavefronts += wavefronts;
        totals.wavefronts_ideal++;
    }
}

// The read of late that ended where r begins, in every lane; NULL: there is none
static Request *begun(int warp, const Request *r)
{
    for (Request &first : reads[warp]) {
        if (first.lanes != r->lanes || first.bytes + r->bytes > SECTOR) continue;
        bool all = true;
        for (int l = 0; l < LANES && all; l++) all = !(r->lanes >> l & 1) || r->at[l] == first.at[l] + first.bytes;
        if (all) return &first;
    }
    return nullptr;
}

// Sectors of a read that goes on where another one ended, beyond those that that one brought
static size_t continued(const Request *first, const uintptr_t *sorted, int n, uint32_t bytes)
{
    uintptr_t whole[LANES];
    for (int i = 0; i < n; i++) whole[i] = sorted[i] - first->bytes;
    return sectors_of(whole, n, first->bytes + bytes) - sectors_of(whole, n, first->bytes);
}

static void cost_global(int warp, const Request *r, Site *s, const uintptr_t *sorted, int n, size_t bytes)
{
    Request *first = s->kind == CUDAHOST_GLOBAL_READ ? begun(warp, r) : nullptr;
    const size_t cost = first ? continued(first, sorted, n, r->bytes) : sectors_of(sorted, n, r->bytes);
    const size_t ideal = (bytes + SECTOR - 1) / SECTOR;
    s->cost += cost;
    s->ideal += ideal;
    totals.sectors += cost;
    totals.sectors_ideal += ideal;
    if (first)
        first->lanes = 0;
    else if (s->kind == CUDAHOST_GLOBAL_READ)
        reads[warp][n_reads[warp]++ % RECENT] = *r;
}

static void finish(int warp, SiteId id, Request *r)
{
    Site *s = &sites[id];
    uintptr_t at[LANES];
    int n = 0;
    for (int l = 0; l < LANES; l++)
        if (r->lanes >> l & 1) at[n++] = r->at[l];
    std::sort(at, at + n);
    const size_t bytes = union_bytes(at, n, r->bytes);
    s->requests++;
    s->bytes += bytes;
    if (is_shared_kind(s->kind))
        cost_shared(r, s);
    else
        cost_global(warp, r, s, at, n, bytes);
    r->lanes = 0;
}

// ---- collecting ----
void traffic(SiteId site, const void *p, size_t bytes)
{
    std::vector<Track> &mine = tracks[now->warp];
    if (mine.size() <= site) mine.resize(sites.size());
    Track *t = &mine[site];
    if (!t->touched) {
        t->touched = true;
        touched[now->warp].push_back(site);
    }
    const uint32_t visit = t->visits[now->lane]++;
    if (visit >= t->requests.size()) t->requests.push_back(Request{0, (uint32_t)bytes, {}});
    Request *r = &t->requests[visit];
    r->at[now->lane] = (uintptr_t)p;
    r->lanes |= 1u << now->lane;
    if (r->lanes == 0xffffffffu) finish(now->warp, site, r);
}

void traffic_matrix(SiteId site, const void *const *rows)
{
    Request r = {0xff, 16, {}};
    for (int i = 0; i < 8; i++) r.at[i] = (uintptr_t)rows[i];
    finish(now->warp, site, &r);
}

void traffic_flush(int warp)
{
    for (SiteId site : touched[warp]) {
        Track *t = &tracks[warp][site];
        for (Request &r : t->requests)
            if (r.lanes) finish(warp, site, &r);
        t->requests.clear();
        memset(t->visits, 0, sizeof t->visits);
        t->touched = false;
    }
    touched[warp].clear();
}

void traffic_touch(Buffer *b, const void *p, size_t bytes, bool write)
{
    const size_t at = (size_t)((const unsigned char *)p - b->base);
    Sector *s = shadow_of(b)->sectors;
    for (size_t i = at / SECTOR; i <= (at + bytes - 1) / SECTOR; i++) {
        uint32_t *in = write ? &s[i].written_in : &s[i].read_in;
        if (*in == launch_number) continue;
        *in = launch_number;
        (write ? totals.unique_written : totals.unique_read) += SECTOR;
    }
}

void traffic_launch()
{
    launch_number++;
    memset(reads, 0, sizeof reads);
}

void traffic_clear()
{
    totals = {};
    for (Site &s : sites) s.requests = s.bytes = s.cost = s.ideal = 0;
}
} // namespace cudahost

using namespace cudahost;

const char *cudahost_traffic_name(CudahostTraffic kind)
{
    static const char *const names[] = {"global read", "global write", "shared read", "shared write", "ldmatrix"};
    return names[kind];
}

CudahostTotals cudahost_totals(void)
{
    return totals;
}

size_t cudahost_sites(CudahostSite *out, size_t capacity)
{
    size_t n = 0;
    for (const Site &s : sites) {
        if (!s.requests) continue;
        const char *text = where_pc(s.pc);
        size_t i = 0;
        while (i < n && (out[i].kind != s.kind || strcmp(out[i].where, text) != 0)) i++;
        if (i == capacity) continue;
        if (i == n) out[n++] = CudahostSite{text, s.kind, 0, 0, 0, 0};
        out[i].requests += s.requests;
        out[i].bytes += s.bytes;
        out[i].cost += s.cost;
        out[i].ideal += s.ideal;
    }
    return n;
}
