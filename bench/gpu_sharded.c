/*
 * gpu_sharded.c - sharded steps (ZeRO-1) over several GPUs of one host through NCCL, one process a GPU: whether they
 * give the same bytes as one GPU does, and what reduce-scatter, step and all-gather take beside NCCL's own times.
 *
 * usage: gpu_sharded [--ranks N] [--check] [--bench] [--die] [--layers L[,L...]] [--width D] [--csv FILE] [--quick]
 *                    [--deadline SECONDS] [--id FILE --rank R]
 *
 * Forks a process a rank, unless --rank says which one this is; they meet by the file that rank 0 writes NCCL's id to.
 * Without --check, --bench and --die the first two are done. --layers names the depths of the GPT-2 models to time, of
 * width D = 1600: 24 has 820M parameters, 48 has 1.56G. --quick is for emulators. A rank that takes longer than
 * --deadline is ended. Exit status 1 if something failed; what can go on does.
 */
#include "gpu_sharded.h"
#include "gpu_csv.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WARM = 5, TIMED = 15, MOST_LISTS = 8, MOST_RANKS = 64 };

typedef struct options {
    int ranks, rank; /* rank -1: fork */
    bool check, bench, die, quick;
    int layers[MOST_LISTS], lists;
    int64_t width;
    unsigned deadline;
    const char *csv;
    char id[256];
} options;

static int this_rank;

bool passed(stq_status status, const char *call, const char *file, int line) {
    if (status == STQ_OK)
        return true;
    fprintf(stderr, "gpu_sharded: rank %d: %s:%d: %.60s: %s: %s\n", this_rank, file, line, call,
            stq_status_name(status), stq_last_error());
    return false;
}

bool passed_cuda(cudaError_t error, const char *call, const char *file, int line) {
    if (error == cudaSuccess)
        return true;
    fprintf(stderr, "gpu_sharded: rank %d: %s:%d: %.60s: %s\n", this_rank, file, line, call, cudaGetErrorString(error));
    return false;
}

/* ---- Lists of tensors ---- */

static void *grown(void *array, size_t count, size_t size) {
    void *more = realloc(array, count * size);
    if (more)
        return more;
    fprintf(stderr, "gpu_sharded: no memory for a list of tensors\n");
    exit(1);
}

void model_add(model *m, int64_t rows, int64_t cols) {
    m->tensors = grown(m->tensors, m->count + 1, sizeof *m->tensors);
    m->names = grown(m->names, m->count + 1, sizeof *m->names);
    m->offsets = grown(m->offsets, m->count + 1, sizeof *m->offsets);
    snprintf(m->names[m->count], sizeof m->names[0], "t%zu", m->count);
    m->tensors[m->count] = stq_tensor_whole("", rows, cols);
    m->tensors[m->count].parameter_type = m->tensors[m->count].gradient_type = STQ_BFLOAT16;
    m->offsets[m->count] = m->length;
    m->count++;
    m->length += (rows * cols + 63) / 64 * 64;
    m->parameters += rows * cols;
    for (size_t i = 0; i < m->count; i++)
        m->tensors[i].name = m->names[i];
}

void model_free(model *m) {
    free(m->tensors);
    free(m->names);
    free(m->offsets);
    memset(m, 0, sizeof *m);
}

/* The list of bench/gpu_step.c: GPT-2 XL's shapes. */
static model gpt2(int64_t d, int layers) {
    model m = {0};
    model_add(&m, d == 1600 ? 50257 : 31 * d, d);
    model_add(&m, d == 1600 ? 1024 : d, d);
    for (int layer = 0; layer < layers; layer++) {
        const int64_t shapes[12][2] = {{1, d}, {1, d}, {3 * d, d}, {1, 3 * d}, {d, d},     {1, d},
                                       {1, d}, {1, d}, {4 * d, d}, {1, 4 * d}, {d, 4 * d}, {1, d}};
        for (int i = 0; i < 12; i++)
            model_add(&m, shapes[i][0], shapes[i][1]);
    }
    model_add(&m, 1, d);
    model_add(&m, 1, d);
    return m;
}

