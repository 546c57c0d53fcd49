// The element-wise ops: tuned against reference at every instruction set and type, gradients against differences, and the
// same bits for any number of threads. Philox has the vectors of its authors.
#include "shapes.h"

// ---- RMSNorm --------------------------------------------------------------------------------------------------------
static void rmsnorm_shape(Device *tuned, Device *ref, DType t, int T, int C)
{
    const int64_t n = (int64_t)T * C, ld = C + T % 3, room = T * ld; // what lies between rows stays as it is
    void *x = values(t, n, 1), *dy = values(t, n, 2), *y[2], *dx[2];
    float *w = values(DT_F32, C, 3), *rstd[2], *dw[2];
    for (int k = 0; k < 2; k++) {
        Device *d = k ? ref : tuned;
        y[k] = values(t, room, 4), dx[k] = values(t, room, 5), rstd[k] = values(DT_F32, T, 6),
        dw[k] = values(DT_F32, C, 7);
        d->op.rmsnorm_fwd(d, t, y[k], ld, rstd[k], x, w, T % 2 ? 1 : 0, 1e-5f, C, T);
        d->op.rmsnorm_bwd(d, t, dx[k], ld, T == 5 ? NULL : dw[k], dy, x, rstd[0], w, T % 2 ? 1 : 0, C % 2, C, T);
    }
    expect_close("rmsnorm y", t, y[0], y[1], (size_t)room);
    expect_close("rmsnorm rstd", DT_F32, rstd[0], rstd[1], (size_t)T);
    expect_nmse("rmsnorm dx", t, dx[0], dx[1], (size_t)room, t == DT_BF16 ? 1e-5 : 1e-10); // C = 1: dx is almost 0
    expect_close("rmsnorm dw", DT_F32, dw[0], dw[1], (size_t)C);
    FREE(x, dy, w, y[0], y[1], dx[0], dx[1], rstd[0], rstd[1], dw[0], dw[1]);
}

static void rmsnorm(void **state)
{
    (void)state;
    for_shapes(rmsnorm_shape);
}

typedef struct NormLoss {
    Device *d;
    float *x, *w, *y, *rstd, *dy;
    int C, T;
} NormLoss;

static double norm_loss(void *context)
{
    NormLoss *l = context;
    l->d->op.rmsnorm_fwd(l->d, DT_F32, l->y, l->C, l->rstd, l->x, l->w, 1, 1e-5f, l->C, l->T);
    return dot(l->dy, l->y, (int64_t)l->C * l->T);
}

static void rmsnorm_gradient(void **state)
{
    (void)state;
    enum { C = 19, T = 4 };
    Device *d = open_threads("cpu", 1);
    NormLoss l = {d,
                  values(DT_F32, C * T, 1),
                  values(DT_F32, C, 2),
                  values(DT_F32, C * T, 3),
                  values(DT_F32, T, 4),
                  values(DT_F32, C * T, 5),
                  C,
                  T};
    float dx[C * T], dw[C] = {0};
    norm_loss(&l);
    d->op.rmsnorm_bwd(d, DT_F32, dx, C, dw, l.dy, l.x, l.rstd, l.w, 1, false, C, T);
    expect_gradient("dx", norm_loss, &l, l.x, C * T, dx, 1e-2f, 2e-3);
    expect_gradient("dw", norm_loss, &l, l.w, C, dw, 1e-2f, 2e-3);
    FREE(l.x, l.w, l.y, l.rstd, l.dy);
    device_close(d);
}

// ---- rotary positions -----------------------------------------------------------------------------------------------
enum { POSITIONS = 50 };

static void angles(float *cos_table, float *sin_table, int half)
{
    for (int p = 0; p < POSITIONS; p++)
        for (int i = 0; i < half; i++) {
            double angle = p * pow(10000, -(double)i / half);
            cos_table[p * half + i] = (float)cos(angle), sin_table[p * half + i] = (float)sin(angle);
        }
}

typedef struct RopeCase {
    int heads, D, rot;
} RopeCase;

static const RopeCase rope_cases[] = {{12, 64, 64}, {3, 80, 32}, {2, 24, 24}, {1, 10, 6}, {4, 2, 2}, {1, 256, 256}};

