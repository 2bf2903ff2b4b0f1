// Which work comes after which. Streams run side by side unless an event, or a wait of the host, puts them in order; here
// everything is done at once, so a missing order would not show. It is looked for instead: work on a stream counts as
// unordered when another stream has work that it was not made to wait for. (Whether both touch the same memory is not
// looked at; in fastcifar nothing is meant to run side by side, save DALI's stream, which is not simulated.)
#include "card.h"

#include <pthread.h>
#include <stdlib.h>

enum { MOST_STREAMS = 64 };

// How much of each stream's work is known to be done, by the stream's slot.
struct order {
    int slot; // of a stream, from 1; 0: it had no work yet
    long done[MOST_STREAMS];
};

static long work_of[MOST_STREAMS];
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
        unordered |= i + 1 != stream->slot && work_of[i] > stream->done[i];
        stream->done[i] = work_of[i]; // so that one missing wait is told once
    }
    if (unordered) {
        count(UNORDERED);
    }
    if (!stream->slot && num_slots < MOST_STREAMS) {
        stream->slot = ++num_slots;
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
