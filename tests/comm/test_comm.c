// Collectives against values computed here, for any number of ranks (3 and more on 2 cores: more ranks than cores), and what is
// built out of them. Every rank runs every test. The same tests run over windows of shared memory, by messages
// (ATTUNE_COMM=mpi), and over two nodes (MPIR_CVAR_NUM_CLIQUES=2).
#include "comm.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static Comm *world;
static int rank, size;

// One element, less than a piece, a slot of the window and one element beside it, and several pieces with a rest.
static const size_t counts[] = {1, 7, 1000, 65535, 65536, 65537, 131073, 900001};

// Small integers: exact in every type, and different for every rank and place.
static int value_of(int r, size_t i)
{
    return (int)((i * 7 + (size_t)r * 3) % 11);
}

static double expected(ReduceOp op, size_t i)
{
    double v = value_of(0, i);
    for (int r = 1; r < size; r++) {
        double w = value_of(r, i);
        v = op == REDUCE_SUM ? v + w : op == REDUCE_MAX ? MAX(v, w) : MIN(v, w);
    }
    return v;
}

static void put(void *x, size_t i, DType t, double v)
{
    switch (t) {
    case DT_F32: ((float *)x)[i] = (float)v; break;
    case DT_BF16: ((bf16_t *)x)[i] = f32_to_bf16((float)v); break;
    case DT_I64: ((int64_t *)x)[i] = (int64_t)v; break;
    case DT_I32: ((int32_t *)x)[i] = (int32_t)v; break;
    default: ((uint8_t *)x)[i] = (uint8_t)v;
    }
}

static double get(const void *x, size_t i, DType t)
{
    switch (t) {
    case DT_F32: return ((const float *)x)[i];
    case DT_BF16: return bf16_to_f32(((const bf16_t *)x)[i]);
    case DT_I64: return (double)((const int64_t *)x)[i];
    case DT_I32: return ((const int32_t *)x)[i];
    default: return ((const uint8_t *)x)[i];
    }
}

static const DType types[] = {DT_F32, DT_BF16, DT_I64, DT_I32, DT_U8};

static void check_all_reduce(DType t, ReduceOp op, size_t count)
{
    void *x = xmalloc(count * dtype_size(t));
    for (size_t i = 0; i < count; i++) put(x, i, t, value_of(rank, i));
    assert_int_equal(comm_all_reduce(world, x, count, t, op), OK);
    for (size_t i = 0; i < count; i++)
        if (get(x, i, t) != expected(op, i)) fail_msg("%s[%zu] = %g", dtype_name(t), i, get(x, i, t));
    free(x);
}

static void test_all_reduce(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t n = 0; n < COUNT_OF(counts); n++) {
            check_all_reduce(types[t], REDUCE_SUM, counts[n]);
            if (types[t] == DT_BF16) continue; // sums only
            check_all_reduce(types[t], REDUCE_MAX, counts[n]);
            check_all_reduce(types[t], REDUCE_MIN, counts[n]);
        }
    assert_int_equal(comm_all_reduce(world, NULL, 0, DT_F32, REDUCE_SUM), OK);
}

// Every size up to some hundred bytes: vectors' rests, lines' ends.
static void test_all_small_sizes(void **state)
{
    (void)state;
    for (size_t count = 1; count < 150; count++)
        for (size_t t = 0; t < COUNT_OF(types); t++)
            check_all_reduce(types[t], types[t] == DT_BF16 ? REDUCE_SUM : (ReduceOp)(count % 3), count);
}

// Any bit pattern of a moderate float, named by rank and place.
static float any_float(int r, size_t i)
{
    uint32_t u[4];
    philox(7, (uint64_t)r, i, u);
    return (u32_to_unit(u[0]) - 0.5f) * (float)(1 << u[1] % 20);
}

static float in_order(DType t, size_t i)
{
    float sum = 0;
    for (int r = 0; r < size; r++) {
        float v = any_float(r, i);
        if (t == DT_BF16) v = bf16_to_f32(f32_to_bf16(v));
        sum = r ? sum + v : v;
    }
    return t == DT_BF16 ? bf16_to_f32(f32_to_bf16(sum)) : sum;
}

