// DoRA's ops: tuned against reference at every instruction set and type, whole layers against their formula in f64, gradients
// against differences, in-place use, and the same bits for any number of threads.
#include "kernel_test.h"

static void free_all(void **p, size_t n)
{
    for (size_t i = 0; i < n; i++) free(p[i]);
}
#define FREE(...) free_all((void *[]){__VA_ARGS__}, COUNT_OF(((void *[]){__VA_ARGS__})))

// ---- scale_cols -----------------------------------------------------------------------------------------------------
typedef struct Case {
    int T, N, pad; // pad: elements between two rows
} Case;

static const Case cases[] = {{1, 1, 0},   {1, 16, 0},  {3, 7, 2},     {5, 64, 0},     {2, 100, 0}, {64, 33, 3},
                             {65, 33, 1}, {70, 17, 0}, {130, 576, 8}, {200, 1536, 0}, {513, 40, 5}};

typedef struct Columns {
    DType t;
    int T, N;
    int64_t ld;
    size_t count; // elements of a matrix that ends with its last row
    void *u, *dy, *residual, *before;
    float *gain, *bias, *inv_norm, *dm;
} Columns;

static Columns make_columns(const Case *c, DType t)
{
    Columns w = {.t = t, .T = c->T, .N = c->N, .ld = c->N + c->pad};
    w.count = (size_t)((c->T - 1) * w.ld + c->N);
    w.u = random_values(t, w.count, 1, 1), w.dy = random_values(t, w.count, 2, 1);
    w.residual = random_values(t, w.count, 3, 1), w.before = random_values(t, w.count, 4, 1);
    w.gain = random_values(DT_F32, (size_t)c->N, 5, 2), w.bias = random_values(DT_F32, (size_t)c->N, 6, 1);
    w.inv_norm = random_values(DT_F32, (size_t)c->N, 7, 3), w.dm = random_values(DT_F32, (size_t)c->N, 8, 1);
    return w;
}

static void free_columns(const Columns *w)
{
    FREE(w->u, w->dy, w->residual, w->before, w->gain, w->bias, w->inv_norm, w->dm);
}

// Forward, with (1, 3) or without (0, 2) bias; residual elsewhere (1), in y (2), or none; 3: y is u.
enum { FORWARDS = 4 };
static void *run_forward(Device *d, const Columns *w, int variant)
{
    void *y = copy_values(w->t, variant == 3 ? w->u : w->before, w->count);
    const void *residual = variant == 1 ? w->residual : variant == 2 ? y : NULL;
    d->op.scale_cols(d, w->t, y, w->ld, variant == 3 ? y : w->u, w->ld, w->gain, variant % 2 ? w->bias : NULL, residual,
                     w->N, w->T);
    return y;
}

// Backward: stored (0), added (1), in place of dy (2) or of u (4), without dm (3).
enum { BACKWARDS = 5 };
static void *run_backward(Device *d, const Columns *w, int variant, float **dm)
{
    void *du = copy_values(w->t, variant == 2 ? w->dy : variant == 4 ? w->u : w->before, w->count);
    const void *u = variant == 3 ? NULL : variant == 4 ? du : w->u;
    *dm = copy_values(DT_F32, w->dm, (size_t)w->N);
    d->op.scale_cols_bwd(d, w->t, du, w->ld, variant == 3 ? NULL : *dm, variant == 2 ? du : w->dy, w->ld, u, w->ld,
                         w->gain, w->inv_norm, variant == 1, w->N, w->T);
    return du;
}

static void compare(Device *tuned, Device *ref, const Columns *w)
{
    for (int v = 0; v < FORWARDS; v++) {
        void *got = run_forward(tuned, w, v), *want = run_forward(ref, w, v);
        expect_close(tmpf("scale_cols/%d, T=%d N=%d", v, w->T, w->N), w->t, got, want, w->count);
        FREE(got, want);
    }
    for (int v = 0; v < BACKWARDS; v++) {
        float *dm[2];
        void *got = run_backward(tuned, w, v, &dm[0]), *want = run_backward(ref, w, v, &dm[1]);
        expect_close(tmpf("scale_cols_bwd/%d, T=%d N=%d", v, w->T, w->N), w->t, got, want, w->count);
        expect_close(tmpf("dm/%d, T=%d N=%d", v, w->T, w->N), DT_F32, dm[0], dm[1], (size_t)w->N);
        FREE(got, want, dm[0], dm[1]);
    }
}

