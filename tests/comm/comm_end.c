// comm_end HOW [RANK DIR]: how a job ends when something goes wrong on one rank.
//   abort     rank 1 ends the job with code 7
//   stop      RANK stops (SIGSTOP) between two collectives
//   away      RANK stays away from a collective that the others wait in
//   tangled   RANK stays away; the others wait for it in groups of their own, and through a queue
//   ring      the ranks wait for each other in two groups: nobody is away
//   none      nothing goes wrong
// Each rank leaves a file DIR/pid.RANK, and who calls comm_on_abort's function DIR/told.
#define _GNU_SOURCE
#include "comm.h"
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static Comm *world;
static int rank;

static void tell(void *ctx, int culprit, const char *what)
{
    FILE *f = fopen(tmpf("%s/told", (const char *)ctx), "we");
    if (!f) return;
    fprintf(f, "%d|%s\n", culprit, what);
    fclose(f);
}

static void leave_pid(const char *dir)
{
    FILE *f = fopen(tmpf("%s/pid.%d", dir, rank), "we");
    if (!f) return;
    fprintf(f, "%ld\n", (long)getpid());
    fclose(f);
}

static void nap(unsigned ms)
{
    usleep(ms * 1000);
}

// A second of computing and exchanging.
static void work(void)
{
    for (int i = 0; i < 20; i++) {
        int64_t x = 1;
        if (comm_all_reduce(world, &x, 1, DT_I64, REDUCE_SUM) < 0) exit(101);
        nap(50);
    }
}

static int barrier(void *c)
{
    return comm_barrier(c);
}

static void tangle(int culprit)
{
    Comm *pair, *aside;
    CommQueue *q;
    if (comm_split(&pair, world, rank / 2, rank) < 0 || comm_split(&aside, world, 0, rank) < 0) exit(101);
    if (comm_queue_open(&q, true) < 0) exit(101);
    uint64_t ticket = comm_queue_post(q, barrier, aside);
    if (comm_queue_wait(q, ticket) < 0) exit(101);
    if (rank == culprit) sleep(60);
    if (rank / 2 == culprit / 2) comm_barrier(pair); // the culprit's neighbour waits for it here,
    ticket = comm_queue_post(q, barrier, aside);
    if (rank % 2) comm_queue_wait(q, ticket); // others in their queue, others in the world
    comm_barrier(world);
}

static void wait_in_a_ring(void)
{
    Comm *other;
    if (comm_split(&other, world, 0, rank) < 0) exit(101);
    comm_barrier(rank % 2 ? world : other);
}

int main(int argc, char **argv)
{
    if (comm_open(&world, &(CommConfig){.kind = "auto"}) < 0) return 100;
    rank = comm_rank(world);
    const char *how = argc > 1 ? argv[1] : "", *dir = argc > 3 ? argv[3] : ".";
    const int culprit = argc > 2 ? atoi(argv[2]) : 1;
    if (argc > 3) leave_pid(dir);
    comm_on_abort(tell, (void *)dir);
    work();
    if (streq(how, "abort") && rank == 1) comm_abort(world, 7);
    if (streq(how, "stop") && rank == culprit) raise(SIGSTOP);
    if (streq(how, "away") && rank == culprit) sleep(60);
    if (streq(how, "tangled")) tangle(culprit);
    if (streq(how, "ring")) wait_in_a_ring();
    work();
    comm_on_abort(NULL, NULL);
    comm_close(world);
    return 0;
}
