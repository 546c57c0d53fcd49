// checkpoint_rows: slabs that are cut by columns meet the file as whole rows. A row of it would otherwise be written in as many pieces as
// there are column parts, by ranks that wait for each other at the file's lock, and be read whole by each of them. The ranks that have
// the same rows of all such tensors form a group. Of each tensor a member sees to a run of rows, block by block: all exchange what
// they have of each other's rows, and each writes its own, or reads them and exchanges then. Memory is one block, whatever the number
// of ranks. What is cut otherwise (no recipe does that) is no group's business and goes piece by piece.
#include "checkpoint_impl.h"
#include <stdlib.h>
#include <string.h>

typedef struct Slab {
    int64_t row0, rows, col0, cols;
} Slab;
enum { SLAB_NUMBERS = sizeof(Slab) / sizeof(int64_t) };

struct CkptRows {
    Comm *group;
    int n, members;
    bool *exchanged; // (n)
    Slab *slabs;     // (members, n)
    char *block;     // for writing
    void **room;     // (members), for reading,
    size_t *given;   // and what has been put there
    CommBlock *slab_of,
        *block_of; // (members): what of this member's slab is another's business, and where its own business is others'
};

static const Slab *slab_of(const CkptRows *x, int member, int i)
{
    return &x->slabs[(size_t)member * (size_t)x->n + (size_t)i];
}

// ---- who exchanges what -----------------------------------------------------------------------------------------------
// Whether all ranks list the same tensors: loading finds out later what is wrong when they do not, each for itself.
static int same_list(Comm *c, const CkptTensor *t, int n, bool *same)
{
    uint64_t h = (uint64_t)n;
    for (int i = 0; i < n; i++) {
        const int64_t numbers[] = {t[i].t, t[i].shape[0], t[i].shape[1]};
        h = hash64(numbers, sizeof numbers, hash64(t[i].name, strlen(t[i].name), h));
    }
    int64_t least[] = {(int64_t)(h >> 1), -(int64_t)(h >> 1)};
    TRY(comm_all_reduce(c, least, 2, DT_I64, REDUCE_MIN));
    *same = least[0] == -least[1];
    return OK;
}

// Which tensors some rank has cut by columns; the same on all.
static int find_cut(CkptRows *x, Comm *c, const CkptTensor *t, bool *any)
{
    uint8_t *cut = xcalloc((size_t)x->n + 1, sizeof *cut);
    for (int i = 0; i < x->n; i++) cut[i] = t[i].rows && t[i].cols < t[i].shape[1];
    int status = comm_all_reduce(c, cut, (size_t)x->n, DT_U8, REDUCE_MAX);
    for (int i = 0; i < x->n; i++) {
        x->exchanged[i] = cut[i];
        *any |= cut[i];
    }
    free(cut);
    return status;
}

// Ranks that have the same rows of all these tensors get the same number, and hardly any others.
static int colour_of(const CkptRows *x, const CkptTensor *t)
{
    uint64_t h = 0;
    for (int i = 0; i < x->n; i++) {
        const int64_t rows[] = {t[i].rows ? t[i].row0 : 0, t[i].rows};
        if (x->exchanged[i]) h = hash64(rows, sizeof rows, h);
    }
    return (int)(h & INT32_MAX);
}

// What a member shows the others of a block; with columns that are cut evenly, a little less.
static size_t room_for(const CkptRows *x, const CkptTensor *t)
{
    size_t most = 1;
    for (int i = 0; i < x->n; i++)
        if (x->exchanged[i]) most = MAX(most, MIN(ckpt_tensor_bytes(&t[i]), (size_t)CKPT_BLOCK_BYTES));
    return most;
}

static int gather_slabs(CkptRows *x, const CkptTensor *t)
{
    const size_t members = (size_t)x->members, each = (size_t)x->n;
    size_t *start = xcalloc(members + 1, sizeof *start);
    for (size_t m = 0; m <= members; m++) start[m] = m * each * SLAB_NUMBERS;
    x->slabs = xcalloc(members * each, sizeof *x->slabs);
    Slab *mine = x->slabs + (size_t)comm_rank(x->group) * each;
    for (size_t i = 0; i < each; i++)
        if (t[i].rows) mine[i] = (Slab){t[i].row0, t[i].rows, t[i].col0, t[i].cols};
    int status = comm_all_gather_parts(x->group, x->slabs, start, DT_I64);
    free(start);
    return status;
}