static void scale_cols_equals_reference(void **state)
{
    (void)state;
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *tuned = open_isa(kernel_isas[i], 2);
        for (size_t k = 0; tuned && k < COUNT_OF(cases) * COUNT_OF(kernel_types); k++) {
            Columns w = make_columns(&cases[k / 2], kernel_types[k % 2]);
            compare(tuned, ref, &w);
            free_columns(&w);
        }
        device_close(tuned);
    }
    device_close(ref);
}

// y = (2·1 + 0.5 + 10, 3·(-2) + 0.25 + 20); dm = (1 + 4·3·1, 1 + 0.5·5·(-2))
static void scale_cols_by_hand(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu-ref", "cpu"};
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        Device *d = open_threads(devices[i], 1);
        const float u[2] = {1, -2}, gain[2] = {2, 3}, bias[2] = {0.5f, 0.25f}, residual[2] = {10, 20};
        const float dy[2] = {3, 5}, inv_norm[2] = {4, 0.5f};
        float y[2], du[2], dm[2] = {1, 1};
        d->op.scale_cols(d, DT_F32, y, 2, u, 2, gain, bias, residual, 2, 1);
        assert_true(y[0] == 12.5f && y[1] == 14.25f);
        d->op.scale_cols_bwd(d, DT_F32, du, 2, dm, dy, 2, u, 2, gain, inv_norm, true, 2, 1);
        assert_true(du[0] == 6 && du[1] == 15 && dm[0] == 13 && dm[1] == -4);
        d->op.scale_cols_bwd(d, DT_F32, du, 2, dm, dy, 2, u, 2, gain, inv_norm, false, 2, 0); // of no row
        assert_true(dm[0] == 0 && dm[1] == 0);
        device_close(d);
    }
}

// ---- lora_row_squares -----------------------------------------------------------------------------------------------
typedef struct Weights {
    int N, K, R;
    float scale;
    void *w_rows, *a_rows, *b_rows;
    Packed w, a, b;
} Weights;

static const int shapes[][3] = {{1, 1, 1},   {3, 2, 1},     {7, 9, 3},     {32, 32, 16}, {33, 33, 17},
                                {64, 31, 8}, {70, 100, 32}, {31, 257, 33}, {5, 65, 64},  {130, 576, 5}};

static Weights make_weights(Device *d, const int shape[3], DType w_t, DType ab_t)
{
    Weights w = {.N = shape[0], .K = shape[1], .R = shape[2], .scale = 0.75f};
    w.w_rows = random_values(w_t, (size_t)w.N * w.K, 1, 1);
    w.a_rows = random_values(ab_t, (size_t)w.R * w.K, 2, 1), w.b_rows = random_values(ab_t, (size_t)w.N * w.R, 3, 1);
    w.w = pack_values(d, w_t, w.w_rows, w_t, w.N, w.K);
    w.a = pack_values(d, ab_t, w.a_rows, ab_t, w.R, w.K), w.b = pack_values(d, ab_t, w.b_rows, ab_t, w.N, w.R);
    return w;
}

static void free_weights(const Weights *w)
{
    FREE(w->w_rows, w->a_rows, w->b_rows, w->w.data, w->a.data, w->b.data);
}

static float *row_squares_of(Device *d, DType t, const Weights *w)
{
    float *out = memset(xmalloc(sizeof *out * (size_t)w->N), 0xff, sizeof *out * (size_t)w->N);
    d->op.lora_row_squares(d, t, out, &w->w, &w->a, &w->b, w->scale);
    return out;
}

