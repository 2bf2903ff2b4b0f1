// A CUDA runtime without a card: torch's real host code runs on it, from the allocator and the dispatcher to autograd's
// threads and CUDA graphs, and everything it asks of the device is counted.
//
// Simulated:
// - One card of compute capability 9.0. Its memory is host memory; copies and memsets are carried out.
// - Stream capture (capture.c): what it refuses is refused, with the runtime's own error codes, and spoils the capture;
//   forks and joins by events are followed. Copies and memsets inside a capture are recorded and done at each replay.
// - A few kernels (kernels.c): filling with a constant, and adding a constant to integers. All others do nothing.
// - cuBLAS, cuBLASLt and cuDNN (libraries.c): torch's host code in front of them runs, they do nothing.
// - Reading one byte back to the host, which is how torch asks "are all finite?", answers 1: yes.
// - The order of streams (order.c): work that nothing makes wait for another stream's work is counted, and so is memory
//   that is written while another stream may still be copying from it.
// Not simulated: values, so nothing that was computed on the card means anything; time, so nothing is late, unless
// events are told to be; DALI; torch.compile; more than one card. A free of memory, which on a card waits, is counted as
// a free.
#define _GNU_SOURCE
#include "card.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const size_t CARD_BYTES = 80ul << 30;

// ---- counters

static long counters[NUM_COUNTERS];

void count(enum counter which) {
    __atomic_add_fetch(&counters[which], 1, __ATOMIC_RELAXED);
}

EXPORT void stub_read_counters(long *values) {
    for (int i = 0; i < NUM_COUNTERS; i++) {
        values[i] = __atomic_load_n(&counters[i], __ATOMIC_RELAXED);
    }
}

// ---- errors

static __thread cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) {
        last_error = error;
    }
    return error;
}

EXPORT cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

EXPORT cudaError_t cudaPeekAtLastError(void) {
    return last_error;
}

