// Memory of the CUDA device: blocks for arenas, copies to and from the host through pinned pieces, scratch for ops, and the few
// values that ops give back to the host.
#include "cuda.h"
#include "cuda_kernels.h"
#include <stdlib.h>
#include <string.h>

// ---- blocks ---------------------------------------------------------------------------------------------------------
static double gib(size_t bytes)
{
    return (double)bytes / (1 << 30);
}

static int cuda_obtain(Device *d, void **out, size_t bytes, const char *name)
{
    CudaDevice *c = cuda_of(d);
    size_t left = 0, all = 0;
    (void)cuda_stream(d);
    const cudaError_t e = cudaMalloc(out, bytes);
    if (e != cudaSuccess) {
        (void)cudaGetLastError(); // is told here
        (void)cudaMemGetInfo(&left, &all);
        return fail(E_FAILED, "cuda",
                    "lower train.micro_tokens, set train.recompute or parallel.zero; `attune plan RECIPE` tells what a "
                    "run needs",
                    "%s memory: %.2f GiB asked, %.2f of the GPU's %.2f GiB are free (%s)", name, gib(bytes), gib(left),
                    gib(all), cudaGetErrorName(e));
    }
    pthread_mutex_lock(&c->memory_lock);
    int i = 0;
    while (i < MOST_BLOCKS && c->block[i].at) i++;
    ASSERT(i < MOST_BLOCKS);
    c->block[i] = (struct CudaBlock){*out, bytes};
    pthread_mutex_unlock(&c->memory_lock);
    return OK;
}

static void cuda_release(Device *d, void *memory, size_t bytes)
{
    CudaDevice *c = cuda_of(d);
    (void)cuda_stream(d);
    pthread_mutex_lock(&c->memory_lock);
    for (int i = 0; i < MOST_BLOCKS; i++)
        if (c->block[i].at == memory) {
            ASSERT(c->block[i].bytes == bytes);
            c->block[i] = (struct CudaBlock){0};
        }
    pthread_mutex_unlock(&c->memory_lock);
    cuda_note(d, cudaFree(memory), "cudaFree");
}

static bool cuda_owns(const Device *d, const void *p)
{
    CudaDevice *c = cuda_of(d);
    bool found = false;
    pthread_mutex_lock(&c->memory_lock);
    for (int i = 0; i < MOST_BLOCKS && !found; i++)
        found = (const char *)p >= c->block[i].at && (const char *)p < c->block[i].at + c->block[i].bytes;
    pthread_mutex_unlock(&c->memory_lock);
    return found;
}

size_t cuda_room(size_t bytes)
{
    size_t grain = ARENA_ALIGN;
    while (8 * grain <= bytes) grain *= 2;
    return ROUND_UP(bytes, grain);
}

void *cuda_scratch(Device *d, size_t bytes)
{
    CudaDevice *c = cuda_of(d);
    if (bytes <= c->scratch_bytes) return c->scratch;
    const size_t wanted = cuda_room(bytes);
    if (c->dry) {
        c->scratch_bytes = wanted;
        return NULL;
    }
    const cudaStream_t stream = cuda_stream(d);
    ASSERT(stream == c->compute);
    if (cuda_note(d, cudaStreamSynchronize(stream), "cudaStreamSynchronize")) return NULL; // it is still being used
    cudaFree(c->scratch);
    c->scratch = NULL;
    c->scratch_bytes = 0;
    if (cuda_note(d, cudaMalloc(&c->scratch, wanted), tmpf("scratch memory of %.2f GiB", gib(wanted)))) {
        (void)cudaGetLastError();
        c->scratch = NULL;
        return NULL;
    }
    c->scratch_bytes = wanted;
    return c->scratch;
}

