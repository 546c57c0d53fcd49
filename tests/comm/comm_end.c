// comm_end abort|hang: rank 1 ends the job with code 7, or stays away from a collective that the others wait in.
#include "comm.h"
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    Comm *world;
    setenv("ATTUNE_COMM_TIMEOUT", "1", 1);
    if (argc != 2 || comm_open(&world, &(CommConfig){.kind = "auto"}) < 0) return 100;
    comm_barrier(world);
    if (comm_rank(world) == 1) {
        if (streq(argv[1], "abort")) comm_abort(world, 7);
        sleep(30);
    }
    comm_barrier(world);
    return 101; // not reached: the abort, or the time limit, ends the job
}
