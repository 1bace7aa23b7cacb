/* The two products of LoRA for rows with different adapters, on the CPU: see lora_products.py.
 *
 * Decoding multiplies a few rows with every adapter's matrices once per token, so what counts is
 * how fast those are read from memory: each is streamed once, a few cache lines ahead of their
 * use, and multiplied with up to ROWS rows at a time in registers. A row's numbers are summed in
 * the same order whatever else is in the batch.
 *
 * It is compiled for registers of 512, 256 and 128 bits (BITS, pyproject.toml), with GCC's generic
 * vectors. For registers narrower than the vectors the compiler makes this several times slower
 * than torch's products: lora_products.py loads what the processor has, or nothing.
 */
#include <omp.h>
#include <stdint.h>
#include <string.h>

enum {
    LANES = BITS / 32, /* floats of a vector */
    WIDE = 4,    /* vectors of a tile */
    COLUMNS = WIDE * LANES, /* columns of a tile of B, which lie together in memory */
    MOST_ROWS = 4,
    ROWS = BITS == 256 ? 3 : MOST_ROWS, /* rows of a tile; its sums fit into AVX's 16 registers, or
                                           into the 32 of AVX-512 and NEON */
    CHUNK = 24,  /* rows that a thread takes at a time in shrink: whole tiles */
    AHEAD = 1536, /* floats that are asked for in advance */
    SMALL = 1 << 15, /* multiplications below which a second thread does not pay */
};

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

/* Adapter n is used by the rows row[begin[n]] to row[begin[n + 1] - 1] of the batch, with these
 * strengths. A row of T tokens has T vectors. */
typedef struct {
    int64_t adapters;
    const int64_t *begin;
    const int64_t *row;
    const float *strength;
} Uses;

/* One projection's part of a stack: see lora_products.Projection. */
typedef struct {
    const float *a; /* (adapters, in, ranks); ranks is a multiple of LANES */
    int64_t in;
    int64_t ranks;
    int64_t first; /* of the ranks, this projection's */
    int64_t rank;
    const float *b; /* (adapters, tiles, rank, COLUMNS), the last tile filled up with zeros */
    int64_t out;
} Projection;

static int threads_for(const Uses *uses, int64_t tokens, int64_t multiplications) {
    int64_t vectors = uses->begin[uses->adapters] * tokens;
    return vectors * multiplications < SMALL ? 1 : omp_get_max_threads();
}

/* ---- hidden = strength * (x . A) ---- */

INLINE void shrink_tile(const float *const *x, int64_t in, const float *a, int64_t stride,
                        const float *strength, float *hidden, int rows, int wide) {
    vec sums[MOST_ROWS][WIDE];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) sums[r][w] = (vec){0};
    for (int64_t i = 0; i < in; i++, a += stride) {
        vec weights[WIDE];
        for (int w = 0; w < wide; w++) {
            weights[w] = *(const vec *)(a + w * LANES);
            __builtin_prefetch(a + w * LANES + AHEAD);
        }
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < wide; w++) sums[r][w] += x[r][i] * weights[w];
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++)
            *(vec *)(hidden + r * stride + w * LANES) = strength[r] * sums[r][w];
}

INLINE void shrink_rows(const float *const *x, int64_t in, const float *a, int64_t stride,
                        const float *strength, float *hidden, int rows, int64_t columns) {
    for (; columns >= COLUMNS; columns -= COLUMNS, a += COLUMNS, hidden += COLUMNS)
        shrink_tile(x, in, a, stride, strength, hidden, rows, WIDE);
    switch (columns / LANES) {
    case 3: shrink_tile(x, in, a, stride, strength, hidden, rows, 3); break;
    case 2: shrink_tile(x, in, a, stride, strength, hidden, rows, 2); break;
    case 1: shrink_tile(x, in, a, stride, strength, hidden, rows, 1); break;
    }
}