// All members have the same rows, and, for writing, side by side, in the order of their ranks, all columns.
static bool fits(const CkptRows *x, int i, int64_t width, bool write)
{
    int64_t at = 0;
    for (int m = 0; m < x->members; m++) {
        const Slab *s = slab_of(x, m, i), *first = slab_of(x, 0, i);
        if (!s->rows || s->rows != first->rows || s->row0 != first->row0) return false;
        if (write && s->col0 != at) return false;
        at += s->cols;
    }
    return x->members > 1 && (!write || at == width);
}

static int64_t rows_of_block(const CkptTensor *t)
{
    return MAX((int64_t)(CKPT_BLOCK_BYTES / ((size_t)t->shape[1] * dtype_size(t->t))), 1);
}

// Where a member's run begins, counted from the slab's first row. Of many blocks all are whole: they then often are the leaves that
// digests are made of, which are only read whole.
static int64_t run_start(const CkptRows *x, const CkptTensor *t, int member)
{
    enum { MANY = 8 }; // for each member: the difference of one does not matter
    const int64_t b = rows_of_block(t), blocks = t->rows / b;
    if (blocks < (int64_t)MANY * x->members || member == x->members) return t->rows * member / x->members;
    return blocks * member / x->members * b;
}

static int64_t longest_run(const CkptRows *x, const CkptTensor *t)
{
    int64_t longest = 0;
    for (int m = 0; m < x->members; m++) longest = MAX(longest, run_start(x, t, m + 1) - run_start(x, t, m));
    return longest;
}

static void make_room(CkptRows *x, const CkptTensor *t, bool write)
{
    size_t most = 0;
    for (int i = 0; i < x->n; i++) {
        if (!x->exchanged[i]) continue;
        const int64_t rows = MIN(rows_of_block(&t[i]), longest_run(x, &t[i]));
        most = MAX(most, (size_t)rows * (size_t)t[i].shape[1] * dtype_size(t[i].t));
    }
    x->block = write ? xcalloc(most + 1, 1) : NULL;
    x->room = xcalloc((size_t)x->members, sizeof *x->room);
    x->given = xcalloc((size_t)x->members, sizeof *x->given);
    x->slab_of = xcalloc((size_t)x->members, sizeof *x->slab_of);
    x->block_of = xcalloc((size_t)x->members, sizeof *x->block_of);
}

int ckpt_rows_open(CkptRows **out, Comm *c, const CkptTensor *t, int n, bool write)
{
    bool same = false, any = false;
    *out = NULL;
    if (comm_size(c) == 1) return OK;
    TRY(same_list(c, t, n, &same));
    if (!same || !n) return OK;
    CkptRows *x = *out = xcalloc(1, sizeof *x);
    x->n = n;
    x->exchanged = xcalloc((size_t)n, sizeof *x->exchanged);
    TRY(find_cut(x, c, t, &any));
    if (!any) return OK;
    TRY(comm_split_host(&x->group, c, colour_of(x, t), comm_rank(c), room_for(x, t)));
    x->members = comm_size(x->group);
    TRY(gather_slabs(x, t));
    for (int i = 0; i < n; i++) x->exchanged[i] = x->exchanged[i] && fits(x, i, t[i].shape[1], write);
    make_room(x, t, write);
    return OK;
}

void ckpt_rows_close(CkptRows *x)
{
    if (!x) return;
    comm_close(x->group);
    free(x->exchanged);
    free(x->slabs);
    free(x->block);
    free(x->room);
    free(x->given);
    free(x->slab_of);
    free(x->block_of);
    free(x);
}

bool ckpt_rows_has(const CkptRows *x, int i)
{
    return x && x->exchanged[i];
}

// ---- one tensor -------------------------------------------------------------------------------------------------------
// A round: each member's next block. Rows count from the slab's first.
typedef struct Run {
    int64_t row, rows;
} Run;

static Run run_of(const CkptRows *x, const CkptTensor *t, int member, int64_t done)
{
    const int64_t end = run_start(x, t, member + 1), row = MIN(run_start(x, t, member) + done, end);
    return (Run){row, MIN(rows_of_block(t), end - row)};
}

