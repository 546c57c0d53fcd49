// checkpoint_h5: what saving asks of HDF5: its errors as ours, types, files, and writing a rank's part.
#include "checkpoint_impl.h"
#include <errno.h>
#include <string.h>

static const size_t slab_limit = (size_t)1 << 30; // MPI-IO counts in int: independent transfers of 2 GiB fail

// ---- HDF5's errors ----------------------------------------------------------------------------------------
typedef struct Cause {
    char text[256];
    int error; // 0: the system's error is not known
} Cause;

// The system's own words, wherever HDF5, or MPI-IO below it, wraps them in what it was doing; else the innermost line.
static herr_t find_cause(unsigned depth, const H5E_error2_t *e, void *ctx)
{
    static const int likely[] = {ENOSPC, EDQUOT, EFBIG, EROFS, EACCES, EPERM, ENOENT, ESTALE, EIO};
    Cause *cause = ctx;
    const char *text = e->desc ? e->desc : "";
    for (size_t i = 0; i < COUNT_OF(likely) && !cause->error; i++)
        if (strstr(text, strerror(likely[i]))) cause->error = likely[i];
    if (depth == 0) { // MPI-IO's words have several lines, of which the last one tells most
        const char *line = strrchr(text, '\n');
        snprintf(cause->text, sizeof cause->text, "%s", line ? line + 1 : text);
    }
    return 0;
}

static Cause last_cause(void)
{
    Cause cause = {"unknown cause", 0};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, find_cause, &cause);
    if (cause.error) snprintf(cause.text, sizeof cause.text, "%s", strerror(cause.error));
    return cause;
}

int ckpt_h5_fail(const char *path, const char *what)
{
    Cause cause = last_cause();
    bool full = cause.error == ENOSPC || cause.error == EDQUOT;
    return fail(E_FAILED, path, full ? "free some space, or set `output` to another disk" : NULL, "%s: %s", what,
                cause.text);
}

// Before main, and so before MPI: HDF5 that starts under MPI closes what is left open when MPI ends, and at
// exit; that includes the files whose close has failed, and crashes. It would also print its error stack by
// itself.
__attribute__((constructor)) static void h5_start(void)
{
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

// ---- types and shapes -------------------------------------------------------------------------------------
// 1 sign, 8 exponent and 7 mantissa bits; every HDF5 reader understands it and widens it exactly.
static hid_t bf16_type(void)
{
    hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    H5Tset_fields(t, 15, 7, 8, 0, 7);
    H5Tset_size(t, 2);
    H5Tset_ebias(t, 127);
    return t;
}

// The caller closes it. Files are little-endian, as are the machines this runs on, so it is the type in
// memory too.
hid_t ckpt_h5_type(DType t)
{
    switch (t) {
    case DT_F32: return H5Tcopy(H5T_IEEE_F32LE);
    case DT_BF16: return bf16_type();
    case DT_I64: return H5Tcopy(H5T_STD_I64LE);
    case DT_I32: return H5Tcopy(H5T_STD_I32LE);
    case DT_U8: return H5Tcopy(H5T_STD_U8LE);
    default: ASSERT(!"a type that checkpoints hold"); return -1;
    }
}

size_t ckpt_tensor_bytes(const CkptTensor *t)
{
    return (size_t)t->shape[0] * (size_t)t->shape[1] * dtype_size(t->t);
}

int64_t ckpt_rows_within(const CkptTensor *t, size_t bytes)
{
    return MAX((int64_t)(bytes / ((size_t)t->cols * dtype_size(t->t))), 1);
}

CkptTensor ckpt_piece(const CkptTensor *t, int64_t from, int64_t most)
{
    CkptTensor piece = *t;
    piece.row0 += from;
    piece.rows = MIN(most, t->rows - from);
    piece.data = (char *)t->data + (size_t)from * (size_t)t->cols * dtype_size(t->t);
    return piece;
}

// {n, 1} is a vector: one dimension in the file.
hid_t ckpt_file_space(const CkptTensor *t)
{
    hsize_t dims[2] = {(hsize_t)t->shape[0], (hsize_t)t->shape[1]};
    return H5Screate_simple(t->shape[1] == 1 ? 1 : 2, dims, NULL);
}

int ckpt_write(hid_t set, const CkptTensor *t)
{
    const int64_t step = ckpt_rows_within(t, slab_limit);
    hid_t type = ckpt_h5_type(t->t), in_file = H5Dget_space(set);
    int status = OK;
    for (int64_t row = 0; row < t->rows && status == OK; row += step) {
        const CkptTensor piece = ckpt_piece(t, row, step);
        hsize_t start[2] = {(hsize_t)piece.row0, (hsize_t)piece.col0};
        hsize_t count[2] = {(hsize_t)piece.rows, (hsize_t)piece.cols};
        hid_t in_memory = H5Screate_simple(t->shape[1] == 1 ? 1 : 2, count, NULL);
        herr_t rc = H5Sselect_hyperslab(in_file, H5S_SELECT_SET, start, NULL, count, NULL);
        if (rc >= 0) rc = H5Dwrite(set, type, in_memory, in_file, H5P_DEFAULT, piece.data);
        if (rc < 0) status = ckpt_h5_fail(t->name, "cannot write");
        H5Sclose(in_memory);
    }
    H5Sclose(in_file);
    H5Tclose(type);
    return status;
}

// ---- files ------------------------------------------------------------------------------------------------
// Access by this rank alone, through HDF5's plain driver. No file locks: the run's own lock protects the
// file, and parallel file systems often have none.
hid_t ckpt_plain_access(void)
{
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_fclose_degree(access, H5F_CLOSE_SEMI);
    H5Pset_file_locking(access, false, true);
    return access;
}

// Takes over the access list.
int ckpt_open_file(const char *path, unsigned flags, hid_t access, hid_t *file)
{
    *file = H5Fopen(path, flags, access);
    int status = *file < 0 ? ckpt_h5_fail(path, "cannot open") : OK;
    H5Pclose(access);
    return status;
}
