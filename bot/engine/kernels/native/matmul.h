/* Matmuls of quantised weights and a few float32 rows, with float32 sums; `kernels.reference` is the reference.

   Callers guarantee that sizes are multiples of 16, and int4 groups multiples of 32. */

#include "vectors.h"

/* Without groups, `scale` holds one float per row.  With int4 groups, `grid` holds a bfloat16 scale and zero per
   group. */
struct matrix {
    int64_t bits, rows, columns, groups;
    const int8_t *values;
    const float *scale;
    const uint16_t *grid;
    const float *bias;
};

#if LANES == 16
#define EACH_OTHER(FROM)                                                                                      \
    FROM, FROM + 2, FROM + 4, FROM + 6, FROM + 8, FROM + 10, FROM + 12, FROM + 14, FROM + 16, FROM + 18, FROM + 20, \
        FROM + 22, FROM + 24, FROM + 26, FROM + 28, FROM + 30
#elif LANES == 8
#define EACH_OTHER(FROM) FROM, FROM + 2, FROM + 4, FROM + 6, FROM + 8, FROM + 10, FROM + 12, FROM + 14
#else
#define EACH_OTHER(FROM) FROM, FROM + 2, FROM + 4, FROM + 6
#endif

/* Without a table, a low nibble is converted where it is, in the highest bits, and its input is divided by 2^28. */
#define LOW_NIBBLE (LANES == 16 ? 1.0f : 1.0f / (1 << 28))

/* Reorder input rows to the order they are read in: blocks of all rows interleaved; for int4, even columns first. */
static void interleave(const float *input, int64_t rows, int64_t columns, int64_t bits, float *blocks)
{
    int64_t size = bits == 4 ? 2 * LANES : LANES;
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < columns; k += size) {
            const float *from = input + j * columns + k;
            float *to = blocks + k * rows + j * size;
            if (bits == 4) {
                floats a = load(from), b = load(from + LANES);
                store(to, __builtin_shufflevector(a, b, EACH_OTHER(0)));
                store(to + LANES, __builtin_shufflevector(a, b, EACH_OTHER(1)) * LOW_NIBBLE);
            } else {
                store(to, load(from));
            }
        }
}

#ifdef __AVX512BF16__
enum { PAIRS = 128 /* columns per step of the bfloat16 dot product; group sizes are multiples of it */ };

INLINE int is_in_pairs(const struct matrix *m)
{
    return m->bits == 4 && m->columns / (m->groups ? m->groups : 1) % PAIRS == 0;
}

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

