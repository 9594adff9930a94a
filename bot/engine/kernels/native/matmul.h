/* Matmuls of quantised weights and a few float32 rows, with float32 sums; `kernels.reference` is the reference.

   Callers guarantee that sizes are multiples of 16, and int4 groups multiples of 32. */

#include "vectors.h"

/* Without groups, `scale` holds one float per row; of 16 bits, which are bfloat16, they are 1.  With int4 groups, `grid`
   holds a bfloat16 scale and zero per group. */
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

/* The hardware prefetcher stops at the end of a row: prefetch the next rows. */
INLINE void fetch_ahead(const int8_t *values, int64_t width, int64_t k)
{
    if (k % LINE == 0)
        for (int r = 0; r < TOGETHER; r++) __builtin_prefetch(values + (TOGETHER + r) * width + k);
}

INLINE floats load_weights(const int8_t *values, int64_t column, const int bits)
{
    if (bits == 16) return load_bfloat16((const uint16_t *)values + column);
    return as_floats(load_bytes(values + column));
}

/* int8 or bfloat16 weights. */
INLINE void plain_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, float *output,
                       const int bits, const int tokens)
{
    int64_t width = m->columns * bits / 8;
    for (int64_t row = first; row < end; row += TOGETHER) {
        const int8_t *values = m->values + row * width;
        floats sum[TOGETHER][TOKENS] = {0};
        for (int64_t k = 0; k < m->columns; k += LANES) {
            floats weight[TOGETHER];
            fetch_ahead(values, width, k * bits / 8);
            UNROLL for (int r = 0; r < TOGETHER; r++) weight[r] = load_weights(values + r * width, k, bits);
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

/* Specialised per token count, so that sums stay in registers. */
static void some_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, const float *sums,
                      float *output, int tokens)
{
#define CASE(N)                                                              \
    case N:                                                                  \
        if (m->bits == 8) plain_rows(m, first, end, blocks, output, 8, N);   \
        else if (m->bits == 16) plain_rows(m, first, end, blocks, output, 16, N); \
        else int4_rows(m, first, end, blocks, sums, output, N);        \
        break;
    switch (tokens) {
        CASE(1) CASE(2)
#if LANES == 16
        CASE(3) CASE(4)
#endif
    }
#undef CASE
}

#if LANES < 16
#include "many.h"
#endif
#ifdef __AVX512VNNI__
#include "integers.h"
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
#ifdef __AMX_BF16__
    if (m->bits == 16 && m->columns % (STEP / 2) == 0) {
        tile_matmul(m, input, rows, output, scratch, *first, *end, 16);
        return;
    }
#endif
#ifdef __AVX512VNNI__
    if (is_integer(m)) {
        if (m->bits == 8) integer_matmul(m, input, rows, output, scratch, *first, *end, 8);
        else integer_matmul(m, input, rows, output, scratch, *first, *end, 4);
        return;
    }
#endif
    for (int64_t j = 0; j < rows; j += tile) {
        int64_t count = rows - j < tile ? rows - j : tile;
        float *blocks = scratch + j * m->columns;
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