/* The vectors from `first` to before `end`, all of one adapter; `columns` of its ranks. */
NOINLINE void shrink(const Uses *uses, const float *x, int64_t tokens, int64_t in,
                     const float *a, int64_t stride, float *hidden, int64_t columns,
                     int64_t first, int64_t end) {
    for (int64_t v = first; v < end; v += ROWS) {
        const float *xs[MOST_ROWS];
        float strength[MOST_ROWS];
        int rows = end - v < ROWS ? (int)(end - v) : ROWS;
        for (int r = 0; r < rows; r++) {
            int64_t use = (v + r) / tokens, token = (v + r) % tokens;
            xs[r] = x + (uses->row[use] * tokens + token) * in;
            strength[r] = uses->strength[use];
        }
        float *h = hidden + v * stride;
        switch (rows) {
        case 4: shrink_rows(xs, in, a, stride, strength, h, 4, columns); break;
        case 3: shrink_rows(xs, in, a, stride, strength, h, 3, columns); break;
        case 2: shrink_rows(xs, in, a, stride, strength, h, 2, columns); break;
        case 1: shrink_rows(xs, in, a, stride, strength, h, 1, columns); break;
        }
    }
}

static void shrink_all(const Uses *uses, const Projection *p, const float *x, int64_t tokens,
                       float *hidden) {
    int threads = threads_for(uses, tokens, p->in * p->ranks);
    int64_t columns = threads > 1 ? LANES : p->ranks;
#pragma omp parallel num_threads(threads)
    {
        int64_t task = 0, mine = omp_get_thread_num(), team = omp_get_num_threads();
        for (int64_t n = 0; n < uses->adapters; n++) {
            const float *a = p->a + n * p->in * p->ranks;
            int64_t end = uses->begin[n + 1] * tokens;
            for (int64_t v = uses->begin[n] * tokens; v < end; v += CHUNK)
                for (int64_t c = 0; c < p->ranks; c += columns, task++)
                    if (task % team == mine)
                        shrink(uses, x, tokens, p->in, a + c, p->ranks, hidden + c, columns, v,
                               v + CHUNK < end ? v + CHUNK : end);
        }
    }
}

/* ---- out += hidden . B ---- */

INLINE void load(vec *floats, const void *out, int64_t at, int bfloat16) {
    if (!bfloat16) {
        *floats = *(const vec *)((const float *)out + at);
        return;
    }
    words bits = __builtin_convertvector(*(const halves *)((const uint16_t *)out + at), words) << 16;
    memcpy(floats, &bits, sizeof bits);
}

INLINE void store(void *out, int64_t at, const vec *floats, int bfloat16) {
    if (!bfloat16) {
        *(vec *)((float *)out + at) = *floats;
        return;
    }
    words bits;
    memcpy(&bits, floats, sizeof bits);
    bits += 0x7fff + ((bits >> 16) & 1); /* to the nearest, ties to even */
    *(halves *)((uint16_t *)out + at) = __builtin_convertvector(bits >> 16, halves);
}

INLINE void expand_tile(const float *const *hidden, int64_t rank, const float *b, void *out,
                        const int64_t *at, int rows, int wide, int bfloat16) {
    vec sums[MOST_ROWS][WIDE];
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) load(&sums[r][w], out, at[r] + w * LANES, bfloat16);
    for (int64_t k = 0; k < rank; k++, b += COLUMNS) {
        vec weights[WIDE];
        for (int w = 0; w < wide; w++) {
            weights[w] = *(const vec *)(b + w * LANES);
            __builtin_prefetch(b + w * LANES + AHEAD);
        }
        for (int r = 0; r < rows; r++)
            for (int w = 0; w < wide; w++) sums[r][w] += hidden[r][k] * weights[w];
    }
    for (int r = 0; r < rows; r++)
        for (int w = 0; w < wide; w++) store(out, at[r] + w * LANES, &sums[r][w], bfloat16);
}

/* The columns that fill no vector. */
static void expand_rest(const float *const *hidden, int64_t rank, const float *b, void *out,
                        const int64_t *at, int rows, int64_t columns, int bfloat16) {
    for (int r = 0; r < rows; r++) {
        char padded[4 * LANES];
        char *there = (char *)out + at[r] * (bfloat16 ? 2 : 4);
        size_t bytes = columns * (bfloat16 ? 2 : 4);
        memset(padded, 0, sizeof padded);
        memcpy(padded, there, bytes);
        expand_tile(hidden + r, rank, b, padded, (const int64_t[]){0}, 1, 1, bfloat16);
        memcpy(there, padded, bytes);
    }
}

