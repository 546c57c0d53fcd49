// Kernels of kernels/cuda/attention*.cu against the references of the CPU, on shapes drawn at random: sequences of any length with
// caches and windows, any group, heads of any size; few queries behind long caches, which are split over the keys. Rows between sequences hold NaN and must be neither read nor written.
#include "cuda_kernels.h"
#include "reference.h"

enum { MOST_SEQS = 5 };

// ---- cases ----------------------------------------------------------------------------------------------------------
typedef struct Case {
    int S, NH, KV, D, window;
    float softcap;
    int q_len[MOST_SEQS], k_len[MOST_SEQS];
    int pad, gap; // columns beside the heads of a row of q and o, rows between sequences
} Case;

typedef struct Draw {
    uint64_t seed, at;
} Draw;

static int draw(Draw *d, int from, int to) // uniform, both included
{
    uint32_t u[4];
    philox(d->seed, 77, d->at++, u);
    return from + (int)(u[0] % (uint32_t)(to - from + 1));
}

static int draw_length(Draw *d, int most)
{
    static const int special[] = {1, 1, 2, 7, 16, 31, 32, 33, 64, 65, 97, 127, 128, 129};
    int n = draw(d, 0, 1) ? special[draw(d, 0, COUNT_OF(special) - 1)] : draw(d, 1, most);
    return MIN(n, most);
}

// Kernels differ by the head size: each case takes one step on, and the rest is drawn.
static Case case_at(int i, int work)
{
    static const int sizes[] = {8, 16, 24, 32, 40, 56, 64, 64, 72, 80, 88, 96, 104, 128, 128, 136, 160, 192, 200, 256};
    static const int groups[] = {1, 1, 2, 3, 4, 5, 7, 8};
    Draw d = {(uint64_t)i, 0};
    Case c = {.D = sizes[i % (int)COUNT_OF(sizes)], .KV = draw(&d, 1, 2), .S = draw(&d, 1, 4)};
    c.NH = c.KV * groups[draw(&d, 0, COUNT_OF(groups) - 1)];
    if (draw(&d, 0, 3) == 0) c.softcap = (float)draw(&d, 1, 20);
    if (draw(&d, 0, 2) == 0) c.window = draw(&d, 1, 70);
    int budget = work / c.D / c.NH + 4; // queries in all: about the same work for each case
    for (int s = 0; s < c.S; s++) {
        c.q_len[s] = draw_length(&d, MAX(1, budget / c.S));
        c.k_len[s] = c.q_len[s] + (draw(&d, 0, 2) ? 0 : draw_length(&d, work / 50));
        if (draw(&d, 0, 15) == 0) c.q_len[s] = 0;
    }
    c.gap = draw(&d, 0, 2), c.pad = draw(&d, 0, 5) ? 8 * draw(&d, 0, 2) : 2;
    return c;
}

// Decoding: a few queries, and keys around whole chunks of 128
static Case case_decoding(int i)
{
    static const int sizes[] = {64, 80, 96, 128, 256, 16, 32, 40, 56, 64, 72, 128, 136, 192, 200, 10};
    static const int groups[] = {1, 2, 3, 4, 5, 7, 8, 16, 17};
    static const int keys[] = {1, 2, 127, 128, 129, 130, 191, 251, 255, 256, 257, 258, 383, 385, 401, 509};
    Draw d = {(uint64_t)i, 0};
    Case c = {.D = sizes[i % (int)COUNT_OF(sizes)], .KV = draw(&d, 1, 2), .S = draw(&d, 1, 3)};
    c.NH = c.KV * groups[draw(&d, 0, c.D > 96 ? 3 : COUNT_OF(groups) - 1)];
    if (draw(&d, 0, 3) == 0) c.softcap = (float)draw(&d, 1, 20);
    if (draw(&d, 0, 2) == 0) c.window = draw(&d, 0, 1) ? draw(&d, 1, 400) : 128 * draw(&d, 1, 3) + draw(&d, -1, 1);
    for (int s = 0; s < c.S; s++) {
        c.k_len[s] = draw(&d, 0, 2) ? keys[draw(&d, 0, COUNT_OF(keys) - 1)] : draw(&d, 1, 600);
        if (s > 0 || c.NH * c.D > 600) c.k_len[s] = 1 + c.k_len[s] % 150; // the others are there to be beside it
        const int queries = draw(&d, 0, 2) ? 1 : draw(&d, 0, 10);
        c.q_len[s] = MIN(queries, c.k_len[s]);
    }
    c.gap = draw(&d, 0, 2), c.pad = draw(&d, 0, 5) ? 8 * draw(&d, 0, 2) : 2;
    return c;
}

