// Weights with an adapter in their border, on the device "cuda": what is put there comes back, of any kind of source; the linear's two
// products are one where s and ds lie behind x and dy, two where they do not; both are what the references compute.
#include "cuda.h"
#include "kernel_test.h"

typedef struct Case {
    DType t;
    int T, N, K, R;
} Case;

static const Case cases[] = {{DT_F32, 5, 24, 40, 8},    {DT_BF16, 5, 24, 40, 8},    {DT_F32, 33, 64, 32, 16},
                             {DT_BF16, 33, 64, 32, 16}, {DT_BF16, 140, 40, 72, 32}, {DT_F32, 1, 8, 8, 8}};

typedef struct World {
    Case c;
    Device *d, *ref;
    Arena *arena;
    Packed w, a, b;                // on the device, in one piece
    Packed w_ref, a_ref, b_ref;    // the reference's
    void *x, *y, *s, *ds, *result; // host: (T,K), (T,N), (T,R), (T,R), of the size of either
    void *rows;                    // device: (T, width + R), and where s alone may lie
    void *apart, *out;
} World;

static void check(int status)
{
    if (status < 0) fail_msg("%s: %s", error_last()->place, error_last()->what);
}

static size_t size_of(const World *w, int64_t rows, int64_t columns)
{
    return (size_t)rows * (size_t)columns * dtype_size(w->c.t);
}

static void open_world(World *w, Device *d, Device *ref, const Case *c)
{
    const DType t = c->t;
    const int64_t ld = c->K + c->R, widest = MAX(c->N, c->K);
    *w = (World){.c = *c, .d = d, .ref = ref};
    check(device_arena(&w->arena, d, "test", 4 << 20));
    char *at = arena_alloc(w->arena, d->packed_bytes(d, t, c->N + c->R, c->K + c->R));
    w->w = (Packed){t, c->N, c->K, at, ld};
    w->b = (Packed){t, c->N, c->R, at + size_of(w, 1, c->K), ld};
    w->a = (Packed){t, c->R, c->K, at + size_of(w, c->N, ld), ld};
    void *W = random_values(t, (size_t)(c->N * c->K), 1, 1), *A = random_values(t, (size_t)(c->R * c->K), 2, 1),
         *B = random_values(t, (size_t)(c->N * c->R), 3, 1);
    d->op.linear_pack(d, &w->b, 0, c->N, B, t, c->R);
    d->op.linear_pack(d, &w->a, 0, c->R, A, t, c->K);
    d->op.linear_pack(d, &w->w, 0, c->N, W, t, c->K);
    w->w_ref = pack_values(ref, t, W, t, c->N, c->K), w->a_ref = pack_values(ref, t, A, t, c->R, c->K);
    w->b_ref = pack_values(ref, t, B, t, c->N, c->R);
    w->x = random_values(t, (size_t)(c->T * c->K), 4, 1), w->y = random_values(t, (size_t)(c->T * c->N), 5, 1);
    w->s = random_values(t, (size_t)(c->T * c->R), 6, 1), w->ds = random_values(t, (size_t)(c->T * c->R), 7, 1);
    w->result = random_values(t, (size_t)(c->T * widest), 8, 1);
    w->rows = arena_alloc(w->arena, size_of(w, c->T, widest + c->R));
    w->apart = arena_alloc(w->arena, size_of(w, c->T, c->R));
    w->out = arena_alloc(w->arena, size_of(w, c->T, widest));
    free(W), free(A), free(B);
}

static void close_world(World *w)
{
    free(w->w_ref.data), free(w->a_ref.data), free(w->b_ref.data);
    free(w->x), free(w->y), free(w->s), free(w->ds), free(w->result);
    arena_free(w->arena);
}