INLINE void expand_rows(const float *const *hidden, int64_t rank, const float *b, void *out,
                        int64_t *at, int rows, int64_t columns, int bfloat16) {
    switch (columns / LANES) {
    case 4: expand_tile(hidden, rank, b, out, at, rows, 4, bfloat16); break;
    case 3: expand_tile(hidden, rank, b, out, at, rows, 3, bfloat16); break;
    case 2: expand_tile(hidden, rank, b, out, at, rows, 2, bfloat16); break;
    case 1: expand_tile(hidden, rank, b, out, at, rows, 1, bfloat16); break;
    }
    int64_t rest = columns % LANES, full = columns - rest;
    if (rest) {
        for (int r = 0; r < rows; r++) at[r] += full;
        expand_rest(hidden, rank, b + full, out, at, rows, rest, bfloat16);
    }
}

/* A tile's columns, `first` and those after it, of the rows of adapter n. */
INLINE void expand_columns(const Uses *uses, int64_t n, const Projection *p, const float *hidden,
                           int64_t tokens, const float *b, void *out, int64_t first,
                           int bfloat16) {
    int64_t columns = p->out - first < COLUMNS ? p->out - first : COLUMNS;
    int64_t end = uses->begin[n + 1] * tokens;
    for (int64_t v = uses->begin[n] * tokens; v < end; v += ROWS) {
        const float *hs[MOST_ROWS];
        int64_t at[MOST_ROWS];
        int rows = end - v < ROWS ? (int)(end - v) : ROWS;
        for (int r = 0; r < rows; r++) {
            int64_t use = (v + r) / tokens, token = (v + r) % tokens;
            hs[r] = hidden + (v + r) * p->ranks + p->first;
            at[r] = (uses->row[use] * tokens + token) * p->out + first;
        }
        switch (rows) {
        case 4: expand_rows(hs, p->rank, b, out, at, 4, columns, bfloat16); break;
        case 3: expand_rows(hs, p->rank, b, out, at, 3, columns, bfloat16); break;
        case 2: expand_rows(hs, p->rank, b, out, at, 2, columns, bfloat16); break;
        case 1: expand_rows(hs, p->rank, b, out, at, 1, columns, bfloat16); break;
        }
    }
}

/* The tiles from `first` to before `end`, of all rows. */
NOINLINE void expand(const Uses *uses, const Projection *p, const float *hidden,
                     int64_t tokens, void *out, int bfloat16, int64_t first, int64_t end) {
    int64_t tiles = (p->out + COLUMNS - 1) / COLUMNS;
    for (int64_t n = 0; n < uses->adapters; n++)
        for (int64_t t = first; t < end; t++) {
            const float *b = p->b + (n * tiles + t) * p->rank * COLUMNS;
            /* Constants for the compiler: a loop for each. */
            if (bfloat16)
                expand_columns(uses, n, p, hidden, tokens, b, out, t * COLUMNS, 1);
            else
                expand_columns(uses, n, p, hidden, tokens, b, out, t * COLUMNS, 0);
        }
}

/* Adds a projection's updates to out (rows, tokens, p->out), float or bfloat16.
 *
 * x (rows, tokens, p->in) is its input, or NULL where hidden was already made of it, for another
 * projection of the stack; hidden (begin[adapters], tokens, p->ranks) is kept for those. Each
 * thread has tiles of its own, so that a row with several adapters is never written by two. */
void peftjob_update(const Uses *uses, const Projection *p, int64_t tokens, const float *x,
                    float *hidden, void *out, int bfloat16) {
    if (x) shrink_all(uses, p, x, tokens, hidden);
    int64_t tiles = (p->out + COLUMNS - 1) / COLUMNS;
#pragma omp parallel num_threads(threads_for(uses, tokens, p->rank * p->out))
    {
        int64_t mine = omp_get_thread_num(), team = omp_get_num_threads();
        expand(uses, p, hidden, tokens, out, bfloat16, tiles * mine / team,
               tiles * (mine + 1) / team);
    }
}
