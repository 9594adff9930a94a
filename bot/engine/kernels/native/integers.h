/* Products of integers with exact sums, on CPUs with VNNI: a row of activations is rounded to 16 bits of its largest.

   Sums of integers do not depend on their order, so a row gives the same numbers with any other rows, by vectors
   or by tiles.  A number is 256 * high + low, both int8. */

enum {
    STEP = 64,       /* columns of a step: bytes of a register */
    LARGEST = 32639, /* of an activation: 127 * 256 + 127 */
    PAIR = 2         /* input rows of a register tile */
};

INLINE int64_t group_columns(const struct matrix *m) { return m->columns / (m->groups ? m->groups : 1); }

/* int4 weights are read in steps of even columns and odd columns. */
INLINE int is_integer(const struct matrix *m)
{
    return m->bits < 16 && group_columns(m) % (m->bits == 8 ? STEP : 2 * STEP) == 0;
}

#ifdef __AMX_INT8__
enum { TILE = 16 /* rows of a tile */, FROM_TILES = 5 /* input rows from which tiles are faster */ };
#endif

/* At most PAIR or TILE input rows as integers.  `values` alternates `high` and `low` per step [columns / STEP, 2, ...]:
   [size, STEP] for vectors, [STEP / 4, size, 4] for tiles.  `factor` [size] are the scales of the rows, `sums`
   [groups, 2, size] the sums of the columns of a group. */
struct integers {
    int8_t *values;
    int32_t *sums;
    float *factor;
    int64_t size;
};

/* Bytes of a row. */
INLINE int64_t integer_bytes(const struct matrix *m)
{
    return 2 * m->columns + (m->groups ? m->groups : 1) * 2 * (int64_t)sizeof(int32_t) + (int64_t)sizeof(float);
}

static struct integers place_integers(const struct matrix *m, int64_t size, int8_t *scratch)
{
    struct integers in = {.values = scratch, .size = size};
    in.sums = (int32_t *)(scratch + 2 * size * m->columns);
    in.factor = (float *)(in.sums + (m->groups ? m->groups : 1) * 2 * size);
    return in;
}

/* The largest absolute number; infinity and NaN are larger than all others. */
INLINE float largest_of(const float *from, int64_t count)
{
    __m512i most = _mm512_setzero_si512(), is_positive = _mm512_set1_epi32(0x7fffffff);
    for (int64_t k = 0; k < count; k += LANES)
        most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(from + k), is_positive));
    int32_t bits = _mm512_reduce_max_epi32(most);
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

INLINE void put_integers(int8_t *to, int64_t column, int64_t size, __m128i bytes, const int is_tile)
{
    if (!is_tile) {
        _mm_storeu_si128((__m128i *)(to + column), bytes);
        return;
    }
    int32_t four[4];
    _mm_storeu_si128((__m128i *)four, bytes);
    for (int i = 0; i < 4; i++) memcpy(to + (column / 4 + i) * 4 * size, four + i, sizeof *four);
}

/* Round 2 * LANES columns of a row from column `k` on, and add them to `highs` and `lows`; of int4 columns 128 are
   reordered to 64 even ones and 64 odd ones. */
INLINE void round_columns(const float *from, int64_t k, float inverse, const struct integers *in, int64_t row,
                          __m512i *highs, __m512i *lows, const int bits, const int is_tile)
{
    floats part[2] = {load(from + k), load(from + k + LANES)};
    if (bits == 4) {
        floats even = __builtin_shufflevector(part[0], part[1], EACH_OTHER(0));
        part[1] = __builtin_shufflevector(part[0], part[1], EACH_OTHER(1));
        part[0] = even;
    }
    for (int half = 0; half < 2; half++) {
        int64_t block = 2 * STEP, at = bits == 8 ? k + half * LANES : k / block * block + half * STEP + k % block / 2;
        __m512i number = _mm512_cvtps_epi32((__m512)(part[half] * inverse));
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(number, _mm512_set1_epi32(128)), 8);
        __m512i low = _mm512_sub_epi32(number, _mm512_slli_epi32(high, 8));
        *highs = _mm512_add_epi32(*highs, high), *lows = _mm512_add_epi32(*lows, low);
        int8_t *to = in->values + at / STEP * 2 * STEP * in->size + row * (is_tile ? 4 : STEP);
        put_integers(to, at % STEP, in->size, _mm512_cvtepi32_epi8(high), is_tile);
        put_integers(to + STEP * in->size, at % STEP, in->size, _mm512_cvtepi32_epi8(low), is_tile);
    }
}