static void rope_case(Device *tuned, Device *ref, DType t, const RopeCase *c)
{
    enum { T = 21 };
    int64_t ld = c->heads * c->D + 5, n = T * ld;
    float cos_table[POSITIONS * 128], sin_table[POSITIONS * 128];
    int32_t pos[T];
    angles(cos_table, sin_table, c->rot / 2);
    for (int i = 0; i < T; i++) pos[i] = i * 7 % POSITIONS;
    void *start = values(t, n, 1), *got = values(t, n, 1), *want = values(t, n, 1);
    tuned->op.rope(tuned, t, got, ld, cos_table, sin_table, pos, c->heads, c->D, c->rot, false, T);
    ref->op.rope(ref, t, want, ld, cos_table, sin_table, pos, c->heads, c->D, c->rot, false, T);
    expect_close("rope", t, got, want, (size_t)n);
    assert_true(nmse(t, got, start, (size_t)n) > 1e-3);
    tuned->op.rope(tuned, t, got, ld, cos_table, sin_table, pos, c->heads, c->D, c->rot, true, T);
    expect_nmse("rope and back", t, got, start, (size_t)n, t == DT_BF16 ? 3e-5 : 1e-11);
    FREE(start, got, want);
}

static void rope(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *tuned = open_isa(kernel_isas[i], 2);
        for (size_t c = 0; tuned && c < COUNT_OF(rope_cases); c++)
            for (size_t t = 0; t < COUNT_OF(kernel_types); t++) rope_case(tuned, ref, kernel_types[t], &rope_cases[c]);
        device_close(tuned);
    }
    device_close(ref);
}

// ---- SwiGLU ---------------------------------------------------------------------------------------------------------
static void swiglu_shape(Device *tuned, Device *ref, DType t, int T, int F)
{
    const int64_t lda = F + T % 2, ld = 2 * (F + T % 3), n = T * lda; // with room behind the halves of rows
    void *gu = random_values(t, (size_t)(T * ld), 1, 8), *da = values(t, n, 2), *a[2], *again[2], *dgu[2];
    for (int k = 0; k < 2; k++) {
        Device *d = k ? ref : tuned;
        a[k] = values(t, n, 3), again[k] = values(t, n, 3), dgu[k] = copy_values(t, gu, (size_t)(T * ld));
        d->op.swiglu_fwd(d, t, a[k], lda, gu, ld, F, T);
        d->op.swiglu_bwd(d, t, dgu[k], T == 3 ? NULL : again[k], lda, da, dgu[k], ld, F, T); // in place
    }
    expect_close("swiglu a", t, a[0], a[1], (size_t)n);
    expect_close("swiglu dgu", t, dgu[0], dgu[1], (size_t)(T * ld));
    if (T != 3) expect_same_bits("swiglu a again", again[0], a[0], (size_t)n * dtype_size(t));
    FREE(gu, da, a[0], a[1], again[0], again[1], dgu[0], dgu[1]);
}

static void swiglu(void **state)
{
    (void)state;
    for_shapes(swiglu_shape);
}

static void swiglu_of_large_values_is_finite(void **state)
{
    (void)state;
    const float gu[4] = {-1e4f, 1e4f, 3, 3}; // gates, ups
    const float want[2] = {0, 3e4f};
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *d = open_isa(kernel_isas[i], 1);
        if (!d) continue;
        float a[2], dgu[4], da[2] = {1, 1};
        d->op.swiglu_fwd(d, DT_F32, a, 2, gu, 4, 2, 1);
        d->op.swiglu_bwd(d, DT_F32, dgu, NULL, 0, da, gu, 4, 2, 1);
        expect_close("a", DT_F32, a, want, 2);
        expect_close("dgu", DT_F32, dgu, ((float[]){0, 3, 0, 1e4f}), 4);
        device_close(d);
    }
}

typedef struct GluLoss {
    Device *d;
    float *gu, *a, *da;
    int F, T;
} GluLoss;

static double glu_loss(void *context)
{
    GluLoss *l = context;
    l->d->op.swiglu_fwd(l->d, DT_F32, l->a, l->F, l->gu, 2 * l->F, l->F, l->T);
    return dot(l->da, l->a, (int64_t)l->F * l->T);
}