// The formula, from the rows as they were before packing
static float *dense_squares(const Weights *w)
{
    float *out = xmalloc(sizeof *out * (size_t)w->N);
    for (int n = 0; n < w->N; n++) {
        double sum = 0;
        for (int k = 0; k < w->K; k++) {
            double v = get(w->w_rows, w->w.t, (size_t)(n * w->K + k));
            for (int r = 0; r < w->R; r++)
                v += (double)w->scale * get(w->b_rows, w->b.t, (size_t)(n * w->R + r)) *
                     get(w->a_rows, w->a.t, (size_t)(r * w->K + k));
            sum += v * v;
        }
        out[n] = (float)sum;
    }
    return out;
}

static void row_squares_equal_the_formula(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas) + 1; i++) {
        Device *d = i < COUNT_OF(kernel_isas) ? open_isa(kernel_isas[i], 2) : open_threads("cpu-ref", 2);
        for (size_t k = 0; d && k < COUNT_OF(shapes) * 8; k++) { // types of W, of A and B, of the activations
            Weights w = make_weights(d, shapes[k / 8], kernel_types[k % 2], kernel_types[k / 2 % 2]);
            float *got = row_squares_of(d, kernel_types[k / 4 % 2], &w), *want = dense_squares(&w);
            expect_close(tmpf("row squares (%d,%d,%d), types %zu", w.N, w.K, w.R, k % 8), DT_F32, got, want,
                         (size_t)w.N);
            FREE(got, want);
            free_weights(&w);
        }
        device_close(d);
    }
}

// ---- dora_gain ------------------------------------------------------------------------------------------------------
typedef struct Gains {
    float *gain, *inv_norm, *less, *magnitude;
} Gains;

// Squares from denormal to huge ones, every fifth row one of zeros
static Gains run_gain(Device *d, int N, bool fresh, bool less)
{
    Gains g = {xcalloc((size_t)N, 4), xcalloc((size_t)N, 4), less ? xcalloc((size_t)N, 4) : NULL,
               random_values(DT_F32, (size_t)N, 1, 3)};
    for (int n = 0; n < N; n++)
        g.inv_norm[n] = n % 5 == 4 ? 0 : ldexpf(2 + random_at(2, (uint64_t)n, 1), n % 5 ? n % 7 : n * 37 % 270 - 145);
    d->op.dora_gain(d, g.gain, g.inv_norm, g.less, g.magnitude, fresh, N);
    return g;
}

static void gains_are_the_same_bits(void **state)
{
    (void)state;
    static const int rows[] = {1, 3, 32, 255, 256, 257, 1536};
    Device *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++) {
        Device *tuned = open_isa(kernel_isas[i], 2);
        for (size_t k = 0; tuned && k < COUNT_OF(rows) * 4; k++) {
            const size_t bytes = sizeof(float) * (size_t)rows[k / 4];
            const Gains got = run_gain(tuned, rows[k / 4], k & 1, k & 2),
                        want = run_gain(ref, rows[k / 4], k & 1, k & 2);
            expect_same_bits("gain", got.gain, want.gain, bytes);
            expect_same_bits("inv_norm", got.inv_norm, want.inv_norm, bytes);
            expect_same_bits("magnitude", got.magnitude, want.magnitude, bytes);
            if (got.less) expect_same_bits("gain_less", got.less, want.less, bytes);
            FREE(got.gain, got.inv_norm, got.less, got.magnitude);
            FREE(want.gain, want.inv_norm, want.less, want.magnitude);
        }
        device_close(tuned);
    }
    device_close(ref);
}

static void gains_by_hand(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu-ref", "cpu"};
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        Device *d = open_threads(devices[i], 1);
        float gain[3], inv_norm[3] = {16, 0.25f, 0}, less[3], magnitude[3] = {2, 3, 5};
        d->op.dora_gain(d, gain, inv_norm, less, magnitude, false, 3);
        assert_true(gain[0] == 0.5f && gain[1] == 6 && gain[2] == 0);
        assert_true(inv_norm[0] == 0.25f && inv_norm[1] == 2 && inv_norm[2] == 0);
        assert_true(less[0] == -0.5f && less[1] == 5 && less[2] == -1);
        assert_true(magnitude[0] == 2 && magnitude[1] == 3 && magnitude[2] == 5);
        float fresh_inv[3] = {16, 0.25f, 0};
        d->op.dora_gain(d, gain, fresh_inv, NULL, magnitude, true, 3);
        assert_true(magnitude[0] == 4 && magnitude[1] == 0.5f && magnitude[2] == 0);
        assert_true(gain[0] == 1 && gain[1] == 1 && gain[2] == 0);
        device_close(d);
    }
}

