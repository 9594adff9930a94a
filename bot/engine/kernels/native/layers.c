/* ChatGLM's layers on a CPU, a token a row: all of a step in one call, in which each weight is read once.

   `kernels.reference` defines the weights, `chatglm.model` the network.  Sums are float32; keys and values are bfloat16.
   Sizes are multiples of LANES, in 4 bits those of groups of 2 * LANES: who calls sees to it. */

#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum {
    LANES = 16,
    TOKENS = 4,   /* rows of input at once, and */
    TOGETHER = 4, /* rows of weights: the sums of all pairs stay in registers */
    BLOCK = 32,   /* rows of weights that stay in the cache while the next TOKENS come */
    LINE = 64     /* bytes of memory that are fetched at once */
};

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float fours __attribute__((vector_size(4 * TOKENS), aligned(4), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

/* In 8 bits, and in 4 bits without groups, `scale` has a number for each row.  With groups `grid` has a scale and a
   zero for each, side by side in bfloat16. */
struct matrix {
    int64_t bits, rows, columns, groups;
    const int8_t *values;
    const float *scale;
    const uint16_t *grid;
    const float *bias;
};

struct norm {
    const float *weight, *bias;
};

struct layer {
    struct norm input, post;
    struct matrix query_key_value, dense, up, down;
    uint16_t *keys, *values; /* [slots, heads, capacity, head_dim] */
};

struct network {
    int64_t layers, hidden, inner, heads, head_dim, channels, capacity, threads;
    float epsilon, alpha;
    const struct layer *layer;
    struct norm last;
    const float *cosine, *sine; /* [positions, head_dim / channels / 2] */
    /* Where a step computes: [rows, hidden] twice, [rows, 3 * hidden or inner], [rows, hidden], [threads, scratch_size] */
    float *state, *normed, *wide, *mixed, *scratch;
    int64_t scratch_size;
};

/* The tokens of a step: each one's slot, its place there, and its positions, [channels, rows]. */
struct tokens {
    int64_t rows;
    const int64_t *slots, *at, *positions;
};

INLINE floats load(const float *from) { return *(const floats *)from; }
INLINE void store(float *to, floats numbers) { *(floats *)to = numbers; }
INLINE floats as_floats(ints numbers) { return __builtin_convertvector(numbers, floats); }

INLINE ints load_bytes(const int8_t *from)
{
#ifdef __AVX512F__
    /* What gcc 12 makes of the other line is a quarter as fast. */
    return (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#else
    return __builtin_convertvector(*(const bytes *)from, ints);
#endif
}

INLINE floats load_bfloat16(const uint16_t *from)
{
#ifdef __AVX512F__
    return (floats)((ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)) << 16);
#else
    return (floats)(__builtin_convertvector(*(const halves *)from, ints) << 16);
#endif
}

INLINE float from_bfloat16(uint16_t number)
{
    uint32_t bits = (uint32_t)number << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

INLINE uint16_t to_bfloat16(float number)
{
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)(number == number ? rounded : 0x7fc0);
}

INLINE float total(floats numbers)
{
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    union { floats all; eight half[2]; } a = {.all = numbers};
    union { eight all; four half[2]; } b = {.all = a.half[0] + a.half[1]};
    four c = b.half[0] + b.half[1];
    return (c[0] + c[1]) + (c[2] + c[3]);
}

INLINE floats at_least(floats low, floats numbers)
{
    ints less = numbers < low;
    return (floats)(((ints)low & less) | ((ints)numbers & ~less));
}

/* e to these powers, within 3e-7 of it: Cody and Waite's reduction to |rest| <= ln(2) / 2, then Taylor's series. */
INLINE floats exponential(floats power)
{
    const floats none = {0};
    power = at_least(none - 87.0f, power);
    power = -at_least(none - 88.0f, -power);
    floats whole = (power * 1.44269504f + 12582912.0f) - 12582912.0f;
    floats rest = power - whole * 0.693145752f - whole * 1.42860677e-6f;
    floats sum = rest * (1.0f / 720) + 1.0f / 120;
    sum = sum * rest + 1.0f / 24;
    sum = sum * rest + 1.0f / 6;
    sum = sum * rest + 0.5f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    return sum * (floats)((__builtin_convertvector(whole, ints) + 127) << 23);
}

/* This thread's part of `count`, in whole blocks. */
INLINE void share(int64_t count, int64_t block, int64_t *first, int64_t *end)
{
    int64_t blocks = (count + block - 1) / block, threads = omp_get_num_threads(), thread = omp_get_thread_num();
    *first = blocks * thread / threads * block;
    *end = blocks * (thread + 1) / threads * block;
    if (*end > count) *end = count;
}

/* Lay rows out as they are read: a block of each after the other; for nibbles even columns before odd ones. */
static void interleave(const float *input, int64_t rows, int64_t columns, int64_t bits, float *blocks)
{
    int64_t size = bits == 4 ? 2 * LANES : LANES;
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < columns; k += size) {
            const float *from = input + j * columns + k;
            float *to = blocks + k * rows + j * size;
            if (bits == 4) {
                floats a = load(from), b = load(from + LANES);
                store(to, __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30));
                store(to + LANES, __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31));
            } else {
                store(to, load(from));
            }
        }
}