static void swiglu_gradient(void **state)
{
    (void)state;
    enum { F = 9, T = 3 };
    Device *d = open_threads("cpu", 1);
    GluLoss l = {d, values(DT_F32, 2 * F * T, 1), values(DT_F32, F * T, 2), values(DT_F32, F * T, 3), F, T};
    float dgu[2 * F * T];
    d->op.swiglu_bwd(d, DT_F32, dgu, NULL, 0, l.da, l.gu, 2 * F, F, T);
    expect_gradient("dgu", glu_loss, &l, l.gu, COUNT_OF(dgu), dgu, 1e-2f, 2e-3);
    FREE(l.gu, l.a, l.da);
    device_close(d);
}

// ---- embedding, rows ------------------------------------------------------------------------------------------------
static void embed_shape(Device *tuned, Device *ref, DType t, int T, int C)
{
    enum { V = 45 };
    int64_t n = (int64_t)T * C;
    void *table = values(DT_F32, V * C, 1), *dx = values(t, n, 2), *x[2];
    int32_t *tokens = xmalloc((size_t)T * sizeof *tokens);
    float *dtable[2];
    for (int i = 0; i < T; i++) tokens[i] = i % 5 == 3 ? (i % 2 ? V : -1) + i / 10 * 100 : i * i % V;
    for (int k = 0; k < 2; k++) {
        Device *d = k ? ref : tuned;
        Packed w = pack_values(d, t, table, DT_F32, V, C);
        x[k] = values(t, n, 3), dtable[k] = values(DT_F32, V * C, 4);
        d->op.embed_fwd(d, t, x[k], &w, tokens, 0.75f, T);
        d->op.embed_bwd(d, t, dtable[k], dx, tokens, 0.75f, V, C, T);
        free(w.data);
    }
    expect_same_bits("embed x", x[0], x[1], (size_t)n * dtype_size(t));
    expect_close("embed dtable", DT_F32, dtable[0], dtable[1], (size_t)(V * C));
    for (int64_t i = 3 * C; T > 3 && i < 4 * C; i++) assert_true(get(x[0], t, (size_t)i) == 0); // token 45 of 45
    FREE(table, dx, tokens, x[0], x[1], dtable[0], dtable[1]);
}

static void embed(void **state)
{
    (void)state;
    for_shapes(embed_shape);
}

static void rows_shape(Device *tuned, Device *ref, DType t, int T, int C)
{
    const size_t size = dtype_size(t), ld = (size_t)C + (size_t)(T % 3), n = (size_t)T * ld;
    int rows = (T + 1) / 2;
    void *x = values(t, (int64_t)T * C, 1), *y[2], *back[2];
    int32_t *idx = xmalloc((size_t)rows * sizeof *idx);
    for (int i = 0; i < rows; i++) idx[i] = T - 1 - 2 * i;
    for (int k = 0; k < 2; k++) {
        Device *d = k ? ref : tuned;
        y[k] = values(t, rows * C, 2), back[k] = values(t, (int64_t)n, 3);
        d->op.gather_rows(d, t, y[k], x, idx, C, rows);
        d->op.scatter_rows(d, t, back[k], (int64_t)ld, y[k], idx, C, rows, T);
    }
    expect_same_bits("gather", y[0], y[1], (size_t)(rows * C) * size);
    expect_same_bits("scatter", back[0], back[1], n * size);
    const size_t last = (size_t)(T - 1); // always picked
    expect_same_bits("last row", (char *)back[0] + last * ld * size, (char *)x + last * (size_t)C * size,
                     (size_t)C * size);
    for (size_t c = 0; T > 1 && c < (size_t)C; c++) assert_true(get(back[0], t, (last - 1) * ld + c) == 0);
    FREE(x, idx, y[0], y[1], back[0], back[1]);
}

static void gather_and_scatter(void **state)
{
    (void)state;
    for_shapes(rows_shape);
}

// ---- dropout --------------------------------------------------------------------------------------------------------
static void philox_known_answers(void **state)
{
    (void)state; // of Random123's kat_vectors
    uint32_t w[4];
    philox(0, 0, 0, w);
    assert_memory_equal(w, ((uint32_t[]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}), sizeof w);
    philox(UINT64_MAX, UINT64_MAX, UINT64_MAX, w);
    assert_memory_equal(w, ((uint32_t[]){0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}), sizeof w);
    philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88, w);
    assert_memory_equal(w, ((uint32_t[]){0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}), sizeof w);
}

