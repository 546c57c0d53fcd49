// A made-up training state whose every value follows from (tensor, row, column, step), so that any rank of any layout can write its
// part and check what it reads. Shared by test_checkpoint and ckpt_driver.
#pragma once
#include "io/checkpoint.h"

enum { CASE_TENSORS = 7 };

// How a tensor is dealt out to ranks.
typedef enum Cut { CUT_ROWS, CUT_COLS, CUT_NONE /* rank 0 has it all */ } Cut;

typedef struct Case {
    CkptTensor tensors[CASE_TENSORS];
    int64_t step;
} Case;

// Parts of rank `rank` of `size`; their memory is filled with the values of `step`, or zeros when step < 0.
void case_open(Case *k, int64_t step, int rank, int size);
// The same, but each tensor is cut into a random grid of rows × columns (at most `size` parts) that is dealt out to random ranks.
void case_open_grid(Case *k, int64_t step, uint64_t seed, int rank, int size);
void case_close(Case *k);
// The first wrong element as text, or NULL when all this rank's parts hold the values of `step`.
const char *case_mistake(const Case *k, int64_t step);
