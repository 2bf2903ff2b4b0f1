// Which work comes after which. Streams run side by side unless an event, or a wait of the host, puts them in order; here
// everything is done at once, so a missing order would not show. It is looked for instead: work on a stream counts as
// unordered when another stream has work that it was not made to wait for. (Whether both touch the same memory is not
// looked at.) A stream that is meant to run beside all others, as the executor's, can be left out of this, and asked for by
// itself: does one stream know all work of another?
#include "card.h"

#include <pthread.h>
#include <stdlib.h>

enum { MOST_STREAMS = 64 };

// How much of each stream's work is known to be done, by the stream's slot.
struct order {
    int slot;    // of a stream, from 1; 0: it had no work yet
    bool beside; // the stream is meant to run beside all others
    long done[MOST_STREAMS];
};

static long work_of[MOST_STREAMS];
static struct order *stream_of[MOST_STREAMS];
static int num_slots;
static struct order host, default_stream;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct order *new_order(void) {
    return calloc(1, sizeof(struct order));
}

static struct order *of(struct order *stream) {
    return stream ? stream : &default_stream;
}

static void learn(struct order *learner, const struct order *from) {
    for (int i = 0; i < MOST_STREAMS; i++) {
        if (from->done[i] > learner->done[i]) {
            learner->done[i] = from->done[i];
        }
    }
}

void order_work(struct order *stream) {
    stream = of(stream);
    pthread_mutex_lock(&lock);
    learn(stream, &host);
    bool unordered = false;
    for (int i = 0; i < num_slots; i++) {
        if (stream_of[i] == stream || stream_of[i]->beside || stream->beside) {
            continue;
        }
        unordered |= work_of[i] > stream->done[i];
        stream->done[i] = work_of[i]; // so that one missing wait is told once
    }
    if (unordered) {
        count(UNORDERED);
    }
    if (!stream->slot && num_slots < MOST_STREAMS) {
        stream->slot = ++num_slots;
        stream_of[stream->slot - 1] = stream;
    }
    if (stream->slot) {
        stream->done[stream->slot - 1] = ++work_of[stream->slot - 1];
    }
    pthread_mutex_unlock(&lock);
}

void order_event(struct order *event, struct order *stream) {
    stream = of(stream);
    pthread_mutex_lock(&lock);
    learn(stream, &host);
    for (int i = 0; i < MOST_STREAMS; i++) {
        event->done[i] = stream->done[i];
    }
    pthread_mutex_unlock(&lock);
}

void order_wait(struct order *stream, const struct order *event) {
    pthread_mutex_lock(&lock);
    learn(of(stream), event);
    pthread_mutex_unlock(&lock);
}

void order_host_waits_for(struct order *stream_or_event) {
    pthread_mutex_lock(&lock);
    learn(&host, of(stream_or_event));
    pthread_mutex_unlock(&lock);
}

void order_host_waits_for_all(void) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_slots; i++) {
        host.done[i] = work_of[i];
    }
    pthread_mutex_unlock(&lock);
}

void order_run_beside(struct order *stream, bool beside) {
    pthread_mutex_lock(&lock);
    of(stream)->beside = beside;
    pthread_mutex_unlock(&lock);
}

bool order_knows(struct order *stream, const struct order *other) {
    stream = of(stream);
    other = other ? other : &default_stream;
    pthread_mutex_lock(&lock);
    learn(stream, &host);
    bool knows = !other->slot || stream->done[other->slot - 1] >= work_of[other->slot - 1];
    pthread_mutex_unlock(&lock);
    return knows;
}