/* ---- Times ---- */

/* What is timed, in milliseconds. EVEN_*: NCCL's own operation over equal parts of as many elements. */
enum { WHOLE, REDUCE_SCATTER, STEP, ALL_GATHER, EVEN_REDUCE_SCATTER, EVEN_ALL_GATHER, PIECES };

typedef struct timing {
    double median[PIECES]; /* the slowest rank's */
    uint64_t state_bytes, total_bytes;
    bool agree; /* parameters are the same on all ranks */
} timing;

typedef struct bench {
    job *job;
    stq_comm *comm;
    const model *model;
    stq_sharded *sharded;
    uint16_t *parameters, *gradients;
    uint64_t *digest;
    int64_t counts[MOST_RANKS], even[MOST_RANKS];
    cudaEvent_t begin, end;
    int draws;
} bench;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool meet(bench *b) {
    TRY(stq_comm_barrier(b->comm, "the start of a timing"));
    TRY_CUDA(cudaStreamSynchronize(b->job->stream));
    return true;
}

static bool step_alone(bench *b) {
    static void *parameters[4096];
    static const void *gradients[4096];
    const model *m = b->model;
    int64_t cut, owned;
    stq_sharded_range(b->sharded, stq_comm_rank(b->comm), &cut, &owned);
    for (size_t i = 0; i < m->count; i++) {
        int64_t first = cut > m->offsets[i] ? cut - m->offsets[i] : 0;
        first = first < m->tensors[i].count ? first : m->tensors[i].count;
        parameters[i] = b->parameters + m->offsets[i] + first;
        gradients[i] = b->gradients + m->offsets[i] + first;
    }
    TRY(stq_adamw_step(stq_sharded_optimizer(b->sharded),
                       &(stq_step){.size = sizeof(stq_step),
                                   .parameters = parameters,
                                   .gradients = gradients,
                                   .unscale = 1,
                                   .max_gradient_norm = 1.0,
                                   .stream = b->job->stream},
                       NULL));
    return true;
}

static bool enqueue(bench *b, int piece) {
    switch (piece) {
    case WHOLE:
        TRY(stq_sharded_step(b->sharded, b->parameters, b->gradients, 1.0, NULL));
        return true;
    case REDUCE_SCATTER:
        TRY(stq_comm_reduce_scatter(b->comm, b->gradients, b->counts, STQ_COMM_BFLOAT16, "the gradients"));
        return true;
    case STEP:
        return step_alone(b);
    case ALL_GATHER:
        TRY(stq_comm_all_gather(b->comm, b->parameters, b->counts, STQ_COMM_BFLOAT16, "the parameters"));
        return true;
    case EVEN_REDUCE_SCATTER:
        TRY(stq_comm_reduce_scatter(b->comm, b->gradients, b->even, STQ_COMM_BFLOAT16, "equal parts"));
        return true;
    default:
        TRY(stq_comm_all_gather(b->comm, b->parameters, b->even, STQ_COMM_BFLOAT16, "equal parts"));
        return true;
    }
}

static bool time_piece(bench *b, int piece, double *milliseconds) {
    float elapsed;
    if (!meet(b))
        return false;
    TRY_CUDA(cudaEventRecord(b->begin, b->job->stream));
    if (!enqueue(b, piece))
        return false;
    TRY_CUDA(cudaEventRecord(b->end, b->job->stream));
    TRY(stq_comm_finish(b->comm, "a timing"));
    TRY_CUDA(cudaEventSynchronize(b->end));
    TRY_CUDA(cudaEventElapsedTime(&elapsed, b->begin, b->end));
    *milliseconds = (double)elapsed;
    return true;
}

