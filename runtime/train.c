// train.c: THE loop. A step is step.c's, what is minimised stands in objective/, what is read in data/, what is kept in state.c; none
// of them has a loop of its own.
#include "trainer.h"
#include "eval/report.h"
#include "io/fault.h"
#include "provenance.h"
#include "track/progress.h"
#include <signal.h>
#include <stdlib.h>
#include <time.h>

// ---- signals: finish the step, write a checkpoint, leave with 75 -----------------------------------------------------
// SIGTERM or SIGINT for the second time ends the process at once. A launcher and a terminal may both send what was meant once, so
// "second" is one that comes a second later.
static volatile sig_atomic_t stop_signal, first_signal_s;

static void on_stop(int sig)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (sig == stop_signal && sig != SIGUSR1 && (sig_atomic_t)now.tv_sec - first_signal_s > 1) {
        signal(sig, SIG_DFL);
        raise(sig); // takes effect when the handler returns
    }
    if (sig != stop_signal) first_signal_s = (sig_atomic_t)now.tv_sec;
    stop_signal = sig;
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGUSR1, &a, NULL);
    sigaction(SIGINT, &a, NULL);
}

// Whether all ranks are well so far, and whether one of them was told to stop: signals reach them at different times, and all must
// stop at the same step. One collective tells both.
static int agree_to_go_on(const Trainer *t, int status, bool *stop)
{
    if (status == OK && stop_signal) status = E_PREEMPTED;
    status = comm_agree(t->s.mesh.world, status);
    *stop = status == E_PREEMPTED;
    if (!*stop) return status;
    error_clear();
    return OK;
}

static int preempted(const Trainer *t)
{
    fail(E_PREEMPTED, t->s.recipe.output, "go on with: attune train RECIPE --resume",
         "stopped by a signal after step %lld", (long long)t->step);
    return comm_agree(t->s.mesh.world, E_PREEMPTED); // told once
}

// ---- what is told ---------------------------------------------------------------------------------------------------
static int log_step(Trainer *t, const StepResult *r)
{
    Buf b = {0};
    int64_t most[] = {(int64_t)peak_rss_bytes(), (int64_t)t->s.dev->scratch_bytes(t->s.dev)}; // of any rank
    TRY(comm_all_reduce(t->s.mesh.world, most, COUNT_OF(most), DT_I64, REDUCE_MAX));
    buf_printf(&b,
               "\"step\": %lld, \"loss\": %.9g, \"grad_norm\": %.9g, \"lr\": %.9g, \"tokens\": %lld, "
               "\"trained_tokens\": %lld, ",
               (long long)t->step, r->loss, r->grad_norm, r->lr, (long long)r->tokens, (long long)r->trained_tokens);
    buf_printf(&b, "\"tokens_per_s\": %.9g, \"step_ms\": %.9g, \"rss_bytes\": %lld, \"scratch_bytes\": %lld, ",
               (double)r->tokens / r->step_ms * 1e3, r->step_ms, (long long)most[0], (long long)most[1]);
    buf_printf(&b, "\"comm_bytes\": %llu, \"wait_ms\": %.9g, \"beside_ms\": %.9g, \"beside_wait_ms\": %.9g",
               (unsigned long long)traffic_bytes(&r->traffic), r->traffic.wait_ms, r->traffic.beside_ms,
               r->traffic.beside_wait_ms);
    buf_printf(&b, ", \"save_ms\": %.9g", t->save_ms);
    t->save_ms = 0;
    int status = rundir_metric(t->dir, b.data);
    buf_free(&b);
    return status;
}

static int evaluate_and_log(Trainer *t, Progress *bar)
{
    if (!t->valid) return OK;
    Buf members = {0}, line = {0};
    fault_here("evaluate", t->step, comm_rank(t->s.mesh.world));
    int status = trainer_evaluate(t, &members);
    if (status == OK) {
        buf_printf(&line, "\"step\": %lld, %s", (long long)t->step, members.data);
        progress_note(bar, "step %lld: %s", (long long)t->step, members.data);
        status = rundir_metric(t->dir, line.data);
    }
    buf_free(&members);
    buf_free(&line);
    return status;
}

static int write_results(Trainer *t)
{
    Session *s = &t->s;
    int status = OK;
    if (comm_rank(s->mesh.world) == 0) {
        const bool lora = streq(s->recipe.method, "lora");
        char *dir = xasprintf("%s/%s", rundir_path(t->dir), lora ? "adapter" : "model");
        char *state = checkpoint_path(rundir_path(t->dir), t->step);
        status = lora ? export_adapter(s, state, dir) : export_model(s, state, dir, s->precision, false);
        free(state);
        free(dir);
    }
    return comm_agree(s->mesh.world, status);
}

// A run that says it is completed has nothing left to write.
static int complete(Trainer *t)
{
    int status = OK;
    if (comm_rank(t->s.mesh.world) == 0)
        status = report_write(rundir_path(t->dir), "completed", session_machine(&t->s));
    if (status == OK) status = rundir_status(t->dir, "completed", 0, 0, t->step, "");
    return comm_agree(t->s.mesh.world, status);
}

// ---- the run --------------------------------------------------------------------------------------------------------
static bool due(int64_t every, const Trainer *t)
{
    return every > 0 && t->step % every == 0 && t->step < t->total_steps;
}

static int log_and_evaluate(Trainer *t, Progress *bar, const StepResult *r)
{
    const Recipe *recipe = &t->s.recipe;
    if (t->step % recipe->train.log_every == 0 || t->step == t->total_steps) TRY(log_step(t, r));
    progress_step(bar, t->step, r->loss, (double)r->tokens / r->step_ms * 1e3, tmpf("lr %.2g", r->lr));
    return due(recipe->eval.every, t) ? evaluate_and_log(t, bar) : OK;
}