// ---- a layer --------------------------------------------------------------------------------------------------------
// loss = Σ g · y, y = (m / |W'|) ⊙ x·W'ᵀ + bias, as a layer of the model runs it; |W'| is given: it is no part of the gradient.
typedef struct Layer {
    Device *d;
    Weights w;
    int T;
    float *x, *m, *norm, *bias, *g, *u, *y;
} Layer;

static void layer_forward(const Layer *l)
{
    Device *d = l->d;
    const Weights *w = &l->w;
    float *s = xmalloc(sizeof *s * (size_t)(l->T * w->R)), *gain = xmalloc(sizeof *gain * (size_t)w->N);
    LowRank lr = {w->R, s, w->R, &w->b};
    for (int n = 0; n < w->N; n++) gain[n] = l->m[n] / l->norm[n];
    d->op.lora_s(d, DT_F32, s, w->R, l->x, w->K, &w->a, w->scale, l->T);
    d->op.linear_fwd(d, DT_F32, l->u, w->N, l->x, w->K, &w->w, &lr, NULL, NULL, l->T);
    d->op.scale_cols(d, DT_F32, l->y, w->N, l->u, w->N, gain, l->bias, NULL, w->N, l->T);
    FREE(s, gain);
}

static double layer_loss(void *context)
{
    const Layer *l = context;
    double loss = 0;
    layer_forward(l);
    for (int i = 0; i < l->T * l->w.N; i++) loss += (double)l->g[i] * l->y[i];
    return loss;
}

static Layer make_layer(Device *d, int T)
{
    Layer l = {.d = d, .T = T, .w = make_weights(d, (int[3]){37, 35, 5}, DT_F32, DT_F32)};
    size_t N = (size_t)l.w.N, K = (size_t)l.w.K, rows = (size_t)T;
    l.x = random_values(DT_F32, rows * K, 4, 1), l.bias = random_values(DT_F32, N, 6, 1);
    l.m = random_values(DT_F32, N, 5, 2), l.g = random_values(DT_F32, rows * N, 7, 1);
    l.u = random_values(DT_F32, rows * N, 8, 1), l.y = random_values(DT_F32, rows * N, 9, 1);
    l.norm = row_squares_of(d, DT_F32, &l.w);
    for (size_t n = 0; n < N; n++) l.norm[n] = sqrtf(l.norm[n]);
    return l;
}

static void free_layer(const Layer *l)
{
    free_weights(&l->w);
    FREE(l->x, l->m, l->norm, l->bias, l->g, l->u, l->y);
}

static double merged_weight(const Weights *w, int n, int k) // W'[n][k]
{
    double v = get(w->w_rows, DT_F32, (size_t)(n * w->K + k));
    for (int r = 0; r < w->R; r++)
        v += (double)w->scale * get(w->b_rows, DT_F32, (size_t)(n * w->R + r)) *
             get(w->a_rows, DT_F32, (size_t)(r * w->K + k));
    return v;
}

static void expect_layer_formula(Device *d)
{
    Layer l = make_layer(d, 11);
    const Weights *w = &l.w;
    float *want = xmalloc(sizeof *want * (size_t)(l.T * w->N)), *squares = dense_squares(w);
    for (int i = 0; i < l.T; i++)
        for (int n = 0; n < w->N; n++) {
            double sum = 0;
            for (int k = 0; k < w->K; k++) sum += merged_weight(w, n, k) * l.x[i * w->K + k];
            want[i * w->N + n] = (float)(l.m[n] / sqrt(squares[n]) * sum + l.bias[n]);
        }
    layer_forward(&l);
    expect_close("y of a layer", DT_F32, l.y, want, (size_t)(l.T * w->N));
    FREE(want, squares);
    free_layer(&l);
}

