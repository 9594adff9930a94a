/* Matmuls of quantised weights and a few float32 rows, with float32 sums; `kernels.reference` is the reference.

   Callers guarantee that sizes are multiples of LANES, and int4 groups multiples of 2 * LANES. */

#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum {
    LANES = 16,
    TOKENS = 4,   /* input rows per register tile */
    TOGETHER = 4, /* weight rows per register tile: all TOKENS * TOGETHER sums stay in registers */
    BLOCK = 32,   /* weight rows that stay in the cache across input tiles */
    LINE = 64     /* bytes of a cache line */
};

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float fours __attribute__((vector_size(4 * TOKENS), aligned(4), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

/* Without groups, `scale` holds one float per row.  With int4 groups, `grid` holds a bfloat16 scale and zero per
   group. */
struct matrix {
    int64_t bits, rows, columns, groups;
    const int8_t *values;
    const float *scale;
    const uint16_t *grid;
    const float *bias;
};

INLINE floats load(const float *from) { return *(const floats *)from; }
INLINE void store(float *to, floats numbers) { *(floats *)to = numbers; }
INLINE floats as_floats(ints numbers) { return __builtin_convertvector(numbers, floats); }

INLINE ints load_bytes(const int8_t *from)
{
#ifdef __AVX512F__
    /* gcc 12 compiles the generic line to code a quarter as fast. */
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

/* This thread's share of `count`, in whole blocks. */
INLINE void share(int64_t count, int64_t block, int64_t *first, int64_t *end)
{
    int64_t blocks = (count + block - 1) / block, threads = omp_get_num_threads(), thread = omp_get_thread_num();
    *first = blocks * thread / threads * block;
    *end = blocks * (thread + 1) / threads * block;
    if (*end > count) *end = count;
}

#define EACH_OTHER(FROM) FROM, FROM + 2, FROM + 4, FROM + 6, FROM + 8, FROM + 10, FROM + 12, FROM + 14

/* Reorder input rows to the order they are read in: blocks of all rows interleaved; for int4, even columns before odd. */
static void interleave(const float *input, int64_t rows, int64_t columns, int64_t bits, float *blocks)
{
    int64_t size = bits == 4 ? 2 * LANES : LANES;
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < columns; k += size) {
            const float *from = input + j * columns + k;
            float *to = blocks + k * rows + j * size;
            if (bits == 4) {
                floats a = load(from), b = load(from + LANES);
                store(to, __builtin_shufflevector(a, b, EACH_OTHER(0), EACH_OTHER(16)));
                store(to + LANES, __builtin_shufflevector(a, b, EACH_OTHER(1), EACH_OTHER(17)));
            } else {
                store(to, load(from));
            }
        }
}

#ifdef __AVX512BF16__
enum { PAIRS = 128 /* columns per step of the bfloat16 dot product; group sizes are multiples of it */ };

/* As `interleave`, for bfloat16 pairs: one vector per nibble of 32 16-bit words, then the group sums
   [groups, TOKENS]. */
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

/* The hardware prefetcher stops at the end of a row: prefetch the next rows. */
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

INLINE void read_grid(const struct matrix *m, int64_t row, int64_t group, float *scale, float *zero)
{
    const uint16_t *pair = m->groups ? m->grid + 2 * (row * m->groups + group) : 0;
    *scale = pair ? from_bfloat16(pair[0]) : m->scale[row];
    *zero = pair ? from_bfloat16(pair[1]) : 0;
}

/* Dequantise the lowest four bits of each lane. */
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
                read_grid(m, row + r, g, &scale[r], &zero[r]);
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
/* The int4 values are exact in bfloat16, whose dot product has twice the throughput; only activations are rounded.
   A group's zero is multiplied by the sum of its activations. */
INLINE void int4_pairs(const struct matrix *m, int64_t first, int64_t end, const float *blocks, float *output,
                       const int tokens)
{
    /* Indexed by five bits: the table repeats because the fifth belongs to the next nibble. */
    static const uint16_t steps[32] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, /* 0 to 7 */
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, /* -8 to -1 */
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, /* repeated */
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
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
                        UNROLL for (int r = 0; r < TOGETHER; r++)
                            part[r][j] = _mm512_dpbf16_ps(part[r][j], weight[r], y);
                    }
                }
            }
            UNROLL for (int r = 0; r < TOGETHER; r++) {
                float scale, zero;
                read_grid(m, row + r, g, &scale, &zero);
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

/* Specialised per token count, so that sums stay in registers. */
static void some_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, float *output,
                      int tokens)
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

/* This thread's part of the matmul [rows, columns] to [rows, m->rows]: output columns `first` to `end`. */
static void matmul(const struct matrix *m, const float *input, int64_t rows, float *output, float *scratch,
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
