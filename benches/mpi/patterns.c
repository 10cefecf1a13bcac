/*
 * MPI communication patterns, after those of the Intel MPI Benchmarks (IMB-MPI1 and IMB-P2P):
 *
 *   pingpong    one message there and back between ranks 0 and n/2; the others sleep
 *   pairs       the same between every rank r < n/2 and r + n/2 at once
 *   rate        the same pairs: a window of WINDOW messages one way, then one empty answer
 *   alltoall    MPI_Alltoall, `bytes` for each rank
 *   allreduce   MPI_Allreduce of `bytes`, a sum of floats
 *   stencil2d   `bytes` to and from the 4 neighbours on a torus
 *   stencil3d   the same with 6 neighbours
 *
 * With ranks placed node after node, r and r + n/2 are on different nodes.
 *
 *   mpirun ... patterns SECONDS PATTERN:BYTES[,BYTES...] ...
 *
 * Each pattern runs for about SECONDS with each of its numbers of bytes. Rank 0 then writes a line, one JSON object:
 *
 *   pattern, bytes, ranks
 *   operations    measured on each rank that takes part
 *   us_p50 us_p99 of all operations of all ranks that take part. An operation is a round trip for pingpong and pairs, a
 *                 window with its answer for rate, one exchange or one call for the others
 *   mbytes_per_s  bytes that all ranks together sent / 1e6 / seconds; for allreduce the `bytes` of each rank
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW = 64, MOST_OPERATIONS = 20000, MOST_NEIGHBOURS = 6, MOST_BYTES = 1 << 20 };

/* All that an operation needs. */
struct run {
    int rank, ranks;
    int bytes;
    /* Where the pattern has pairs: the other rank, and whether this one begins. */
    int partner, begins;
    /* Where it has neighbours: what is sent to neighbours[i] is what neighbours[i ^ 1] expects from the other side. */
    int neighbours[MOST_NEIGHBOURS], neighbour_count;
    char *sent, *received;
};

