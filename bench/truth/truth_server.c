/* A server whose timing is known: the yardstick of bench/truth.

   cc -O2 -o truth_server truth_server.c && ./truth_server --port 8000 --ttft-ms 20 --itl-ms 10 --tokens 200

   Every answer has --tokens tokens, one event each, whatever was asked. Token 0 leaves --ttft-ms after the request
   arrived. Token k leaves at base + ttft + k x itl, where base is the arrival of the request's cohort: all that
   arrived within half an itl of its first. So the tokens of a cohort leave together, as those of an engine step do,
   and its answers end together. --flat-out: an answer leaves at once, as fast as the client takes it.

   Deadlines are absolute (timerfd on CLOCK_MONOTONIC). Frames are made beforehand: vLLM's events, one HTTP chunk each,
   with usage on every event where the request has continuous_usage_stats. How late tokens left and what the server
   itself cost is at /stats, and on stdout at the end. One thread, Linux.

   Every answer has a number, the eight digits of its first token " #00000001". --stamps FILE: at the end, of each whole
   answer 2 + tokens int64: its number, when its request was read, and when each token was about to be written (ns of
   CLOCK_MONOTONIC). */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { PROMPT_TOKENS = 100, MOST_REQUEST_BYTES = 1 << 20, EVENTS = 256, LATE_BUCKETS = 100000, LATE_BUCKET_NS = 10000 };

typedef struct { char *bytes; size_t length, room; } Text;

/* An answer as bytes, and how many of them are out once token k is: the head goes before token 0, the tail with the
   last token. number: where the eight digits are. */
typedef struct { Text text; size_t head, number, *end; } Script;

typedef struct Connection {
  int fd;
  Text request;         /* what was read and not yet answered */
  Script *script;       /* NULL: no answer under way */
  size_t sent, owed;    /* bytes of the script written, and due */
  long token, number;   /* the next one; of the answer */
  int64_t *stamps;      /* NULL: not asked for */
  int64_t base_ns, due_ns;
  bool blocked, gone;
  struct Connection *next_gone;
} Connection;

static struct { long port, tokens; int64_t ttft_ns, itl_ns; bool flat_out; const char *stamps; } set = {
    8000, 200, 20000000, 10000000, false, NULL};
static Script scripts[2][2]; /* [chat][usage on every event] */
static struct { Connection **at; size_t count, room; } heap; /* answers under way, the next due token first */
static struct {
  long in_flight, begun, requests, tokens, late[LATE_BUCKETS + 1];
  int64_t changed_ns, in_flight_ns, busy_ns, late_sum_ns, late_max_ns, cohort_ns;
} seen;
static Text stamps; /* of ended answers */
static Connection *gone; /* dropped ones; events of this turn may still name them */
static int poller, timer;
static volatile sig_atomic_t stopped;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
  perror(what);
  exit(1);
}

static void reserve(Text *text, size_t more) {
  if (text->length + more <= text->room) return;
  text->room = 2 * (text->length + more);
  if (!(text->bytes = realloc(text->bytes, text->room))) die("memory");
}

__attribute__((format(printf, 2, 3))) static void add(Text *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  reserve(text, 1024);
  text->length += (size_t)vsnprintf(text->bytes + text->length, 1024, format, arguments);
  va_end(arguments);
}

/* the answers */

static void add_chunk(Text *text, const char *data) { add(text, "%zx\r\ndata: %s\n\n\r\n", strlen(data) + 8, data); }

static void add_event(Text *text, bool chat, const char *choices, bool usage, long tokens) {
  char event[900], counts[160] = "";
  if (usage)
    snprintf(counts, sizeof counts, ",\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%ld,\"completion_tokens\":%ld}",
             PROMPT_TOKENS, PROMPT_TOKENS + tokens, tokens);
  snprintf(event, sizeof event, "{\"id\":\"%s-0123456789abcdef0123456789abcdef\",\"object\":\"%s\",\"created\":1790000000,"
           "\"model\":\"truth\",\"choices\":[%s]%s}", chat ? "chatcmpl" : "cmpl",
           chat ? "chat.completion.chunk" : "text_completion", choices, counts);
  add_chunk(text, event);
}