#ifdef __AVX512BF16__
enum { PAIRS = 128 /* columns that are multiplied in pairs of bfloat16 at once, which a group has to be made of */ };

/* The same for pairs: a vector for each nibble of 32 words of 16 bits.  The sums of each row's groups come after it all. */
static void interleave_pairs(const struct matrix *m, const float *input, int64_t rows, float *blocks)
{
    int64_t group = m->columns / (m->groups ? m->groups : 1);
    uint16_t *to = (uint16_t *)blocks;
    float *sums = blocks + rows * m->columns / 2;
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < m->columns; k += PAIRS) {
            const float *from = input + j * m->columns + k;
            uint16_t *block = to + k * rows + j * PAIRS;
            floats sum = {0};
            for (int i = 0; i < PAIRS / 4; i++)
                for (int n = 0; n < 4; n++) block[n * PAIRS / 4 + i] = to_bfloat16(from[4 * i + (n ^ 1)]);
            for (int i = 0; i < PAIRS; i += LANES) sum += load_bfloat16(block + i);
            float *group_sum = sums + k / group * TOKENS + j;
            *group_sum = (k % group ? *group_sum : 0) + total(sum);
        }
}
#endif

/* The processor's own guesses end with each row: fetch what comes after the rows at hand. */
INLINE void fetch_ahead(const int8_t *values, int64_t width, int64_t k)
{
    if (k % LINE == 0)
        for (int r = 0; r < TOGETHER; r++) __builtin_prefetch(values + (TOGETHER + r) * width + k);
}

INLINE void int8_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, float *output,
                      const int tokens)
{
    for (int64_t row = first; row < end; row += TOGETHER) {
        const int8_t *values = m->values + row * m->columns;
        floats sum[TOGETHER][TOKENS] = {0};
        for (int64_t k = 0; k < m->columns; k += LANES) {
            floats weight[TOGETHER];
            fetch_ahead(values, m->columns, k);
            UNROLL for (int r = 0; r < TOGETHER; r++) weight[r] = as_floats(load_bytes(values + r * m->columns + k));
            UNROLL for (int j = 0; j < tokens; j++) {
                floats x = load(blocks + k * tokens + j * LANES);
                UNROLL for (int r = 0; r < TOGETHER; r++) sum[r][j] += weight[r] * x;
            }
        }
        UNROLL for (int r = 0; r < TOGETHER; r++)
            UNROLL for (int j = 0; j < tokens; j++)
                output[j * m->rows + row + r] = total(sum[r][j]) * m->scale[row + r] + m->bias[row + r];
    }
}

/* What the lowest four bits of each number stand for. */
INLINE floats on_grid(ints nibbles, floats grid, float scale, float zero)
{
#ifdef __AVX512F__
    (void)scale, (void)zero;
    return (floats)_mm512_permutexvar_ps((__m512i)nibbles, (__m512)grid);
#else
    (void)grid;
    return as_floats(nibbles << 28 >> 28) * scale + zero;
#endif
}