static void check_bits(DType t, size_t count, const size_t *start)
{
    const bool one_window = comm_local_size(world) == size && !getenv("ATTUNE_COMM");
    const size_t bytes = count * dtype_size(t);
    char *x = xmalloc(bytes), *y = xmalloc(bytes);
    for (size_t i = 0; i < count; i++) put(x, i, t, any_float(rank, i));
    memcpy(y, x, bytes);
    assert_int_equal(comm_all_reduce(world, x, count, t, REDUCE_SUM), OK);
    for (size_t i = 0; one_window && i < count; i++)
        if ((float)get(x, i, t) != in_order(t, i)) fail_msg("%s[%zu] = %.9g", dtype_name(t), i, get(x, i, t));
    // The own part is made of the same sums, whoever makes them.
    char *again = xmalloc(bytes);
    memcpy(again, y, bytes);
    assert_int_equal(comm_reduce_scatter_parts(world, again, start, t), OK);
    for (size_t i = start[rank]; one_window && i < start[rank + 1]; i++) assert_true(get(again, i, t) == get(x, i, t));
    // Every rank has the same bits, and has them again.
    memcpy(again, x, bytes);
    assert_int_equal(comm_broadcast(world, again, bytes, DT_U8, size - 1), OK);
    assert_memory_equal(again, x, bytes);
    assert_int_equal(comm_all_reduce(world, y, count, t, REDUCE_SUM), OK);
    assert_memory_equal(y, x, bytes);
    free(again);
    free(x);
    free(y);
}

static void test_float_sums_have_the_same_bits(void **state)
{
    (void)state;
    size_t *start = xcalloc((size_t)size + 1, sizeof *start);
    for (size_t n = 0; n < COUNT_OF(counts); n++) {
        for (int r = 0; r <= size; r++) start[r] = counts[n] * (size_t)(r * r) / (size_t)(size * size);
        check_bits(DT_F32, counts[n], start);
        check_bits(DT_BF16, counts[n], start);
    }
    free(start);
}

// Beyond the 53 bits of a double: nothing is rounded on the way.
static void test_i64_sums_are_exact(void **state)
{
    (void)state;
    int64_t x[3] = {(INT64_MAX / size) - rank, INT64_MIN / size + rank, rank % 2 ? -1 : 1};
    int64_t lost = (int64_t)size * (size - 1) / 2;
    assert_int_equal(comm_all_reduce(world, x, 3, DT_I64, REDUCE_SUM), OK);
    assert_true(x[0] == INT64_MAX / size * size - lost);
    assert_true(x[1] == INT64_MIN / size * size + lost);
    assert_true(x[2] == size % 2);
}

// Parts of all shapes: even; all with one rank; none with the first; growing; x does not begin with a part.
enum { SHAPES = 5 };

static void cut(size_t *start, int shape, size_t each)
{
    start[0] = shape == 4 ? 5 : 0;
    for (int r = 0; r < size; r++) {
        const size_t part[SHAPES] = {each, r == size / 2 ? each : 0, r ? each : 0, each / 2 + (size_t)r * 3, each};
        start[r + 1] = start[r] + part[shape];
    }
}

static void fill(void *x, size_t from, size_t to, DType t, int r)
{
    for (size_t i = from; i < to; i++) put(x, i, t, value_of(r, i));
}

static void check_reduce_scatter(const size_t *start, DType t)
{
    char *x = xcalloc(start[size] + 1, dtype_size(t));
    fill(x, 0, start[size], t, rank);
    put(x, start[size], t, 99);
    assert_int_equal(comm_reduce_scatter_parts(world, x, start, t), OK);
    for (size_t i = start[rank]; i < start[rank + 1]; i++)
        if (get(x, i, t) != expected(REDUCE_SUM, i)) fail_msg("%s[%zu] = %g", dtype_name(t), i, get(x, i, t));
    for (size_t i = 0; i < start[0]; i++) assert_true(get(x, i, t) == value_of(rank, i)); // no part of it
    assert_true(get(x, start[size], t) == 99);
    free(x);
}