// ---- operands -------------------------------------------------------------------------------------------------------
enum { Q, KV, O, DOUT, DQ, DKV, ARRAYS };
typedef struct Work {
    DType t;
    AttnShape a;
    int32_t q_start[MOST_SEQS], q_len[MOST_SEQS], k_start[MOST_SEQS], k_len[MOST_SEQS];
    int TQ, TK;
    int64_t ld[ARRAYS];
    void *array[ARRAYS]; // device; k in front of v
    size_t bytes[ARRAYS];
    float *lse, *delta;
    void *table, *scratch;
} Work;

static bool of_queries(int which)
{
    return which != KV && which != DKV;
}

// Values depend on the place within the sequence alone; first: its number in the case.
static void fill(Work *w, int which, int first)
{
    const int32_t *start = of_queries(which) ? w->q_start : w->k_start, *len = of_queries(which) ? w->q_len : w->k_len;
    for (int s = 0; s < w->a.S; s++)
        for (int64_t i = 0; i < len[s] * w->ld[which]; i++) {
            uint32_t u[4];
            philox((uint64_t)(100 * which + first + s), 5, (uint64_t)i, u);
            float v = (which == Q ? 3 : 1) * (2 * u32_to_unit(u[0]) - 1);
            size_t at = (size_t)(start[s] * w->ld[which] + i);
            if (w->t == DT_BF16)
                ((bf16_t *)w->array[which])[at] = f32_to_bf16(v);
            else
                ((float *)w->array[which])[at] = v;
        }
}

static void layout(Work *w, const Case *c, int first, int count)
{
    for (int s = 0; s < count; s++) {
        w->q_start[s] = w->TQ, w->q_len[s] = c->q_len[first + s];
        w->k_start[s] = w->TK, w->k_len[s] = c->k_len[first + s];
        w->TQ += w->q_len[s] + (s + 1 < count ? c->gap : 0);
        w->TK += w->k_len[s] + (s + 1 < count ? c->gap : 0);
    }
    w->a.S = count;
    w->a.q_start = w->q_start, w->a.q_len = w->q_len, w->a.k_start = w->k_start, w->a.k_len = w->k_len;
}

// Sequences [first, first + count) of a case. Arrays end with their last row.
static Work *work_new(const Case *c, DType t, int first, int count)
{
    static const char *const names[] = {"q", "kv", "o", "dout", "dq", "dkv"};
    Work *w = xcalloc(1, sizeof *w);
    w->t = t;
    w->a = (AttnShape){.NH = c->NH, .KV = c->KV, .D = c->D, .window = c->window, .softcap = c->softcap};
    w->a.scale = 1 / sqrtf((float)c->D);
    layout(w, c, first, count);
    for (int i = 0; i < ARRAYS; i++) {
        w->ld[i] = of_queries(i) ? c->NH * c->D + (i == Q || i == DQ ? c->pad : 0) : 2 * c->KV * c->D;
        w->bytes[i] = (size_t)((of_queries(i) ? w->TQ : w->TK) * w->ld[i]) * dtype_size(t);
        w->array[i] = cudahost_alloc(w->bytes[i], names[i]);
        if (i == Q || i == KV || i == DOUT) fill(w, i, first);
    }
    w->lse = device_empty("lse", DT_F32, (size_t)c->NH * w->TQ);
    w->delta = device_empty("delta", DT_F32, (size_t)c->NH * w->TQ);
    w->table = cudahost_alloc(cuda_attn_table_bytes(&w->a), "table");
    cuda_attn_table(w->table, &w->a);
    w->scratch = cudahost_alloc(cuda_attn_fwd_scratch(&w->a), "scratch");
    return w;
}

static void work_free(Work *w)
{
    for (int i = 0; i < ARRAYS; i++) cudahost_free(w->array[i]);
    cudahost_free(w->lse), cudahost_free(w->delta), cudahost_free(w->table), cudahost_free(w->scratch);
    free(w);
}

static void *v_of(const Work *w, int which)
{
    return (char *)w->array[which] + (size_t)(w->a.KV * w->a.D) * dtype_size(w->t);
}

