// bench_checkpoint DIR MB ROUNDS CUT: how fast checkpoints are written and read, against plain calls on the same bytes: each rank's share
// of one file by pwrite and fsync, or by pread. Twice each, in turns, so that both meet the same weather. CUT: rows, cols. A line of
// CSV per round on stdout, MB/s: plain and checkpoint, written, read from the disk (the page cache emptied of the file), read from memory.
#define _GNU_SOURCE
#include "io/checkpoint.h"
#include "io/rundir.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TENSORS = 24, COLS = 2048 };

typedef struct Bench {
    Comm *world;
    const char *dir;
    CkptTensor t[TENSORS];
    char *data; // this rank's part
    size_t share, bytes;
} Bench;

static void lay_out(Bench *b, int64_t mb, bool by_columns)
{
    const int rank = comm_rank(b->world), size = comm_size(b->world);
    const int64_t rows = mb * 1000000 / (TENSORS * COLS * 4);
    static char names[TENSORS][32];
    for (int i = 0; i < TENSORS; i++) {
        snprintf(names[i], sizeof names[i], "model/layers.%d.weight", i);
        CkptTensor *t = &b->t[i];
        *t = (CkptTensor){.name = names[i], .t = DT_F32, .shape = {rows, COLS}, .rows = rows, .cols = COLS};
        int64_t *start = by_columns ? &t->col0 : &t->row0, *length = by_columns ? &t->cols : &t->rows, all = *length;
        *start = all * rank / size;
        *length = all * (rank + 1) / size - *start;
        b->share += (size_t)(t->rows * t->cols) * 4;
        b->bytes += (size_t)(rows * COLS) * 4;
    }
    b->data = xmalloc(b->share);
    for (size_t i = 0; i < b->share / 4; i++) {
        uint32_t u = (uint32_t)i * 2654435761u + (uint32_t)rank;
        memcpy(b->data + 4 * i, &u, 4);
    }
    char *at = b->data;
    for (int i = 0; i < TENSORS; i++) {
        b->t[i].data = at;
        at += b->t[i].rows * b->t[i].cols * 4;
    }
}

static void check(int status, const char *what)
{
    if (status >= 0) return;
    fprintf(stderr, "bench_checkpoint: %s: %s: %s\n", what, error_last()->place, error_last()->what);
    comm_abort(NULL, 1);
}

static double timed(Bench *b, void (*fn)(Bench *b))
{
    check(comm_barrier(b->world), "barrier");
    double start = now_ms();
    fn(b);
    check(comm_barrier(b->world), "barrier");
    return now_ms() - start;
}

// ---- plain ----------------------------------------------------------------------------------------------------------
static const char *plain_file(const Bench *b)
{
    return tmpf("%s/plain", b->dir);
}

static void plain_write(Bench *b)
{
    int fd = open(plain_file(b), O_CREAT | O_WRONLY, 0644);
    off_t at = (off_t)(b->bytes / (size_t)comm_size(b->world)) * comm_rank(b->world);
    for (size_t done = 0; done < b->share;) {
        ssize_t n = pwrite(fd, b->data + done, b->share - done, at + (off_t)done);
        check(n > 0 ? OK : fail_errno(plain_file(b), "cannot write"), "plain write");
        done += (size_t)n;
    }
    check(fsync(fd) == 0 ? OK : fail_errno(plain_file(b), "cannot flush"), "plain write");
    close(fd);
}

static void plain_read(Bench *b)
{
    int fd = open(plain_file(b), O_RDONLY);
    off_t at = (off_t)(b->bytes / (size_t)comm_size(b->world)) * comm_rank(b->world);
    for (size_t done = 0; done < b->share;) {
        ssize_t n = pread(fd, b->data + done, b->share - done, at + (off_t)done);
        check(n > 0 ? OK : fail_errno(plain_file(b), "cannot read"), "plain read");
        done += (size_t)n;
    }
    close(fd);
}

// ---- checkpoints ----------------------------------------------------------------------------------------------------
static void checkpoint_write(Bench *b)
{
    CkptMeta meta = {.step = 1, .json = (char *)"{}"};
    check(checkpoint_save(b->world, b->dir, &meta, b->t, TENSORS, 1), "save");
}

static void checkpoint_read_all(Bench *b)
{
    int64_t step;
    char *dir;
    check(checkpoint_resume(b->world, b->dir, NULL, NULL, b->t, TENSORS, &step, &dir), "resume");
    check(step == 1 ? OK : fail(E_FAILED, b->dir, NULL, "no checkpoint"), "resume");
    free(dir);
}

// ---- rounds ---------------------------------------------------------------------------------------------------------
static void forget(const char *file)
{
    int fd = open(file, O_RDONLY);
    if (fd < 0) return;
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

static void forget_both(const Bench *b)
{
    if (comm_rank(b->world) == 0) {
        forget(plain_file(b));
        forget(tmpf("%s/checkpoints/step-00000001/state.h5", b->dir));
    }
    check(comm_barrier(b->world), "barrier");
}

static const char *checkpoints(const Bench *b)
{
    return tmpf("%s/checkpoints", b->dir);
}

static void clear(const Bench *b, const char *path)
{
    if (comm_rank(b->world) == 0) {
        check(remove_tree(path), "clear");
        sync();
    }
    check(comm_barrier(b->world), "barrier");
}

static void run_round(Bench *b, int round)
{
    static const int order[] = {
        0, 1, 1, 0};   // plain, checkpoint: none of them is the one that comes sooner after what was before
    double rate[3][2]; // written, read from the disk, read from memory
    void (*const fn[3][2])(Bench *) = {
        {plain_write, checkpoint_write}, {plain_read, checkpoint_read_all}, {plain_read, checkpoint_read_all}};
    for (int what = 0; what < 3; what++) {
        double ms[2] = {0, 0};
        for (int which = 0; which < 2 && what == 1;
             which++) { // what is read for the first time may come from a slower place below
            forget_both(b);
            fn[what][which](b);
        }
        for (size_t i = 0; i < COUNT_OF(order); i++) {
            const int which = (order[i] + round) % 2;
            if (what == 0) clear(b, which ? checkpoints(b) : plain_file(b));
            if (what < 2)
                forget_both(b); // writing, too, gets its pages from what is then free
            else
                fn[what][which](b);
            ms[which] += timed(b, fn[what][which]);
        }
        for (int which = 0; which < 2; which++) rate[what][which] = 2e-3 * (double)b->bytes / ms[which];
    }
    if (comm_rank(b->world)) return;
    printf("%d", round);
    for (int what = 0; what < 3; what++)
        printf(",%.0f,%.0f,%.2f", rate[what][0], rate[what][1], rate[what][1] / rate[what][0]);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    Bench b = {0};
    if (argc != 5) return 2;
    check(comm_open(&b.world, &(CommConfig){.kind = "auto"}), "MPI");
    b.dir = argv[1];
    lay_out(&b, atoll(argv[2]), streq(argv[4], "cols"));
    for (int round = 1; round <= atoi(argv[3]); round++) run_round(&b, round);
    clear(&b, plain_file(&b));
    clear(&b, checkpoints(&b));
    free(b.data);
    comm_close(b.world);
    return 0;
}