static void *allocate(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (!memory) {
        fprintf(stderr, "patterns: no memory for %zu bytes\n", bytes);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    return memory;
}

static void ping_pong(struct run *run)
{
    if (run->begins) {
        MPI_Send(run->sent, run->bytes, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD);
        MPI_Recv(run->received, run->bytes, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else {
        MPI_Recv(run->received, run->bytes, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Send(run->sent, run->bytes, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD);
    }
}

static void window(struct run *run)
{
    MPI_Request requests[WINDOW];
    for (int i = 0; i < WINDOW; i++) {
        if (run->begins)
            MPI_Isend(run->sent, run->bytes, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD, &requests[i]);
        else
            MPI_Irecv(run->received + (size_t)i * run->bytes, run->bytes, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD,
                      &requests[i]);
    }
    MPI_Waitall(WINDOW, requests, MPI_STATUSES_IGNORE);
    if (run->begins)
        MPI_Recv(run->received, 0, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    else
        MPI_Send(run->sent, 0, MPI_BYTE, run->partner, 0, MPI_COMM_WORLD);
}

static void all_to_all(struct run *run)
{
    MPI_Alltoall(run->sent, run->bytes, MPI_BYTE, run->received, run->bytes, MPI_BYTE, MPI_COMM_WORLD);
}

static void all_reduce(struct run *run)
{
    MPI_Allreduce(run->sent, run->received, run->bytes / (int)sizeof(float), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static void stencil(struct run *run)
{
    MPI_Request requests[2 * MOST_NEIGHBOURS];
    int count = run->neighbour_count;
    for (int i = 0; i < count; i++)
        MPI_Irecv(run->received + (size_t)i * run->bytes, run->bytes, MPI_BYTE, run->neighbours[i], i ^ 1,
                  MPI_COMM_WORLD, &requests[i]);
    for (int i = 0; i < count; i++)
        MPI_Isend(run->sent, run->bytes, MPI_BYTE, run->neighbours[i], i, MPI_COMM_WORLD, &requests[count + i]);
    MPI_Waitall(2 * count, requests, MPI_STATUSES_IGNORE);
}

/* The torus: as square, or cubic, as the number of ranks allows. */
static void find_neighbours(struct run *run, int dimensions)
{
    MPI_Comm torus;
    int size[3] = {0, 0, 0}, periodic[3] = {1, 1, 1};
    MPI_Dims_create(run->ranks, dimensions, size);
    MPI_Cart_create(MPI_COMM_WORLD, dimensions, size, periodic, 0, &torus);
    for (int i = 0; i < dimensions; i++)
        MPI_Cart_shift(torus, i, 1, &run->neighbours[2 * i], &run->neighbours[2 * i + 1]);
    run->neighbour_count = 2 * dimensions;
    MPI_Comm_free(&torus);
}

/*
 * A barrier that sleeps. MPI waits by polling; ranks that have nothing to do would take the cores from those that have,
 * where there are fewer cores than ranks.
 */
static void sleeping_barrier(void)
{
    MPI_Request request;
    int done = 0;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    while (!done) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (!done)
            usleep(1000);
    }
}

struct pattern {
    const char *name;
    void (*operation)(struct run *);
    /* Pairs that take part: none, one, or as many as there are. */
    enum { NO_PAIRS, ONE_PAIR, ALL_PAIRS } pairs;
    int dimensions;
};

static const struct pattern PATTERNS[] = {
    {"pingpong", ping_pong, ONE_PAIR, 0},   {"pairs", ping_pong, ALL_PAIRS, 0},   {"rate", window, ALL_PAIRS, 0},
    {"alltoall", all_to_all, NO_PAIRS, 0},  {"allreduce", all_reduce, NO_PAIRS, 0}, {"stencil2d", stencil, NO_PAIRS, 2},
    {"stencil3d", stencil, NO_PAIRS, 3},
};

/* Bytes that all ranks together send in one operation of each. */
static double bytes_of_operation(const struct pattern *pattern, const struct run *run)
{
    double pairs = pattern->pairs == ONE_PAIR ? 1 : run->ranks / 2;
    if (pattern->operation == ping_pong)
        return pairs * 2 * run->bytes;
    if (pattern->operation == window)
        return pairs * WINDOW * run->bytes;
    if (pattern->operation == all_to_all)
        return (double)run->ranks * (run->ranks - 1) * run->bytes;
    if (pattern->operation == stencil)
        return (double)run->ranks * run->neighbour_count * run->bytes;
    return (double)run->ranks * run->bytes;
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/*
 * Has every rank that takes part do `count` operations, notes what each took, and returns the seconds of the slowest
 * rank. Ends with all ranks at the same point.
 */
static double run_batch(const struct pattern *pattern, struct run *run, int takes_part, int count, double *took)
{
    double begin = MPI_Wtime(), then = begin, slowest;
    for (int i = 0; takes_part && i < count; i++) {
        pattern->operation(run);
        double now = MPI_Wtime();
        took[i] = now - then;
        then = now;
    }
    double own = then - begin;
    sleeping_barrier();
    MPI_Allreduce(&own, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

/* Writes the line of what `count` operations on each rank have taken: `took`, zeros where a rank took no part. */
static void report(const struct pattern *pattern, const struct run *run, const double *took, int count, double elapsed)
{
    size_t samples = (size_t)run->ranks * count, first = 0;
    double *all = run->rank == 0 ? allocate(samples * sizeof *all) : NULL;
    MPI_Gather(took, count, MPI_DOUBLE, all, count, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    if (run->rank != 0)
        return;
    qsort(all, samples, sizeof *all, ascending);
    while (first + 1 < samples && all[first] <= 0)
        first++;
    const double *sorted = all + first;
    samples -= first;
    printf("{\"pattern\":\"%s\",\"bytes\":%d,\"ranks\":%d,\"operations\":%d,", pattern->name, run->bytes, run->ranks,
           count);
    printf("\"us_p50\":%.3f,\"us_p99\":%.3f,", sorted[samples / 2] * 1e6, sorted[samples * 99 / 100] * 1e6);
    printf("\"mbytes_per_s\":%.3f}\n", bytes_of_operation(pattern, run) * count / elapsed / 1e6);
    fflush(stdout);
    free(all);
}

/* Runs one pattern with one size for about `seconds`. */
static void measure(const struct pattern *pattern, struct run *run, double seconds)
{
    int half = run->ranks / 2, takes_part = 1;
    run->begins = run->rank < half;
    run->partner = run->begins ? run->rank + half : run->rank - half;
    if (pattern->pairs == ONE_PAIR)
        takes_part = run->rank == 0 || run->rank == half;
    if (pattern->pairs == ALL_PAIRS)
        takes_part = run->rank < 2 * half;
    if (pattern->dimensions)
        find_neighbours(run, pattern->dimensions);

    double *took = allocate(MOST_OPERATIONS * sizeof *took);
    /* Opens connections, and is not counted. */
    run_batch(pattern, run, takes_part, 2, took);
    /* In batches, so that all ranks agree on the end however much slower it gets on the way. */
    int count = 0, batch = 4;
    double elapsed = 0;
    while (elapsed < seconds && count < MOST_OPERATIONS) {
        batch = batch < MOST_OPERATIONS - count ? batch : MOST_OPERATIONS - count;
        double time = run_batch(pattern, run, takes_part, batch, took + count);
        elapsed += time;
        count += batch;
        if (time < seconds / 16)
            batch *= 2;
    }
    report(pattern, run, took, count, elapsed);
    free(took);
}

static void fail(int rank, const char *why)
{
    if (rank == 0)
        fprintf(stderr, "patterns: %s\nusage: patterns SECONDS PATTERN:BYTES[,BYTES...] ...\n", why);
    MPI_Finalize();
    exit(2);
}

static const struct pattern *find_pattern(const char *name)
{
    for (size_t i = 0; i < sizeof PATTERNS / sizeof *PATTERNS; i++)
        if (!strcmp(PATTERNS[i].name, name))
            return &PATTERNS[i];
    return NULL;
}

/* Runs one argument: PATTERN:BYTES[,BYTES...]. */
static void run_argument(char *argument, struct run *run, double seconds)
{
    char *sizes = strchr(argument, ':');
    if (!sizes)
        fail(run->rank, "a pattern without bytes");
    *sizes++ = 0;
    const struct pattern *pattern = find_pattern(argument);
    if (!pattern)
        fail(run->rank, "no such pattern");
    for (char *size = strtok(sizes, ","); size; size = strtok(NULL, ",")) {
        run->bytes = atoi(size);
        if (run->bytes < (int)sizeof(float) || run->bytes > MOST_BYTES)
            fail(run->rank, "bytes must be 4 to 1048576");
        size_t parts = run->ranks > WINDOW ? run->ranks : WINDOW;
        run->sent = allocate(parts * run->bytes);
        run->received = allocate(parts * run->bytes);
        measure(pattern, run, seconds);
        free(run->sent);
        free(run->received);
    }
}

int main(int argc, char **argv)
{
    struct run run = {0};
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &run.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &run.ranks);
    double seconds = argc > 2 ? atof(argv[1]) : 0;
    if (seconds <= 0)
        fail(run.rank, "needs a number of seconds and a pattern");
    if (run.ranks < 2)
        fail(run.rank, "needs two ranks at least");
    for (int i = 2; i < argc; i++)
        run_argument(argv[i], &run, seconds);
    MPI_Finalize();
    return 0;
}