static void check_all_gather(const size_t *start, DType t)
{
    char *x = xcalloc(start[size] + 1, dtype_size(t));
    fill(x, 0, start[0], t, 0);
    fill(x, start[rank], start[rank + 1], t, rank);
    put(x, start[size], t, 99);
    assert_int_equal(comm_all_gather_parts(world, x, start, t), OK);
    for (int r = 0; r < size; r++)
        for (size_t i = start[r]; i < start[r + 1]; i++)
            if (get(x, i, t) != value_of(r, i)) fail_msg("%s[%zu] = %g", dtype_name(t), i, get(x, i, t));
    for (size_t i = 0; i < start[0]; i++) assert_true(get(x, i, t) == value_of(0, i));
    assert_true(get(x, start[size], t) == 99);
    free(x);
}

static void test_parts(void **state)
{
    (void)state;
    size_t *start = xcalloc((size_t)size + 1, sizeof *start);
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t n = 0; n < COUNT_OF(counts); n++)
            for (int shape = 0; shape < SHAPES; shape++) {
                cut(start, shape, counts[n]);
                check_reduce_scatter(start, types[t]);
                check_all_gather(start, types[t]);
            }
    memset(start, 0, ((size_t)size + 1) * sizeof *start);
    assert_int_equal(comm_all_gather_parts(world, NULL, start, DT_F32), OK);
    assert_int_equal(comm_reduce_scatter_parts(world, NULL, start, DT_F32), OK);
    free(start);
}

// What rank `from` has for rank `to`: rows x columns that differ for every pair, some of them none. The sender has its rows in a wider
// matrix, the receiver has the same bytes in a matrix of other rows.
typedef struct Shape {
    size_t rows, cols;
} Shape;

static Shape shape_of(int from, int to, size_t scale)
{
    if ((from + 2 * to) % 5 == 4) return (Shape){0, 3};
    return (Shape){2 * (1 + (size_t)((from * 3 + to) % 4)), scale + (size_t)to};
}

static int exchange_in_halves(const CommBlock *out, const CommBlock *in, DType t)
{
    const size_t es = dtype_size(t);
    size_t most = 0, *given = xcalloc((size_t)size, sizeof *given);
    void **room = xcalloc((size_t)size, sizeof *room);
    for (int from = 0; from < size; from++) // all ranks know the same number: here the largest of a shape like these
        most = MAX(most, out[from].rows * out[from].count * es);
    int64_t agreed = (int64_t)most;
    assert_int_equal(comm_all_reduce(world, &agreed, 1, DT_I64, REDUCE_MAX), OK);
    assert_int_equal(comm_exchange_begin(world, (size_t)agreed, room), OK);
    for (int r = 0; r < size; r++) {
        if (r == rank) continue;
        char *to = room[r];
        given[r] = out[r].rows * out[r].count * es;
        for (size_t y = 0; y < out[r].rows; y++, to += out[r].count * es)
            memcpy(to, (char *)out[r].at + y * out[r].stride * es, out[r].count * es);
    }
    int status = comm_exchange_end(world, room, given, in, t);
    free(given);
    free(room);
    return status;
}

static void check_exchange(DType t, size_t scale, bool halves)
{
    const size_t es = dtype_size(t);
    CommBlock *out = xcalloc((size_t)size, sizeof *out), *in = xcalloc((size_t)size, sizeof *in);
    for (int r = 0; r < size; r++) {
        const Shape give = shape_of(rank, r, scale), get_ = shape_of(r, rank, scale);
        out[r] = (CommBlock){NULL, give.rows, give.cols, give.cols + (size_t)(r % 3)};
        in[r] = (CommBlock){NULL, get_.rows / 2, 2 * get_.cols, 2 * get_.cols + (size_t)((r + 1) % 3)};
        out[r].at = xcalloc(give.rows * out[r].stride + 1, es);
        in[r].at = xcalloc(in[r].rows * in[r].stride + 1, es);
        for (size_t y = 0; y < give.rows; y++)
            for (size_t x = 0; x < give.cols; x++)
                put(out[r].at, y * out[r].stride + x, t, value_of(rank, y * give.cols + x + (size_t)r));
        for (size_t i = 0; i < in[r].rows * in[r].stride; i++) put(in[r].at, i, t, 99);
    }
    assert_int_equal(halves ? exchange_in_halves(out, in, t) : comm_exchange(world, out, in, t), OK);
    for (int r = 0; r < size; r++) {
        for (size_t y = 0; y < in[r].rows && !(halves && r == rank); y++)
            for (size_t x = 0; x < in[r].stride; x++) {
                const double v = get(in[r].at, y * in[r].stride + x, t);
                const double want = x < in[r].count ? value_of(r, y * in[r].count + x + (size_t)rank) : 99;
                if (v != want) fail_msg("%s from %d [%zu, %zu] = %g", dtype_name(t), r, y, x, v);
            }
        free(out[r].at);
        free(in[r].at);
    }
    free(out);
    free(in);
}

