// Which work comes after which. Streams run side by side unless an event, or a wait of the host, puts them in order; here
// everything is done at once, so a missing order would not show. It is looked for instead: work on a stream counts as
// unordered when another stream has work that it was not made to wait for, whatever memory both touch. A stream that is
// meant to run beside all others, as the executor's, can be left out of this, and asked for by itself: does one stream know
// all work of another?
//
// Of every stream it is kept which memory of the card it last read by a copy. A write to such memory counts as reused when
// the reader may not be done: so does a block that went back to the allocator before the training had read it.
#include "card.h"

#include <pthread.h>
#include <stdlib.h>

enum { MOST_STREAMS = 64, MOST_READS = 512 };

// How much of each stream's work is known to be done, by the stream's slot.
struct order {
    int slot;    // of a stream, from 1; 0: it had no work yet
    bool beside; // the stream is meant to run beside all others
    long done[MOST_STREAMS];
};

struct read {
    const char *from;
    size_t bytes;
    int slot;  // of the stream that read it
    long work; // the number of that stream's work
};

static struct read reads[MOST_READS]; // the last ones, one for each beginning and stream
static long num_reads;
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

static void keep_read(int slot, const char *from, size_t bytes) {
    long at = 0;
    while (at < num_reads && at < MOST_READS && (reads[at].from != from || reads[at].slot != slot)) {
        at++;
    }
    if (at == num_reads || at == MOST_READS) {
        at = num_reads++ % MOST_READS;
    }
    reads[at] = (struct read){from, bytes, slot, work_of[slot - 1]};
}

// After order_work: the work is the stream's last.
void order_memory(struct order *stream, const struct work *work) {
    stream = of(stream);
    size_t bytes = work->bytes * (work->kind == FILL || work->kind == ADD ? work->values : 1);
    const char *to = work->to, *from = work->from;
    if (work->kind == NOTHING || !stream->slot) {
        return;
    }
    pthread_mutex_lock(&lock);
    for (long i = 0; i < num_reads && i < MOST_READS; i++) {
        const struct read *read = &reads[i];
        bool overlaps = to < read->from + read->bytes && read->from < to + bytes;
        if (overlaps && read->slot != stream->slot && read->work > stream->done[read->slot - 1]) {
            count(REUSED);
        }
    }
    if ((work->kind == COPY || work->kind == ADD) && is_on_device(from)) {
        keep_read(stream->slot, from, bytes);
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

bool order_host_knows(const struct order *event) {
    pthread_mutex_lock(&lock);
    bool knows = true;
    for (int i = 0; i < MOST_STREAMS; i++) {
        knows &= event->done[i] <= host.done[i];
    }
    pthread_mutex_unlock(&lock);
    return knows;
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
