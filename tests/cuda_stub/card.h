// What the files of the stub share: its counters, its streams and captures, its switches. See runtime.c for the whole.
#pragma once
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

// In the order of COUNTERS in stub.py.
enum counter {
    LAUNCHES,          // kernels and library calls that ran (did nothing, that is)
    LIBRARY_CALLS,     // those of them that were calls of cuBLAS, cuBLASLt and cuDNN
    COPIES_TO_DEVICE,
    COPIES_TO_HOST,
    COPIES_ON_DEVICE,
    PAGEABLE_COPIES,   // those to or from host memory that is not pinned: they may hold up the host
    MEMSETS,
    WAITS,             // of the host: for the device, a stream, an event, a blocking copy
    REPLAYS,           // of graphs
    CAPTURED,          // kernels, library calls, copies and memsets that were recorded instead of run
    ALLOCATIONS,       // of device memory, from the system
    FREES,             // of device memory; a real one waits for the device
    OUTSIDE,           // work put on a stream that is not captured, by a thread that captures
    ILLEGAL,           // calls that a capture forbids
    UNORDERED,         // work on a stream while another has work that it was not made to wait for (order.c)
    REUSED,            // memory that a stream writes while another one may still be reading it (order.c)
    FREED,             // memory that a replay asks for after it was freed: left alone
    NUM_COUNTERS
};
void count(enum counter which);

// runtime.c: keeps an error for cudaGetLastError, and hands it on.
cudaError_t result(cudaError_t error);
bool is_on_device(const void *address);
bool was_freed(const void *address);

// A piece of work whose effect is known. Recorded in a graph, it is done at every replay.
struct work {
    enum { NOTHING, COPY, SET, FILL, ADD } kind;
    void *to;
    const void *from;
    size_t bytes;          // of COPY and SET; FILL and ADD: of one value
    size_t values;         // how many, of FILL and ADD
    int byte;              // of SET
    long long value;       // of FILL (as bytes) and ADD
};

// capture.c: runs work on a stream, or records it if the stream is captured. `what` is for the message of a refusal.
cudaError_t submit(cudaStream_t stream, const char *what, enum counter counter, struct work work);
// capture.c: refuses a call that may not be made while the calling thread captures.
cudaError_t forbidden_in_capture(const char *what);
// capture.c: whether the switch that spoils allocations is on.
bool allocations_fail(void);

// order.c: what a stream or an event knows to be done. NULL stands for the default stream.
struct order;
struct order *new_order(void);
void order_work(struct order *stream);
void order_memory(struct order *stream, const struct work *work);
void order_event(struct order *event, struct order *stream);
void order_wait(struct order *stream, const struct order *event);
void order_host_waits_for(struct order *stream_or_event);
void order_host_waits_for_all(void);
void order_run_beside(struct order *stream, bool beside);
bool order_host_knows(const struct order *event);
bool order_knows(struct order *stream, const struct order *other);