static void expect_layer_gradients(Device *d)
{
    Layer l = make_layer(d, 70);
    const Weights *w = &l.w;
    size_t N = (size_t)w->N, K = (size_t)w->K, T = (size_t)l.T;
    float *du = xmalloc(sizeof *du * T * N), *ds = xmalloc(sizeof *ds * T * (size_t)w->R);
    float *dx = xmalloc(sizeof *dx * T * K), *dm = xcalloc(N, sizeof *dm), *gain = xmalloc(sizeof *gain * N);
    float *inv_norm = xmalloc(sizeof *inv_norm * N), *db = xmalloc(sizeof *db * N * (size_t)w->R);
    float *s = xcalloc(T * (size_t)w->R, sizeof *s);
    LowRank lr = {w->R, ds, w->R, &w->a};
    for (size_t n = 0; n < N; n++) gain[n] = l.m[n] / l.norm[n], inv_norm[n] = 1 / l.norm[n];
    layer_forward(&l);
    d->op.scale_cols_bwd(d, DT_F32, du, w->N, dm, l.g, w->N, l.u, w->N, gain, inv_norm, false, w->N, l.T);
    d->op.lora_bwd(d, DT_F32, ds, w->R, db, du, w->N, s, w->R, &w->b, w->scale, false, l.T);
    d->op.linear_dx(d, DT_F32, dx, w->K, du, w->N, &w->w, &lr, false, l.T);
    expect_gradient("dm", layer_loss, &l, l.m, N, dm, 0.25f, 1e-4); // the loss is linear in each of them
    expect_gradient("dx", layer_loss, &l, l.x, T * K, dx, 0.25f, 2e-4);
    FREE(du, ds, dx, dm, gain, inv_norm, db, s);
    free_layer(&l);
}

static void layers(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas) + 1; i++) {
        Device *d = i < COUNT_OF(kernel_isas) ? open_isa(kernel_isas[i], 2) : open_threads("cpu-ref", 1);
        if (d && d->op.linear_fwd) expect_layer_formula(d);
        if (d && d->op.linear_fwd) expect_layer_gradients(d);
        device_close(d);
    }
}

// ---- threads --------------------------------------------------------------------------------------------------------
static void expect_threads(Device *one, Device *many)
{
    const Case c = {333, 145, 1};
    for (size_t t = 0; t < COUNT_OF(kernel_types); t++) {
        Columns w = make_columns(&c, kernel_types[t]);
        Weights v = make_weights(one, (int[3]){333, 145, 9}, kernel_types[t], kernel_types[t]);
        float *dm[2], *squares[] = {row_squares_of(one, w.t, &v), row_squares_of(many, w.t, &v)};
        void *du[] = {run_backward(one, &w, 1, &dm[0]), run_backward(many, &w, 1, &dm[1])};
        expect_same_bits("dm", dm[1], dm[0], sizeof(float) * (size_t)w.N);
        expect_same_bits("du", du[1], du[0], w.count * dtype_size(w.t));
        expect_same_bits("row squares", squares[1], squares[0], sizeof(float) * (size_t)v.N);
        FREE(dm[0], dm[1], du[0], du[1], squares[0], squares[1]);
        free_columns(&w), free_weights(&v);
    }
}

static void threads_change_no_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kernel_isas); i++)
        for (int threads = 2; threads <= 5; threads += 3) {
            Device *one = open_isa(kernel_isas[i], 1), *many = open_isa(kernel_isas[i], threads);
            if (one) expect_threads(one, many);
            device_close(one), device_close(many);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scale_cols_equals_reference),
        cmocka_unit_test(scale_cols_by_hand),
        cmocka_unit_test(row_squares_equal_the_formula),
        cmocka_unit_test(gains_are_the_same_bits),
        cmocka_unit_test(gains_by_hand),
        cmocka_unit_test(layers),
        cmocka_unit_test(threads_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
