// digest_body: XXH3 for one instruction set; included by digest.c and, with AVX2, by cpu/digest_avx2.c. The results are the same.
#define XXH_INLINE_ALL
#include <xxhash.h>
#include "base.h"
#include <stdlib.h>

typedef struct DigestOps {
    void *(*open)(void);
    void (*reset)(void *state);
    void (*add)(void *state, const void *data, size_t bytes);
    uint64_t (*value)(const void *state);
} DigestOps;

static void *open_state(void)
{
    void *state = aligned_alloc(64, ROUND_UP(sizeof(XXH3_state_t), (size_t)64));
    ASSERT(state);
    return state;
}

static void reset_state(void *state)
{
    XXH3_64bits_reset(state);
}

static void add_to_state(void *state, const void *data, size_t bytes)
{
    XXH3_64bits_update(state, data, bytes);
}

static uint64_t value_of_state(const void *state)
{
    return XXH3_64bits_digest(state);
}

#define DIGEST_OPS                                                                                                     \
    {                                                                                                                  \
        open_state, reset_state, add_to_state, value_of_state                                                          \
    }