// host (T, width) and inner (T,R) into the rows, one behind the other
static void put_rows(World *w, const void *host, int width, const void *inner)
{
    const int R = w->c.R;
    char *rows = xmalloc(size_of(w, w->c.T, width + R));
    for (int i = 0; i < w->c.T; i++) {
        char *row = rows + size_of(w, i, width + R);
        memcpy(row, (const char *)host + size_of(w, i, width), size_of(w, 1, width));
        memcpy(row + size_of(w, 1, width), (const char *)inner + size_of(w, i, R), size_of(w, 1, R));
    }
    check(w->d->upload(w->d, w->rows, rows, size_of(w, w->c.T, width + R)));
    check(w->d->upload(w->d, w->apart, inner, size_of(w, w->c.T, R)));
    free(rows);
}

// One linear, forward or backward, s or ds behind the rows or apart; *products: how many shapes were new to cuBLASLt's heuristics
static void *run(World *w, bool forward, bool behind, int *products)
{
    const Case *c = &w->c;
    const int inner = forward ? c->K : c->N, outer = forward ? c->N : c->K;
    const int64_t ld = inner + c->R;
    Device *d = w->d;
    put_rows(w, forward ? w->x : w->y, inner, forward ? w->s : w->ds);
    check(d->upload(d, w->out, w->result, size_of(w, c->T, outer)));
    const LowRank lr = {.R = c->R,
                        .s = behind ? (char *)w->rows + size_of(w, 1, inner) : w->apart,
                        .lds = behind ? ld : c->R,
                        .w = forward ? &w->b : &w->a};
    *products = -cuda_gemm_shapes(d);
    if (forward)
        d->op.linear_fwd(d, c->t, w->out, outer, w->rows, ld, &w->w, &lr, NULL, w->out, c->T);
    else
        d->op.linear_dx(d, c->t, w->out, outer, w->rows, ld, &w->w, &lr, true, c->T);
    *products += cuda_gemm_shapes(d);
    void *got = xmalloc(size_of(w, c->T, outer));
    check(d->download(d, got, w->out, size_of(w, c->T, outer)));
    return got;
}

static void compare(World *w, bool forward)
{
    const Case *c = &w->c;
    const int outer = forward ? c->N : c->K;
    const size_t n = (size_t)c->T * (size_t)outer;
    int one, two;
    void *want = copy_values(c->t, w->result, n), *behind = run(w, forward, true, &one);
    void *apart = run(w, forward, false, &two);
    const LowRank lr = {.R = c->R, .s = forward ? w->s : w->ds, .lds = c->R, .w = forward ? &w->b_ref : &w->a_ref};
    if (forward)
        w->ref->op.linear_fwd(w->ref, c->t, want, outer, w->x, c->K, &w->w_ref, &lr, NULL, want, c->T);
    else
        w->ref->op.linear_dx(w->ref, c->t, want, outer, w->y, c->N, &w->w_ref, &lr, true, c->T);
    expect_close(forward ? "y, one product" : "dx, one product", c->t, behind, want, n);
    expect_nmse(forward ? "y, two products" : "dx, two products", c->t, apart, want, n,
                c->t == DT_BF16 ? 1e-4 : nmse_limit(c->t)); // rounded twice
    assert_int_equal(one, 1);
    assert_int_equal(two, 2);
    free(want), free(behind), free(apart);
}

static void one_product(void **state)
{
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Device *d = open_threads("cuda", 1), *ref = open_threads("cpu-ref", 1); // anew: no shape is known
        World w;
        open_world(&w, d, ref, &cases[i]);
        compare(&w, true);
        compare(&w, false);
        close_world(&w);
        device_close(ref);
        device_close(d);
    }
    (void)state;
}

static void expect_matrix(World *w, const Packed *p, const Packed *like)
{
    const size_t bytes = size_of(w, p->N, p->K);
    void *got = xmalloc(bytes), *want = xmalloc(bytes);
    w->d->op.linear_unpack(w->d, p, 0, p->N, got, w->c.t, p->K);
    w->ref->op.linear_unpack(w->ref, like, 0, like->N, want, w->c.t, like->K);
    expect_same_bits("a matrix in one piece with others", got, want, bytes);
    free(got), free(want);
}