static void test_exchange(void **state)
{
    (void)state;
    static const size_t scales[] = {1, 30, 4000, 70001};
    for (size_t t = 0; t < COUNT_OF(types); t++)
        for (size_t n = 0; n < COUNT_OF(scales); n++) {
            check_exchange(types[t], scales[n], false);
            check_exchange(types[t], scales[n], true);
        }
    CommBlock *none = xcalloc((size_t)size, sizeof *none);
    assert_int_equal(comm_exchange(world, none, none, DT_F32), OK);
    free(none);
}

static void test_broadcast(void **state)
{
    (void)state;
    for (int root = 0; root < size; root++)
        for (size_t n = 0; n < COUNT_OF(counts); n++) {
            int32_t *x = xcalloc(counts[n], sizeof *x);
            for (size_t i = 0; i < counts[n] && rank == root; i++) x[i] = value_of(root, i);
            assert_int_equal(comm_broadcast(world, x, counts[n], DT_I32, root), OK);
            for (size_t i = 0; i < counts[n]; i++) assert_int_equal(x[i], value_of(root, i));
            free(x);
        }
}

// Different collectives in turn, of sizes that differ, each checked: a slot that is written while a slow rank still reads it
// shows as a wrong value.
static void test_many_in_turn(void **state)
{
    (void)state;
    enum { MOST = 3000, TURNS = 400 };
    int64_t *x = xmalloc(MOST * sizeof *x);
    size_t *start = xcalloc((size_t)size + 1, sizeof *start);
    for (int turn = 0; turn < TURNS; turn++) {
        uint32_t u[4];
        philox(8, 0, (uint64_t)turn, u);
        const size_t count = u[0] % MOST + 1;
        const int root = (int)(u[1] % (uint32_t)size);
        for (size_t i = 0; i < count; i++) x[i] = value_of(rank, i + (size_t)turn);
        for (int r = 0; r <= size; r++) start[r] = count * (size_t)r / (size_t)size;
        size_t from = 0, to = count;
        switch (u[2] % 4) {
        case 0: assert_int_equal(comm_all_reduce(world, x, count, DT_I64, REDUCE_SUM), OK); break;
        case 1:
            assert_int_equal(comm_reduce_scatter_parts(world, x, start, DT_I64), OK);
            from = start[rank], to = start[rank + 1];
            break;
        case 2: assert_int_equal(comm_all_gather_parts(world, x, start, DT_I64), OK); break;
        default: assert_int_equal(comm_broadcast(world, x, count, DT_I64, root), OK);
        }
        int owner = 0;
        for (size_t i = from; i < to; i++) {
            while (i >= start[owner + 1]) owner++;
            const int64_t want = u[2] % 4 < 2    ? (int64_t)expected(REDUCE_SUM, i + (size_t)turn)
                                 : u[2] % 4 == 2 ? value_of(owner, i + (size_t)turn)
                                                 : value_of(root, i + (size_t)turn);
            if (x[i] != want) fail_msg("turn %d, kind %u: [%zu] = %lld", turn, u[2] % 4, i, (long long)x[i]);
        }
        if (u[3] % 8 == 0) assert_int_equal(comm_barrier(world), OK);
    }
    free(start);
    free(x);
}

