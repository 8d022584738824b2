/* Token times, `[t,n],[t,n]`, cut out of a journal's lines and made numbers; checksums are compared and taken off. Token
 * times are most of a journal. loadgen/analysis/tokentimes.py calls this; what is not written as this version of loadgen
 * writes it is left to Python.
 */

#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define SEAL_SIZE 10   /* a tab, eight hexadecimal digits, an end of line */
#define MOST_DIGITS 18 /* of a time that 64 bits hold, whatever they are */

static const char EVENTS[] = ",\"token_times\":[";
static const char EVENTS_END[] = "],\"";

struct cut {
    int64_t rest_size, lines, events; /* `lines`: those that have token times */
    char *rest;                       /* the lines without them, each with an end of line; room for all that is read */
    int64_t *of_line, *t_ns;          /* how many each has; and when they came */
    uint8_t *tokens;                  /* of each: one digit */
};

static uint32_t table[16][256];

/* CRC-32 (ISO 3309, as zlib's), sixteen bytes at a time. */
static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xEDB88320) : 0);
        table[0][byte] = crc;
    }
    for (int k = 1; k < 16; k++)
        for (int byte = 0; byte < 256; byte++)
            table[k][byte] = table[k - 1][byte] >> 8 ^ table[0][table[k - 1][byte] & 255];
}

#ifdef __x86_64__
#define FOLDING __attribute__((target("pclmul,sse4.1")))

FOLDING static __m128i folded(__m128i kept, __m128i by, const char *next) {
    __m128i low = _mm_clmulepi64_si128(kept, by, 0x00), high = _mm_clmulepi64_si128(kept, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128((const __m128i *)next));
}

/* Sixteen bytes that have the checksum of the first ones of `at`, whose number, 64 at least, is a multiple of sixteen
 * (V. Gopal et al., Fast CRC Computation Using PCLMULQDQ, Intel 2009: a distance's two factors are remainders of powers
 * of x by the polynomial). */
FOLDING static void fold(const char *at, int64_t size, uint32_t crc, char sixteen[16]) {
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    __m128i kept[4];
    for (int k = 0; k < 4; k++) kept[k] = _mm_loadu_si128((const __m128i *)at + k);
    kept[0] = _mm_xor_si128(kept[0], _mm_cvtsi32_si128((int)crc));
    for (at += 64, size -= 64; size >= 64; at += 64, size -= 64)
        for (int k = 0; k < 4; k++) kept[k] = folded(kept[k], by_64, at + 16 * k);
    for (int k = 1; k < 4; k++) kept[0] = folded(kept[0], by_16, (const char *)&kept[k]);
    for (; size; at += 16, size -= 16) kept[0] = folded(kept[0], by_16, at);
    memcpy(sixteen, kept, 16);
}
#endif

static uint32_t in_table(const char *at, int64_t size, uint32_t crc) {
    for (; size >= 16; at += 16, size -= 16) {
        uint64_t word[2];
        memcpy(word, at, sizeof word);
        word[0] ^= crc;
        crc = 0;
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++)
            crc ^= table[15 - k][word[0] >> 8 * k & 255] ^ table[7 - k][word[1] >> 8 * k & 255];
    }
    for (; size; at++, size--) crc = crc >> 8 ^ table[0][(crc ^ (uint8_t)*at) & 255];
    return crc;
}

static uint32_t crc32(const char *at, int64_t size) {
    uint32_t crc = UINT32_C(0xFFFFFFFF);
#ifdef __x86_64__
    if (size >= 64 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
        char sixteen[16];
        int64_t whole = size & ~INT64_C(15);
        fold(at, whole, crc, sixteen);
        crc = in_table(sixteen, sizeof sixteen, 0);
        at += whole;
        size -= whole;
    }
#endif
    return ~in_table(at, size, crc);
}

/* The number that eight digits make; -1 where they are not all digits. A word holds the first in its lowest byte: pairs
 * of digits are joined, then pairs of these, then the halves. */
static int64_t eight_digits(const char *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    word ^= UINT64_C(0x3030303030303030);
    if ((word | (word + UINT64_C(0x0606060606060606))) & UINT64_C(0xF0F0F0F0F0F0F0F0)) return -1;
    word = (word * 10 + (word >> 8)) & UINT64_C(0x00FF00FF00FF00FF);
    word = (word * 100 + (word >> 16)) & UINT64_C(0x0000FFFF0000FFFF);
    return (int64_t)((word * 10000 + (word >> 32)) & UINT64_C(0xFFFFFFFF));
}

static int is_sealed(const char *line, const char *seal) {
    char expected[SEAL_SIZE - 1] = {'\t'};
    uint32_t crc = crc32(line, seal - line);
    for (int k = 8; k; k--, crc >>= 4) expected[k] = "0123456789abcdef"[crc & 15];
    return !memcmp(seal, expected, sizeof expected);
}

/* Where the token times end that begin at `at`; NULL: they are of another form. */
static const char *read_events(const char *at, const char *end, struct cut *p) {
    int64_t before = p->events;
    while (*at == '[') {
        uint64_t t_ns = 0;
        int digits = 0, padded = at[1] == '0' && at[2] != ',';
        at++;
        if (end - at >= 16) { /* an event's least, behind its first eight digits, is `,n],"` */
            int64_t first = eight_digits(at);
            if (first >= 0) {
                t_ns = (uint64_t)first;
                at += 8;
                digits = 8;
            }
        }
        for (; *at >= '0' && *at <= '9' && digits <= MOST_DIGITS; at++, digits++)
            t_ns = 10 * t_ns + (uint64_t)(*at - '0');
        if (padded || !digits || digits > MOST_DIGITS || end - at < 4 || *at != ',' || at[1] < '0' ||
            at[1] > '9' || at[2] != ']')
            return NULL;
        p->t_ns[p->events] = (int64_t)t_ns;
        p->tokens[p->events++] = (uint8_t)(at[1] - '0');
        at += 3;
        if (*at == ',' && at[1] == '[') at++;
    }
    p->of_line[p->lines++] = p->events - before;
    return (size_t)(end - at) >= sizeof EVENTS_END - 1 && !memcmp(at, EVENTS_END, sizeof EVENTS_END - 1) ? at : NULL;
}

/* 0, or -1 where a line is not whole, its checksum is not its own, or its token times are of another form. There is room
 * for as many bytes, lines and events as `size` bytes can have. */
int tokentimes_cut(const char *raw, int64_t size, struct cut *p) {
    const char *line = raw, *end = raw + size;
    if (!table[0][1]) fill_table();
    p->rest_size = p->lines = p->events = 0;
    while (line < end) {
        const char *newline = memchr(line, '\n', (size_t)(end - line)), *rest = line;
        if (!newline || newline - line < SEAL_SIZE) return -1;
        const char *seal = newline - (SEAL_SIZE - 1);
        if (!is_sealed(line, seal)) return -1;
        const char *events = memmem(line, (size_t)(seal - line), EVENTS, sizeof EVENTS - 1);
        if (events) {
            events += sizeof EVENTS - 1;
            memcpy(p->rest + p->rest_size, line, (size_t)(events - line));
            p->rest_size += events - line;
            rest = read_events(events, seal, p);
            if (!rest) return -1;
        }
        memcpy(p->rest + p->rest_size, rest, (size_t)(seal - rest));
        p->rest_size += seal - rest;
        p->rest[p->rest_size++] = '\n';
        line = newline + 1;
    }
    return 0;
}