static void forward(const Work *w, bool with_lse)
{
    cuda_attn_fwd(w->t, w->array[O], w->ld[O], with_lse ? w->lse : NULL, w->array[Q], w->ld[Q], w->array[KV],
                  v_of(w, KV), w->ld[KV], &w->a, w->table, w->scratch, NULL);
}
static void backward(const Work *w)
{
    cuda_attn_bwd(w->t, w->array[DQ], w->ld[DQ], w->array[DKV], v_of(w, DKV), w->ld[DKV], w->array[DOUT], w->array[O],
                  w->ld[O], w->lse, w->array[Q], w->ld[Q], w->array[KV], v_of(w, KV), w->ld[KV], &w->a, w->table,
                  w->delta, NULL);
}
static void forward_reference(const Work *w)
{
    reference->op.attn_fwd(reference, w->t, w->array[O], w->ld[O], w->lse, w->array[Q], w->ld[Q], w->array[KV],
                           v_of(w, KV), w->ld[KV], &w->a);
}
static void backward_reference(const Work *w)
{
    reference->op.attn_bwd(reference, w->t, w->array[DQ], w->ld[DQ], w->array[DKV], v_of(w, DKV), w->ld[DKV],
                           w->array[DOUT], w->array[O], w->ld[O], w->lse, w->array[Q], w->ld[Q], w->array[KV],
                           v_of(w, KV), w->ld[KV], &w->a);
}

// ---- comparison -----------------------------------------------------------------------------------------------------
static const char *case_name(const Case *c, DType t)
{
    char lens[128] = "";
    for (int s = 0; s < c->S; s++)
        snprintf(lens + strlen(lens), sizeof lens - strlen(lens), " %d/%d", c->q_len[s], c->k_len[s]);
    return tmpf("%s, heads %d:%d of %d, window %d, cap %g, queries/keys%s", dtype_name(t), c->NH, c->KV, c->D,
                c->window, (double)c->softcap, lens);
}

static int columns(const Work *w, int which)
{
    return of_queries(which) ? w->a.NH * w->a.D : 2 * w->a.KV * w->a.D;
}

// Rows of sequences by normalised mean square error; what lies between and beside them is untouched.
static void expect_array(const char *name, const Work *got, const Work *want, int which, double limit)
{
    static const char *const what[] = {"q", "kv", "o", "dout", "dq", "dkv"};
    const size_t size = dtype_size(got->t);
    const int rows = of_queries(which) ? got->TQ : got->TK;
    double error = 0, norm = 0, n = 0;
    for (int row = 0; row < rows; row++) {
        bool owned = false;
        for (int s = 0; s < got->a.S; s++) {
            int start = of_queries(which) ? got->q_start[s] : got->k_start[s];
            owned |= row >= start && row < start + (of_queries(which) ? got->q_len[s] : got->k_len[s]);
        }
        for (int64_t c = 0; c < got->ld[which]; c++) {
            size_t i = (size_t)(row * got->ld[which] + c);
            if (owned && c < columns(got, which)) {
                double g = device_get(got->array[which], got->t, i), x = device_get(want->array[which], got->t, i);
                error += (g - x) * (g - x), norm += x * x, n++;
            } else if (memcmp((char *)got->array[which] + i * size, "\xff\xff\xff\xff", size)) {
                fail_msg("%s: %s, row %d, column %d is not its to write", name, what[which], row, (int)c);
            }
        }
    }
    if (!(error <= norm * limit + n * 1e-12)) // the second: what is left of gradients that cancel
        fail_msg("%s: %s: error %.3g, limit %.3g", name, what[which], error / norm, limit);
}

static void expect_lse(const char *name, const Work *got, const Work *want)
{
    double error = 0, norm = 0;
    for (int h = 0; h < got->a.NH; h++)
        for (int s = 0; s < got->a.S; s++)
            for (int i = got->q_start[s]; i < got->q_start[s] + got->q_len[s]; i++) {
                double g = got->lse[h * got->TQ + i], x = want->lse[h * got->TQ + i];
                error += (g - x) * (g - x), norm += x * x;
            }
    if (!(error <= norm * 1e-11)) fail_msg("%s: lse: error %.3g", name, error / norm);
}

static void expect_same(const char *name, const Work *a, const Work *b, int which)
{
    if (memcmp(a->array[which], b->array[which], a->bytes[which]))
        fail_msg("%s: array %d depends on the order", name, which);
}

// ---- tests ----------------------------------------------------------------------------------------------------------
static void in_order(int i)
{
    cudahost_order(cudahost_orders[i].order, cudahost_orders[i].seed + 10);
}

