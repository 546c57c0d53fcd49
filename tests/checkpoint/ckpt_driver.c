// ckpt_driver save DIR STEP            saves the made-up state, cut for this number of ranks ckpt_driver load
// DIR [STEP]          finds the newest, loads it with this number of ranks, checks every value (and the step)
// ckpt_driver loop DIR RANK MS         goes on from the newest, saving every step, until rank RANK dies of
// SIGKILL after MS ms ckpt_driver stall DIR                saves, but rank 1 never takes part Exit code 0
// only when all is as it should be. For the scripts beside it.
#include "case.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static int report(int status)
{
    const ErrorRecord *e = error_last();
    if (status < 0 && *e->what) fprintf(stderr, "ckpt_driver: %s: %s\n%s", e->place, e->what, e->trace);
    return status < 0 ? 1 : 0;
}

static int save(Comm *c, const char *dir, int64_t step)
{
    Case k;
    case_open(&k, step, comm_rank(c), comm_size(c));
    CkptMeta meta = {.step = step, .json = xasprintf("{\"step\": %lld}", (long long)step)};
    int status = checkpoint_save(c, dir, &meta, k.tensors, CASE_TENSORS, 2);
    checkpoint_meta_free(&meta);
    case_close(&k);
    return status;
}

// step < 0: whichever is the newest. *found: it, or -1 when there is none.
static int load(Comm *c, const char *dir, int64_t step, int64_t *found)
{
    Case k;
    char *path;
    CkptMeta meta;
    TRY(checkpoint_find(c, dir, found, &path));
    if (*found < 0) return step < 0 ? OK : fail(E_FAILED, dir, NULL, "there is no checkpoint");
    case_open(&k, -1, comm_rank(c), comm_size(c));
    int status = checkpoint_load_meta(c, path, &meta);
    if (status == OK) status = checkpoint_load(c, path, k.tensors, CASE_TENSORS);
    const char *mistake = status == OK ? case_mistake(&k, *found) : NULL;
    char *json = xasprintf("{\"step\": %lld}", (long long)*found);
    if (mistake) status = fail(E_FAILED, path, NULL, "wrong value: %s", mistake);
    if (status == OK && (meta.step != *found || !streq(meta.json, json)))
        status = fail(E_FAILED, path, NULL, "wrong meta");
    if (status == OK && step >= 0 && step != *found)
        status = fail(E_FAILED, path, NULL, "not step %lld", (long long)step);
    free(json);
    free(path);
    checkpoint_meta_free(&meta);
    case_close(&k);
    return comm_agree(c, status);
}

static void die(int sig)
{
    (void)sig;
    kill(getpid(), SIGKILL);
}

static int loop(Comm *c, const char *dir, int victim, int after_ms)
{
    int64_t step;
    TRY(load(c, dir, -1, &step));
    if (comm_rank(c) == victim) {
        signal(SIGALRM, die);
        struct itimerval timer = {.it_value = {.tv_sec = after_ms / 1000, .tv_usec = after_ms % 1000 * 1000}};
        setitimer(ITIMER_REAL, &timer, NULL);
    }
    for (;;) TRY(save(c, dir, ++step));
}

static int stall(Comm *c, const char *dir)
{
    if (comm_rank(c) == 1) sleep(60);
    return save(c, dir, 99);
}

int main(int argc, char **argv)
{
    Comm *c;
    int64_t found;
    int status = E_INPUT;
    setenv("ATTUNE_COMM_TIMEOUT", "60", 0);
    if (argc < 3 || comm_open(&c, &(CommConfig){.kind = "auto"}) < 0) return report(E_FAILED);
    log_set_rank(comm_rank(c), comm_size(c));
    if (streq(argv[1], "save") && argc == 4) status = save(c, argv[2], atoll(argv[3]));
    if (streq(argv[1], "load")) status = load(c, argv[2], argc > 3 ? atoll(argv[3]) : -1, &found);
    if (streq(argv[1], "loop") && argc == 5) status = loop(c, argv[2], atoi(argv[3]), atoi(argv[4]));
    if (streq(argv[1], "stall")) status = stall(c, argv[2]);
    int code = report(status);
    comm_close(c);
    return code;
}