static bool time_all(bench *b, timing *t) {
    double times[PIECES][TIMED];
    for (int i = -WARM; i < TIMED; i++) {
        TRY_CUDA(gpu_random_normal(b->gradients, b->model->length, true, 1e-3f,
                                   (uint32_t)(++b->draws * 1000 + b->job->rank), b->job->stream));
        for (int piece = 0; piece < PIECES; piece++)
            if (!time_piece(b, piece, &times[piece][i < 0 ? 0 : i]))
                return false;
    }
    for (int piece = 0; piece < PIECES; piece++) {
        qsort(times[piece], TIMED, sizeof times[piece][0], ascending);
        t->median[piece] = times[piece][TIMED / 2];
    }
    TRY(stq_comm_all_reduce(b->comm, t->median, PIECES, STQ_COMM_FLOAT64, STQ_COMM_MAX, "the times"));
    return true;
}

static bool open_bench(bench *b) {
    const model *m = b->model;
    int ranks = stq_comm_ranks(b->comm);
    stq_adamw_config config = stq_adamw_defaults();
    config.device = STQ_DEVICE_CUDA;
    config.device_index = b->job->rank;
    config.policy.kind = STQ_POLICY_FIXED;
    config.policy.fixed_m_bits = config.policy.fixed_v_bits = 5;
    int64_t room = m->length + ranks;
    TRY_CUDA(cudaMalloc((void **)&b->parameters, (size_t)room * 2));
    TRY_CUDA(cudaMalloc((void **)&b->gradients, (size_t)room * 2));
    TRY_CUDA(cudaMalloc((void **)&b->digest, sizeof *b->digest));
    TRY_CUDA(gpu_random_normal(b->parameters, room, true, 0.02f, 11, b->job->stream));
    TRY_CUDA(cudaMemsetAsync(b->gradients, 0, (size_t)room * 2, b->job->stream));
    TRY_CUDA(cudaEventCreate(&b->begin));
    TRY_CUDA(cudaEventCreate(&b->end));
    TRY(stq_sharded_create(&b->sharded, b->comm, &config, m->tensors, m->count,
                           &(stq_flat){.offsets = m->offsets, .length = m->length}));
    TRY(stq_sharded_set_stream(b->sharded, b->job->stream));
    for (int r = 0; r < ranks; r++) {
        int64_t first;
        stq_sharded_range(b->sharded, r, &first, &b->counts[r]);
        b->even[r] = (m->length + ranks - 1) / ranks;
    }
    return true;
}

static void close_bench(bench *b) {
    stq_sharded_destroy(b->sharded);
    (void)cudaFree(b->parameters);
    (void)cudaFree(b->gradients);
    (void)cudaFree(b->digest);
    if (b->begin)
        (void)cudaEventDestroy(b->begin);
    if (b->end)
        (void)cudaEventDestroy(b->end);
}

/* Whether parameters are the same on all ranks, and the bytes of states. */
static bool compare(bench *b, timing *t) {
    uint64_t digest;
    stq_memory memory;
    TRY_CUDA(cudaMemsetAsync(b->digest, 0, sizeof *b->digest, b->job->stream));
    TRY_CUDA(gpu_digest(b->parameters, b->model->length, 0, 1, b->digest, b->job->stream));
    TRY_CUDA(cudaMemcpyAsync(&digest, b->digest, sizeof digest, cudaMemcpyDeviceToHost, b->job->stream));
    TRY_CUDA(cudaStreamSynchronize(b->job->stream));
    t->agree = passed(stq_comm_agree(b->comm, digest, "the parameters"), "agree", __FILE__, __LINE__);
    TRY(stq_adamw_memory(stq_sharded_optimizer(b->sharded), &memory));
    int64_t most = (int64_t)memory.state_bytes;
    TRY(stq_comm_all_reduce(b->comm, &most, 1, STQ_COMM_INT64, STQ_COMM_MAX, "the state bytes"));
    t->state_bytes = (uint64_t)most;
    TRY(stq_sharded_total_bytes(b->sharded, &t->total_bytes));
    return true;
}

