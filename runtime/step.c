// step.c: one optimizer step. This rank's micro-batches forward and backward, one sum over the ranks, AdamW. The same function is run
// by training (train.c) and, over a device that computes nothing, by plans (plan.c).
//
// A step's result does not depend on the machine's shape: the denominator is the trained tokens of the whole step, gradients and
// losses of micro-batches are added as integers (sharding/grad.c), and random numbers are named by row and position.
#include "trainer.h"
#include "io/fault.h"
#include <math.h>

enum { MAX_NAMED_ROWS = 8 };

// The first thing that went wrong with this rank's data or numbers in a step, and its record.
typedef struct StepFault {
    int status;
    ErrorRecord error;
} StepFault;

static const char *rows_of(const Trainer *t, const Batch *b)
{
    Buf lines = {0};
    for (int i = 0; i < MIN(b->S, MAX_NAMED_ROWS); i++)
        buf_printf(&lines, "%s%lld", i ? ", " : "", (long long)dataset_row(t->train, b->row[i])->line);
    if (b->S > MAX_NAMED_ROWS) buf_puts(&lines, ", ...");
    const char *text = tmpf("%s", lines.data ? lines.data : "");
    buf_free(&lines);
    return text;
}

static int not_finite(const Trainer *t, const char *what, const Batch *b)
{
    return fail(E_FAILED, tmpf("%s: lines %s", t->s.recipe.data.train, rows_of(t, b)),
                "a lower train.lr or train.clip may help; checkpoints written so far are intact; `--resume` goes on "
                "from the newest",
                "step %lld: the %s is not finite", (long long)t->step + 1, what);
}

// What the data or the numbers of one rank did. The step goes on to its end all the same, because the other ranks wait for this one in
// the exchanges; then all are told.
static void note_fault(StepFault *f, int status)
{
    if (status < 0 && f->status == OK) {
        f->status = status;
        f->error = *error_last();
    }
    error_clear();
}

static void add_loss(Trainer *t, const ObjectiveStep *os, const Batch *b, int64_t *loss, StepFault *fault)
{
    double sum = t->objective->loss(os, b, t->logp);
    if (!isfinite(sum) || fabs(sum) > 0x1p26)
        note_fault(fault, not_finite(t, "loss", b));
    else
        *loss += llrint(ldexp(sum, LOSS_FIX_BITS));
}

// Forward, head, objective, backward of one micro-batch; its loss is added to *loss. b NULL, or without trained tokens (ready ids of
// single-token rows): only what the other ranks need from this one.
static int micro_step(Trainer *t, const ObjectiveStep *os, const Batch *b, int64_t *loss, StepFault *fault)
{
    if (b && !b->M) b = NULL;
    TRY(decoder_forward(t->act, b, true));
    if (!b) return decoder_backward(t->act, t->grads);
    if (t->objective->weights_known) {
        t->objective->weigh(os, b, NULL, t->weight);
        if (fault_here("step", t->step + 1, comm_rank(t->s.mesh.world))) t->weight[0] = NAN;
        TRY(decoder_head(t->act, t->weight, t->logp, t->grads));
    } else {
        TRY(decoder_logprobs(t->act, t->logp, NULL));
        t->objective->weigh(os, b, t->logp, t->weight);
        TRY(decoder_head_backward(t->act, t->weight, t->grads));
    }
    add_loss(t, os, b, loss, fault);
    TRY(decoder_backward(t->act, t->grads));
    if (grad_overflowed(t->grads)) note_fault(fault, not_finite(t, "gradient", b));
    return OK;
}

// All micro-batches of the step, forward and backward. A failure of an exchange is returned at once; what is in *fault is agreed on later.
static int micro_steps(Trainer *t, const ObjectiveStep *os, const StepBatches *sb, int64_t *loss, StepFault *fault)
{
    const int rounds = grad_rounds(t->grads, sb->n, sb->n_most);
    grad_zero(t->grads, rounds);
    for (int i = 0; i < rounds; i++) {
        grad_round(t->grads, i == rounds - 1);
        TRY(micro_step(t, os, i < sb->n ? &sb->batch[i] : NULL, loss, fault));
    }
    return OK;
}

Traffic step_traffic(const Trainer *t)
{
    Traffic all = mesh_traffic(&t->s.mesh);
    all.tensor = stats_sum(all.tensor, grad_traffic(t->grads));
    return all;
}

// The sums that are still under way end first: they use the gradients' memory.
static int agree_on_fault(Trainer *t, const StepFault *fault)
{
    if (fault->status < 0) error_adopt(&fault->error);
    int status = comm_agree(t->s.mesh.world, fault->status);
    if (status == OK) return OK;
    const ErrorRecord cause = *error_last();
    error_clear();
    if (grad_finish(t->grads) < 0) log_debug("%s", error_last()->what);
    error_adopt(&cause);
    return status;
}

int train_step(Trainer *t, StepResult *r)
{
    const StepBatches *sb;
    int64_t loss = 0;
    StepFault fault = {0};
    const Traffic before = step_traffic(t);
    double start = now_ms();
    TRY(comm_agree(t->s.mesh.world, loader_next(t->loader, &sb)));
    const ObjectiveStep os = {.trained_tokens = sb->trained_tokens};
    TRY(micro_steps(t, &os, sb, &loss, &fault));
    TRY(agree_on_fault(t, &fault));
    TRY(comm_all_reduce(t->s.mesh.data, &loss, 1, DT_I64, REDUCE_SUM));
    TRY(grad_finish(t->grads));
    TRY(grad_norm(t->grads, &r->grad_norm));
    if (!isfinite(r->grad_norm)) {
        fail(E_FAILED, NULL, "a lower train.lr may help", "step %lld: the gradient norm is not finite",
             (long long)t->step + 1);
        return comm_agree(t->s.mesh.world, E_FAILED); // told once
    }
    r->lr = schedule_lr(&t->schedule, t->step);
    if (os.trained_tokens) {
        r->loss = ldexp((double)loss, -LOSS_FIX_BITS) / (double)os.trained_tokens;
        TRY(optimizer_step(t->s.model, t->grads, &t->adamw, r->lr, r->grad_norm, t->step + 1));
    } else { // a mean over nothing: 0, beside trained_tokens 0; and nothing to learn from
        r->loss = 0;
        log_warn("step %lld trains no token: its rows are one token long; nothing is changed", (long long)t->step + 1);
    }
    t->step++;
    r->tokens = sb->tokens;
    r->trained_tokens = sb->trained_tokens;
    r->step_ms = now_ms() - start;
    r->traffic = traffic_since(step_traffic(t), &before);
    return OK;
}
