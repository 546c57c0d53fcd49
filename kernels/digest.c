// digest: XXH3 of bytes that come in pieces, by the widest instructions that this machine has.
#include "digest_body.h"

static const DigestOps generic = DIGEST_OPS;
extern const DigestOps digest_ops_avx2;

struct Digest {
    const DigestOps *ops;
    void *state;
};

Digest *digest_open(void)
{
    Digest *d = xcalloc(1, sizeof *d);
    d->ops = &generic;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) d->ops = &digest_ops_avx2;
#endif
    d->state = d->ops->open();
    d->ops->reset(d->state);
    return d;
}

void digest_add(Digest *d, const void *data, size_t bytes)
{
    d->ops->add(d->state, data, bytes);
}

uint64_t digest_take(Digest *d)
{
    uint64_t value = d->ops->value(d->state);
    d->ops->reset(d->state);
    return value;
}

void digest_close(Digest *d)
{
    if (d) free(d->state);
    free(d);
}