// Rows that are sent and decoded in more than one piece, and rows that are longer than a piece.
static void many_pieces(void **state)
{
    (void)state;
    static const int shapes[][2] = {{700, 512}, {3, 332800}};
    Device *d = open_threads("cuda", 1), *ref = open_threads("cpu-ref", 1);
    for (size_t i = 0; i < COUNT_OF(shapes) * COUNT_OF(kernel_types); i++) {
        const int N = shapes[i / 2][0], K = shapes[i / 2][1], R = 8;
        const DType t = kernel_types[i % 2];
        const QuantFormat *q = &quant_formats[QUANT_Q4_K];
        const size_t bytes = (size_t)N * (size_t)(K / q->block) * (size_t)q->bytes, all = (size_t)N * (size_t)(K + R);
        Arena *arena;
        check(device_arena(&arena, d, "test", all * dtype_size(t) + ARENA_ALIGN));
        Packed w = {t, N, K, arena_alloc(arena, all * dtype_size(t)), K + R};
        uint8_t *blocks = xmalloc(bytes);
        for (size_t k = 0; k < bytes; k++) blocks[k] = (uint8_t)(k * k % 61); // no scale that is not a number
        void *rows = random_values(t, (size_t)N * (size_t)K, 1, 1),
             *got = xmalloc((size_t)N * (size_t)K * dtype_size(t));
        d->op.linear_pack(d, &w, 0, N, rows, t, K);
        d->op.linear_unpack(d, &w, 0, N, got, t, K);
        expect_same_bits("rows", got, rows, (size_t)N * (size_t)K * dtype_size(t));
        Packed like = pack_values(ref, t, rows, t, N, K);
        ref->op.linear_pack_blocks(ref, &like, 0, N, blocks, QUANT_Q4_K);
        ref->op.linear_unpack(ref, &like, 0, N, rows, t, K);
        d->op.linear_pack_blocks(d, &w, 0, N, blocks, QUANT_Q4_K);
        d->op.linear_unpack(d, &w, 0, N, got, t, K);
        expect_same_bits("rows of blocks", got, rows, (size_t)N * (size_t)K * dtype_size(t));
        free(like.data), free(blocks), free(rows), free(got);
        arena_free(arena);
    }
    device_close(ref);
    device_close(d);
}

// From the host, from the device, and out of blocks: neither goes over the edge.
static void neighbours_stay(void **state)
{
    (void)state;
    Device *d = open_threads("cuda", 1), *ref = open_threads("cpu-ref", 1);
    for (int i = 0; i < 2; i++) {
        const Case c = {kernel_types[i], 3, 16, 512, 8};
        World w;
        open_world(&w, d, ref, &c);
        expect_matrix(&w, &w.w, &w.w_ref), expect_matrix(&w, &w.a, &w.a_ref), expect_matrix(&w, &w.b, &w.b_ref);
        void *rows = random_values(DT_F32, 5 * 512, 9, 1), *there = arena_alloc(w.arena, 5 * 512 * sizeof(float));
        check(d->upload(d, there, rows, 5 * 512 * sizeof(float)));
        d->op.linear_pack(d, &w.w, 3, 5, there, DT_F32, 512);
        ref->op.linear_pack(ref, &w.w_ref, 3, 5, rows, DT_F32, 512);
        for (int format = 0; format < QUANT_COUNT; format++) {
            const QuantFormat *q = &quant_formats[format];
            const size_t bytes = 7 * (size_t)(512 / q->block) * (size_t)q->bytes;
            uint8_t *blocks = xmalloc(bytes);
            for (size_t k = 0; k < bytes; k++) blocks[k] = (uint8_t)(k % 61); // no scale that is not a number
            d->op.linear_pack_blocks(d, &w.w, 9, 7, blocks, (Quant)format);
            ref->op.linear_pack_blocks(ref, &w.w_ref, 9, 7, blocks, (Quant)format);
            expect_matrix(&w, &w.w, &w.w_ref), expect_matrix(&w, &w.a, &w.a_ref), expect_matrix(&w, &w.b, &w.b_ref);
            free(blocks);
        }
        free(rows);
        close_world(&w);
    }
    device_close(ref);
    device_close(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_product), cmocka_unit_test(neighbours_stay),
                                       cmocka_unit_test(many_pieces)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