/* Round `rows` input rows. */
INLINE void round_rows(const struct matrix *m, const float *input, int64_t rows, const struct integers *in,
                       const int bits, const int is_tile)
{
    float inverse[LANES];
    int64_t group = group_columns(m);
    __m512i highs[LANES], lows[LANES];
    for (int64_t j = 0; j < rows; j++) {
        float most = largest_of(input + j * m->columns, m->columns);
        /* Not a number: it makes the whole row one. */
        in->factor[j] = most <= 3.4e38f ? most / LARGEST : __builtin_nanf("");
        inverse[j] = most > 1e-30f && most <= 3.4e38f ? LARGEST / most : 0;
    }
    /* All rows of a step at once: their numbers are in the same lines of a tile. */
    for (int64_t k = 0; k < m->columns; k += 2 * STEP)
        for (int64_t j = 0; j < rows; j++) {
            int64_t end = m->columns - k < 2 * STEP ? m->columns : k + 2 * STEP;
            if (k % group == 0) highs[j] = lows[j] = _mm512_setzero_si512();
            for (int64_t i = k; i < end; i += 2 * LANES)
                round_columns(input + j * m->columns, i, inverse[j], in, j, highs + j, lows + j, bits, is_tile);
            if (end % group) continue;
            int32_t *sums = in->sums + k / group * 2 * in->size + j;
            sums[0] = _mm512_reduce_add_epi32(highs[j]), sums[in->size] = _mm512_reduce_add_epi32(lows[j]);
        }
}

INLINE __m512 join(__m512i high, __m512i low)
{
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256), _mm512_cvtepi32_ps(low));
}

/* Add a group's products with its scales, and its zeros times the sums of its activations. */
INLINE __m512 add_scaled(__m512 sum, __m512 products, __m512 scale, __m512 activations, __m512 zero)
{
    return _mm512_fmadd_ps(activations, zero, _mm512_fmadd_ps(products, scale, sum));
}

INLINE __m512 finish(__m512 sum, __m512 scale, __m512 factor, __m512 bias)
{
    return _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), factor, bias);
}

/* The totals of 16 vectors, by a tree of additions; each level pairs vectors whose numbers differ in one bit. */
INLINE __m512i totals(const __m512i *of)
{
    const __m512i order = _mm512_setr_epi32(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
    __m512i a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(of[i], of[i + 8]), _mm512_unpackhi_epi32(of[i], of[i + 8]));
    for (int i = 0; i < 4; i++)
        b[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a[i], a[i + 4]), _mm512_unpackhi_epi64(a[i], a[i + 4]));
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(b[i], b[i + 2], 0x44), _mm512_shuffle_i32x4(b[i], b[i + 2], 0xee));
    __m512i d = _mm512_add_epi32(_mm512_shuffle_i32x4(c[0], c[1], 0x88), _mm512_shuffle_i32x4(c[0], c[1], 0xdd));
    return _mm512_permutexvar_epi32(order, d);
}

/* Scales and zeros of a group for 16 weight rows. */
INLINE void read_grids(const struct matrix *m, int64_t row, int64_t group, __m512 *scale, __m512 *zero)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i at = _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)m->groups));
    __m512i pair = _mm512_i32gather_epi32(at, m->grid + 2 * (row * m->groups + group), 4);
    *scale = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    *zero = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
}

INLINE __m512i dot(__m512i sum, __m512i weights, const int8_t *numbers)
{
    return _mm512_dpbusd_epi32(sum, weights, _mm512_loadu_si512(numbers));
}

/* TOGETHER weight rows times columns `from` to `to` of the input rows, as vectors `high` and `low` [tokens, 16]. The
   instruction multiplies unsigned weights: the sums of the activations are subtracted afterwards. */
