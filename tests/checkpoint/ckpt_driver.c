// ckpt_driver save DIR STEP [SEED]   saves the made-up state, cut for this number of ranks, by rows, by columns or not at all;
//                                    with a seed cut into random grids
// ckpt_driver load DIR [STEP [SEED]] finds the newest, loads it with this number of ranks, checks every value (and the step)
// ckpt_driver loop DIR               goes on from the newest, saving every step, until it is killed
// ckpt_driver stall DIR              saves, but rank 1 never takes part
// Exit code 0 only when all is as it should be. For the scripts beside it.
#include "case.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int report(int status)
{
    const ErrorRecord *e = error_last();
    if (status < 0 && *e->what) fprintf(stderr, "ckpt_driver: %s: %s\n%s", e->place, e->what, e->trace);
    return status < 0 ? 1 : 0;
}

static uint64_t seed; // 0: the plain cut

static void open_case(Case *k, int64_t step, const Comm *c)
{
    if (seed)
        case_open_grid(k, step, seed, comm_rank(c), comm_size(c));
    else
        case_open(k, step, comm_rank(c), comm_size(c));
}

static int save(Comm *c, const char *dir, int64_t step)
{
    Case k;
    open_case(&k, step, c);
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
    CkptMeta meta = {0};
    open_case(&k, -1, c);
    int status = checkpoint_resume(c, dir, NULL, NULL, k.tensors, CASE_TENSORS, found, &path);
    if (status == OK && *found < 0 && step >= 0) status = fail(E_FAILED, dir, NULL, "there is no checkpoint");
    if (status == OK && *found >= 0) {
        status = checkpoint_load_meta(c, path, &meta);
        const char *mistake = case_mistake(&k, *found), *json = tmpf("{\"step\": %lld}", (long long)*found);
        if (mistake) status = fail(E_FAILED, path, NULL, "wrong value: %s", mistake);
        if (status == OK && (meta.step != *found || !streq(meta.json, json)))
            status = fail(E_FAILED, path, NULL, "wrong meta");
        if (status == OK && step >= 0 && step != *found)
            status = fail(E_FAILED, path, NULL, "not step %lld", (long long)step);
    }
    free(path);
    checkpoint_meta_free(&meta);
    case_close(&k);
    return comm_agree(c, status);
}

static int loop(Comm *c, const char *dir)
{
    int64_t step;
    TRY(load(c, dir, -1, &step));
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
    if (argc > 4) seed = strtoull(argv[4], NULL, 10);
    if (streq(argv[1], "save") && argc > 3) status = save(c, argv[2], atoll(argv[3]));
    if (streq(argv[1], "load")) status = load(c, argv[2], argc > 3 ? atoll(argv[3]) : -1, &found);
    if (streq(argv[1], "loop")) status = loop(c, argv[2]);
    if (streq(argv[1], "stall")) status = stall(c, argv[2]);
    int code = report(status);
    comm_close(c);
    return code;
}