// ---- the card

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : result(cudaErrorInvalidDevice);
}

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *card, int device) {
    memset(card, 0, sizeof *card);
    strcpy(card->name, "Stub card");
    card->major = 9;
    card->multiProcessorCount = 132;
    card->warpSize = 32;
    card->maxThreadsPerBlock = 1024;
    card->maxThreadsPerMultiProcessor = 2048;
    card->maxBlocksPerMultiProcessor = 32;
    card->sharedMemPerBlock = 49152;
    card->sharedMemPerBlockOptin = 232448;
    card->sharedMemPerMultiprocessor = 233472;
    card->regsPerBlock = 65536;
    card->regsPerMultiprocessor = 65536;
    card->totalGlobalMem = CARD_BYTES;
    card->l2CacheSize = 50 << 20;
    card->textureAlignment = 512;
    card->canMapHostMemory = 1;
    card->concurrentKernels = 1;
    card->unifiedAddressing = 1;
    card->cooperativeLaunch = 1;
    for (int i = 0; i < 3; i++) {
        card->maxThreadsDim[i] = i == 2 ? 64 : 1024;
        card->maxGridSize[i] = i == 0 ? 2147483647 : 65535;
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
        case cudaDevAttrMaxBlockDimX: *value = 1024; break;
        case cudaDevAttrMaxBlockDimY: *value = 1024; break;
        case cudaDevAttrMaxBlockDimZ: *value = 64; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxGridDimY: *value = 65535; break;
        case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char *name, int length, int device) {
    strncpy(name, "0000:00:00.0", length);
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *found) {
    *function = NULL;
    if (found) {
        *found = cudaDriverEntryPointSymbolNotFound;
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize(void) {
    count(WAITS);
    order_host_waits_for_all();
    return forbidden_in_capture("cudaDeviceSynchronize");
}

// ---- memory: two ranges of addresses, of the card and of pinned host memory. A range is handed out front to back, and
// what was freed is never used again: touching it ends the process, as it should, but for a graph, which counts it.

struct range {
    char *begin;
    bool *freed; // for each page
    size_t used;
    size_t held;
    pthread_mutex_t lock;
};
static struct range card_memory = {.lock = PTHREAD_MUTEX_INITIALIZER};
static struct range pinned_memory = {.lock = PTHREAD_MUTEX_INITIALIZER};
static const size_t RANGE_BYTES = 1ul << 40;
static const size_t PAGE = 4096;

static size_t pages(size_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

// The page before a block holds its size.
static void *take(struct range *range, size_t bytes) {
    pthread_mutex_lock(&range->lock);
    if (!range->begin) {
        range->begin = mmap(NULL, RANGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        range->freed = mmap(NULL, RANGE_BYTES / PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    char *block = range->begin + range->used;
    size_t whole = pages(bytes) + PAGE;
    bool fits = range->begin != MAP_FAILED && range->used + whole <= RANGE_BYTES && range->held + bytes <= CARD_BYTES;
    if (fits && mprotect(block, whole, PROT_READ | PROT_WRITE) == 0) {
        range->used += whole;
        range->held += bytes;
        *(size_t *)block = bytes;
        block += PAGE;
    } else {
        block = NULL;
    }
    pthread_mutex_unlock(&range->lock);
    return block;
}

static void give_back(struct range *range, void *address) {
    char *block = (char *)address - PAGE;
    pthread_mutex_lock(&range->lock);
    size_t bytes = *(size_t *)block;
    range->held -= bytes;
    mmap(block, pages(bytes) + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    memset(range->freed + (block - range->begin) / PAGE, true, pages(bytes) / PAGE + 1);
    pthread_mutex_unlock(&range->lock);
}

static bool lies_in(const struct range *range, const void *address) {
    return range->begin && (char *)address >= range->begin && (char *)address < range->begin + range->used;
}

bool is_on_device(const void *address) {
    return lies_in(&card_memory, address);
}

bool was_freed(const void *address) {
    return is_on_device(address) && card_memory.freed[((char *)address - card_memory.begin) / PAGE];
}

EXPORT cudaError_t cudaMemGetInfo(size_t *left, size_t *all) {
    *left = CARD_BYTES - card_memory.held;
    *all = CARD_BYTES;
    return cudaSuccess;
}

EXPORT cudaError_t cudaMalloc(void **address, size_t bytes) {
    cudaError_t error = forbidden_in_capture("cudaMalloc");
    if (error) {
        return error;
    }
    *address = allocations_fail() ? NULL : take(&card_memory, bytes);
    if (!*address) {
        return result(cudaErrorMemoryAllocation);
    }
    count(ALLOCATIONS);
    return cudaSuccess;
}

EXPORT cudaError_t cudaFree(void *address) {
    cudaError_t error = forbidden_in_capture("cudaFree");
    if (error || !address) {
        return error;
    }
    count(FREES);
    give_back(&card_memory, address);
    return cudaSuccess;
}

EXPORT cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    cudaError_t error = forbidden_in_capture("cudaHostAlloc");
    if (error) {
        return error;
    }
    *address = take(&pinned_memory, bytes);
    return *address ? cudaSuccess : result(cudaErrorMemoryAllocation);
}

EXPORT cudaError_t cudaFreeHost(void *address) {
    if (address) {
        give_back(&pinned_memory, address);
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *about, const void *address) {
    memset(about, 0, sizeof *about);
    about->type = is_on_device(address)                ? cudaMemoryTypeDevice
                  : lies_in(&pinned_memory, address) ? cudaMemoryTypeHost
                                                       : cudaMemoryTypeUnregistered;
    about->devicePointer = (void *)address;
    return cudaSuccess;
}

// ---- copies and memsets

static enum counter direction(const void *to, const void *from) {
    if (!is_on_device(to)) {
        return COPIES_TO_HOST;
    }
    return is_on_device(from) ? COPIES_ON_DEVICE : COPIES_TO_DEVICE;
}

static bool is_pageable(const void *address) {
    return !is_on_device(address) && !lies_in(&pinned_memory, address);
}

EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    if (is_pageable(to) || is_pageable(from)) {
        count(PAGEABLE_COPIES);
    }
    enum counter counter = direction(to, from);
    struct work copy = {.kind = COPY, .to = to, .from = from, .bytes = bytes};
    if (counter == COPIES_TO_HOST && bytes == 1) {
        copy = (struct work){.kind = SET, .to = to, .byte = 1, .bytes = 1};
    }
    return submit(stream, "cudaMemcpyAsync", counter, copy);
}

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    count(WAITS);
    cudaError_t error = forbidden_in_capture("cudaMemcpy");
    error = error ? error : cudaMemcpyAsync(to, from, bytes, kind, NULL);
    order_host_waits_for(NULL);
    return error;
}

EXPORT cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t stream) {
    struct work set = {.kind = SET, .to = to, .byte = byte, .bytes = bytes};
    return submit(stream, "cudaMemsetAsync", MEMSETS, set);
}

EXPORT cudaError_t cudaMemset(void *to, int byte, size_t bytes) {
    cudaError_t error = forbidden_in_capture("cudaMemset");
    return error ? error : cudaMemsetAsync(to, byte, bytes, NULL);
}
