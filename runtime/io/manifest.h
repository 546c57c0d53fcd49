// manifest: the text file beside state.h5 that tells what is in it and by which digests damage is found. Private to checkpoint_*.c (and
// tests). Grammar, one item a line, single spaces, decimal numbers, digests as 16 hex digits:
//
//   attune-manifest 1
//   step STEP
//   file state.h5 BYTES
//   tensor OFFSET BYTES DTYPE ROWS COLS NAME      one per dataset, by offset; where its bytes lie in the file
//   leaf OFFSET BYTES DIGEST                      XXH3 of these bytes; leaves cover the file without gaps, none crosses a tensor's edge
//   end DIGEST                                    XXH64 of all the text before this line
//
// A digest finds damage: flipped bits, cut or swapped files. It is no signature: whoever can write the file
// can write digests.
#pragma once
#include "comm.h"

#define MANIFEST_META "meta/json" // the dataset that holds the text of CkptMeta
enum { MANIFEST_LEAF_BYTES = 4 << 20, MANIFEST_LIMIT_BYTES = 64 << 20, MANIFEST_NAME_BYTES = 512 };

typedef struct ManifestTensor {
    uint64_t offset, bytes;
    DType t;
    int64_t shape[2];
    const char *name;
} ManifestTensor;

typedef struct ManifestLeaf {
    uint64_t offset, bytes, digest;
    int tensor; // whose bytes these are; -1: the file's structure
} ManifestLeaf;

typedef struct Manifest {
    int64_t step;
    uint64_t file_bytes;
    ManifestTensor *tensors; // sorted by offset
    ManifestLeaf *leaves;
    size_t n_tensors, n_leaves;
    char *text; // a parsed manifest's names point into it; NULL for one that was built
} Manifest;

// From step, file_bytes and tensors (which it sorts): the leaves, their digests zero.
void manifest_cut(Manifest *m);
// Digests of what is being written, from memory: of leaves all of whose bytes pass in their order.
typedef struct LeafWatch {
    Manifest *m;
    Digest *digest;
    uint8_t *known; // (n_leaves) 1: its digest is in m
    uint64_t at;    // where the bytes that have passed end,
    size_t leaf;    // in this leaf, of which they are the beginning
} LeafWatch;
void leaves_watch(LeafWatch *w, Manifest *m); // m has been cut
void leaves_pass(LeafWatch *w, uint64_t offset, const void *data, uint64_t bytes);
void leaves_watch_end(LeafWatch *w);
// Reads this rank's share of the leaves (a run of them, about 1/size of the bytes). digest: fills in their digests, but of the known
// ones (n_leaves); compare: sets *bad to the first leaf whose digest differs, or SIZE_MAX.
int manifest_digest(Manifest *m, const char *file, int rank, int size, const uint8_t *known);
int manifest_compare(const Manifest *m, const char *file, int rank, int size, size_t *bad);
void manifest_print(const Manifest *m, Buf *out);
// Takes over `text` (malloc'ed, NUL-terminated at text[bytes]), also when it fails. place: for messages.
int manifest_parse(Manifest *m, const char *place, char *text, size_t bytes);
int manifest_read(Manifest *m, const char *path);
// The file, opened to read its leaves.
typedef struct LeafReader {
    const Manifest *m;
    const char *file;
    int fd;
    Digest *digest;
    char *piece; // room for what nobody wants to keep
} LeafReader;
int leaves_open(LeafReader *r, const Manifest *m, const char *file); // E_INPUT when the file is of another size
void leaves_close(LeafReader *r);
// Reads a leaf into data (as many bytes as it has; NULL: only looks at it) and compares its digest; E_INPUT that names the damaged
// tensor. What is in data is not to be used then.
int leaves_read(LeafReader *r, size_t leaf, char *data);
// The same, handing out its bytes piece by piece, in their order, from memory that is still in the processor's cache.
typedef void LeafSink(void *ctx, const char *data, size_t bytes);
int leaves_stream(LeafReader *r, size_t leaf, LeafSink *sink, void *ctx);
// The leaf that has this byte; n_leaves: it lies behind the file.
size_t manifest_leaf_at(const Manifest *m, uint64_t offset);
const ManifestTensor *manifest_find(const Manifest *m, const char *name); // NULL: there is none
// E_INPUT that names the damaged tensor.
int manifest_blame(const Manifest *m, const char *file, size_t leaf);
void manifest_free(Manifest *m);
