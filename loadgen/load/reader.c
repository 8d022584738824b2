/* The compiled part of the client: it reads all streams of an event loop, keeps what a token's chunk brought with the
 * kernel's stamp of its last byte, and tells events that are alike. Python has the rest; loadgen/load/compiled.py builds
 * and calls this, and reader.py, kernelstamps.py and alike.py do the same where there is no C compiler.
 *
 * A stream is in one of two states. At first all that is read goes to Python, whose parser reads the head of the answer.
 * From there on (reader_keep) whole chunks of a plain form are kept here, without their framing (RFC 9112,
 * section 7.1): a size in hexadecimal digits, CR LF, the data, CR LF. Whatever is not of that form, the last chunk first
 * of all, goes to Python together with what was kept, and the stream is in its first state again.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LEAST_READ 512 /* a token's event has 200 to 450 bytes; a read takes more only while reads come back full */
#define MOST_READ (1 << 16)
#define MOST_CHUNK (1 << 20) /* a longer one is Python's */
#define AT_ONCE 1024
#define SCM_STAMPS 37 /* SCM_TIMESTAMPING */
#define MOST_TAIL 4096 /* these two in alike.py, too */
#define MOST_COUNTS 4

struct kept {
    int64_t end; /* of the chunk's data, among the data kept */
    int64_t t_ns, realtime_ns; /* of the read that brought its last byte; 0: the kernel gave no stamp */
};

struct stream {
    char *data; /* of whole chunks */
    size_t data_size, data_room;
    struct kept *chunks;
    size_t count, room;
    char *begun; /* read, and not yet a whole chunk; or for Python */
    size_t begun_size, begun_room;
    size_t usual_size, usual_count; /* of the data and the chunks of the answer before */
    size_t wire_size; /* bytes that the kept chunks had with their framing */
    size_t read_size;
    int64_t t_ns, realtime_ns; /* of the latest read */
    int keeps, given; /* given: Python has seen all that was read */
};

/* What Python does next about a stream: its kept chunks and `begun` come first, then the connection's end. */
struct event {
    int64_t fd, writable, lost, error; /* error: an errno; lost without one: the other end closed it */
    int64_t t_ns, realtime_ns; /* of `begun` */
    const char *data, *begun;
    const struct kept *chunks;
    int64_t data_size, begun_size, count, wire_size;
};

/* A run of events that are alike. */
struct alike {
    int64_t events, size; /* of the texts */
    int64_t odd; /* a text is empty, or has more than plain ASCII */
    char *texts;
    int64_t *text_ends, *last_pieces;
};

struct reader {
    int epoll, streams;
    struct stream *stream; /* by file descriptor */
    struct event events[AT_ONCE], taken;
};

static int64_t nanoseconds(struct timespec t) { return t.tv_sec * INT64_C(1000000000) + t.tv_nsec; }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return nanoseconds(t);
}

/* The memory at `at`, which has room for `*room` things of `each` bytes, with room for `wanted`, and at first for as many
 * as usual; NULL: none is left. */
static void *grown(void *at, size_t *room, size_t wanted, size_t usual, size_t each) {
    size_t more = *room ? *room : usual > 64 ? usual : 64;
    if (wanted <= *room) return at;
    while (more < wanted) more *= 2;
    void *moved = realloc(at, more * each);
    if (moved) *room = more;
    return moved;
}

static void begin(struct stream *s) {
    s->data_size = s->count = s->begun_size = s->wire_size = 0;
    s->given = 0;
}

/* The size of the chunk that begins here and the length of its line; 0: not enough of it came; -1: of another form. */
static int chunk_line(const char *at, size_t size, size_t *chunk) {
    size_t digits = 0, value = 0;
    for (; digits < size; digits++) {
        char c = at[digits];
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) break;
        if (digits == 5) return -1;
        value = 16 * value + (size_t)digit;
    }
    if (digits == size) return 0;
    if (!digits || !value || value > MOST_CHUNK || at[digits] != '\r') return -1;
    if (digits + 1 == size) return 0;
    *chunk = value;
    return at[digits + 1] == '\n' ? (int)digits + 2 : -1;
}