INLINE void int4_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, float *output,
                      const int tokens)
{
    const floats steps = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
    int64_t width = m->columns / 2, groups = m->groups ? m->groups : 1, group = width / groups;
    for (int64_t row = first; row < end; row += TOGETHER) {
        const int8_t *values = m->values + row * width;
        floats sum[TOGETHER][TOKENS] = {0};
        for (int64_t g = 0; g < groups; g++) {
            float scale[TOGETHER], zero[TOGETHER];
            floats grid[TOGETHER];
            UNROLL for (int r = 0; r < TOGETHER; r++) {
                const uint16_t *pair = m->grid + 2 * ((row + r) * groups + g);
                scale[r] = m->groups ? from_bfloat16(pair[0]) : m->scale[row + r];
                zero[r] = m->groups ? from_bfloat16(pair[1]) : 0;
                grid[r] = steps * scale[r] + zero[r];
            }
            for (int64_t k = g * group; k < (g + 1) * group; k += LANES) {
                floats even[TOGETHER], odd[TOGETHER];
                fetch_ahead(values, width, k);
                UNROLL for (int r = 0; r < TOGETHER; r++) {
                    ints both = load_bytes(values + r * width + k);
                    even[r] = on_grid(both >> 4, grid[r], scale[r], zero[r]);
                    odd[r] = on_grid(both, grid[r], scale[r], zero[r]);
                }
                UNROLL for (int j = 0; j < tokens; j++) {
                    const float *pair = blocks + 2 * (k * tokens + j * LANES);
                    floats x = load(pair), y = load(pair + LANES);
                    UNROLL for (int r = 0; r < TOGETHER; r++) sum[r][j] += even[r] * x, sum[r][j] += odd[r] * y;
                }
            }
        }
        UNROLL for (int r = 0; r < TOGETHER; r++)
            UNROLL for (int j = 0; j < tokens; j++)
                output[j * m->rows + row + r] = total(sum[r][j]) + m->bias[row + r];
    }
}

#ifdef __AVX512BF16__
/* Steps of the grid are exact in bfloat16, which the processor multiplies twice as many of: only activations are rounded.
   A group's zero is multiplied with the sum of its activations. */
INLINE void int4_pairs(const struct matrix *m, int64_t first, int64_t end, const float *blocks, float *output,
                       const int tokens)
{
    /* -8 to 7 by their lowest four bits; a fifth, of the nibble beside, makes no difference. */
    static const uint16_t steps[32] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    };
    const __m512i table = _mm512_loadu_si512(steps);
    const uint16_t *inputs = (const uint16_t *)blocks;
    const float *sums = blocks + tokens * m->columns / 2;
    int64_t width = m->columns / 2, groups = m->groups ? m->groups : 1, group = width / groups;
    for (int64_t row = first; row < end; row += TOGETHER) {
        const int8_t *values = m->values + row * width;
        floats sum[TOGETHER][TOKENS] = {0};
        fours offset[TOGETHER] = {0};
        for (int64_t g = 0; g < groups; g++) {
            fours group_sums = *(const fours *)(sums + g * TOKENS);
            __m512 part[TOGETHER][TOKENS] = {0};
            for (int64_t k = g * group; k < (g + 1) * group; k += PAIRS / 2) {
                const uint16_t *x = inputs + 2 * k * tokens;
                __m512i words[TOGETHER];
                fetch_ahead(values, width, k);
                UNROLL for (int r = 0; r < TOGETHER; r++) words[r] = _mm512_loadu_si512(values + r * width + k);
                UNROLL for (int n = 0; n < 4; n++) {
                    __m512bh weight[TOGETHER];
                    UNROLL for (int r = 0; r < TOGETHER; r++)
                        weight[r] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words[r], 4 * n), table);
                    UNROLL for (int j = 0; j < tokens; j++) {
                        __m512bh y = (__m512bh)_mm512_loadu_si512(x + j * PAIRS + n * PAIRS / 4);
                        UNROLL for (int r = 0; r < TOGETHER; r++) part[r][j] = _mm512_dpbf16_ps(part[r][j], weight[r], y);
                    }
                }
            }
            UNROLL for (int r = 0; r < TOGETHER; r++) {
                const uint16_t *pair = m->grid + 2 * ((row + r) * groups + g);
                float scale = m->groups ? from_bfloat16(pair[0]) : m->scale[row + r];
                float zero = m->groups ? from_bfloat16(pair[1]) : 0;
                offset[r] += zero * group_sums;
                UNROLL for (int j = 0; j < tokens; j++) sum[r][j] += (floats)part[r][j] * scale;
            }
        }
        UNROLL for (int r = 0; r < TOGETHER; r++)
            UNROLL for (int j = 0; j < tokens; j++)
                output[j * m->rows + row + r] = total(sum[r][j]) + offset[r][j] + m->bias[row + r];
    }
}
#endif

INLINE int is_in_pairs(const struct matrix *m)
{
#ifdef __AVX512BF16__
    return m->bits == 4 && m->columns / (m->groups ? m->groups : 1) % PAIRS == 0;
#else
    (void)m;
    return 0;
#endif
}