static void dropout_shape(Device *tuned, Device *ref, DType t, int T, int C)
{
    int64_t ldx = C + 3, ldy = C + 1;
    void *x = values(t, T * ldx, 1), *y[2];
    uint64_t *key = xmalloc((size_t)T * sizeof *key);
    for (int i = 0; i < T; i++) key[i] = hash64(&i, sizeof i, 9);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        for (int k = 0; k < 2; k++) {
            Device *d = k ? ref : tuned;
            y[k] = values(t, T * ldy, 2);
            d->op.dropout(d, t, y[k], ldy, x, ldx, key, 0x123456789abcdef, 0.3f, accumulate,
                          ((int64_t)1 << 34) * (T % 3) + C % 7, C, T);
        }
        expect_close("dropout", t, y[0], y[1], (size_t)(T * ldy));
        FREE(y[0], y[1]);
    }
    FREE(x, key);
}

static void dropout(void **state)
{
    (void)state;
    for_shapes(dropout_shape);
}

static void dropout_follows_the_row(void **state)
{
    (void)state;
    enum { C = 4000 };
    Device *d = open_threads("cpu", 2);
    float *one = xmalloc(C * sizeof *one), *y = xmalloc(2 * C * sizeof *y), *z = xmalloc(C * sizeof *z);
    for (int c = 0; c < C; c++) one[c] = 1;
    d->op.dropout(d, DT_F32, y, C, one, 0, (uint64_t[]){5, 6}, 1, 0.25f, false, 0, C, 2);
    d->op.dropout(d, DT_F32, z, C, one, 0, (uint64_t[]){6}, 1, 0.25f, false, 0, C, 1);
    expect_same_bits("row 6 alone", z, y + C, C * sizeof *z);
    d->op.dropout(d, DT_F32, z, C, one, 0, (uint64_t[]){6}, 2, 0.25f, false, 0, C, 1);
    int kept = 0, same = 0;
    for (int c = 0; c < C; c++) kept += y[C + c] != 0, same += (y[C + c] != 0) == (z[c] != 0);
    assert_in_range(kept, C * 0.72, C * 0.78);
    assert_in_range(same, C * 0.59, C * 0.66); // 0.75^2 + 0.25^2 of independent masks
    d->op.dropout(d, DT_F32, z, C, one, 0, (uint64_t[]){6}, 2, 0, false, 0, C, 1);
    expect_same_bits("p = 0", z, one, C * sizeof *z);
    FREE(one, y, z);
    device_close(d);
}

// However the columns of a row are cut, each part gets its part of the mask.
static void dropout_of_columns_is_dropout_of_the_row(void **state)
{
    (void)state;
    enum { C = 211, T = 3 };
    static const int cuts[] = {0, 1, 3, 8, 10, 15, 17, 32, 33, 77, 78, 80, 150, C};
    const uint64_t key[T] = {7, 8, 1ull << 60};
    for (size_t i = 0; i < COUNT_OF(kernel_isas) * COUNT_OF(kernel_types) * 2; i++) {
        Device *d = open_isa(kernel_isas[i / 4], 1);
        if (!d) continue;
        DType t = kernel_types[i % 2];
        size_t size = dtype_size(t);
        bool accumulate = i / 2 % 2;
        char *x = values(t, T * C, 1), *whole = values(t, T * C, 2), *parts = values(t, T * C, 2);
        d->op.dropout(d, t, whole, C, x, C, key, 5, 0.4f, accumulate, 0, C, T);
        for (size_t k = 0; k + 1 < COUNT_OF(cuts); k++)
            d->op.dropout(d, t, parts + (size_t)cuts[k] * size, C, x + (size_t)cuts[k] * size, C, key, 5, 0.4f,
                          accumulate, cuts[k], cuts[k + 1] - cuts[k], T);
        expect_same_bits("columns", parts, whole, T * C * size);
        FREE(x, whole, parts);
        device_close(d);
    }
}

