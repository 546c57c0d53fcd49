// tensor.c: where the tensor ranks meet. Between the blocks flows the residual stream (T,C), which every rank holds whole; with
// sequence parallelism (Korthikanti et al. 2022) each rank holds its part_rows of it, so that norms and residuals are not computed
// and kept on every rank. A block takes normed rows of all tokens and gives a share of all tokens' outputs:
//                    into a block                       out of a block
//   whole            nothing                            sum of the shares
//   in parts         the ranks' rows are gathered       sum of the shares, of which each rank keeps its rows
// and the other way round for gradients.
#include "model/decoder_impl.h"

static const Mesh *tensor_mesh(const Activations *a)
{
    const Mesh *mesh = a->m->mesh;
    return mesh && mesh->tensor_size > 1 ? mesh : NULL;
}

bool tensor_first(const Activations *a)
{
    return !a->m->mesh || a->m->mesh->tensor_rank == 0;
}

Rows stream_rows(const Activations *a)
{
    const Mesh *mesh = a->m->mesh;
    return a->m->sequence ? part_rows(a->T, mesh->tensor_rank, mesh->tensor_size) : (Rows){0, a->T};
}

int stream_rows_max(const Model *m, int T)
{
    return m->sequence ? (T + m->mesh->tensor_size - 1) / m->mesh->tensor_size : T;
}

void *row_of(const Activations *a, void *x, int row)
{
    return offset(x, (size_t)row * (size_t)a->m->cfg.C, a->m->t);
}

// Elements before each rank's rows.
static const size_t *row_starts(Activations *a)
{
    const Mesh *mesh = a->m->mesh;
    for (int r = 0; r <= mesh->tensor_size; r++)
        a->row_start[r] = r < mesh->tensor_size
                              ? (size_t)part_rows(a->T, r, mesh->tensor_size).row0 * (size_t)a->m->cfg.C
                              : (size_t)a->T * (size_t)a->m->cfg.C;
    return a->row_start;
}

static void copy(Activations *a, void *to, const void *from, int rows)
{
    Device *d = a->m->dev;
    if (rows) d->op.convert(d, to, a->m->t, from, a->m->t, (size_t)rows * (size_t)a->m->cfg.C);
}

int tensor_sum(Activations *a, void *x, int rows)
{
    const Mesh *mesh = tensor_mesh(a);
    if (!mesh) return OK;
    return comm_all_reduce(mesh->tensor, x, (size_t)rows * (size_t)a->m->cfg.C, a->m->t, REDUCE_SUM);
}

int stream_sum(Activations *a, void *full)
{
    if (!a->m->sequence) return tensor_sum(a, full, a->T);
    return comm_reduce_scatter_parts(a->m->mesh->tensor, full, row_starts(a), a->m->t);
}

int stream_complete(Activations *a, void *full)
{
    if (!a->m->sequence) return OK;
    return comm_all_gather_parts(a->m->mesh->tensor, full, row_starts(a), a->m->t);
}

int stream_gather(Activations *a, void *x, void **full)
{
    *full = x;
    if (!a->m->sequence) return OK;
    const Rows own = stream_rows(a);
    copy(a, row_of(a, a->full, own.row0), x, own.rows);
    *full = a->full;
    return stream_complete(a, a->full);
}

int stream_scatter(Activations *a, void *x, const void *full)
{
    const Rows own = stream_rows(a);
    if (a->m->sequence) copy(a, x, row_of(a, (void *)full, own.row0), own.rows);
    return OK;
}

void *stream_whole(Activations *a, void *x)
{
    return a->m->sequence ? a->full : x;
}

int block_output(Activations *a, const LinearIn *in, void *y, const void *residual)
{
    Device *d = a->m->dev;
    const int C = a->m->cfg.C;
    LinearIn share = *in;
    if (!tensor_first(a)) share.bias = NULL; // counts once
    if (!a->m->sequence) {
        linear_forward(a, &share, y, C, tensor_first(a) ? residual : NULL);
        return tensor_sum(a, y, a->T);
    }
    const Rows own = stream_rows(a);
    linear_forward(a, &share, a->full, C, NULL);
    TRY(stream_sum(a, a->full));
    d->op.scale_cols(d, a->m->t, y, C, row_of(a, a->full, own.row0), C, NULL, NULL, residual, C, own.rows);
    return OK;
}