static void check_forward(const char *name, Work *got, Work *again, const Work *want, int other_order)
{
    in_order(0);
    forward(got, true);
    in_order(other_order);
    forward(again, false);
    expect_no_findings(name);
    expect_array(name, got, want, O, got->t == DT_BF16 ? 1e-5 : 1e-11);
    expect_lse(name, got, want);
    expect_same(name, again, got, O);
}

static void check_backward(const char *name, Work *got, Work *again, const Work *want, int other_order)
{
    const double limit = got->t == DT_BF16 ? 3e-5 : 1e-11; // dS is rounded to bf16 on its way
    Work *const both[] = {got, again};
    for (int i = 0; i < 2; i++) { // at the point where the reference differentiates
        memcpy(both[i]->array[O], want->array[O], want->bytes[O]);
        memcpy(both[i]->lse, want->lse, sizeof(float) * (size_t)(want->a.NH * want->TQ));
        in_order(i * other_order);
        backward(both[i]);
    }
    expect_no_findings(name);
    for (int i = DQ; i <= DKV; i++) {
        expect_array(name, got, want, i, limit);
        expect_same(name, again, got, i);
    }
}

static void check_case(const Case *c, DType t, int other_order)
{
    const char *name = case_name(c, t);
    Work *got = work_new(c, t, 0, c->S), *want = work_new(c, t, 0, c->S), *again = work_new(c, t, 0, c->S);
    forward_reference(want);
    check_forward(name, got, again, want, other_order);
    backward_reference(want);
    check_backward(name, got, again, want, other_order);
    work_free(got), work_free(want), work_free(again);
    expect_no_findings(name);
}

static void check_decoding(int i, DType t)
{
    const Case c = case_decoding(i);
    const char *name = case_name(&c, t);
    Work *got = work_new(&c, t, 0, c.S), *want = work_new(&c, t, 0, c.S), *again = work_new(&c, t, 0, c.S);
    forward_reference(want);
    check_forward(name, got, again, want, 1 + i % 3);
    work_free(got), work_free(want), work_free(again);
    expect_no_findings(name);
}

static void test_decoding_bf16(void **state)
{
    (void)state;
    for (int i = 0; i < 240; i++) check_decoding(i, DT_BF16);
}

static void test_decoding_f32(void **state)
{
    (void)state;
    for (int i = 240; i < 320; i++) check_decoding(i, DT_F32);
}

// The last query by itself, split over its keys, against the pass over the whole sequence, which training runs.
static void test_decoding_is_training(void **state)
{
    (void)state;
    static const Case cases[] = {{1, 4, 2, 64, 0, 0, {300}, {300}, 0, 0},
                                 {1, 3, 1, 80, 200, 0, {390}, {390}, 0, 0},
                                 {1, 2, 1, 128, 0, 5, {257}, {257}, 0, 0}};
    in_order(0);
    for (size_t i = 0; i < COUNT_OF(cases) * 2; i++) {
        const DType t = i % 2 ? DT_BF16 : DT_F32;
        Case one = cases[i / 2];
        one.q_len[0] = 1;
        Work *all = work_new(&cases[i / 2], t, 0, 1), *last = work_new(&one, t, 0, 1);
        const int n = one.NH * one.D, row = one.k_len[0] - 1;
        const size_t bytes = (size_t)n * dtype_size(t), at = (size_t)row * bytes;
        memcpy(last->array[Q], (char *)all->array[Q] + at, bytes);
        assert_true(cuda_attn_fwd_scratch(&last->a) > 0 && cuda_attn_fwd_scratch(&all->a) == 0);
        forward(all, true), forward(last, true);
        double error = 0, norm = 0;
        for (int c = 0; c < n; c++) {
            const double x = device_get(all->array[O], t, (size_t)(row * n + c)),
                         g = device_get(last->array[O], t, (size_t)c);
            error += (g - x) * (g - x), norm += x * x;
        }
        if (!(error <= norm * (t == DT_BF16 ? 1e-5 : 1e-11))) fail_msg("%s: %g", case_name(&one, t), error / norm);
        for (int h = 0; h < one.NH; h++)
            assert_true(fabsf(last->lse[h] - all->lse[h * all->TQ + row]) <= 1e-5f * fabsf(last->lse[h]));
        work_free(all), work_free(last);
    }
    expect_no_findings("decoding");
}

static void test_bf16(void **state)
{
    (void)state;
    for (int i = 0; i < 240; i++) {
        Case c = case_at(i, 8000);
        check_case(&c, DT_BF16, 1 + i % 3);
    }
}

static void test_f32(void **state)
{
    (void)state;
    for (int i = 240; i < 320; i++) {
        Case c = case_at(i, 3000);
        check_case(&c, DT_F32, 1 + i % 3);
    }
}

