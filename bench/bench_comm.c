// bench_comm: all-reduce of f32 sums, 64 B to 500 MB, three ways in one run, alternating: through the window of shared memory
// (what a run on one node uses), by messages (ATTUNE_COMM=mpi), and MPI's own blocking call. Prints CSV: the time
// that a tenth of the rounds keep below, for machines that others use too.
//   mpirun -n 2 build/bench_comm [LARGEST_BYTES]
#include "comm.h"
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

enum { WAYS = 3, MOST_ROUNDS = 1000 };

static Comm *way[2]; // window, messages
static float *x;

static void all_reduce(int w, size_t bytes)
{
    if (w < 2)
        ASSERT(comm_all_reduce(way[w], x, bytes / sizeof *x, DT_F32, REDUCE_SUM) == OK);
    else
        MPI_Allreduce(MPI_IN_PLACE, x, (int)(bytes / sizeof *x), MPI_FLOAT, MPI_SUM,
                      *(MPI_Comm *)comm_mpi_handle(way[0]));
}

static int by_size(const void *a, const void *b)
{
    const double x_ms = *(const double *)a, y_ms = *(const double *)b;
    return (x_ms > y_ms) - (x_ms < y_ms);
}

// A budget of time per way rather than a number of rounds: with more ranks than cores some take a thousand times longer.
static int rounds_for(size_t bytes)
{
    double start = now_ms();
    all_reduce(2, bytes);
    all_reduce(1, bytes);
    double took[] = {now_ms() - start};
    comm_broadcast(way[0], took, sizeof took, DT_U8, 0);
    const int n = (int)(1000 / (took[0] + 1e-3));
    return MAX(MIN(n, MOST_ROUNDS), 3);
}

static void measure(size_t bytes)
{
    static double took_ms[WAYS][MOST_ROUNDS];
    const int rounds = rounds_for(bytes);
    for (int i = 0; i < rounds; i++)
        for (int w = 0; w < WAYS; w++) {
            memset(x, 0, bytes);
            comm_barrier(way[0]);
            double start = now_ms();
            all_reduce(w, bytes);
            took_ms[w][i] = now_ms() - start;
        }
    if (comm_rank(way[0])) return;
    double fast[WAYS];
    for (int w = 0; w < WAYS; w++) {
        qsort(took_ms[w], (size_t)rounds, sizeof took_ms[w][0], by_size);
        fast[w] = took_ms[w][rounds / 10];
    }
    Topo topo;
    ASSERT(topo_read(&topo) == OK);
    printf("%s,%d,%d,%zu,%.2f,%.2f,%.2f,%.2f,%.1f\n", topo.cpu_model, topo.cores, comm_size(way[0]), bytes,
           fast[0] * 1e3, fast[1] * 1e3, fast[2] * 1e3, (double)bytes / fast[0] * 1e-6,
           MIN(fast[1], fast[2]) / fast[0]);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const size_t sizes[] = {64, 4096, 65536, 1 << 20, 20000000, 100000000, 500000000};
    const size_t largest = argc > 1 ? strtoull(argv[1], NULL, 10) : sizes[COUNT_OF(sizes) - 1];
    Comm *world;
    if (comm_open(&world, &(CommConfig){.kind = "mpi"}) < 0) return 1;
    for (int w = 0; w < 2; w++) {
        if (w == 1) setenv("ATTUNE_COMM", "mpi", 1);
        if (comm_split(&way[w], world, 0, comm_rank(world)) < 0) return 1;
        comm_barrier(way[w]); // the choice is made at a group's first collective
    }
    x = xcalloc(largest, 1);
    if (comm_rank(world) == 0) puts("machine,cores,ranks,bytes,window_us,messages_us,mpi_us,window_gb_s,gain");
    for (size_t i = 0; i < COUNT_OF(sizes) && sizes[i] <= largest; i++) measure(sizes[i]);
    free(x);
    for (int w = 0; w < 2; w++) comm_close(way[w]);
    comm_close(world);
    return 0;
}
