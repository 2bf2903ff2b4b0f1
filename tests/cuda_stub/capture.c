// Streams, events, capture and graphs. Work on a stream that is not captured is done at once: a stream is never behind.
//
// A capture begins on one stream and takes in every stream that waits for an event of it. At its end all of them must
// have been waited for by the first. Each stream knows up to which of its own and of the others' work it has waited, a
// count for each stream of the capture. A call that a capture forbids spoils it: the next calls on its streams and its
// end say so. Rules: CUDA Programming Guide, "Creating a Graph Using Stream Recorder". One capture at a time.
//
// Stricter than a card: every query and wait by the capturing thread is refused, also of a stream that is not captured.
#include "card.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_STREAMS = 64 };

struct graph {
    struct work *work;
    size_t length;
    size_t room;
};

// How much of each captured stream's work has been waited for, by the stream's place in the capture.
struct seen {
    long of[MOST_STREAMS];
};

struct CUstream_st {
    unsigned long long capture; // number of the capture it belongs to, 0: none
    int place;                  // in that capture
    struct seen seen;
    bool waits_for_legacy; // a "blocking" stream, which waits for the default one and it for this
    struct order *order;
};

struct CUevent_st {
    unsigned long long capture;
    bool recorded;
    struct seen seen;
    struct order *order;
};

static struct {
    unsigned long long number; // 0: nothing is being captured
    enum cudaStreamCaptureMode mode;
    bool spoiled;
    pthread_t thread;
    cudaStream_t streams[MOST_STREAMS]; // the first is where it began
    int num_streams;
    struct graph *graph;
} capture;
static unsigned long long captures_so_far;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// ---- switches: make the k-th captured launch from now on fail, or every allocation

static long fail_launch_in;
static int fail_allocations;

EXPORT void stub_fail_captured_launch(long k) {
    fail_launch_in = k;
}

EXPORT void stub_fail_allocations(int on) {
    fail_allocations = on;
}

bool allocations_fail(void) {
    return fail_allocations;
}

// And one that leaves out the effects of all work, for what only looks at the host's time.
static int no_effects;

EXPORT void stub_leave_out_effects(int on) {
    no_effects = on;
}

// ---- work

// Each copy doubles what is filled: value by value, fills would be a third of what these tests cost.
static void fill(char *to, const void *value, size_t bytes, size_t all) {
    size_t done = bytes < all ? bytes : all;
    memcpy(to, value, done);
    while (done < all) {
        size_t more = done < all - done ? done : all - done;
        more = more < 4096 ? more : 4096; // from the cache
        memcpy(to + done, to, more);
        done += more;
    }
}

static void run(const struct work *work) {
    if (no_effects) {
        return;
    }
    switch (work->kind) {
        case COPY: memmove(work->to, work->from, work->bytes); break;
        case SET: memset(work->to, work->byte, work->bytes); break;
        case FILL: fill(work->to, &work->value, work->bytes, work->bytes * work->values); break;
        case ADD:
            for (size_t i = 0; i < work->values; i++) {
                ((long long *)work->to)[i] = ((const long long *)work->from)[i] + work->value;
            }
            break;
        case NOTHING: break;
    }
}

static void append(struct graph *graph, struct work work) {
    if (graph->length == graph->room) {
        graph->room = 2 * graph->room + 64;
        graph->work = realloc(graph->work, graph->room * sizeof work);
    }
    graph->work[graph->length++] = work;
}

static bool is_captured(cudaStream_t stream) {
    return stream && capture.number && stream->capture == capture.number;
}

static struct order *order_of(cudaStream_t stream) {
    return stream ? stream->order : NULL;
}

static bool by_capturing_thread(void) {
    return capture.number && pthread_equal(pthread_self(), capture.thread);
}

static cudaError_t refuse(const char *what, cudaError_t error) {
    count(ILLEGAL);
    capture.spoiled = true;
    fprintf(stderr, "cuda stub: %s is not allowed while a stream is captured\n", what);
    return result(error);
}

static cudaError_t check_forbidden(const char *what) {
    bool relaxed = thread_mode == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed;
    bool others_may = capture.mode == cudaStreamCaptureModeThreadLocal && !by_capturing_thread();
    if (!capture.number || relaxed || others_may) {
        return cudaSuccess;
    }
    return refuse(what, cudaErrorStreamCaptureUnsupported);
}