static void write_script(Script *script, bool chat, bool usage) {
  Text *text = &script->text;
  if (!(script->end = calloc((size_t)set.tokens, sizeof *script->end))) die("memory");
  add(text, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
  script->head = text->length;
  if (chat)
    add_event(text, true, "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
              "\"finish_reason\":null}", usage, 0);
  for (long k = 0; k < set.tokens; k++) {
    bool last = k == set.tokens - 1;
    char choice[400];
    char word[16];
    snprintf(word, sizeof word, k ? " %ld" : " #%08ld", k);
    snprintf(choice, sizeof choice, chat ? "{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,"
             "\"finish_reason\":%s,\"stop_reason\":null,\"token_ids\":null}" : "{\"index\":0,\"text\":\"%s\","
             "\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null,\"prompt_token_ids\":null,\"token_ids\":null}",
             word, last ? "\"length\"" : "null");
    add_event(text, chat, choice, usage, k + 1);
    if (!k) {
      reserve(text, 1);
      text->bytes[text->length] = 0;
      script->number = (size_t)(strstr(text->bytes, " #") + 2 - text->bytes);
    }
    if (last) {
      add_event(text, chat, "", true, set.tokens);
      add_chunk(text, "[DONE]");
      add(text, "0\r\n\r\n");
    }
    script->end[k] = text->length;
  }
}

/* the heap */

static void place(size_t at, Connection *moved) {
  while (at && heap.at[(at - 1) / 2]->due_ns > moved->due_ns) heap.at[at] = heap.at[(at - 1) / 2], at = (at - 1) / 2;
  for (size_t child; (child = 2 * at + 1) < heap.count; at = child) {
    if (child + 1 < heap.count && heap.at[child + 1]->due_ns < heap.at[child]->due_ns) child++;
    if (heap.at[child]->due_ns >= moved->due_ns) break;
    heap.at[at] = heap.at[child];
  }
  heap.at[at] = moved;
}

static void push(Connection *c) {
  if (heap.count == heap.room) {
    heap.room = 2 * heap.room + 64;
    if (!(heap.at = realloc(heap.at, heap.room * sizeof *heap.at))) die("memory");
  }
  heap.count++;
  place(heap.count - 1, c);
}

static void take_out(size_t at) {
  Connection *last = heap.at[--heap.count];
  if (at < heap.count) place(at, last);
}

/* the connections */

static void count_in_flight(long change) {
  int64_t now = now_ns();
  seen.in_flight_ns += seen.in_flight * (now - seen.changed_ns);
  if (seen.in_flight) seen.busy_ns += now - seen.changed_ns;
  seen.changed_ns = now;
  seen.in_flight += change;
}

static void drop(Connection *c) {
  close(c->fd);
  if (c->script) count_in_flight(-1);
  for (size_t at = 0; at < heap.count; at++)
    if (heap.at[at] == c) take_out(at);
  c->gone = true;
  c->next_gone = gone;
  gone = c;
}

static void forget_gone(void) {
  for (Connection *c; (c = gone);) {
    gone = c->next_gone;
    free(c->request.bytes);
    free(c->stamps);
    free(c);
  }
}

static void listen_to(Connection *c, uint32_t what) {
  struct epoll_event event = {.events = what, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

/* Writes what is owed. */
static void flush(Connection *c) {
  if (!c->script) return;
  if (c->sent <= c->script->number && c->owed > c->script->number) /* send copies: the next answer may have its own */
    for (long k = 8, left = c->number; k--; left /= 10) c->script->text.bytes[c->script->number + (size_t)k] = (char)('0' + left % 10);
  ssize_t n = send(c->fd, c->script->text.bytes + c->sent, c->owed - c->sent, MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN) {
    drop(c);
    return;
  }
  if (n > 0) c->sent += (size_t)n;
  bool blocked = c->sent < c->owed;
  if (blocked != c->blocked) listen_to(c, EPOLLIN | (blocked ? EPOLLOUT : 0));
  c->blocked = blocked;
  if (c->sent == c->script->text.length) {
    c->script = NULL;
    if (c->stamps) {
      size_t size = (size_t)(set.tokens + 2) * sizeof *c->stamps;
      reserve(&stamps, size);
      memcpy(stamps.bytes + stamps.length, c->stamps, size);
      stamps.length += size;
    }
    seen.requests++;
    count_in_flight(-1);
  }
}

static void send_due(void) {
  for (int64_t now; heap.count && heap.at[0]->due_ns <= (now = now_ns());) {
    Connection *c = heap.at[0];
    int64_t due_ns = c->due_ns;
    if (c->stamps) c->stamps[2 + c->token] = now;
    c->owed = c->script->end[c->token++];
    c->due_ns = c->base_ns + set.ttft_ns + c->token * set.itl_ns;
    if (c->token == set.tokens) take_out(0);
    else place(0, c);
    seen.tokens++;
    flush(c);
    int64_t late = now_ns() - due_ns;
    seen.late_sum_ns += late;
    if (late > seen.late_max_ns) seen.late_max_ns = late;
    seen.late[late / LATE_BUCKET_NS < LATE_BUCKETS ? late / LATE_BUCKET_NS : LATE_BUCKETS]++;
  }
}

static void begin_answer(Connection *c, bool chat, bool usage) {
  int64_t now = now_ns();
  if (now - seen.cohort_ns > set.itl_ns / 2) seen.cohort_ns = now;
  c->script = &scripts[chat][usage];
  c->sent = 0;
  c->token = 0;
  c->base_ns = seen.cohort_ns;
  c->number = ++seen.begun;
  if (set.stamps && !c->stamps && !(c->stamps = calloc((size_t)set.tokens + 2, sizeof *c->stamps))) die("memory");
  if (c->stamps) c->stamps[0] = c->number, c->stamps[1] = now;
  count_in_flight(1);
  if (set.flat_out) {
    c->owed = c->script->text.length;
    seen.tokens += set.tokens;
  } else {
    c->owed = c->script->head;
    c->due_ns = now + set.ttft_ns;
    push(c);
  }
  flush(c);
}

/* what is asked */

static void add_stats(Text *page) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  count_in_flight(0);
  long paced = 0, below = 0, bucket = 0;
  for (long k = 0; k <= LATE_BUCKETS; k++) paced += seen.late[k];
  while (paced && (below += seen.late[bucket]) < 0.99 * paced) bucket++;
  add(page, "{\"t_ns\":%ld,\"requests\":%ld,\"tokens\":%ld,\"in_flight\":%ld,\"in_flight_s\":%.6f,\"cpu_s\":%.6f,",
      (long)seen.changed_ns, seen.requests, seen.tokens, seen.in_flight, seen.in_flight_ns / 1e9,
      used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
  if (!paced) add(page, "\"late_ms_mean\":null,\"late_ms_p99\":null,\"late_ms_max\":null}\n");
  else add(page, "\"late_ms_mean\":%.4f,\"late_ms_p99\":%.4f,\"late_ms_max\":%.4f}\n", seen.late_sum_ns / 1e6 / paced,
      (bucket + 1) * LATE_BUCKET_NS / 1e6, seen.late_max_ns / 1e6);
}

static void add_metrics(Text *page) {
  count_in_flight(0);
  add(page, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running %ld\n", seen.in_flight);
  add(page, "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 0\n");
  add(page, "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total %ld\n", seen.tokens);
  if (!set.flat_out) /* steps of one itl in which anything was under way */
    add(page, "# TYPE vllm:iteration_tokens_total histogram\nvllm:iteration_tokens_total_count %.3f\n",
        (double)seen.busy_ns / set.itl_ns);
}

static void respond(Connection *c, const char *status, const char *type, const Text *page) {
  Text wire = {0};
  add(&wire, "HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n", status, type, page->length);
  reserve(&wire, page->length + 1);
  if (page->length) memcpy(wire.bytes + wire.length, page->bytes, page->length);
  bool whole = send(c->fd, wire.bytes, wire.length + page->length, MSG_NOSIGNAL) == (ssize_t)(wire.length + page->length);
  free(wire.bytes);
  if (!whole) drop(c);
}

static void answer(Connection *c, const char *head, const char *body) {
  bool chat = !strncmp(head, "POST /v1/chat/completions ", 26);
  if (chat || !strncmp(head, "POST /v1/completions ", 21)) {
    const char *usage = strstr(body, "\"continuous_usage_stats\"");
    begin_answer(c, chat, usage && !strncmp(usage + 24 + strspn(usage + 24, ": "), "true", 4));
    return;
  }
  Text page = {0};
  const char *status = "200 OK", *type = "application/json";
  if (!strncmp(head, "GET /v1/models ", 15))
    add(&page, "{\"object\":\"list\",\"data\":[{\"id\":\"truth\",\"object\":\"model\",\"created\":1790000000,"
        "\"owned_by\":\"bench\",\"root\":\"truth\",\"max_model_len\":32768}]}");
  else if (!strncmp(head, "GET /metrics", 12)) type = "text/plain; version=0.0.4", add_metrics(&page);
  else if (!strncmp(head, "GET /stats ", 11)) add_stats(&page);
  else if (!strncmp(head, "GET /version ", 13)) add(&page, "{\"version\":\"truth-1\"}");
  else if (!strncmp(head, "GET /health ", 12)) type = "text/plain";
  else status = "404 Not Found", add(&page, "{\"error\":{\"message\":\"no such path\",\"code\":404}}");
  respond(c, status, type, &page);
  free(page.bytes);
}

/* Answers the request if all of it is there. */
static void take_request(Connection *c) {
  char *head = c->request.bytes, *blank = strstr(head, "\r\n\r\n");
  if (!blank) return;
  const char *length = strcasestr(head, "\ncontent-length:");
  bool has_body = length && length < blank;
  if (c->request.length < (size_t)(blank + 4 - head) + (has_body ? strtoul(length + 16, NULL, 10) : 0)) return;
  c->request.length = 0; /* one request at a time: nothing follows it before its answer */
  answer(c, head, blank + 4);
}

static void receive(Connection *c) {
  reserve(&c->request, 16384);
  ssize_t n = recv(c->fd, c->request.bytes + c->request.length, c->request.room - c->request.length - 1, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0 || c->script || c->request.length + (size_t)n > MOST_REQUEST_BYTES) {
    drop(c);
    return;
  }
  c->request.length += (size_t)n;
  c->request.bytes[c->request.length] = 0;
  take_request(c);
}

static void welcome(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
  if (fd < 0) return;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  Connection *c = calloc(1, sizeof *c);
  if (!c) die("memory");
  c->fd = fd;
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void set_timer(void) {
  static int64_t armed_ns;
  int64_t due_ns = heap.count ? heap.at[0]->due_ns : 0;
  if (due_ns == armed_ns) return;
  struct itimerspec at = {.it_value = {due_ns / 1000000000, due_ns % 1000000000}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
  armed_ns = due_ns;
}

static void clear_timer(void) {
  uint64_t expired;
  if (read(timer, &expired, sizeof expired) < 0 && errno != EAGAIN) die("timer");
}

static void stop(int signal) { stopped = signal; }

static void read_options(int count, char **given) {
  for (int k = 1; k < count; k++) {
    const char *name = given[k], *value = k + 1 < count ? given[k + 1] : "";
    if (!strcmp(name, "--flat-out")) { set.flat_out = true; continue; }
    if (!strcmp(name, "--port")) set.port = atol(value);
    else if (!strcmp(name, "--ttft-ms")) set.ttft_ns = (int64_t)(atof(value) * 1e6);
    else if (!strcmp(name, "--itl-ms")) set.itl_ns = (int64_t)(atof(value) * 1e6);
    else if (!strcmp(name, "--tokens")) set.tokens = atol(value);
    else if (!strcmp(name, "--stamps")) set.stamps = value;
    else fprintf(stderr, "%s: no such option\n", name), exit(2);
    k++;
  }
  if (set.tokens < 1 || set.itl_ns < 1 || set.ttft_ns < set.itl_ns / 2)
    fprintf(stderr, "wanted: --tokens >= 1, --itl-ms > 0, --ttft-ms >= itl / 2\n"), exit(2);
}

int main(int count, char **given) {
  read_options(count, given);
  for (int chat = 0; chat < 2; chat++)
    for (int usage = 0; usage < 2; usage++) write_script(&scripts[chat][usage], chat, usage);
  prctl(PR_SET_TIMERSLACK, 1);
  struct sigaction action = {.sa_handler = stop};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)set.port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) die("listen");
  poller = epoll_create1(EPOLL_CLOEXEC);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &listener});
  epoll_ctl(poller, EPOLL_CTL_ADD, timer, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &timer});
  seen.changed_ns = now_ns();
  puts("ready");
  fflush(stdout);
  while (!stopped) {
    struct epoll_event events[EVENTS];
    set_timer();
    int ready = epoll_wait(poller, events, EVENTS, -1);
    for (int k = 0; k < ready; k++) {
      send_due();
      if (events[k].data.ptr == &listener) welcome(listener);
      else if (events[k].data.ptr == &timer) clear_timer();
      else if (((Connection *)events[k].data.ptr)->gone) continue;
      else if (events[k].events & EPOLLOUT) flush(events[k].data.ptr);
      else receive(events[k].data.ptr);
    }
    send_due();
    forget_gone();
  }
  Text page = {0};
  add_stats(&page);
  fwrite(page.bytes, 1, page.length, stdout);
  if (set.stamps) {
    FILE *file = fopen(set.stamps, "wb");
    if (!file || fwrite(stamps.bytes, 1, stamps.length, file) != stamps.length || fclose(file)) die(set.stamps);
  }
  return 0;
}