static bool measure(job *j, stq_comm *comm, const model *m, timing *t) {
    bench b = {.job = j, .comm = comm, .model = m};
    memset(t, 0, sizeof *t);
    bool done = open_bench(&b) && time_all(&b, t) && compare(&b, t);
    close_bench(&b);
    return done && t->agree;
}

/* What the whole step may be compared with: NCCL's own times and this rank's share of the step on one GPU. */
static double reference(const timing *t, double single_step, int ranks) {
    double nccl = ranks > 1 ? t->median[EVEN_REDUCE_SCATTER] + t->median[EVEN_ALL_GATHER] : 0;
    return nccl + single_step / ranks;
}

static void tell(const job *j, FILE *csv, const model *m, int layers, int ranks, const timing *t, double single_step) {
    const double *ms = t->median;
    bool several = ranks > 1;
    double expected = reference(t, single_step, ranks);
    printf("| %.0fM | %d | %.3f | %.3f | %.3f | %.3f | %.3f | %.3f | %.3f | %.3f | %llu | %llu |\n",
           (double)m->parameters / 1e6, ranks, several ? ms[REDUCE_SCATTER] : 0, ms[STEP], several ? ms[ALL_GATHER] : 0,
           ms[WHOLE], several ? ms[EVEN_REDUCE_SCATTER] : 0, several ? ms[EVEN_ALL_GATHER] : 0, expected,
           ms[WHOLE] / expected, (unsigned long long)t->state_bytes, (unsigned long long)t->total_bytes);
    fflush(stdout);
    if (!csv)
        return;
    fprintf(csv, "%s,%lld,%zu,%d,%d,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%llu,%llu,%s\n", j->device,
            (long long)m->parameters, m->count, layers, ranks, several ? ms[REDUCE_SCATTER] : 0, ms[STEP],
            several ? ms[ALL_GATHER] : 0, ms[WHOLE], several ? ms[EVEN_REDUCE_SCATTER] : 0,
            several ? ms[EVEN_ALL_GATHER] : 0, single_step, expected, ms[WHOLE] / expected,
            (unsigned long long)t->state_bytes, (unsigned long long)t->total_bytes, t->agree ? "yes" : "no");
    fflush(csv);
}

/* One list on one GPU, each rank for itself, then on all. */
static bool bench_list(job *j, FILE *csv, const options *o, int layers) {
    model m = gpt2(o->width, layers);
    timing one, all;
    bool done = m.count <= 4096 && measure(j, j->self, &m, &one);
    if (done && j->rank == 0)
        tell(j, csv, &m, layers, 1, &one, one.median[STEP]);
    if (done && j->ranks > 1)
        done = measure(j, j->comm, &m, &all);
    if (done && j->ranks > 1 && j->rank == 0)
        tell(j, csv, &m, layers, j->ranks, &all, one.median[STEP]);
    if (!done)
        fprintf(stderr, "gpu_sharded: rank %d: the times of %d layers failed\n", j->rank, layers);
    model_free(&m);
    return done;
}

static bool run_bench(job *j, const options *o) {
    FILE *csv = NULL;
    bool done = true;
    if (j->rank == 0) {
        csv = gpu_csv_open(o->csv, "a",
                           "device,parameters,tensors,layers,ranks,reduce_scatter_ms,step_ms,all_gather_ms,whole_ms,"
                           "nccl_reduce_scatter_ms,nccl_all_gather_ms,single_step_ms,expected_ms,share_of_expected,"
                           "state_bytes_per_rank,state_bytes,digests_agree");
        printf("%s, medians of %d steps after %d, the slowest rank's, ms; expected: NCCL's own times and 1/N of the "
               "step on one GPU\n| parameters | GPUs | reduce-scatter | step | all-gather | whole | NCCL's "
               "reduce-scatter | NCCL's all-gather | expected | whole / expected | state bytes a rank | in all |\n"
               "|---|---|---|---|---|---|---|---|---|---|---|---|\n",
               j->device, TIMED, WARM);
        fflush(stdout);
    }
    for (int i = 0; i < o->lists; i++)
        done = bench_list(j, csv, o, o->layers[i]) && done;
    if (csv)
        fclose(csv);
    return done;
}