static void test_blob(void **state)
{
    (void)state;
    static const char text[] = "a string\0with a zero";
    for (int root = 0; root < size; root++) {
        void *data = rank == root ? (void *)text : NULL;
        size_t bytes = rank == root ? sizeof text : 0;
        assert_int_equal(comm_broadcast_blob(world, &data, &bytes, root), OK);
        assert_int_equal(bytes, sizeof text);
        assert_memory_equal(data, text, sizeof text);
        if (rank != root) free(data);

        data = rank == root ? (void *)text : NULL;
        bytes = 0;
        assert_int_equal(comm_broadcast_blob(world, &data, &bytes, root), OK);
        assert_int_equal(bytes, 0);
        if (rank != root) {
            assert_int_equal(*(char *)data, 0); // an empty string
            free(data);
        }
    }
}

static void test_split(void **state)
{
    (void)state;
    Comm *part;
    int color = rank % 2, members = (size + 1 - color) / 2;
    assert_int_equal(comm_split(&part, world, color, -rank), OK); // the key turns the order round
    assert_int_equal(comm_size(part), members);
    assert_int_equal(comm_rank(part), members - 1 - rank / 2);
    int64_t sum = rank, want = 0;
    for (int r = color; r < size; r += 2) want += r;
    assert_int_equal(comm_all_reduce(part, &sum, 1, DT_I64, REDUCE_SUM), OK);
    assert_int_equal(sum, want);
    comm_close(part);
}

// A group with room for large payloads is a group like any other.
static void test_split_host(void **state)
{
    (void)state;
    enum { LARGE = 700000 };
    Comm *part;
    assert_int_equal(comm_split_host(&part, world, 0, rank, 4 << 20), OK);
    assert_int_equal(comm_size(part), size);
    assert_int_equal(comm_rank(part), rank);
    int64_t *x = xmalloc(LARGE * sizeof *x);
    for (size_t i = 0; i < LARGE; i++) x[i] = value_of(rank, i);
    assert_int_equal(comm_all_reduce(part, x, LARGE, DT_I64, REDUCE_SUM), OK);
    for (size_t i = 0; i < LARGE; i++)
        if ((double)x[i] != expected(REDUCE_SUM, i)) fail_msg("[%zu] = %lld", i, (long long)x[i]);
    free(x);
    comm_close(part);
}

static void test_split_grid(void **state)
{
    (void)state;
    for (int columns = 1; columns <= size; columns++) {
        if (size % columns) continue;
        Comm *row, *column;
        assert_int_equal(comm_split_grid(&row, world, columns, true), OK);
        assert_int_equal(comm_split_grid(&column, world, columns, false), OK);
        assert_int_equal(comm_size(row), columns);
        assert_int_equal(comm_rank(row), rank % columns);
        assert_int_equal(comm_size(column), size / columns);
        assert_int_equal(comm_rank(column), rank / columns);
        comm_close(row);
        comm_close(column);
    }
}

static void test_split_range(void **state)
{
    (void)state;
    Comm *part;
    const int first = rank < 1 ? 0 : 1, count = rank < 1 ? 1 : size - 1; // rank 0 alone, the others together
    assert_int_equal(comm_split_range(&part, world, first, count), OK);
    assert_int_equal(comm_size(part), count);
    assert_int_equal(comm_rank(part), rank - first);
    comm_close(part);
}

// ---- agreement ----------------------------------------------------------------------------------------------
// (fail) is ours, of base.h; without the parentheses it would be a macro of cmocka.
static int agree_on(int culprit, int code, int others)
{
    error_clear();
    if (rank == culprit && code < 0) (fail)(code, "here", NULL, "rank %d broke", rank);
    return comm_agree(world, rank == culprit ? code : others);
}

static void test_agree(void **state)
{
    (void)state;
    static const int codes[] = {E_FAILED, E_INPUT, E_MISSING, E_PREEMPTED};
    assert_int_equal(agree_on(0, OK, OK), OK);
    assert_int_equal(error_last()->code, OK);
    for (int culprit = 0; culprit < size; culprit++)
        for (size_t i = 0; i < COUNT_OF(codes); i++) {
            assert_int_equal(agree_on(culprit, codes[i], OK), codes[i]);
            assert_int_equal(error_last()->code, codes[i]);
            assert_string_equal(error_last()->what, rank == culprit ? tmpf("rank %d broke", rank) : "");
            if (rank != culprit) assert_string_equal(error_last()->place, tmpf("rank %d", culprit));
            // Agreeing again on what is agreed: the one who can tell still can.
            assert_int_equal(comm_agree(world, codes[i]), codes[i]);
            assert_string_equal(error_last()->what, rank == culprit ? tmpf("rank %d broke", rank) : "");
            assert_true(error_last()->agreed);
        }
    error_clear();
}