INLINE void add_dots(const struct matrix *m, const int8_t *values, int64_t from, int64_t to, int64_t ahead,
                     const struct integers *in, __m512i *high, __m512i *low, const int bits, const int tokens)
{
    const __m512i top = _mm512_set1_epi8(bits == 8 ? (char)0x80 : 8), mask = _mm512_set1_epi8(15);
    int64_t width = m->columns * bits / 8;
    __m512i highs[PAIR][TOGETHER], lows[PAIR][TOGETHER];
    UNROLL for (int j = 0; j < tokens; j++)
        UNROLL for (int r = 0; r < TOGETHER; r++) highs[j][r] = lows[j][r] = _mm512_setzero_si512();
    for (int64_t k = from; k < to; k += bits == 8 ? STEP : 2 * STEP) {
        const int8_t *at = values + k * bits / 8, *x = in->values + 2 * k * tokens;
        UNROLL for (int r = 0; r < TOGETHER; r++) {
            __m512i both = _mm512_loadu_si512(at + r * width), even, odd = mask;
            __builtin_prefetch(at + (r + ahead) * width);
            if (bits == 8) {
                even = _mm512_xor_si512(both, top);
            } else { /* (number & mask) ^ top */
                even = _mm512_ternarylogic_epi32(_mm512_srli_epi16(both, 4), mask, top, 0x6a);
                odd = _mm512_ternarylogic_epi32(both, mask, top, 0x6a);
            }
            UNROLL for (int j = 0; j < tokens; j++) {
                highs[j][r] = dot(highs[j][r], even, x + j * STEP);
                lows[j][r] = dot(lows[j][r], even, x + (tokens + j) * STEP);
                if (bits == 8) continue;
                highs[j][r] = dot(highs[j][r], odd, x + (2 * tokens + j) * STEP);
                lows[j][r] = dot(lows[j][r], odd, x + (3 * tokens + j) * STEP);
            }
        }
    }
    UNROLL for (int j = 0; j < tokens; j++)
        UNROLL for (int r = 0; r < TOGETHER; r++) high[16 * j + r] = highs[j][r], low[16 * j + r] = lows[j][r];
}

INLINE void integer_rows(const struct matrix *m, int64_t first, int64_t end, const struct integers *in, float *output,
                         const int bits, const int tokens)
{
    int64_t groups = m->groups ? m->groups : 1, group = group_columns(m), width = m->columns * bits / 8;
    const __m512i offset = _mm512_set1_epi32(bits == 8 ? 128 : 8);
    for (int64_t row = first; row < end; row += LANES) {
        __m512 sum[PAIR] = {0};
        for (int64_t g = 0; g < groups; g++) {
            __m512i high[PAIR * LANES], low[PAIR * LANES];
            for (int r = 0; r < LANES; r += TOGETHER)
                add_dots(m, m->values + (row + r) * width, g * group, (g + 1) * group,
                         m->groups ? LANES : TOGETHER, in, high + r, low + r, bits, tokens);
            __m512 scale = _mm512_undefined_ps(), zero = scale;
            if (m->groups) read_grids(m, row, g, &scale, &zero);
            UNROLL for (int j = 0; j < tokens; j++) {
                const int32_t *sums = in->sums + g * 2 * tokens + j;
                __m512i all = _mm512_set1_epi32(sums[0]), rest = _mm512_set1_epi32(sums[tokens]);
                __m512 products = join(_mm512_sub_epi32(totals(high + 16 * j), _mm512_mullo_epi32(offset, all)),
                                       _mm512_sub_epi32(totals(low + 16 * j), _mm512_mullo_epi32(offset, rest)));
                sum[j] = m->groups ? add_scaled(sum[j], products, scale, join(all, rest), zero) : products;
            }
        }
        __m512 scale = m->groups ? _mm512_set1_ps(1) : _mm512_loadu_ps(m->scale + row);
        UNROLL for (int j = 0; j < tokens; j++)
            _mm512_storeu_ps(output + j * m->rows + row,
                             finish(sum[j], scale, _mm512_set1_ps(in->factor[j]), _mm512_loadu_ps(m->bias + row)));
    }
}

/* All input rows, PAIR at a time, times a block of weight rows, which stay in the cache. */
INLINE void pair_rows(const struct matrix *m, int64_t first, int64_t end, const struct integers *in, int64_t rows,
                      float *output, const int bits)
{
    for (int64_t row = first; row < end; row += BLOCK)
        for (int64_t j = 0; j < rows; j += PAIR) {
            int64_t until = row + BLOCK < end ? row + BLOCK : end;
            if (rows - j < PAIR) integer_rows(m, row, until, in + j / PAIR, output + j * m->rows, bits, 1);
            else integer_rows(m, row, until, in + j / PAIR, output + j * m->rows, bits, PAIR);
        }
}

#ifdef __AMX_INT8__
#include "tiles.h"
#endif

/* Columns `first` to `end` of the product. */
INLINE void integer_matmul(const struct matrix *m, const float *input, int64_t rows, float *output, float *scratch,
                           int64_t first, int64_t end, const int bits)
{
    struct integers in[MOST / PAIR];
#ifdef __AMX_INT8__
    if (rows >= FROM_TILES) {
        tile_matmul(m, input, rows, output, scratch, first, end, bits);
        return;
    }
#endif
    for (int64_t j = 0; j < rows; j += PAIR) {
        int64_t count = rows - j < PAIR ? rows - j : PAIR;
        in[j / PAIR] = place_integers(m, count, (int8_t *)scratch + j * integer_bytes(m));
        round_rows(m, input + j * m->columns, count, in + j / PAIR, bits, 0);
    }
    pair_rows(m, first, end, in, rows, output, bits);
}