/* Keeps the whole chunks that `begun` begins with. 1: more can come; 0: the rest is Python's; -1: no memory. */
static int keep_chunks(struct stream *s) {
    size_t at = 0, chunk = 0;
    int more = 1;
    while (at < s->begun_size) {
        const char *line = s->begun + at;
        int line_size = chunk_line(line, s->begun_size - at, &chunk);
        size_t whole = (size_t)line_size + chunk + 2;
        if (line_size < 0) more = 0;
        if (line_size <= 0 || s->begun_size - at < whole) break;
        if (memcmp(line + whole - 2, "\r\n", 2)) {
            more = 0;
            break;
        }
        char *data = grown(s->data, &s->data_room, s->data_size + chunk, s->usual_size, 1);
        if (data) s->data = data;
        struct kept *chunks = grown(s->chunks, &s->room, s->count + 1, s->usual_count, sizeof *chunks);
        if (chunks) s->chunks = chunks;
        if (!data || !chunks) {
            more = -1;
            break;
        }
        memcpy(s->data + s->data_size, line + line_size, chunk);
        s->data_size += chunk;
        s->chunks[s->count++] = (struct kept){(int64_t)s->data_size, s->t_ns, s->realtime_ns};
        s->wire_size += whole;
        at += whole;
    }
    s->begun_size -= at;
    if (at && s->begun_size) memmove(s->begun, s->begun + at, s->begun_size);
    return more;
}

static int64_t stamp_of(struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_STAMPS) {
            struct timespec stamp;
            memcpy(&stamp, CMSG_DATA(c), sizeof stamp);
            return nanoseconds(stamp);
        }
    return 0;
}

static void give(struct stream *s, struct event *e) {
    e->data = s->data;
    e->data_size = (int64_t)s->data_size;
    e->chunks = s->chunks;
    e->count = (int64_t)s->count;
    e->begun = s->begun;
    e->begun_size = (int64_t)s->begun_size;
    e->wire_size = (int64_t)s->wire_size;
    e->t_ns = s->t_ns;
    e->realtime_ns = s->realtime_ns;
    s->given = 1;
    s->keeps = 0;
}

/* Reads a stream, again at once while reads come back full. 1: Python has to see to the event. */
static int read_stream(struct stream *s, int fd, struct event *e, size_t most) {
    char control[128];
    for (;;) {
        size_t size = s->read_size;
        if (s->given) begin(s);
        e->error = ENOMEM;
        char *begun = grown(s->begun, &s->begun_room, s->begun_size + size, 0, 1);
        if (!begun) break;
        s->begun = begun;
        struct iovec part = {begun + s->begun_size, size};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t came = recvmsg(fd, &message, 0);
        if (came < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
        e->error = came < 0 ? errno : 0;
        if (came <= 0) break;
        s->t_ns = now_ns();
        s->realtime_ns = stamp_of(&message);
        s->begun_size += (size_t)came;
        int full = (size_t)came == size;
        s->read_size = !full ? LEAST_READ : size < MOST_READ ? 2 * size : size;
        int keeps = s->keeps ? keep_chunks(s) : 0;
        if (keeps < 0) {
            e->error = ENOMEM;
            break;
        }
        if (!keeps || s->wire_size + s->begun_size > most) {
            give(s, e);
            return 1;
        }
        if (!full || size == MOST_READ) return 0;
    }
    give(s, e);
    e->lost = 1;
    return 1;
}

void reader_close(struct reader *r) {
    for (int fd = 0; fd < r->streams; fd++) {
        free(r->stream[fd].data);
        free(r->stream[fd].chunks);
        free(r->stream[fd].begun);
    }
    free(r->stream);
    close(r->epoll);
    free(r);
}

/* NULL, and an errno, where there is no memory, or no further file descriptor. */
struct reader *reader_open(void) {
    struct reader *r = calloc(1, sizeof *r);
    if (r && (r->epoll = epoll_create1(EPOLL_CLOEXEC)) >= 0) return r;
    free(r);
    return NULL;
}

int reader_fileno(const struct reader *r) { return r->epoll; }

/* These give 0, or an errno. */
int reader_add(struct reader *r, int fd) {
    struct epoll_event asked = {.events = EPOLLIN, .data.fd = fd};
    if (fd >= r->streams) {
        struct stream *more = realloc(r->stream, (size_t)(fd + 64) * sizeof *more);
        if (!more) return ENOMEM;
        memset(more + r->streams, 0, (size_t)(fd + 64 - r->streams) * sizeof *more);
        r->stream = more;
        r->streams = fd + 64;
    }
    struct stream *s = &r->stream[fd];
    begin(s);
    s->read_size = LEAST_READ;
    s->keeps = 0;
    return epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &asked) ? errno : 0;
}

int reader_write_wanted(struct reader *r, int fd, int wanted) {
    struct epoll_event asked = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.fd = fd};
    return epoll_ctl(r->epoll, EPOLL_CTL_MOD, fd, &asked) ? errno : 0;
}

int reader_remove(struct reader *r, int fd) {
    struct stream *s = &r->stream[fd];
    free(s->data);
    free(s->chunks);
    free(s->begun);
    *s = (struct stream){0};
    return epoll_ctl(r->epoll, EPOLL_CTL_DEL, fd, NULL) ? errno : 0;
}

/* The parser took so many bytes of what it was given last, and stands before a chunk. What else waits is read at once if
 * the last read came back full: later it would come with a later token. An event where Python has to see to what
 * follows, or NULL. */