// A sequence's bits do not depend on what is packed beside it.
static void test_packing_changes_no_bit(void **state)
{
    (void)state;
    static const Case cases[] = {{3, 6, 2, 40, 0, 0, {45, 3, 131}, {90, 3, 131}, 8, 1},
                                 {4, 6, 2, 40, 0, 0, {1, 5, 20, 1}, {300, 131, 140, 257}, 8, 1}};
    for (int i = 0; i < 4; i++) {
        const DType t = i % 2 ? DT_BF16 : DT_F32;
        const Case c = cases[i / 2];
        Work *all = work_new(&c, t, 0, c.S);
        const size_t size = dtype_size(t);
        in_order(0);
        forward(all, true), backward(all);
        for (int s = 0; s < c.S; s++) {
            Work *alone = work_new(&c, t, s, 1);
            forward(alone, true), backward(alone);
            for (int x = O; x < ARRAYS; x++) {
                const int32_t *start = of_queries(x) ? all->q_start : all->k_start;
                assert_memory_equal(alone->array[x], (char *)all->array[x] + (size_t)(start[s] * all->ld[x]) * size,
                                    alone->bytes[x]);
            }
            work_free(alone);
        }
        work_free(all);
    }
    expect_no_findings("packing");
}

static double loss_of(const Work *w) // sum of dout * o
{
    forward(w, false);
    double sum = 0;
    for (size_t i = 0; i < w->bytes[O] / sizeof(float); i++)
        sum += (double)((float *)w->array[O])[i] * ((float *)w->array[DOUT])[i];
    return sum;
}

// Central differences at some elements of an operand; gradients: where its gradient lies.
static void expect_slopes(const Work *w, int operand, int gradient)
{
    float *x = w->array[operand], *g = w->array[gradient];
    const size_t n = w->bytes[operand] / sizeof(float);
    double largest = 0, worst = 0;
    for (size_t i = 0; i < n; i += n / 16 + 1) {
        const float keep = x[i];
        x[i] = keep + 1e-2f;
        const double up = loss_of(w), high = x[i];
        x[i] = keep - 1e-2f;
        const double down = loss_of(w), low = x[i];
        x[i] = keep;
        const double slope = (up - down) / (high - low);
        largest = fmax(largest, fabs(slope)), worst = fmax(worst, fabs(slope - g[i]));
    }
    if (!(worst <= 1e-2 * largest)) fail_msg("array %d: gradient off by %.3g of %.3g", operand, worst, largest);
}

static void test_gradients_are_slopes(void **state)
{
    (void)state;
    static const Case cases[] = {{1, 4, 2, 16, 0, 0, {21}, {21}, 0, 0},
                                 {2, 2, 1, 24, 6, 0, {9, 5}, {12, 5}, 0, 0},
                                 {1, 3, 1, 16, 0, 2, {18}, {25}, 0, 0}};
    in_order(0);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Work *w = work_new(&cases[i], DT_F32, 0, cases[i].S);
        forward(w, true), backward(w);
        expect_slopes(w, Q, DQ);
        expect_slopes(w, KV, DKV);
        work_free(w);
    }
    expect_no_findings("slopes");
}

// A NaN in a query shows in its output and nowhere else.
static void test_nan_stays_visible(void **state)
{
    (void)state;
    const Case c = {1, 2, 1, 16, 0, 0, {20}, {20}, 0, 0};
    in_order(0);
    for (int t = DT_F32; t <= DT_BF16; t++) {
        Work *w = work_new(&c, t, 0, 1);
        size_t at = (size_t)(7 * w->ld[Q] + 3); // head 0 of query 7
        memset((char *)w->array[Q] + at * dtype_size(t), 0xff, dtype_size(t));
        forward(w, true);
        for (int row = 0; row < 20; row++)
            for (int col = 0; col < w->ld[O]; col++) {
                float o = device_get(w->array[O], t, (size_t)(row * w->ld[O] + col));
                assert_int_equal(isnan(o) != 0, row == 7 && col < 16);
            }
        work_free(w);
    }
    expect_no_findings("nan");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decoding_bf16),
        cmocka_unit_test(test_decoding_f32),
        cmocka_unit_test(test_decoding_is_training),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_packing_changes_no_bit),
        cmocka_unit_test(test_gradients_are_slopes),
        cmocka_unit_test(test_nan_stays_visible),
    };
    return cmocka_run_group_tests(tests, open_reference, close_reference);
}