/* Loops over tokens are made for each number of them: sums stay in registers then. */
static void some_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, float *output, int tokens)
{
#define CASE(N)                                                           \
    case N:                                                               \
        if (m->bits == 8) int8_rows(m, first, end, blocks, output, N);    \
        else if (is_in_pairs(m)) int4_pairs(m, first, end, blocks, output, N); \
        else int4_rows(m, first, end, blocks, output, N);                 \
        break;
    switch (tokens) {
        CASE(1) CASE(2) CASE(3) CASE(4)
    }
#undef CASE
}

/* This thread's part of a product, [rows, columns] to [rows, m->rows]; `first` and `end` say which numbers of each row. */
static void product(const struct matrix *m, const float *input, int64_t rows, float *output, float *scratch,
                    int64_t *first, int64_t *end)
{
    int64_t count[(rows + TOKENS - 1) / TOKENS];
    for (int64_t j = 0; j < rows; j += TOKENS) {
        count[j / TOKENS] = rows - j < TOKENS ? rows - j : TOKENS;
        if (is_in_pairs(m)) interleave_pairs(m, input + j * m->columns, count[j / TOKENS], scratch + j * m->columns);
        else interleave(input + j * m->columns, count[j / TOKENS], m->columns, m->bits, scratch + j * m->columns);
    }
    share(m->rows, LANES, first, end);
    for (int64_t row = *first; row < *end; row += BLOCK)
        for (int64_t j = 0; j < rows; j += TOKENS)
            some_rows(m, row, row + BLOCK < *end ? row + BLOCK : *end, scratch + j * m->columns, output + j * m->rows,
                      (int)count[j / TOKENS]);
}

static void gelu(float *numbers, int64_t count)
{
    /* The tanh form: tanh(u) is 1 - 2 / (e^2u + 1). */
    for (int64_t k = 0; k < count; k += LANES) {
        floats x = load(numbers + k);
        store(numbers + k, x / (1 + exponential((x + 0.044715f * x * x * x) * -1.5957691216f)));
    }
}

static void normalise(const struct network *n, const struct norm *norm, int64_t rows)
{
    int64_t first, end, size = n->hidden;
    share(rows, 1, &first, &end);
    for (int64_t j = first; j < end; j++) {
        const float *from = n->state + j * size;
        floats sum = {0}, squares = {0};
        for (int64_t k = 0; k < size; k += LANES) sum += load(from + k);
        float mean = total(sum) / size;
        for (int64_t k = 0; k < size; k += LANES) squares += (load(from + k) - mean) * (load(from + k) - mean);
        float factor = 1 / __builtin_sqrtf(total(squares) / size + n->epsilon);
        for (int64_t k = 0; k < size; k += LANES)
            store(n->normed + j * size + k,
                  (load(from + k) - mean) * factor * load(norm->weight + k) + load(norm->bias + k));
    }
}

static void add_residual(const struct network *n, int64_t rows, int64_t first, int64_t end)
{
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = j * n->hidden + first; k < j * n->hidden + end; k += LANES)
            store(n->state + k, load(n->state + k) + n->alpha * load(n->normed + k));
}

/* Each part of the head has its own position, and pairs (i, i + size / 2). */
static void rotate(const struct network *n, const struct tokens *t, int64_t row, float *head)
{
    int64_t size = n->head_dim / n->channels, pairs = size / 2;
    for (int64_t c = 0; c < n->channels; c++, head += size) {
        int64_t angles = t->positions[c * t->rows + row] * pairs;
        for (int64_t k = 0; k < pairs; k++) {
            float a = head[k], b = head[pairs + k], cosine = n->cosine[angles + k], sine = n->sine[angles + k];
            head[k] = a * cosine - b * sine;
            head[pairs + k] = b * cosine + a * sine;
        }
    }
}