static int train_loop(Trainer *t, Progress *bar)
{
    while (t->step < t->total_steps) {
        StepResult result = {0};
        bool stop;
        TRY(train_step(t, &result));
        TRY(agree_to_go_on(t, log_and_evaluate(t, bar, &result), &stop));
        if (stop && t->step < t->total_steps) { // a run that is done ends as one
            TRY(state_save(t));
            return preempted(t);
        }
        const double start = now_ms();
        if (due(t->s.recipe.checkpoint.every, t)) TRY(state_save_due(t));
        t->save_ms += now_ms() - start;
    }
    return OK;
}

static int finish(Trainer *t, Progress *bar)
{
    TRY(comm_agree(t->s.mesh.world, evaluate_and_log(t, bar)));
    TRY(state_save(t));
    return write_results(t);
}

static void on_lost_rank(void *ctx, int rank, const char *what)
{
    const Trainer *t = ctx;
    rundir_lost(t->dir, rank, t->step, what);
}

static int open_run_dir(Trainer *t, Comm *world, const TrainArgs *a)
{
    const Recipe *r = &t->s.recipe;
    Buf yaml = {0};
    TRY(comm_agree(world, rundir_open(&t->dir, world, r->output, a->resume, a->force)));
    recipe_write_yaml(r, &yaml);
    int status = rundir_write(t->dir, "recipe.yaml", yaml.data, yaml.len);
    buf_free(&yaml);
    if (status == OK) status = rundir_status(t->dir, "running", 0, 0, 0, "");
    comm_on_abort(on_lost_rank, t);
    return comm_agree(world, status);
}

static void say_what_starts(const Trainer *t)
{
    const Session *s = &t->s;
    Buf banner = {0};
    RowStats st = dataset_stats(t->train);
    recipe_banner(&s->recipe, &banner);
    log_info("%s", banner.data);
    buf_free(&banner);
    log_info(
        "model      %s: %.1f M parameters, %.3f M trained (%.2f %%)", s->model->cfg.family,
        (double)model_params(s->model) / 1e6, (double)model_trained_params(s->model) / 1e6,
        100.0 * (double)model_trained_params(s->model) /
            (double)(model_params(s->model) + (streq(s->recipe.method, "lora") ? model_trained_params(s->model) : 0)));
    log_info("data       %lld rows (%s), %lld tokens, %lld trained; %lld dropped and %lld cut for length",
             (long long)st.rows, dataset_format(t->train), (long long)st.tokens, (long long)st.trained_tokens,
             (long long)st.dropped_long, (long long)st.cut_long);
    log_info("run        %lld steps of %d sequences on %d rank%s (%s, %s)", (long long)t->total_steps,
             t->loader_config.batch, comm_size(s->mesh.world), comm_size(s->mesh.world) > 1 ? "s" : "", s->dev->name,
             s->dev->about);
    int busiest = loader_bounds(&t->loader_config).micros;
    if (busiest < s->mesh.data_size && comm_rank(s->mesh.world) == 0)
        log_warn("a step has at most %d micro-batch%s, so %d of %d ranks idle: raise train.batch or lower "
                 "train.micro_tokens",
                 busiest, busiest == 1 ? "" : "es", s->mesh.data_size - busiest, s->mesh.data_size);
}

static int train_opened(Trainer *t, Comm *world, const TrainArgs *a)
{
    bool found = false, stop;
    TRY(comm_agree(world, trainer_open_memory(t)));
    TRY(comm_agree(world, provenance_open(&t->provenance, &t->s)));
    TRY(open_run_dir(t, world, a));
    if (a->resume) {
        TRY(comm_agree(world, state_resume(t, &found)));
        const bool ended = t->step == t->total_steps; // its last evaluation is made, and told, again
        TRY(comm_agree(world, rundir_rewind(t->dir, t->step, t->step - ended)));
        log_info("resume     %s",
                 found ? tmpf("after step %lld", (long long)t->step) : "no checkpoint yet: from the start");
    }
    say_what_starts(t);
    TRY(agree_to_go_on(t, loader_open(&t->loader, &t->loader_config, t->step), &stop));
    if (stop) return preempted(t); // while it was opened: there is nothing to save yet
    Progress *bar = comm_rank(world) == 0 ? progress_open("train", t->total_steps) : NULL;
    progress_start_at(bar, t->step);
    int status = train_loop(t, bar);
    if (status == OK) status = finish(t, bar);
    progress_close(bar);
    TRY(status);
    return complete(t);
}

static void trainer_close(Trainer *t)
{
    saver_close(t);
    loader_close(t->loader);
    trainer_close_memory(t);
    rundir_close(t->dir);
    json_decref(t->provenance);
    dataset_close(t->valid);
    dataset_close(t->train);
    session_close(&t->s);
}

// Closing takes all ranks together. One that failed where the others know nothing of it leaves at once; main ends them.
static bool others_wait(const Comm *world, int status)
{
    return status < 0 && status != E_PREEMPTED && comm_size(world) > 1 && !error_last()->agreed;
}

int run_train(Comm *world, const TrainArgs *a)
{
    Trainer t = {0};
    Recipe r = {0};
    catch_signals();
    int status = recipe_load(&r, a->recipe, a->overrides, a->n_overrides);
    if (status == OK) status = trainer_open_data(&t, world, &r);
    status = comm_agree(world, status);
    if (status == OK) status = train_opened(&t, world, a);
    if (status < 0 && t.dir) rundir_failed(t.dir, world, status, t.step);
    comm_on_abort(NULL, NULL);
    if (others_wait(world, status)) return status;
    trainer_close(&t);
    recipe_free(&r);
    return status;
}