cudaError_t forbidden_in_capture(const char *what) {
    pthread_mutex_lock(&lock);
    cudaError_t error = check_forbidden(what);
    pthread_mutex_unlock(&lock);
    return error;
}

static cudaError_t record(cudaStream_t stream, const char *what, enum counter counter, struct work work) {
    if (capture.spoiled) {
        return result(cudaErrorStreamCaptureInvalidated);
    }
    if (counter == LAUNCHES && fail_launch_in && --fail_launch_in == 0) {
        capture.spoiled = true;
        return result(cudaErrorLaunchOutOfResources);
    }
    count(CAPTURED);
    stream->seen.of[stream->place]++;
    append(capture.graph, work);
    return cudaSuccess;
}

cudaError_t submit(cudaStream_t stream, const char *what, enum counter counter, struct work work) {
    cudaError_t error = cudaSuccess;
    pthread_mutex_lock(&lock);
    if (is_captured(stream)) {
        error = record(stream, what, counter, work);
    } else {
        if (capture.number) { // by whichever thread: autograd launches from its own
            count(OUTSIDE);
            fprintf(stderr, "cuda stub: %s was put on a stream outside the capture\n", what);
        }
        if (capture.number && !stream && capture.streams[0]->waits_for_legacy) {
            error = refuse(what, cudaErrorStreamCaptureImplicit);
        } else {
            count(counter);
            order_work(order_of(stream));
            order_memory(order_of(stream), &work);
            run(&work);
        }
    }
    pthread_mutex_unlock(&lock);
    return error;
}

// ---- streams

static cudaError_t make_stream(cudaStream_t *stream, unsigned flags) {
    *stream = calloc(1, sizeof **stream);
    (*stream)->waits_for_legacy = !(flags & cudaStreamNonBlocking);
    (*stream)->order = new_order();
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return make_stream(stream, flags);
}

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return make_stream(stream, flags);
}

EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return cudaSuccess; // kept: an event may still speak of it
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    count(WAITS);
    order_host_waits_for(order_of(stream));
    return forbidden_in_capture("cudaStreamSynchronize");
}

EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return forbidden_in_capture("cudaStreamQuery");
}

// The order of streams, for Card.

EXPORT void stub_run_beside(cudaStream_t stream, int on) {
    order_run_beside(order_of(stream), on);
}

// Of captured work, if the other stream is being captured: what a replay will do in order. torch 2.11 also works on that
// stream while it begins the capture.
EXPORT int stub_knows(cudaStream_t stream, cudaStream_t other) {
    pthread_mutex_lock(&lock);
    bool captured = is_captured(other);
    bool knows = captured && is_captured(stream) && stream->seen.of[other->place] >= other->seen.of[other->place];
    pthread_mutex_unlock(&lock);
    return captured ? knows : order_knows(order_of(stream), order_of(other));
}

// ---- events

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = calloc(1, sizeof **event);
    (*event)->order = new_order();
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event->order);
    free(event);
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    pthread_mutex_lock(&lock);
    event->recorded = true;
    event->capture = is_captured(stream) ? capture.number : 0;
    if (event->capture) {
        event->seen = stream->seen;
    } else {
        order_event(event->order, order_of(stream));
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

static cudaError_t use_event(cudaEvent_t event, const char *what) {
    pthread_mutex_lock(&lock);
    bool captured = capture.number && event->capture == capture.number;
    cudaError_t error = captured ? refuse(what, cudaErrorCapturedEvent) : check_forbidden(what);
    pthread_mutex_unlock(&lock);
    return error;
}

// A switch: an event is not done before the host has waited for it in some way. Else every event is done at once.
static int events_are_late;

EXPORT void stub_events_are_late(int on) {
    events_are_late = on;
}

EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
    cudaError_t error = use_event(event, "cudaEventQuery");
    if (!error && events_are_late && !order_host_knows(event->order)) {
        return result(cudaErrorNotReady);
    }
    order_host_waits_for(event->order); // it is told "done", and so knows it
    return error;
}

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    count(WAITS);
    order_host_waits_for(event->order);
    return use_event(event, "cudaEventSynchronize");
}

EXPORT cudaError_t cudaEventElapsedTime(float *time_ms, cudaEvent_t from, cudaEvent_t to) {
    *time_ms = 1;
    return cudaSuccess;
}