/* One head of one token: its key and value join the slot, its query meets all that is there. */
static void attend(const struct network *n, const struct layer *layer, const struct tokens *t, int64_t row, int64_t head,
                   float *scores)
{
    int64_t size = n->head_dim, at = t->at[row], count = at + 1;
    float *query = n->wide + (row * n->heads + head) * 3 * size, *key = query + size, *value = key + size;
    int64_t slot = (t->slots[row] * n->heads + head) * n->capacity * size;
    uint16_t *keys = layer->keys + slot, *values = layer->values + slot;

    rotate(n, t, row, query);
    rotate(n, t, row, key);
    for (int64_t k = 0; k < size; k++) {
        keys[at * size + k] = to_bfloat16(key[k]);
        values[at * size + k] = to_bfloat16(value[k]);
    }

    const float none = -3.4e38f;
    float scale = 1 / __builtin_sqrtf((float)size);
    for (int64_t i = 0; i < count; i++) {
        floats sum = {0};
        for (int64_t k = 0; k < size; k += LANES) sum += load(query + k) * load_bfloat16(keys + i * size + k);
        scores[i] = total(sum) * scale;
    }
    for (int64_t i = count; i % LANES; i++) scores[i] = none;
    floats sum = {0}, largest = sum + none;
    for (int64_t i = 0; i < count; i += LANES) largest = at_least(largest, load(scores + i));
    float most = none;
    for (int i = 0; i < LANES; i++) most = largest[i] > most ? largest[i] : most;
    for (int64_t i = 0; i < count; i += LANES) {
        floats shares = exponential(load(scores + i) - most);
        store(scores + i, shares);
        sum += shares;
    }

    float factor = 1 / total(sum);
    float *mixed = n->mixed + (row * n->heads + head) * size;
    for (int64_t k = 0; k < size; k += 4 * LANES) {
        floats mix[4] = {0};
        int parts = (int)(size - k < 4 * LANES ? (size - k) / LANES : 4);
        for (int64_t i = 0; i < count; i++)
            UNROLL for (int p = 0; p < 4; p++)
                if (p < parts) mix[p] += scores[i] * load_bfloat16(values + i * size + k + p * LANES);
        for (int p = 0; p < parts; p++) store(mixed + k + p * LANES, mix[p] * factor);
    }
}

/* Run all layers on `state`; what the last norm makes of it is in `normed` then. */
void run_layers(const struct network *n, const struct tokens *t)
{
#pragma omp parallel num_threads(n->threads)
    {
        float *scratch = n->scratch + omp_get_thread_num() * n->scratch_size;
        int64_t rows = t->rows, first, end;
        for (const struct layer *layer = n->layer; layer < n->layer + n->layers; layer++) {
            normalise(n, &layer->input, rows);
#pragma omp barrier
            product(&layer->query_key_value, n->normed, rows, n->wide, scratch, &first, &end);
#pragma omp barrier
            share(rows * n->heads, 1, &first, &end);
            for (int64_t i = first; i < end; i++) attend(n, layer, t, i / n->heads, i % n->heads, scratch);
#pragma omp barrier
            product(&layer->dense, n->mixed, rows, n->state, scratch, &first, &end);
            add_residual(n, rows, first, end);
#pragma omp barrier
            normalise(n, &layer->post, rows);
#pragma omp barrier
            product(&layer->up, n->normed, rows, n->wide, scratch, &first, &end);
            for (int64_t j = 0; j < rows; j++) gelu(n->wide + j * n->inner + first, end - first);
#pragma omp barrier
            product(&layer->down, n->wide, rows, n->state, scratch, &first, &end);
            add_residual(n, rows, first, end);
#pragma omp barrier
        }
        normalise(n, &n->last, rows);
    }
}

/* Multiply [rows, columns] by a matrix; `scratch` has rows * columns numbers for each thread. */
void multiply(const struct matrix *m, const float *input, int64_t rows, float *output, float *scratch, int64_t threads)
{
#pragma omp parallel num_threads(threads)
    {
        int64_t first, end;
        product(m, input, rows, output, scratch + omp_get_thread_num() * rows * m->columns, &first, &end);
    }
}

/* Weights as bfloat16, [rows, columns]; where a row has one scale, without it. */
void convert(const struct matrix *m, uint16_t *output, int64_t threads)
{
#pragma omp parallel num_threads(threads)
    {
        int64_t first, end, width = m->columns / 2, group = m->groups ? width / m->groups : width;
        share(m->rows, 1, &first, &end);
        for (int64_t row = first; row < end; row++) {
            uint16_t *to = output + row * m->columns;
            if (m->bits == 8) {
                for (int64_t k = 0; k < m->columns; k++) to[k] = to_bfloat16(m->values[row * m->columns + k]);
                continue;
            }
            for (int64_t k = 0; k < width; k += group) {
                const uint16_t *pair = m->grid + 2 * (row * m->groups + k / group);
                float scale = m->groups ? from_bfloat16(pair[0]) : 1, zero = m->groups ? from_bfloat16(pair[1]) : 0;
                const int8_t *from = m->values + row * width + k;
                for (int64_t i = 0; i < group; i++) {
                    to[2 * (k + i)] = to_bfloat16((float)(from[i] >> 4) * scale + zero);
                    to[2 * (k + i) + 1] = to_bfloat16((float)((int8_t)(from[i] << 4) >> 4) * scale + zero);
                }
            }
        }
    }
}