static void cut_round(const CkptRows *x, const CkptTensor *t, int i, int64_t done)
{
    const size_t size = dtype_size(t->t), mine = (size_t)run_of(x, t, comm_rank(x->group), done).rows;
    for (int m = 0; m < x->members; m++) {
        const Slab *s = slab_of(x, m, i);
        const Run his = run_of(x, t, m, done);
        const size_t cols = (size_t)t->cols;
        x->slab_of[m] = (CommBlock){(char *)t->data + (size_t)his.row * cols * size, (size_t)his.rows, cols, cols};
        char *block = x->block ? x->block + (size_t)s->col0 * size : NULL;
        x->block_of[m] = (CommBlock){block, mine, (size_t)s->cols, (size_t)t->shape[1]};
    }
}

static int work_on_block(const CkptRows *x, const CkptTensor *t, int64_t done, CkptRowsFn *fn, void *ctx)
{
    const Run mine = run_of(x, t, comm_rank(x->group), done);
    CkptTensor rows = *t;
    rows.row0 = t->row0 + mine.row;
    rows.rows = mine.rows;
    rows.col0 = 0;
    rows.cols = t->shape[1];
    rows.data = x->block;
    return mine.rows ? fn(ctx, &rows) : OK;
}

int ckpt_rows_write(const CkptRows *x, const CkptTensor *t, int i, CkptRowsFn *fn, void *ctx, int status)
{
    const int64_t end = longest_run(x, t);
    for (int64_t done = 0; done < end; done += rows_of_block(t)) {
        cut_round(x, t, i, done);
        TRY(comm_exchange(x->group, x->slab_of, x->block_of, t->t));
        if (status == OK) status = work_on_block(x, t, done, fn, ctx);
    }
    return status;
}

// What comes from the file, in its order, goes to those who have its columns: into this rank's slab, and into the room of the others.
typedef struct Scatter {
    const CkptRows *x;
    const CkptTensor *t;
    int i;
    uint64_t at, row_bytes; // bytes of the block so far, and of a row
    char **to; // (members) where each member's part of the block's rows lies, one row of it behind the other
} Scatter;

static void scatter(void *ctx, const char *data, size_t bytes)
{
    Scatter *s = ctx;
    const size_t size = dtype_size(s->t->t);
    while (bytes) {
        const uint64_t row = s->at / s->row_bytes, from = s->at % s->row_bytes, end = MIN(from + bytes, s->row_bytes);
        for (int m = 0; m < s->x->members; m++) {
            const Slab *slab = slab_of(s->x, m, s->i);
            const uint64_t first = (uint64_t)slab->col0 * size, width = (uint64_t)slab->cols * size;
            const uint64_t a = MAX(from, first), b = MIN(end, first + width);
            if (a < b) memcpy(s->to[m] + row * width + (a - first), data + (a - from), b - a);
        }
        data += end - from;
        bytes -= end - from;
        s->at += end - from;
    }
}

static int read_block(const CkptRows *x, const CkptTensor *t, int i, CkptReader *r, int64_t done)
{
    const Run mine = run_of(x, t, comm_rank(x->group), done);
    Scatter s = {x, t, i, 0, (uint64_t)t->shape[1] * dtype_size(t->t), (char **)x->room};
    CkptTensor rows = *t;
    rows.row0 += mine.row;
    rows.rows = mine.rows;
    return mine.rows ? ckpt_reader_stream(r, &rows, scatter, &s) : OK;
}

int ckpt_rows_read(const CkptRows *x, const CkptTensor *t, int i, CkptReader *r, int status)
{
    const int64_t end = longest_run(x, t), rows = MIN(rows_of_block(t), end);
    const int me = comm_rank(x->group);
    int64_t widest = 0;
    for (int m = 0; m < x->members; m++) widest = MAX(widest, slab_of(x, m, i)->cols);
    for (int64_t done = 0; done < end; done += rows_of_block(t)) {
        cut_round(x, t, i, done);
        TRY(comm_exchange_begin(x->group, (size_t)(rows * widest) * dtype_size(t->t), x->room));
        x->room[me] = x->slab_of[me].at;
        if (status == OK) status = read_block(x, t, i, r, done);
        for (int m = 0; m < x->members; m++)
            x->given[m] = x->block_of[m].rows * x->block_of[m].count * dtype_size(t->t);
        TRY(comm_exchange_end(x->group, x->room, x->given, x->slab_of, t->t));
    }
    return status;
}