const struct event *reader_keep(struct reader *r, int fd, size_t taken, size_t most) {
    struct stream *s = &r->stream[fd];
    size_t left = s->given && taken < s->begun_size ? s->begun_size - taken : 0;
    begin(s);
    memmove(s->begun, s->begun + taken, left);
    s->begun_size = left;
    s->keeps = 1;
    r->taken = (struct event){.fd = fd};
    if (keep_chunks(s) <= 0)
        give(s, &r->taken);
    else if (s->read_size == LEAST_READ || !read_stream(s, fd, &r->taken, most))
        return NULL;
    return &r->taken;
}

/* What was read of a stream and not given to Python yet; it stays until the next poll. */
const struct event *reader_take(struct reader *r, int fd) {
    struct stream *s = &r->stream[fd];
    if (s->given) begin(s);
    r->taken = (struct event){.fd = fd};
    give(s, &r->taken);
    return &r->taken;
}

/* What the event gave of kept chunks is no longer the stream's; `reader_free` gives it back to the system. */
void reader_release(struct reader *r, int fd) {
    struct stream *s = &r->stream[fd];
    s->data = NULL;
    s->chunks = NULL;
    s->usual_size = s->data_size;
    s->usual_count = s->count;
    s->data_size = s->count = s->data_room = s->room = s->wire_size = 0;
}

void reader_free(void *data, void *chunks) {
    free(data);
    free(chunks);
}

int reader_has_kept(const struct reader *r, int fd) { return !r->stream[fd].given && r->stream[fd].count > 0; }

const struct event *reader_events(const struct reader *r) { return r->events; }

/* Reads what can be read of all streams, and gives the number of events that Python has to see to. What these point to
 * stays until the next poll. A stream of which more than `most` bytes wait is given to Python. */
int reader_poll(struct reader *r, size_t most) {
    struct epoll_event ready[AT_ONCE];
    int number = epoll_wait(r->epoll, ready, AT_ONCE, 0), events = 0;
    for (int k = 0; k < number; k++) {
        int fd = ready[k].data.fd;
        struct event *e = &r->events[events];
        *e = (struct event){.fd = fd, .writable = (ready[k].events & EPOLLOUT) != 0};
        int seen = (ready[k].events & ~(uint32_t)EPOLLOUT) ? read_stream(&r->stream[fd], fd, e, most) : 0;
        events += seen || e->writable;
    }
    return events;
}

/* The digits of a number that is not negative. */
static int64_t decimal(int64_t number, char *into) {
    char digits[24];
    int64_t size = 0;
    do digits[size++] = (char)('0' + number % 10);
    while (number /= 10);
    for (int64_t k = 0; k < size; k++) into[k] = digits[size - 1 - k];
    return size;
}

/* Events alike, in pieces of a body: `before`, a text, and a tail in which `counts` numbers rise by one from event to
 * event; the tail is `counts` + 1 parts with a number between two. An event is a piece, or two. Gives how many come in a
 * row from piece `first` on; and the texts, where each ends in them, and the piece that ends each event. */
int64_t reader_alike(const char *body, const struct kept *pieces, int64_t first, int64_t number, const char *before,
                     int64_t before_size, const char *tail, const int64_t *parts, int64_t counts, struct alike *found) {
    char expected[MOST_TAIL + 24 * MOST_COUNTS];
    const char *at = body + (first ? pieces[first - 1].end : 0);
    found->events = found->size = found->odd = 0;
    while (first < number) {
        int64_t size = 0, used = 0;
        for (int64_t k = 0; k <= counts; k++) {
            memcpy(expected + size, tail + used, (size_t)parts[k]);
            size += parts[k];
            used += parts[k];
            if (k < counts) size += decimal(parts[counts + 1 + k] + found->events + 1, expected + size);
        }
        int64_t piece = first, text = -1;
        for (; piece < number && piece < first + 2; piece++) {
            int64_t whole = body + pieces[piece].end - at;
            if (whole >= before_size + size && !memcmp(at, before, (size_t)before_size) &&
                !memcmp(at + whole - size, expected, (size_t)size)) {
                text = whole - before_size - size;
                break;
            }
        }
        if (text < 0) break;
        found->odd |= !text;
        for (int64_t k = 0; k < text; k++) {
            unsigned char c = (unsigned char)at[before_size + k];
            found->odd |= c < 32 || c == '"' || c == '\\' || c > 126;
        }
        memcpy(found->texts + found->size, at + before_size, (size_t)text);
        found->size += text;
        found->text_ends[found->events] = found->size;
        found->last_pieces[found->events++] = piece;
        at = body + pieces[piece].end;
        first = piece + 1;
    }
    return found->events;
}
