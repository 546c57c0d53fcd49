#include "staging.h"
#include "cudahost_test.h"

void staging_begin(Staging *s, const Device *d, const char *op)
{
    const OrderOf *o = d->impl;
    *s = (Staging){.op = op};
    cudahost_clear();
    cudahost_order(o->order, o->seed);
}

static Operand *stage(Staging *s, const char *name, const void *p, size_t bytes)
{
    for (int i = 0; p && i < s->n; i++) {
        Operand *o = &s->operand[i];
        if (o->host != p) continue;
        if (o->bytes != bytes) fail_msg("%s: %s has two sizes, %zu and %zu bytes", s->op, name, o->bytes, bytes);
        return o;
    }
    assert_true(s->n < MAX_OPERANDS);
    Operand *o = &s->operand[s->n++];
    const size_t skew = (uintptr_t)p % 16;
    *o = (Operand){.host = (void *)p, .bytes = bytes, .base = cudahost_alloc(bytes + skew, name)};
    o->device = o->base + skew;
    if (p && bytes) memcpy(o->device, p, bytes);
    return o;
}

const void *staging_in(Staging *s, const char *name, const void *p, size_t bytes)
{
    return p ? stage(s, name, p, bytes)->device : NULL;
}

void *staging_inout(Staging *s, const char *name, void *p, size_t bytes)
{
    if (!p) return NULL;
    Operand *o = stage(s, name, p, bytes);
    o->written = true;
    return o->device;
}

void *staging_scratch(Staging *s, size_t bytes)
{
    return stage(s, "scratch", NULL, bytes)->device;
}

void staging_end(Staging *s)
{
    for (int i = 0; i < s->n; i++) {
        Operand *o = &s->operand[i];
        if (o->written && o->bytes)
            memcpy(o->host, o->device, o->bytes);
        else if (o->host && o->bytes && memcmp(o->host, o->device, o->bytes) != 0)
            fail_msg("%s: operand %d is an input and was changed", s->op, i);
        cudahost_free(o->base);
    }
    expect_no_findings(s->op);
}
