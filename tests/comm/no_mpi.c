// comm/ without comm_mpi.c: MPI's libraries do not start under ThreadSanitizer.
#include "comm_impl.h"

const CommOps comm_mpi = {.name = "mpi"};
