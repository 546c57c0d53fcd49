// checkpoint_impl: what the parts of the checkpoint share. Private to checkpoint_*.c.
//   _h5      HDF5: its errors as ours, types, files, transfers      _save    checkpoint_save
//   _dirs    the step directories: names, leftovers, retention      _load    checkpoint_find, checkpoint_load*, checkpoint_resume
//   _rows    columns are exchanged for rows                         _read    one process alone, without MPI and HDF5
//   manifest the digests
#pragma once
#include "checkpoint.h"
#include "manifest.h"
#include <hdf5.h>

enum { CKPT_FORMAT_VERSION = 1 };

// ---- checkpoint_h5.c ----
int ckpt_h5_fail(const char *path, const char *what); // right after the call that failed: any other one forgets why
hid_t ckpt_h5_type(DType t);                          // the caller closes it; the same in memory and in the file
hid_t ckpt_file_space(const CkptTensor *t);           // {n, 1} is a vector: one dimension in the file
size_t ckpt_tensor_bytes(const CkptTensor *t);
int64_t ckpt_rows_within(const CkptTensor *t, size_t bytes);            // of its part, at least one
CkptTensor ckpt_piece(const CkptTensor *t, int64_t from, int64_t most); // rows of its part, from its row `from` on
hid_t ckpt_plain_access(void);                                          // this process alone, without locks
int ckpt_open_file(const char *path, unsigned flags, hid_t access, hid_t *file); // takes over the access list
// Writes this rank's part, in slabs of whole rows, independently of other ranks.
int ckpt_write(hid_t set, const CkptTensor *t);

// ---- checkpoint_rows.c ----
// How slabs that are cut by columns meet the file as whole rows. Collective; *out NULL: there are none. To be closed in any case.
typedef struct CkptRows CkptRows;
int ckpt_rows_open(CkptRows **out, Comm *c, const CkptTensor *t, int n, bool write);
void ckpt_rows_close(CkptRows *x);            // NULL is fine
bool ckpt_rows_has(const CkptRows *x, int i); // tensor i goes this way, all ranks that share its rows together
// fn writes whole rows. status: of what was before; once something has failed, nothing more is written or read, and this rank goes on
// with its part of the exchange, which others wait for. The status of it all.
typedef int CkptRowsFn(void *ctx, const CkptTensor *rows);
int ckpt_rows_write(const CkptRows *x, const CkptTensor *t, int i, CkptRowsFn *fn, void *ctx, int status);
int ckpt_rows_read(const CkptRows *x, const CkptTensor *t, int i, CkptReader *r, int status);

// ---- checkpoint_dirs.c ----
// For faults that end nothing: they become a warning, and the thread's record is free for the next.
void ckpt_warn_instead(const char *consequence);
char *ckpt_step_path(const char *parent, const char *prefix, int64_t step); // "PARENT/PREFIXstep-00000100"
int ckpt_list_steps(const char *parent, int64_t **steps, size_t *n);        // newest first; none without a parent
void ckpt_sweep(const char *parent);                                        // what cut-off saves have left
int ckpt_sync_path(const char *path, int flags);                            // opens, fsyncs, closes
int ckpt_check_room(const char *parent, uint64_t bytes);                    // E_FAILED when the disk has less
void ckpt_retain(const char *parent, int64_t saved, int keep);              // removes steps that are no longer kept

// ---- checkpoint_read.c ----
int ckpt_reader_open(CkptReader **out, const char *dir, char *text, size_t bytes); // takes over the MANIFEST's text
int ckpt_reader_again(CkptReader **out, const CkptReader *r);                      // for another thread; r outlives it
const Manifest *ckpt_reader_manifest(const CkptReader *r);
int ckpt_reader_structure(CkptReader *r);                       // compares the digests of all that is not a tensor's
int ckpt_reader_fits(const CkptReader *r, const CkptTensor *t); // E_INPUT: not there, or of another shape or type
// Whole rows of a tensor, handed out piece by piece in the file's order; what is damaged too, before it is known.
int ckpt_reader_stream(CkptReader *r, const CkptTensor *rows, LeafSink *sink, void *ctx);
void ckpt_check_part(const CkptTensor *t); // asserts that a rank's part lies within its tensor
