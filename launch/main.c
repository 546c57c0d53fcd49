// main: the only function that ends the process. Opens what the verb needs, runs it, tells the error once, and sees to it that no
// rank is left waiting for one that has failed.
#include "cli.h"
#include <errno.h>
#include <omp.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include <string.h>

// The share of this node's cores and as many threads. OMP_NUM_THREADS is the user's word on the latter.
static int take_cores(const Comm *world)
{
    char bound[256];
    int cores = topo_bind_share(comm_local_rank(world), comm_local_size(world), bound, sizeof bound);
    TRY(cores);
    log_debug("%d cores, %s", cores, bound);
    if (getenv("OMP_NUM_THREADS")) return OK;
    setenv("OMP_NUM_THREADS", tmpf("%d", cores),
           1); // for who asks the environment; libgomp has read it already
    omp_set_num_threads(cores);
    return OK;
}

static int run_verb(Comm *world, const Cli *cli)
{
    const Verb *v = cli->verb;
    if (v->binds && world) TRY(take_cores(world));
    if (v->world || !world) return v->run(world, cli);
    int status = comm_rank(world) == 0 ? v->run(world, cli) : OK; // under mpirun, one rank is enough for it
    return comm_agree(world, status);
}

// `attune: error: PLACE: WHAT` and the hint. Ranks that only know that another one failed have nothing to say.
static void tell(int status)
{
    const ErrorRecord *e = error_last();
    if (e->code && !*e->what) return;
    if (!e->code) { // stopped by a signal, or a status that came without words
        if (status != E_PREEMPTED) fprintf(stderr, "attune: error: failed with status %d\n", status);
        return;
    }
    Buf b = {0};
    buf_printf(&b, "attune: error: %s%s%s\n", e->place, *e->place ? ": " : "", e->what);
    if (*e->hint) buf_printf(&b, "  hint: %s\n", e->hint);
    if (getenv("ATTUNE_DEBUG")) buf_puts(&b, e->trace);
    fwrite(b.data, 1, b.len, stderr); // one write, so that ranks do not mix
    buf_free(&b);
}

static int flush_output(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return OK;
    return errno == EPIPE ? OK : fail_errno("standard output", "cannot write"); // `attune ... | head` is no failure
}

// GNU OpenMP's threads spin for milliseconds at a barrier. On a machine that has other work to do, that is five times slower than
// going to sleep at once (measured), and no faster on an idle one. The library reads its environment before main runs, so the
// program starts itself anew with the setting; who sets either variable is left alone.
static void spin_briefly(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    execv("/proc/self/exe", argv); // on failure it runs on as it is
}

int main(int argc, char **argv)
{
    spin_briefly(argv);
    Cli cli = {0};
    Comm *world = NULL;
    signal(SIGPIPE, SIG_IGN);
    int usage = cli_parse(&cli, argc, argv), status = usage;
    bool ranks = comm_launched_by_mpi();
    if (ranks || (usage == OK && cli.verb->world)) {
        int opened = comm_open(&world, &(CommConfig){.kind = "auto"});
        if (status == OK) status = opened;
    }
    if (world) log_set_rank(comm_rank(world), comm_size(world));
    if (status == OK) status = run_verb(world, &cli);
    if (status == OK) status = flush_output();
    if (status < 0) {
        // Wrong usage is wrong on every rank: the first one says so.
        if (usage == OK || !world || comm_rank(world) == 0) tell(status);
        bool alone = !world || comm_size(world) == 1;
        if (!alone && usage == OK && status != E_PREEMPTED && !error_last()->agreed)
            comm_abort(world, error_exit_code(status));
    }
    comm_close(world);
    cli_free(&cli);
    return error_exit_code(status);
}
