// checkpoint: OUTPUT/checkpoints/step-00000100/{state.h5, MANIFEST}. state.h5 is one parallel-HDF5 file of global tensors: each
// rank writes the hyperslabs it owns, any other layout reads its own. A step directory is published whole: written beside,
// flushed, closed, fsynced, digested, renamed, the parent fsynced; never changed afterwards.
#pragma once
#include "comm.h"

// One global tensor and this rank's part of it: rows [row0, row0+rows), columns [col0, col0+cols) (1-D: cols = 1).
typedef struct CkptTensor {
    const char *name; // "model/NAME", "adapter/NAME", "optim/NAME/m", ... ('/' separates HDF5 groups)
    DType t;          // F32, BF16, I64, U8
    int64_t shape[2]; // global; 1-D: {n, 1}
    int64_t row0, rows, col0, cols;
    void *data; // host memory, contiguous (rows, cols); on save read, on load written. rows == 0: this rank has no part
} CkptTensor;

typedef struct CkptMeta {
    int64_t step;
    char
        *json; // everything that is not a tensor: recipe text, data cursor, seeds, schedule position, versions, digests
} CkptMeta;

// Slabs that are cut by columns are exchanged for whole rows in blocks of so many bytes (a row at least).
enum { CKPT_BLOCK_BYTES = 4 << 20 };

char *checkpoint_path(const char *output, int64_t step); // OUTPUT/checkpoints/step-00000100, malloc'ed
// Collective. The ranks' parts of a tensor must make it up without gaps or overlaps (E_FAILED otherwise); all ranks list the same
// tensors in the same order. Ends published on all ranks or on none, with the same status on all. Keeps the newest `keep` (0: all) that verify.
int checkpoint_save(Comm *c, const char *output, const CkptMeta *meta, const CkptTensor *t, int n, int keep);
// Without a rank or a disk: bytes of the files that a checkpoint with such tensors has (data is not looked at).
int checkpoint_measure(const CkptMeta *meta, const CkptTensor *t, int n, uint64_t *bytes);
// Collective. Finds the newest step directory all of whose digests match, each rank comparing its share (damaged ones are skipped with
// a warning that says what is wrong); *step = -1 when there is none. dir (malloc'ed) on every rank.
int checkpoint_find(Comm *c, const char *output, int64_t *step, char **dir);
// Collective. The meta JSON; tensors into data, the digests of what is read compared; E_INPUT when something is damaged, missing or of
// another shape.
int checkpoint_load_meta(Comm *c, const char *dir, CkptMeta *out);
int checkpoint_load(Comm *c, const char *dir, const CkptTensor *t, int n);
void checkpoint_meta_free(CkptMeta *m);
// Collective. Loads the newest that is good, comparing digests in the same reading: a damaged one is skipped with a warning, and data
// is filled from the one before. accept (on every rank, may be NULL) looks at the description first; its failure, a tensor that is
// missing or of another shape, and one that is not among t[0..n) are errors: that checkpoint is another run's. *step = -1 (and OK)
// when there is no checkpoint at all; E_INPUT when none is whole. dir (malloc'ed): where it was.
typedef int CkptAcceptFn(void *ctx, const char *dir, const CkptMeta *meta);
int checkpoint_resume(Comm *c, const char *output, CkptAcceptFn *accept, void *ctx, const CkptTensor *t, int n,
                      int64_t *step, char **dir);

// ---- one process alone, without MPI: for inspect, convert and exports; on any thread, also while another one saves ----
int checkpoint_verify(const char *dir); // compares every digest; E_INPUT that names what is damaged
// Calls fn for every tensor (shape filled, data NULL).
int checkpoint_list(const char *dir, int (*fn)(void *ctx, const CkptTensor *t), void *ctx);

typedef struct CkptReader CkptReader;
int checkpoint_open(CkptReader **out, const char *dir); // checks the MANIFEST and the file's size, not yet the tensors
void checkpoint_close(CkptReader *r);                   // NULL is fine
int checkpoint_find_tensor(CkptReader *r, const char *name,
                           CkptTensor *out); // 1: shape and type are filled; 0: not there
// The slab that t describes into t->data. Reads whole blocks of up to 4 MiB, keeps the last one, and compares their digests:
// E_INPUT names the damaged tensor. Neighbouring slabs in a row are therefore cheap.
int checkpoint_read(CkptReader *r, const CkptTensor *t);
int checkpoint_read_meta(CkptReader *r, CkptMeta *out); // as checkpoint_load_meta