// ---- convert --------------------------------------------------------------------------------------------------------
static uint32_t bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static void convert_agrees(void **state)
{
    (void)state;
    enum { N = 40001 };
    static const DType types[] = {DT_F32, DT_BF16, DT_F16};
    Device *ref = open_threads("cpu-ref", 1);
    float *x = random_values(DT_F32, N, 1, 1);
    const float special[] = {0,     -0.0f, INFINITY, -INFINITY, NAN,         3.4e38f,
                             65519, 65520, 6e-8f,    2.9e-8f,   1.00390625f, 1e-39f};
    memcpy(x, special, sizeof special);
    for (size_t i = 0; i < COUNT_OF(kernel_isas) * COUNT_OF(types) * COUNT_OF(types); i++) {
        Device *d = open_isa(kernel_isas[i / 9], 2);
        if (!d) continue;
        DType from = types[i / 3 % 3], to = types[i % 3];
        uint32_t *src = xcalloc(N, 4), *got = xcalloc(N, 4), *want = xcalloc(N, 4);
        ref->op.convert(ref, src, from, x, DT_F32, N);
        d->op.convert(d, got, to, src, from, N);
        ref->op.convert(ref, want, to, src, from, N);
        if (to == DT_BF16) ((bf16_t *)got)[11] = ((bf16_t *)want)[11]; // the subnormal: hardware may flush it
        expect_same_bits("convert", got, want, N * dtype_size(to));
        FREE(src, got, want);
        device_close(d);
    }
    free(x);
    device_close(ref);
}

static void convert_f16_known_values(void **state)
{
    (void)state;
    static const struct {
        uint16_t h;
        float f;
    } pairs[] = {{0x3c00, 1},        {0xc000, -2},         {0x7bff, 65504},    {0x7c00, INFINITY},
                 {0x0001, 0x1p-24f}, {0x03ff, 0x3ffp-24f}, {0x0400, 0x1p-14f}, {0x8000, -0.0f}};
    Device *d = open_threads("cpu", 1);
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        float f;
        uint16_t h;
        d->op.convert(d, &f, DT_F32, &pairs[i].h, DT_F16, 1);
        d->op.convert(d, &h, DT_F16, &pairs[i].f, DT_F32, 1);
        assert_int_equal(bits(f), bits(pairs[i].f));
        assert_int_equal(h, pairs[i].h);
    }
    for (uint32_t u = 0; u < 0x7c00; u++) { // every finite value comes back
        uint16_t h = (uint16_t)u, back;
        float f;
        d->op.convert(d, &f, DT_F32, &h, DT_F16, 1);
        d->op.convert(d, &back, DT_F16, &f, DT_F32, 1);
        assert_int_equal(back, h);
    }
    device_close(d);
}

// ---- threads --------------------------------------------------------------------------------------------------------
static void threads_change_no_bit(void **state)
{
    (void)state;
    enum { T = 333, C = 144 };
    void *x = values(DT_BF16, T * C, 1), *dy = values(DT_BF16, T * C, 2), *w = values(DT_F32, C, 3), *dx[3];
    int32_t tokens[T];
    float rstd[T], *dw[3], *dtable[3];
    for (int i = 0; i < T; i++) tokens[i] = i % 10;
    for (int n = 0; n < 3; n++) {
        Device *d = open_threads("cpu", n + 1);
        dx[n] = values(DT_BF16, T * C, 4), dw[n] = values(DT_F32, C, 5), dtable[n] = values(DT_F32, 10 * C, 6);
        d->op.rmsnorm_fwd(d, DT_BF16, dx[n], C, rstd, x, w, 0, 1e-5f, C, T);
        d->op.rmsnorm_bwd(d, DT_BF16, dx[n], C, dw[n], dy, x, rstd, w, 0, true, C, T);
        d->op.embed_bwd(d, DT_BF16, dtable[n], dx[n], tokens, 1, 10, C, T);
        device_close(d);
        expect_same_bits("dx", dx[n], dx[0], T * C * 2);
        expect_same_bits("dw", dw[n], dw[0], C * 4);
        expect_same_bits("dtable", dtable[n], dtable[0], 10 * C * 4);
    }
    FREE(x, dy, w);
    for (int n = 0; n < 3; n++) FREE(dx[n], dw[n], dtable[n]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rmsnorm),
        cmocka_unit_test(rmsnorm_gradient),
        cmocka_unit_test(rope),
        cmocka_unit_test(swiglu),
        cmocka_unit_test(swiglu_of_large_values_is_finite),
        cmocka_unit_test(swiglu_gradient),
        cmocka_unit_test(embed),
        cmocka_unit_test(gather_and_scatter),
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(dropout),
        cmocka_unit_test(dropout_follows_the_row),
        cmocka_unit_test(dropout_of_columns_is_dropout_of_the_row),
        cmocka_unit_test(convert_agrees),
        cmocka_unit_test(convert_f16_known_values),
        cmocka_unit_test(threads_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
