// footprint.c: what this rank of a run holds, by class. The same code that allocates has been run over measuring arenas, so the figures
// are the allocator's own, not a formula's.
#include "trainer.h"

// Of the optimizer: moments, and masters of what kernels read in another form (a vector is its own master).
static void count_optimizer(const Model *m, Footprint *f)
{
    for (int i = 0; i < m->n_trained; i++) {
        const Trainable *t = &m->trained[i];
        const size_t bytes = (size_t)t->part.rows * (size_t)t->K * sizeof(float);
        if (t->packed) f->masters += bytes;
        f->moments += 2 * bytes;
    }
}

// Checkpoints between the steps; the last one's memory is what the steps have given back.
static size_t saving_bytes(const Trainer *t)
{
    enum { WRITER_BYTES = 7 << 20 }; // HDF5's own, and buffers; measured
    const Recipe *r = &t->s.recipe;
    if (!r->checkpoint.every || r->checkpoint.every >= t->total_steps) return 0;
    return WRITER_BYTES + state_exchange_bytes(t->s.model) +
           (r->checkpoint.async ? state_snapshot_bytes(t->s.model) : 0);
}

int footprint_read(const Trainer *t, const LoaderBounds *b, size_t program, Footprint *out)
{
    const Session *s = &t->s;
    const Model *m = s->model;
    const size_t run = arena_peak(s->run);
    *out = (Footprint){.program = program,
                       .gradients = grad_bytes(t->grads),
                       .exchange = model_exchange_bytes(m),
                       .activations = arena_peak(s->step),
                       .scratch = s->dev->scratch_bytes(s->dev),
                       .batches = b->memory,
                       .snapshot = saving_bytes(t),
                       .comm = mesh_footprint(&s->mesh) + grad_footprint(t->grads)};
    count_optimizer(m, out);
    out->weights = run - out->masters - out->moments - out->exchange - out->gradients;
    if (t->valid) TRY(evaluate_bytes(s, m, t->valid, &out->evaluation));
    out->total = out->program + out->weights + out->masters + out->moments + out->exchange + out->gradients +
                 out->activations + out->scratch + out->batches + out->evaluation + out->snapshot + out->comm;
    return OK;
}