static void join(cudaStream_t stream) {
    stream->capture = capture.number;
    stream->place = capture.num_streams++;
    memset(&stream->seen, 0, sizeof stream->seen);
    capture.streams[stream->place] = stream;
}

static cudaError_t wait_for_captured(cudaStream_t stream, cudaEvent_t event) {
    if (!stream) {
        return refuse("a wait of the default stream for captured work", cudaErrorStreamCaptureImplicit);
    }
    if (!is_captured(stream)) {
        if (capture.num_streams == MOST_STREAMS) {
            return refuse("a fork into so many streams (the stub's limit)", cudaErrorUnknown);
        }
        join(stream);
    }
    for (int i = 0; i < capture.num_streams; i++) {
        if (event->seen.of[i] > stream->seen.of[i]) {
            stream->seen.of[i] = event->seen.of[i];
        }
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    cudaError_t error = cudaSuccess;
    pthread_mutex_lock(&lock);
    if (capture.number && event->recorded && event->capture == capture.number) {
        error = wait_for_captured(stream, event);
    } else if (is_captured(stream) && event->recorded) {
        error = refuse("a wait for work from before the capture", cudaErrorStreamCaptureIsolation);
    } else {
        order_wait(order_of(stream), event->order);
    }
    pthread_mutex_unlock(&lock);
    return error;
}

// ---- capture

static enum cudaStreamCaptureStatus status_of(cudaStream_t stream) {
    if (!is_captured(stream)) {
        return cudaStreamCaptureStatusNone;
    }
    return capture.spoiled ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = status_of(stream);
    if (!stream && capture.number && capture.streams[0]->waits_for_legacy) {
        return result(cudaErrorStreamCaptureImplicit);
    }
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *number, cudaGraph_t *graph,
                                            const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges,
                                            size_t *num_dependencies) {
    cudaError_t error = cudaStreamIsCapturing(stream, status);
    if (number) {
        *number = capture.number;
    }
    if (graph) {
        *graph = (cudaGraph_t)capture.graph;
    }
    if (num_dependencies) {
        *num_dependencies = 0;
    }
    return error;
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    if (!stream || capture.number) {
        return result(cudaErrorStreamCaptureUnsupported);
    }
    pthread_mutex_lock(&lock);
    memset(&capture, 0, sizeof capture);
    capture.number = ++captures_so_far;
    capture.mode = mode;
    capture.thread = pthread_self();
    capture.graph = calloc(1, sizeof *capture.graph);
    join(stream);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

static bool all_joined(void) {
    for (int i = 1; i < capture.num_streams; i++) {
        if (capture.streams[0]->seen.of[i] < capture.streams[i]->seen.of[i]) {
            return false;
        }
    }
    return true;
}

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = NULL;
    if (!is_captured(stream) || stream != capture.streams[0]) {
        return result(cudaErrorIllegalState);
    }
    pthread_mutex_lock(&lock);
    cudaError_t error = cudaSuccess;
    if (capture.spoiled) {
        error = result(cudaErrorStreamCaptureInvalidated);
    } else if (!by_capturing_thread() && capture.mode != cudaStreamCaptureModeRelaxed) {
        error = refuse("the end of a capture by another thread", cudaErrorStreamCaptureWrongThread);
    } else if (!all_joined()) {
        error = refuse("the end of a capture with forks not joined", cudaErrorStreamCaptureUnjoined);
    } else {
        *graph = (cudaGraph_t)capture.graph;
    }
    capture.number = 0;
    pthread_mutex_unlock(&lock);
    return error;
}

// ---- graphs: a graph and what is made of it to run are one

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *num_nodes) {
    *num_nodes = ((struct graph *)graph)->length;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    *made = (cudaGraphExec_t)graph;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t made) {
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t made, cudaStream_t stream) {
    cudaError_t error = forbidden_in_capture("cudaGraphLaunch");
    if (error) {
        return error;
    }
    count(REPLAYS);
    order_work(order_of(stream));
    struct graph *graph = (struct graph *)made;
    for (size_t i = 0; i < graph->length; i++) {
        const struct work *work = &graph->work[i];
        if (was_freed(work->to) || was_freed(work->from)) {
            count(FREED);
            continue;
        }
        order_memory(order_of(stream), work);
        run(work);
    }
    return cudaSuccess;
}
