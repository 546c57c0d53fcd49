// checkpoint_read: checkpoints for one process alone, with neither MPI nor HDF5. The MANIFEST tells where a tensor's bytes lie, and
// no byte is handed out before the digest of its leaf has been compared. Any thread may read while another one saves.
#include "checkpoint_impl.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int checkpoint_verify(const char *dir)
{
    char *path = xasprintf("%s/MANIFEST", dir), *file = xasprintf("%s/state.h5", dir);
    Manifest m = {0};
    size_t bad = SIZE_MAX;
    int status = manifest_read(&m, path);
    if (status == OK) status = manifest_compare(&m, file, 0, 1, &bad);
    if (status == OK && bad != SIZE_MAX) status = manifest_blame(&m, file, bad);
    manifest_free(&m);
    free(path);
    free(file);
    return status;
}

int checkpoint_list(const char *dir, int (*fn)(void *ctx, const CkptTensor *t), void *ctx)
{
    char *path = xasprintf("%s/MANIFEST", dir);
    Manifest m = {0};
    int status = manifest_read(&m, path);
    for (size_t i = 0; i < m.n_tensors && status == OK; i++) {
        const ManifestTensor *t = &m.tensors[i];
        if (streq(t->name, MANIFEST_META)) continue;
        status = fn(ctx, &(CkptTensor){.name = t->name, .t = t->t, .shape = {t->shape[0], t->shape[1]}});
    }
    manifest_free(&m);
    free(path);
    return status;
}

// ---- reader -----------------------------------------------------------------------------------------------
struct CkptReader {
    char *dir, *file;
    Manifest m;
    int fd;
    char *leaf;    // the last one that was read,
    size_t number; // and which it is; SIZE_MAX: none
};

int checkpoint_open(CkptReader **out, const char *dir)
{
    CkptReader *r = xcalloc(1, sizeof *r);
    char *path = xasprintf("%s/MANIFEST", dir);
    *out = NULL;
    r->fd = -1;
    r->number = SIZE_MAX;
    r->dir = xstrdup(dir);
    r->file = xasprintf("%s/state.h5", dir);
    r->leaf = xmalloc(MANIFEST_LEAF_BYTES);
    int status = manifest_read(&r->m, path);
    if (status == OK) status = manifest_open(&r->m, r->file, &r->fd);
    if (status == OK)
        *out = r;
    else
        checkpoint_close(r);
    free(path);
    return status;
}

void checkpoint_close(CkptReader *r)
{
    if (!r) return;
    if (r->fd >= 0) close(r->fd);
    manifest_free(&r->m);
    free(r->leaf);
    free(r->file);
    free(r->dir);
    free(r);
}

int checkpoint_find_tensor(CkptReader *r, const char *name, CkptTensor *out)
{
    const ManifestTensor *t = manifest_find(&r->m, name);
    if (!t || streq(name, MANIFEST_META)) return 0;
    *out = (CkptTensor){.name = t->name, .t = t->t, .shape = {t->shape[0], t->shape[1]}};
    return 1;
}

// The first leaf that ends behind `offset`; the leaves cover the file.
static size_t leaf_at(const Manifest *m, uint64_t offset)
{
    size_t low = 0, high = m->n_leaves;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->leaves[middle].offset + m->leaves[middle].bytes <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int take_leaf(CkptReader *r, size_t leaf)
{
    if (r->number == leaf) return OK;
    r->number = SIZE_MAX;
    TRY(manifest_read_leaf(&r->m, r->file, r->fd, leaf, r->leaf));
    r->number = leaf;
    return OK;
}

// Bytes [offset, offset + bytes) of the file.
static int read_range(CkptReader *r, uint64_t offset, uint64_t bytes, char *out)
{
    for (size_t leaf = leaf_at(&r->m, offset); bytes; leaf++) {
        const ManifestLeaf *l = &r->m.leaves[leaf];
        uint64_t skip = offset - l->offset, n = MIN(bytes, l->bytes - skip);
        TRY(take_leaf(r, leaf));
        memcpy(out, r->leaf + skip, n);
        out += n;
        offset += n;
        bytes -= n;
    }
    return OK;
}

static int check_stored(const CkptReader *r, const ManifestTensor *stored, const CkptTensor *t)
{
    if (!stored) return fail(E_INPUT, r->dir, NULL, "there is no tensor %s in this checkpoint", t->name);
    if (stored->t != t->t)
        return fail(E_INPUT, r->dir, NULL, "tensor %s is of type %s, not %s", t->name, dtype_name(stored->t),
                    dtype_name(t->t));
    if (stored->shape[0] == t->shape[0] && stored->shape[1] == t->shape[1]) return OK;
    return fail(E_INPUT, r->dir, "was it saved by a run of another model or adapter rank?",
                "tensor %s has shape (%" PRId64 ", %" PRId64 "), here it must be (%" PRId64 ", %" PRId64 ")", t->name,
                stored->shape[0], stored->shape[1], t->shape[0], t->shape[1]);
}

void ckpt_check_part(const CkptTensor *t)
{
    ASSERT(t->shape[0] > 0 && t->shape[1] > 0 && t->rows >= 0 && strlen(t->name) < MANIFEST_NAME_BYTES);
    if (!t->rows) return;
    ASSERT(t->data && t->row0 >= 0 && t->row0 + t->rows <= t->shape[0]);
    ASSERT(t->cols > 0 && t->col0 >= 0 && t->col0 + t->cols <= t->shape[1]);
}

int checkpoint_read(CkptReader *r, const CkptTensor *t)
{
    const ManifestTensor *stored = manifest_find(&r->m, t->name);
    TRY(check_stored(r, stored, t));
    ckpt_check_part(t);
    if (!t->rows) return OK;
    const uint64_t size = dtype_size(t->t), row = (uint64_t)t->shape[1] * size, width = (uint64_t)t->cols * size;
    const uint64_t start = stored->offset + (uint64_t)t->row0 * row + (uint64_t)t->col0 * size;
    if (width == row) return read_range(r, start, (uint64_t)t->rows * row, t->data);
    for (uint64_t i = 0; i < (uint64_t)t->rows; i++)
        TRY(read_range(r, start + i * row, width, (char *)t->data + i * width));
    return OK;
}

int checkpoint_read_meta(CkptReader *r, CkptMeta *out)
{
    const ManifestTensor *t = manifest_find(&r->m, MANIFEST_META);
    *out = (CkptMeta){0};
    if (!t || t->t != DT_U8 || t->bytes > MANIFEST_LIMIT_BYTES)
        return fail(E_INPUT, r->dir, NULL, "the checkpoint has no description");
    char *text = xmalloc(t->bytes + 1);
    int status = read_range(r, t->offset, t->bytes, text);
    text[status == OK ? t->bytes : 0] = 0;
    *out = (CkptMeta){.step = r->m.step, .json = text};
    if (status < 0) checkpoint_meta_free(out);
    return status;
}

void checkpoint_meta_free(CkptMeta *m)
{
    if (m) free(m->json);
    if (m) m->json = NULL;
}
