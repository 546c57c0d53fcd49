#include "case.h"
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    DType t;
    int64_t shape[2];
    Cut cut;
} rows[CASE_TENSORS] = {
    {"model/layers.0.q.weight", DT_F32, {37, 24}, CUT_ROWS},
    {"model/layers.0.o.weight", DT_BF16, {24, 41}, CUT_COLS},
    {"model/norm.weight", DT_F32, {24, 1}, CUT_NONE},
    {"model/embed.weight", DT_F32, {700, 2048}, CUT_ROWS},    // 5.7 MB: more than one leaf
    {"optim/layers.0.q.weight/m", DT_F32, {2, 24}, CUT_ROWS}, // fewer rows than ranks: some have none
    {"optim/counts", DT_I64, {5, 1}, CUT_ROWS},
    {"data/seen", DT_U8, {1000, 1}, CUT_ROWS},
};

static void place(CkptTensor *t, Cut cut, int rank, int size)
{
    t->rows = t->shape[0];
    t->cols = t->shape[1];
    int64_t *start = cut == CUT_COLS ? &t->col0 : &t->row0, *length = cut == CUT_COLS ? &t->cols : &t->rows;
    int64_t whole = *length;
    if (cut == CUT_NONE) {
        if (rank) t->rows = 0;
    } else {
        *start = whole * rank / size;
        *length = whole * (rank + 1) / size - *start;
    }
}

static uint32_t value_of(int tensor, int64_t row, int64_t col, int64_t step)
{
    return (uint32_t)(row * 8191 + col) * 2654435761u ^ (uint32_t)tensor * 40503u ^ (uint32_t)step * 2246822519u;
}

// The value's bytes, exact in each type.
static void encode(DType t, uint32_t v, void *out)
{
    float f = (float)(v >> 8);
    bf16_t b = (bf16_t)(v >> 24 | 0x4000);
    int64_t wide = (int64_t)v * -65537;
    uint8_t byte = (uint8_t)(v >> 24);
    const void *from = t == DT_F32    ? (void *)&f
                       : t == DT_BF16 ? (void *)&b
                       : t == DT_I64  ? (void *)&wide
                                      : (void *)&byte;
    memcpy(out, from, dtype_size(t));
}

static void open_tensor(Case *k, int i)
{
    k->tensors[i] = (CkptTensor){.name = rows[i].name, .t = rows[i].t, .shape = {rows[i].shape[0], rows[i].shape[1]}};
}

static void fill_tensor(Case *k, int i)
{
    CkptTensor *t = &k->tensors[i];
    t->data = xcalloc((size_t)(t->rows * t->cols) + 1, dtype_size(t->t));
    char *at = t->data;
    for (int64_t n = 0; k->step >= 0 && n < t->rows * t->cols; n++, at += dtype_size(t->t))
        encode(t->t, value_of(i, t->row0 + n / t->cols, t->col0 + n % t->cols, k->step), at);
}

void case_open(Case *k, int64_t step, int rank, int size)
{
    *k = (Case){.step = step};
    for (int i = 0; i < CASE_TENSORS; i++) {
        open_tensor(k, i);
        place(&k->tensors[i], rows[i].cut, rank, size);
        fill_tensor(k, i);
    }
}

// The edges of `parts` parts of [0, length): random, but no part is empty.
static void cut_line(int64_t length, int parts, const uint32_t u[4], int64_t *edge)
{
    edge[0] = 0;
    for (int i = 1; i < parts; i++) {
        int64_t room =
            length - edge[i - 1] - (parts - i); // what may go before edge i, leaving one for each part behind it
        edge[i] = edge[i - 1] + 1 + u[i] % room;
    }
    edge[parts] = length;
}

static void place_in_grid(CkptTensor *t, uint64_t seed, uint64_t i, int rank, int size)
{
    uint32_t u[4], r[4], c[4];
    int64_t row[5], col[5];
    philox(seed, 0, i, u);
    philox(seed, 1, i, r);
    philox(seed, 2, i, c);
    ASSERT(size <= 4);
    int across = 1 + (int)(u[0] % (uint32_t)MIN(size, t->shape[1]));
    int down = 1 + (int)(u[1] % (uint32_t)MIN(size / across, t->shape[0]));
    int part = (rank + (int)(u[2] % 4)) % size; // of the ranks beyond the last part, none has anything
    if (part >= across * down) return;
    cut_line(t->shape[0], down, r, row);
    cut_line(t->shape[1], across, c, col);
    t->row0 = row[part / across];
    t->rows = row[part / across + 1] - t->row0;
    t->col0 = col[part % across];
    t->cols = col[part % across + 1] - t->col0;
}

void case_open_grid(Case *k, int64_t step, uint64_t seed, int rank, int size)
{
    *k = (Case){.step = step};
    for (int i = 0; i < CASE_TENSORS; i++) {
        open_tensor(k, i);
        place_in_grid(&k->tensors[i], seed, (uint64_t)i, rank, size);
        fill_tensor(k, i);
    }
}

void case_close(Case *k)
{
    for (int i = 0; i < CASE_TENSORS; i++) free(k->tensors[i].data);
}

const char *case_mistake(const Case *k, int64_t step)
{
    for (int i = 0; i < CASE_TENSORS; i++) {
        const CkptTensor *t = &k->tensors[i];
        const char *at = t->data;
        for (int64_t n = 0; n < t->rows * t->cols; n++, at += dtype_size(t->t)) {
            int64_t row = t->row0 + n / t->cols, col = t->col0 + n % t->cols;
            char want[8];
            encode(t->t, value_of(i, row, col, step), want);
            if (memcmp(at, want, dtype_size(t->t)) != 0)
                return tmpf("%s[%lld, %lld] of step %lld", t->name, (long long)row, (long long)col, (long long)step);
        }
    }
    return NULL;
}