static void test_agree_on_the_worst(void **state)
{
    (void)state;
    assert_int_equal(agree_on(size - 1, E_FAILED, E_PREEMPTED), E_FAILED);
    if (size > 1) assert_int_equal(agree_on(size - 1, E_PREEMPTED, E_FAILED), E_FAILED);
    if (size > 1) assert_int_equal(agree_on(0, E_FAILED, E_MISSING), E_MISSING);
    assert_int_equal(agree_on(0, E_PREEMPTED, OK), E_PREEMPTED);
    error_clear();
}

// The same fault on all ranks is told by the lowest only.
static void test_agree_on_a_common_fault(void **state)
{
    (void)state;
    error_clear();
    assert_int_equal(comm_agree(world, (fail)(E_INPUT, "recipe.yaml:3", NULL, "unknown key")), E_INPUT);
    assert_string_equal(error_last()->what, rank == 0 ? "unknown key" : "");
    error_clear();
}

// ---- the rest -----------------------------------------------------------------------------------------------
static void test_stats(void **state)
{
    (void)state;
    CommStats before = comm_stats(world);
    float x[100] = {0};
    size_t *start = xcalloc((size_t)size + 1, sizeof *start);
    comm_all_reduce(world, x, 100, DT_F32, REDUCE_SUM);
    comm_broadcast(world, x, 50, DT_F32, 0);
    for (int r = 0; r < size; r++) start[r + 1] = 100; // all of x is rank 0's
    comm_all_gather_parts(world, x, start, DT_F32);
    comm_reduce_scatter_parts(world, x, start, DT_F32);
    CommStats after = comm_stats(world);
    assert_int_equal(after.calls - before.calls, 4);
    assert_int_equal(after.bytes - before.bytes, 400 + 200 + (rank ? 0 : 400) + 400);
    const uint64_t ring = (400 * 2 + 200 + 400 + 400) * (uint64_t)(size - 1) / (uint64_t)size;
    assert_in_range(after.wire_bytes - before.wire_bytes, ring < 4 ? 0 : ring - 4, ring);
    assert_true(after.wait_ms >= before.wait_ms);
    free(start);
}

static void test_places(void **state)
{
    (void)state;
    assert_in_range(comm_local_size(world), 1, size);
    assert_in_range(comm_local_rank(world), 0, comm_local_size(world) - 1);
    assert_int_equal(comm_mpi_handle(world) != NULL, comm_launched_by_mpi());
    assert_int_equal(comm_barrier(world), OK);
}

static int open_world(void **state)
{
    (void)state;
    setenv("ATTUNE_COMM_TIMEOUT", "60", 0); // a rank that failed an assertion leaves the others waiting
    if (comm_open(&world, &(CommConfig){.kind = "auto"}) < 0) return -1;
    rank = comm_rank(world);
    size = comm_size(world);
    log_set_rank(rank, size);
    return 0;
}

static int close_world(void **state)
{
    (void)state;
    comm_close(world);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_reduce),
        cmocka_unit_test(test_all_small_sizes),
        cmocka_unit_test(test_float_sums_have_the_same_bits),
        cmocka_unit_test(test_i64_sums_are_exact),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_exchange),
        cmocka_unit_test(test_broadcast),
        cmocka_unit_test(test_many_in_turn),
        cmocka_unit_test(test_blob),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_host),
        cmocka_unit_test(test_split_grid),
        cmocka_unit_test(test_split_range),
        cmocka_unit_test(test_agree),
        cmocka_unit_test(test_agree_on_the_worst),
        cmocka_unit_test(test_agree_on_a_common_fault),
        cmocka_unit_test(test_stats),
        cmocka_unit_test(test_places),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