#if LANES == 16
INLINE void int4_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, const float *sums,
                      float *output, const int tokens)
{
    const floats steps = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
    int64_t width = m->columns / 2, groups = m->groups ? m->groups : 1, group = width / groups;
    (void)sums;
    for (int64_t row = first; row < end; row += TOGETHER) {
        const int8_t *values = m->values + row * width;
        floats sum[TOGETHER][TOKENS] = {0};
        for (int64_t g = 0; g < groups; g++) {
            floats grid[TOGETHER]; /* the 16 values of the group's nibbles */
            UNROLL for (int r = 0; r < TOGETHER; r++) {
                float scale, zero;
                read_grid(m, row + r, g, &scale, &zero);
                grid[r] = steps * scale + zero;
            }
            for (int64_t k = g * group; k < (g + 1) * group; k += LANES) {
                floats even[TOGETHER], odd[TOGETHER];
                fetch_ahead(values, width, k);
                UNROLL for (int r = 0; r < TOGETHER; r++) {
                    ints both = load_bytes(values + r * width + k);
                    even[r] = (floats)_mm512_permutexvar_ps((__m512i)(both >> 4), (__m512)grid[r]);
                    odd[r] = (floats)_mm512_permutexvar_ps((__m512i)both, (__m512)grid[r]);
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
#else
/* Per group and row of a tile, the sums of the inputs that a lane adds [groups, rows, LANES]: zeros multiply them. */
static void sum_groups(const float *blocks, int64_t rows, int64_t columns, int64_t groups, float *sums)
{
    int64_t group = columns / groups;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t j = 0; j < rows; j++) {
            floats even = {0}, odd = {0};
            for (int64_t k = g * group; k < (g + 1) * group; k += 2 * LANES) {
                even += load(blocks + k * rows + 2 * j * LANES);
                odd += load(blocks + k * rows + (2 * j + 1) * LANES);
            }
            store(sums + (g * rows + j) * LANES, even + odd * (1.0f / LOW_NIBBLE));
        }
}

/* A group's products with its steps, and of its zero: the sums of a group in the same order in all kernels. */
INLINE floats add_group(floats sum, floats part, floats group_sum, float scale, float zero)
{
    sum += part * scale;
    sum += group_sum * zero;
    return sum;
}

INLINE void int4_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, const float *sums,
                      float *output, const int tokens)
{
    int64_t width = m->columns / 2, groups = m->groups ? m->groups : 1, group = width / groups;
    for (int64_t row = first; row < end; row += TOGETHER) {
        const int8_t *values = m->values + row * width;
        floats sum[TOGETHER][TOKENS] = {0};
        for (int64_t g = 0; g < groups; g++) {
            floats part[TOGETHER][TOKENS] = {0};
            for (int64_t k = g * group; k < (g + 1) * group; k += LANES) {
                floats x[TOKENS], y[TOKENS];
                fetch_ahead(values, width, k);
                UNROLL for (int j = 0; j < tokens; j++) {
                    x[j] = load(blocks + 2 * (k * tokens + j * LANES));
                    y[j] = load(blocks + 2 * (k * tokens + j * LANES) + LANES);
                }
                UNROLL for (int r = 0; r < TOGETHER; r++) {
                    ints both = load_bytes(values + r * width + k);
                    floats even = as_floats(both >> 4), odd = as_floats(both << 28);
                    UNROLL for (int j = 0; j < tokens; j++) part[r][j] += even * x[j], part[r][j] += odd * y[j];
                }
            }
            UNROLL for (int r = 0; r < TOGETHER; r++) {
                float scale, zero;
                read_grid(m, row + r, g, &scale, &zero);
                UNROLL for (int j = 0; j < tokens; j++)
                    sum[r][j] = m->groups ? add_group(sum[r][j], part[r][j], load(sums + (g * tokens + j) * LANES),
                                                      scale, zero)
                                          : part[r][j];
            }
        }
        UNROLL for (int r = 0; r < TOGETHER; r++)
            UNROLL for (int j = 0; j < tokens; j++)
                output[j * m->rows + row + r] =
                    total(sum[r][j]) * (m->groups ? 1 : m->scale[row + r]) + m->bias[row + r];
    }
}
#endif

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

/* Specialised per token count, so that sums stay in registers. */
static void some_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, const float *sums,
                      float *output, int tokens)
{
#ifdef __AVX512BF16__
#define PAIRS_CASE(N) else if (is_in_pairs(m)) int4_pairs(m, first, end, blocks, output, N);
#else
#define PAIRS_CASE(N)
#endif
#define CASE(N)                                                        \
    case N:                                                            \
        if (m->bits == 8) int8_rows(m, first, end, blocks, output, N); \
        PAIRS_CASE(N)                                                  \
        else int4_rows(m, first, end, blocks, sums, output, N);        \
        break;
    switch (tokens) {
        CASE(1) CASE(2)
#if LANES == 16
        CASE(3) CASE(4)
#endif
    }
#undef CASE
#undef PAIRS_CASE
}

#if LANES < 16
#include "many.h"
#endif

/* This thread's part of the matmul [rows, columns] to [rows, m->rows]: output columns `first` to `end`. */
static void matmul(const struct matrix *m, const float *input, int64_t rows, float *output, float *scratch,
                   int64_t *first, int64_t *end)
{
    int64_t tile = TOKENS, groups = m->groups ? m->groups : 1;
    float *sums = scratch + rows * m->columns;
#if LANES < 16
    if (is_for_many(m, rows)) tile = WIDE;
#endif
    share(m->rows, LEAST, first, end);
    for (int64_t j = 0; j < rows; j += tile) {
        int64_t count = rows - j < tile ? rows - j : tile;
        float *blocks = scratch + j * m->columns;
#ifdef __AVX512BF16__
        if (is_in_pairs(m)) {
            interleave_pairs(m, input + j * m->columns, count, blocks);
            continue;
        }
#endif
        interleave(input + j * m->columns, count, m->columns, m->bits, blocks);
#if LANES < 16
        if (m->bits == 4 && m->groups) sum_groups(blocks, count, m->columns, groups, sums + j * groups * LANES);
#endif
    }
#if LANES < 16
    if (is_for_many(m, rows)) {
        many_rows(m, *first, *end, scratch, sums, rows, output);
        return;
    }
#endif
    for (int64_t row = *first; row < *end; row += BLOCK)
        for (int64_t j = 0; j < rows; j += tile)
            some_rows(m, row, row + BLOCK < *end ? row + BLOCK : *end, scratch + j * m->columns,
                      sums + j * groups * LANES, output + j * m->rows, (int)(rows - j < tile ? rows - j : tile));
}
