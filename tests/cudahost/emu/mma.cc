// mma: the tensor core's multiply-add and ldmatrix, by the layouts that dev.cuh states. The last lane to come gathers the fragments of
// all 32 into plain matrices, computes, and scatters.
#include "../check/check.h"
#include <string.h>

namespace cudahost
{
struct MmaLane {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
};

static float low(uint32_t v)
{
    v <<= 16;
    float f;
    memcpy(&f, &v, 4);
    return f;
}
static float high(uint32_t v)
{
    v &= 0xffff0000u;
    float f;
    memcpy(&f, &v, 4);
    return f;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("avx2", "default")))
#endif
static void
multiply(float c[16][8], const float a[16][16], const float b[16][8])
{
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) c[m][n] += a[m][k] * b[k][n];
}

static void do_mma(void **lanes, unsigned)
{
    alignas(32) float a[16][16], b[16][8], c[16][8];
    counts.mma++;
    for (int l = 0; l < LANES; l++) {
        const MmaLane *x = (const MmaLane *)lanes[l];
        const int g = l / 4, t = 2 * (l % 4);
        for (int i = 0; i < 4; i++) {
            const int row = g + i % 2 * 8, column = t + i / 2 * 8;
            a[row][column] = low(x->a[i]);
            a[row][column + 1] = high(x->a[i]);
            c[g + i / 2 * 8][t + i % 2] = x->c[i];
        }
        for (int i = 0; i < 2; i++) {
            b[t + 8 * i][g] = low(x->b[i]);
            b[t + 8 * i + 1][g] = high(x->b[i]);
        }
    }
    multiply(c, a, b);
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) ((MmaLane *)lanes[l])->c[i] = c[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
}

void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1, const char *file, int line)
{
    MmaLane x = {c, a, {b0, b1}};
    meet(0xffffffffu, "mma", true, &x, {file, line, __builtin_return_address(0)}, do_mma);
}

struct LdmatrixLane {
    uint32_t *r;
    const void *row;
    int matrices;
    bool trans;
    Where at;
};

static void load_matrix(LdmatrixLane *const *lanes, int i)
{
    uint16_t m[8][8];
    for (int row = 0; row < 8; row++) memcpy(m[row], lanes[8 * i + row]->row, sizeof m[row]);
    for (int l = 0; l < LANES; l++) {
        const int g = l / 4, t = 2 * (l % 4);
        lanes[l]->r[i] =
            lanes[0]->trans ? m[t][g] | (uint32_t)m[t + 1][g] << 16 : m[g][t] | (uint32_t)m[g][t + 1] << 16;
    }
}

static void do_ldmatrix(void **args, unsigned)
{
    LdmatrixLane *const *lanes = (LdmatrixLane **)args;
    const int matrices = lanes[0]->matrices;
    const void *rows[LANES];
    for (int l = 0; l < 8 * matrices; l++) rows[l] = lanes[l]->row;
    if (!check_ldmatrix(rows, matrices, lanes[now->lane]->at)) end_launch();
    counts.ldmatrix++;
    counts.ldmatrix_rows8 += (uint64_t)matrices;
    for (int i = 0; i < matrices; i++) load_matrix(lanes, i);
}

void ldmatrix(int matrices, bool trans, uint32_t *r, const void *row, const char *file, int line)
{
    static const char *const names[2][5] = {{"", "ldmatrix.x1", "ldmatrix.x2", "", "ldmatrix.x4"},
                                            {"", "ldmatrix.x1.trans", "ldmatrix.x2.trans", "", "ldmatrix.x4.trans"}};
    LdmatrixLane x = {r, row, matrices, trans, {file, line, __builtin_return_address(0)}};
    meet(0xffffffffu, names[trans][matrices], true, &x, x.at, do_ldmatrix);
}

float exp2_counted(float x)
{
    counts.exp2++;
    const float y = __builtin_exp2f(x);
    return y < 0x1p-126f ? 0 : y;
}
} // namespace cudahost
