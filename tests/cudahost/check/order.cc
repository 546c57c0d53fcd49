// order: clocks. A barrier of the whole block makes everything before it known to everybody: one number. Between lanes of a warp a table says
// who knows whom (__syncwarp, with its mask); between warps another one (named barriers). Numbers of earlier blocks are too small to matter,
// so nothing is ever cleared.
#include "internal.h"
#include <algorithm>
#include <string.h>
#include <utility>
#include <vector>

namespace cudahost
{
Time time_now = 1, block_began, launch_began;
static Time known_to_block;
static Time known_to_lane[MAX_WARPS][LANES][LANES]; // [warp][who][of whom]
static Time known_to_warp[MAX_WARPS][MAX_WARPS];
static std::vector<std::pair<Time, uint32_t>> began; // blocks of this launch

bool knows(const Thread *t, int other, Time when)
{
    if (when <= known_to_block || other == t->id) return true;
    const int warp = other / LANES;
    if (warp == t->warp) return when <= known_to_lane[warp][t->lane][other % LANES];
    return when <= known_to_warp[t->warp][warp];
}

bool warp_knows(int warp, int other, Time when)
{
    if (when <= known_to_block) return true;
    if (other / LANES != warp) return when <= known_to_warp[warp][other / LANES];
    for (int l = 0; l < LANES; l++)
        if (l != other % LANES && when > known_to_lane[warp][l][other % LANES]) return false;
    return true;
}

uint32_t block_at(Time when)
{
    auto it = std::upper_bound(began.begin(), began.end(), std::make_pair(when, UINT32_MAX));
    return it == began.begin() ? 0 : (it - 1)->second;
}

void order_launch_begin()
{
    launch_began = ++time_now;
    began.clear();
}

void order_block_begin()
{
    block_began = ++time_now;
    known_to_block = time_now - 1;
    const uint3 b = visible.block;
    began.push_back({time_now, b.x + visible.grid_dim.x * (b.y + visible.grid_dim.y * b.z)});
}

void check_warp_sync(int warp, unsigned mask)
{
    Time merged[LANES];
    for (int of = 0; of < LANES; of++) {
        merged[of] = 0;
        for (int l = 0; l < LANES; l++)
            if (mask >> l & 1) merged[of] = std::max(merged[of], known_to_lane[warp][l][of]);
        if (mask >> of & 1) merged[of] = time_now;
    }
    for (int l = 0; l < LANES; l++)
        if (mask >> l & 1) memcpy(known_to_lane[warp][l], merged, sizeof merged);
    time_now++;
}

static bool everybody(const unsigned came[MAX_WARPS])
{
    for (int w = 0; w < block.warps; w++)
        if (came[w] != block.warp[w].live) return false;
    return true;
}

// Warps that go on know what those that came knew and did.
static void barrier_of_some(const unsigned came[MAX_WARPS], const unsigned waited[MAX_WARPS])
{
    Time merged[MAX_WARPS] = {};
    for (int w = 0; w < block.warps; w++) {
        for (int of = 0; came[w] && of < block.warps; of++) merged[of] = std::max(merged[of], known_to_warp[w][of]);
        if (came[w]) merged[w] = time_now;
    }
    for (int w = 0; w < block.warps; w++) {
        if (!waited[w]) continue;
        memcpy(known_to_warp[w], merged, sizeof merged);
        for (auto &lane : known_to_lane[w]) std::fill(lane, lane + LANES, time_now);
    }
}

void check_barrier(const unsigned came[MAX_WARPS], const unsigned waited[MAX_WARPS])
{
    if (everybody(came) && everybody(waited))
        known_to_block = time_now;
    else
        barrier_of_some(came, waited);
    time_now++;
    for (int w = 0; w < block.warps; w++)
        if (waited[w]) traffic_flush(w);
}
} // namespace cudahost