// ---- to the device --------------------------------------------------------------------------------------------------
// The next piece, empty and locked; NULL after a fault.
static CudaStage *take_stage(Device *d)
{
    CudaDevice *c = cuda_of(d);
    CudaStage *s = &c->stage[atomic_fetch_add(&c->next_stage, 1) % STAGES];
    pthread_mutex_lock(&s->lock);
    if (cuda_wait(d, s->sent) == OK) return s;
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void sent(Device *d, CudaStage *s, cudaStream_t stream)
{
    cuda_note(d, cudaEventRecord(s->sent, stream), "cudaEventRecord");
    pthread_mutex_unlock(&s->lock);
}

static void send_stage(Device *d, CudaStage *s, void *dst, size_t bytes)
{
    const cudaStream_t stream = cuda_stream(d);
    cuda_note(d, cudaMemcpyAsync(dst, s->host, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    sent(d, s, stream);
}

// `height` rows of `width` bytes, side by side in the piece, to rows that are `pitch` bytes apart
static void send_rows(Device *d, CudaStage *s, void *dst, size_t pitch, size_t width, size_t height)
{
    const cudaStream_t stream = cuda_stream(d);
    cuda_note(d, cudaMemcpy2DAsync(dst, pitch, s->host, width, width, height, cudaMemcpyHostToDevice, stream),
              "cudaMemcpy2DAsync");
    sent(d, s, stream);
}

static int cuda_upload(Device *d, void *dst, const void *src, size_t bytes)
{
    const char *from = src;
    char *to = dst;
    while (bytes) {
        const size_t n = MIN(bytes, STAGE_BYTES);
        CudaStage *s = take_stage(d);
        if (!s) return cuda_fault(d);
        memcpy(s->host, from, n);
        send_stage(d, s, to, n);
        from += n, to += n, bytes -= n;
    }
    return cuda_fault(d);
}

static void put_row(char *to, DType to_t, const void *from, DType from_t, int first, int count)
{
    const char *at = (const char *)from + (size_t)first * dtype_size(from_t);
    if (to_t == from_t)
        memcpy(to, at, (size_t)count * dtype_size(to_t));
    else if (to_t == DT_BF16)
        for (int k = 0; k < count; k++) ((bf16_t *)(void *)to)[k] = f32_to_bf16(((const float *)(const void *)at)[k]);
    else
        for (int k = 0; k < count; k++) ((float *)(void *)to)[k] = bf16_to_f32(((const bf16_t *)(const void *)at)[k]);
}

// A piece holds several short rows, or a part of a long one.
int cuda_upload_rows(Device *d, void *dst, DType dst_t, int64_t ldd, const void *src, DType src_t, int64_t ld, int rows,
                     int K)
{
    if (cuda_skips(d)) return cuda_fault(d);
    const size_t size = dtype_size(dst_t);
    const int some = MAX(1, (int)(STAGE_BYTES / ((size_t)K * size))), part = MIN(K, (int)(STAGE_BYTES / size));
    for (int r = 0; r < rows; r += some)
        for (int k = 0; k < K; k += part) {
            const int n = MIN(some, rows - r), width = MIN(part, K - k);
            CudaStage *s = take_stage(d);
            if (!s) return cuda_fault(d);
            for (int i = 0; i < n; i++)
                put_row(s->host + (size_t)i * (size_t)width * size, dst_t,
                        (const char *)src + (size_t)(r + i) * (size_t)ld * dtype_size(src_t), src_t, k, width);
            char *to = (char *)dst + ((size_t)r * (size_t)ldd + (size_t)k) * size;
            if (ldd == width)
                send_stage(d, s, to, (size_t)n * (size_t)width * size);
            else
                send_rows(d, s, to, (size_t)ldd * size, (size_t)width * size, (size_t)n);
        }
    return cuda_fault(d);
}

// n rows of `blocks` quantised blocks each go as they are and are decoded there, behind the copy; the piece is free when that is done.
// `room`: NULL, or where they are decoded first, because the rows they are for do not lie side by side.
static void send_blocks(Device *d, CudaStage *s, void *dst, DType dst_t, int64_t ldd, const void *src, Quant format,
                        size_t n, size_t blocks, void *room)
{
    const QuantFormat *q = &quant_formats[format];
    const cudaStream_t stream = cuda_stream(d);
    const size_t bytes = n * blocks * (size_t)q->bytes;
    const int64_t width = (int64_t)blocks * q->block;
    memcpy(s->host, src, bytes);
    cuda_note(d, cudaMemcpyAsync(s->device, s->host, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
    RUN(dequantize, room ? room : dst, dst_t, s->device, format, n * blocks);
    if (room) RUN(convert_rows, dst, dst_t, ldd, room, dst_t, width, width, (int)n);
    sent(d, s, stream);
}

int cuda_upload_blocks(Device *d, void *dst, DType dst_t, int64_t ldd, const void *src, Quant format, int rows, int K)
{
    if (cuda_skips(d)) return cuda_fault(d);
    const QuantFormat *q = &quant_formats[format];
    const bool apart = ldd != K; // else they are one long row
    const size_t element = dtype_size(dst_t), bytes = (size_t)q->bytes, block = (size_t)q->block;
    const size_t lines = apart ? (size_t)rows : 1, line = (size_t)(K / q->block) * (apart ? 1 : (size_t)rows);
    const size_t most = (STAGE_BYTES - ARENA_ALIGN) / (bytes + (apart ? block * element : 0));
    const size_t some = MAX(1, most / MAX(line, 1)), part = MIN(line, most);
    for (size_t r = 0; r < lines; r += some)
        for (size_t at = 0; at < line; at += part) {
            CudaStage *s = take_stage(d);
            if (!s) return cuda_fault(d);
            send_blocks(d, s, (char *)dst + (r * (size_t)ldd + at * block) * element, dst_t, ldd,
                        (const char *)src + (r * line + at) * bytes, format, MIN(some, lines - r), MIN(part, line - at),
                        apart ? s->device + ROUND_UP(most * bytes, ARENA_ALIGN) : NULL);
        }
    return cuda_fault(d);
}

static int cuda_zero(Device *d, void *dst, size_t bytes)
{
    if (bytes) cuda_note(d, cudaMemsetAsync(dst, 0, bytes, cuda_stream(d)), "cudaMemsetAsync");
    return cuda_fault(d);
}

// ---- to the host ----------------------------------------------------------------------------------------------------
static void fetch_piece(Device *d, int i, const char *src, size_t bytes)
{
    CudaDevice *c = cuda_of(d);
    const cudaStream_t stream = cuda_stream(d);
    cuda_note(d, cudaMemcpyAsync(c->down[i], src, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
    cuda_note(d, cudaEventRecord(c->down_sent[i], stream), "cudaEventRecord");
}

// While one piece is copied out, the next is under way.
static int cuda_download(Device *d, void *dst, const void *src, size_t bytes)
{
    CudaDevice *c = cuda_of(d);
    int status = cuda_fault(d);
    if (!bytes || status < 0) return status;
    pthread_mutex_lock(&c->down_lock);
    fetch_piece(d, 0, src, MIN(bytes, DOWN_BYTES));
    for (size_t at = 0; at < bytes && status == OK; at += DOWN_BYTES) {
        const int i = (int)(at / DOWN_BYTES % 2);
        const size_t next = at + DOWN_BYTES;
        if (next < bytes) fetch_piece(d, 1 - i, (const char *)src + next, MIN(bytes - next, DOWN_BYTES));
        status = cuda_wait(d, c->down_sent[i]);
        if (status == OK) memcpy((char *)dst + at, c->down[i], MIN(bytes - at, DOWN_BYTES));
    }
    pthread_mutex_unlock(&c->down_lock);
    return status < 0 ? status : cuda_fault(d);
}

// ---- host results of ops --------------------------------------------------------------------------------------------
void cuda_deliver(Device *d, void *to, const void *from, size_t bytes)
{
    CudaDevice *c = cuda_of(d);
    if (cuda_skips(d)) return;
    for (size_t at = 0; at < bytes; at += RESULT_BYTES) {
        const size_t n = MIN(bytes - at, RESULT_BYTES);
        if (c->results_used + n > RESULT_BYTES && cuda_deliver_all(d) < 0) return;
        if (c->n_results == c->cap_results)
            c->result = xrealloc(c->result, sizeof *c->result * (size_t)(c->cap_results = MAX(64, 2 * c->cap_results)));
        char *room = c->results + c->results_used;
        c->results_used += ROUND_UP(n, 16);
        c->result[c->n_results++] = (CudaResult){(char *)to + at, room, n};
        cuda_note(d, cudaMemcpyAsync(room, (const char *)from + at, n, cudaMemcpyDeviceToHost, cuda_stream(d)),
                  "cudaMemcpyAsync");
    }
}

int *cuda_flag(Device *d, int *to)
{
    CudaDevice *c = cuda_of(d);
    int i = 0;
    while (i < c->n_flags && c->flag_to[i] != to) i++;
    if (i == MOST_FLAGS) {
        if (cuda_deliver_all(d) < 0) return c->flags;
        i = 0;
    }
    if (i == c->n_flags) c->flag_to[c->n_flags++] = to;
    return c->flags + i;
}

int cuda_deliver_all(Device *d)
{
    CudaDevice *c = cuda_of(d);
    const cudaStream_t stream = cuda_stream(d);
    int set[MOST_FLAGS] = {0}, *pinned = (int *)(void *)(c->results + RESULT_BYTES);
    if (c->n_flags) {
        cuda_note(d, cudaMemcpyAsync(pinned, c->flags, sizeof set, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
        cuda_note(d, cudaMemsetAsync(c->flags, 0, sizeof set, stream), "cudaMemsetAsync");
    }
    cuda_note(d, cudaEventRecord(c->reached, stream), "cudaEventRecord");
    const int status = cuda_wait(d, c->reached);
    if (status == OK && c->n_flags) memcpy(set, pinned, sizeof set);
    for (int i = 0; i < c->n_flags; i++)
        if (set[i]) *c->flag_to[i] = 1;
    for (int i = 0; i < c->n_results && status == OK; i++)
        memcpy(c->result[i].to, c->result[i].from, c->result[i].bytes);
    c->n_flags = c->n_results = 0;
    c->results_used = 0;
    return status < 0 ? status : cuda_fault(d);
}

// ---- opening --------------------------------------------------------------------------------------------------------
int cuda_memory_open(Device *d)
{
    CudaDevice *c = cuda_of(d);
    pthread_mutex_init(&c->memory_lock, NULL);
    pthread_mutex_init(&c->down_lock, NULL);
    for (int i = 0; i < STAGES; i++) {
        pthread_mutex_init(&c->stage[i].lock, NULL);
        cuda_note(d, cudaMallocHost((void **)&c->stage[i].host, STAGE_BYTES), "pinned host memory");
        cuda_note(d, cudaMalloc((void **)&c->stage[i].device, STAGE_BYTES), "device memory");
        cuda_note(d, cudaEventCreateWithFlags(&c->stage[i].sent, cudaEventDisableTiming), "cudaEventCreate");
    }
    for (int i = 0; i < 2; i++) {
        cuda_note(d, cudaMallocHost((void **)&c->down[i], DOWN_BYTES), "pinned host memory");
        cuda_note(d, cudaEventCreateWithFlags(&c->down_sent[i], cudaEventDisableTiming), "cudaEventCreate");
    }
    cuda_note(d, cudaMallocHost((void **)&c->results, RESULT_BYTES + FLAG_BYTES), "pinned host memory");
    cuda_note(d, cudaMalloc((void **)&c->flags, FLAG_BYTES), "device memory");
    cuda_note(d, cudaMemsetAsync(c->flags, 0, FLAG_BYTES, cuda_stream(d)), "cudaMemsetAsync");
    d->upload = cuda_upload;
    d->download = cuda_download;
    d->zero = cuda_zero;
    d->obtain = cuda_obtain;
    d->release = cuda_release;
    d->owns = cuda_owns;
    return cuda_fault(d);
}

void cuda_memory_close(Device *d)
{
    CudaDevice *c = cuda_of(d);
    for (int i = 0; i < STAGES; i++) {
        cudaFreeHost(c->stage[i].host);
        cudaFree(c->stage[i].device);
        if (c->stage[i].sent) cudaEventDestroy(c->stage[i].sent);
    }
    for (int i = 0; i < 2; i++) {
        cudaFreeHost(c->down[i]);
        if (c->down_sent[i]) cudaEventDestroy(c->down_sent[i]);
    }
    cudaFreeHost(c->results);
    cudaFree(c->flags);
    cudaFree(c->scratch);
    cudaFree(c->attention.table);
    free(c->attention.lists);
    free(c->result);
}