/* ---- Processes ---- */

static bool write_id(const char *path) {
    uint8_t id[STQ_COMM_NCCL_ID_BYTES];
    char temporary[300];
    TRY(stq_comm_nccl_id(id));
    snprintf(temporary, sizeof temporary, "%s.part", path);
    FILE *file = fopen(temporary, "wb");
    bool written = file && fwrite(id, sizeof id, 1, file) == 1;
    written = file && fclose(file) == 0 && written;
    if (!written || rename(temporary, path) != 0) {
        perror(path);
        return false;
    }
    return true;
}

static bool read_id(const char *path, uint8_t id[STQ_COMM_NCCL_ID_BYTES]) {
    for (int tries = 0; tries < 3000; tries++) {
        FILE *file = fopen(path, "rb");
        if (file) {
            bool whole = fread(id, STQ_COMM_NCCL_ID_BYTES, 1, file) == 1;
            fclose(file);
            return whole;
        }
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    fprintf(stderr, "gpu_sharded: rank %d: rank 0 wrote no id to %s within 30 s\n", this_rank, path);
    return false;
}

static bool join(job *j, const options *o) {
    uint8_t id[STQ_COMM_NCCL_ID_BYTES];
    int devices = 0;
    struct cudaDeviceProp device;
    TRY_CUDA(cudaGetDeviceCount(&devices));
    if (j->rank >= devices) {
        fprintf(stderr, "gpu_sharded: rank %d of %d has no GPU; there are %d\n", j->rank, j->ranks, devices);
        return false;
    }
    TRY_CUDA(cudaSetDevice(j->rank));
    TRY_CUDA(cudaGetDeviceProperties(&device, j->rank));
    snprintf(j->device, sizeof j->device, "%s", device.name);
    TRY_CUDA(cudaStreamCreateWithFlags(&j->stream, cudaStreamNonBlocking));
    TRY(stq_comm_create_self(&j->self));
    if (j->ranks == 1) {
        j->comm = j->self;
        return true;
    }
    if ((j->rank == 0 && !write_id(o->id)) || !read_id(o->id, id))
        return false;
    TRY(stq_comm_create_nccl(&j->comm, id, j->rank, j->ranks, j->stream, o->die ? 5 : 20));
    TRY(stq_comm_barrier(j->comm, "the start"));
    if (!o->check)
        return true;
    /* The way from one communicator to another, which MPI's would take too. */
    stq_comm *first = j->comm;
    TRY(stq_comm_create_nccl_over(&j->comm, first, j->stream, o->die ? 5 : 20));
    TRY(stq_comm_barrier(j->comm, "the second start"));
    stq_comm_destroy(first);
    return true;
}

static int work(const options *o, int rank) {
    job j = {.rank = rank, .ranks = o->ranks};
    this_rank = rank;
    alarm(o->deadline);
    if (!join(&j, o))
        return 1;
    bool done = true;
    if (o->check)
        done = check_equality(&j, o->quick) && done;
    if (o->bench)
        done = run_bench(&j, o) && done;
    if (o->die) {
        done = check_death(&j, o->quick) && done;
        fflush(NULL);
        _exit(!done);
    }
    if (j.comm != j.self)
        stq_comm_destroy(j.comm);
    stq_comm_destroy(j.self);
    fflush(NULL);
    return !done;
}

/* Waits for the ranks; those that are still there 15 s after one has failed are ended. */
static int wait_for(const options *o, const pid_t *ranks) {
    bool ended[MOST_RANKS] = {false};
    int left = o->ranks, status = 0, failed_for = -1;
    while (left > 0) {
        for (int r = 0; r < o->ranks; r++) {
            int how;
            if (ended[r] || waitpid(ranks[r], &how, WNOHANG) != ranks[r])
                continue;
            ended[r] = true;
            left--;
            bool meant = o->die && r == o->ranks - 1;
            if ((WIFEXITED(how) && WEXITSTATUS(how) == 0) || meant)
                continue;
            fprintf(stderr, "gpu_sharded: rank %d ended with %s %d\n", r, WIFEXITED(how) ? "status" : "signal",
                    WIFEXITED(how) ? WEXITSTATUS(how) : WTERMSIG(how));
            status = 1;
            failed_for = failed_for < 0 ? 0 : failed_for;
        }
        for (int r = 0; r < o->ranks && failed_for == 1500; r++)
            if (!ended[r])
                kill(ranks[r], SIGKILL);
        failed_for += failed_for >= 0;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return status;
}

/* Nothing of CUDA is touched before the fork. */
static int launch(options *o) {
    pid_t ranks[MOST_RANKS];
    snprintf(o->id, sizeof o->id, "%.200s/gpu-sharded-%ld.id", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
             (long)getpid());
    for (int r = 0; r < o->ranks; r++) {
        fflush(NULL);
        ranks[r] = fork();
        if (ranks[r] == 0)
            _exit(work(o, r));
        if (ranks[r] < 0) {
            perror("gpu_sharded: fork");
            o->ranks = r;
            (void)wait_for(o, ranks);
            return 1;
        }
    }
    int status = wait_for(o, ranks);
    (void)remove(o->id);
    return status;
}

static bool read_layers(options *o, char *text) {
    o->lists = 0;
    for (char *part = strtok(text, ","); part; part = strtok(NULL, ",")) {
        int layers = atoi(part);
        if (layers < 1 || layers > 340 || o->lists == MOST_LISTS)
            return false;
        o->layers[o->lists++] = layers;
    }
    return o->lists > 0;
}

static bool read_options(int argc, char **argv, options *o) {
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        bool *flag = !strcmp(argv[i], "--check")   ? &o->check
                     : !strcmp(argv[i], "--bench") ? &o->bench
                     : !strcmp(argv[i], "--die")   ? &o->die
                     : !strcmp(argv[i], "--quick") ? &o->quick
                                                   : NULL;
        if (flag) {
            *flag = true;
            continue;
        }
        if (!value)
            return false;
        if (!strcmp(argv[i], "--ranks"))
            o->ranks = atoi(value);
        else if (!strcmp(argv[i], "--rank"))
            o->rank = atoi(value);
        else if (!strcmp(argv[i], "--id"))
            snprintf(o->id, sizeof o->id, "%s", value);
        else if (!strcmp(argv[i], "--csv"))
            o->csv = value;
        else if (!strcmp(argv[i], "--width"))
            o->width = atoi(value);
        else if (!strcmp(argv[i], "--deadline"))
            o->deadline = (unsigned)atoi(value);
        else if (strcmp(argv[i], "--layers") != 0 || !read_layers(o, argv[i + 1]))
            return false;
        i++;
    }
    return o->ranks >= 1 && o->ranks <= MOST_RANKS && o->rank < o->ranks && o->width >= 16 &&
           (o->rank < 0 || o->ranks == 1 || o->id[0]);
}

int main(int argc, char **argv) {
    options o = {.ranks = 1, .rank = -1, .layers = {24}, .lists = 1, .width = 1600, .deadline = 100};
    if (!read_options(argc, argv, &o)) {
        fprintf(stderr, "usage: gpu_sharded [--ranks N] [--check] [--bench] [--die] [--layers L[,L...]] [--width D] "
                        "[--csv FILE] [--quick] [--deadline SECONDS] [--id FILE --rank R]\n");
        return 2;
    }
    if (!o.check && !o.bench && !o.die)
        o.check = o.bench = true;
    /* NVLink multicast stays off. */
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    return o.rank >= 0 ? work(&o, o.rank) : launch(&o);
}
