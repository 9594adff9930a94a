/* AMX: TILE weight rows times TILE input rows make a tile of sums, in 16 cycles per step.

   Activations are the integers of integers.h.  For bfloat16 weights they are bfloat16, and have no low part. */

enum {
    BLOCKS = 2, /* tiles of weight rows: with high and low numbers four tiles of sums, of eight in all */
    AREA = TILE * TILE,
    CHUNK_STEPS = 8 /* whose weights stay in the fastest cache for all input rows */
};

INLINE int64_t step_columns(const int bits) { return bits == 16 ? STEP / 2 : STEP; }

struct tile_shapes {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* Rows become columns, in pairs, fours, eights and sixteens. */
INLINE void transpose(__m512i *rows)
{
    __m512i to[TILE];
    for (int i = 0; i < TILE; i += 2) {
        to[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        to[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < TILE; i += 4)
        for (int j = 0; j < 2; j++) {
            rows[i + 2 * j] = _mm512_unpacklo_epi64(to[i + j], to[i + j + 2]);
            rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(to[i + j], to[i + j + 2]);
        }
    for (int i = 0; i < TILE; i += 8)
        for (int j = 0; j < 4; j++) {
            to[i + j] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0x88);
            to[i + j + 4] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        rows[j] = _mm512_shuffle_i32x4(to[j], to[j + 8], 0x88);
        rows[j + 8] = _mm512_shuffle_i32x4(to[j], to[j + 8], 0xdd);
    }
}

/* Copy columns `k` to `k + count` of the weight rows to [steps, blocks, TILE, STEP]; int4 weights become 16
   times as large. */
INLINE void copy_weights(const struct matrix *m, int64_t row, int64_t k, int64_t count, int8_t *to, const int bits,
                         const int blocks)
{
    const __m512i top = _mm512_set1_epi8((char)0xf0);
    int64_t width = m->columns * bits / 8, bytes = count * bits / 8;
    const int8_t *from = m->values + row * width + k * bits / 8;
    for (int r = 0; r < blocks * TILE; r++, from += width)
        for (int64_t i = 0; i < bytes; i += STEP) {
            __m512i both = _mm512_loadu_si512(from + i);
            __builtin_prefetch(from + i + blocks * TILE * width);
            int8_t *step = to + (i / STEP * (bits == 4 ? 2 : 1) * blocks * TILE + r) * STEP;
            if (bits > 4) {
                _mm512_storeu_si512(step, both);
            } else {
                _mm512_storeu_si512(step, _mm512_and_si512(both, top));
                _mm512_storeu_si512(step + blocks * TILE * STEP, _mm512_and_si512(_mm512_slli_epi16(both, 4), top));
            }
        }
}

/* Add the products of a chunk of weights and a tile of input rows to `sums` [blocks, 2, TILE, TILE]; the first chunk of
   a group overwrites them. */
INLINE void multiply_tiles(const int8_t *weights, int64_t steps, const int8_t *inputs, int32_t *sums, int is_first,
                           const int blocks)
{
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, LINE);
        _tile_loadd(1, sums + AREA, LINE);
        if (blocks > 1) {
            _tile_loadd(2, sums + 2 * AREA, LINE);
            _tile_loadd(3, sums + 3 * AREA, LINE);
        }
    }
    for (int64_t s = 0; s < steps; s++, weights += blocks * TILE * STEP, inputs += 2 * STEP * TILE) {
        _tile_loadd(4, inputs, STEP);
        _tile_loadd(5, inputs + STEP * TILE, STEP);
        _tile_loadd(6, weights, STEP);
        _tile_dpbssd(0, 6, 4);
        _tile_dpbssd(1, 6, 5);
        if (blocks > 1) {
            _tile_loadd(7, weights + TILE * STEP, STEP);
            _tile_dpbssd(2, 7, 4);
            _tile_dpbssd(3, 7, 5);
        }
    }
    _tile_stored(0, sums, LINE);
    _tile_stored(1, sums + AREA, LINE);
    if (blocks > 1) {
        _tile_stored(2, sums + 2 * AREA, LINE);
        _tile_stored(3, sums + 3 * AREA, LINE);
    }
}

/* As `multiply_tiles`, for bfloat16: sums are float32 [blocks, 2, TILE, TILE], the second of each two unused. */
INLINE void multiply_bfloat16_tiles(const int8_t *weights, int64_t steps, const int8_t *inputs, int32_t *sums,
                                    int is_first, const int blocks)
{
    if (is_first) {
        _tile_zero(0);
        _tile_zero(2);
    } else {
        _tile_loadd(0, sums, LINE);
        if (blocks > 1) _tile_loadd(2, sums + 2 * AREA, LINE);
    }
    for (int64_t s = 0; s < steps; s++, weights += blocks * TILE * STEP, inputs += STEP * TILE) {
        _tile_loadd(4, inputs, STEP);
        _tile_loadd(6, weights, STEP);
        _tile_dpbf16ps(0, 6, 4);
        if (blocks > 1) {
            _tile_loadd(7, weights + TILE * STEP, STEP);
            _tile_dpbf16ps(2, 7, 4);
        }
    }
    _tile_stored(0, sums, LINE);
    if (blocks > 1) _tile_stored(2, sums + 2 * AREA, LINE);
}

/* Add the sums of a group to `products` [blocks * TILE, TILE]. */
INLINE void add_group_of_tiles(const struct matrix *m, int64_t row, int64_t g, const struct integers *in,
                               int32_t *sums, float *products, const int bits, const int blocks)
{
    const int32_t *inputs = in->sums + g * 2 * TILE;
    __m512 activations = join(_mm512_loadu_si512(inputs), _mm512_loadu_si512(inputs + TILE));
    for (int r = 0; r < blocks * TILE; r++) {
        int32_t *high = sums + (r / TILE * 2 * TILE + r % TILE) * TILE, *low = high + TILE * TILE;
        int shift = bits == 4 ? 4 : 0;
        __m512 product = bits == 16 ? _mm512_loadu_ps(high)
                                    : join(_mm512_srai_epi32(_mm512_loadu_si512(high), shift),
                                           _mm512_srai_epi32(_mm512_loadu_si512(low), shift));
        if (m->groups) {
            const uint16_t *pair = m->grid + 2 * ((row + r) * m->groups + g);
            product = add_scaled(_mm512_loadu_ps(products + r * TILE), product, _mm512_set1_ps(from_bfloat16(pair[0])),
                                 activations, _mm512_set1_ps(from_bfloat16(pair[1])));
        }
        _mm512_storeu_ps(products + r * TILE, product);
    }
}

/* Write the products of TILE weight rows [TILE, TILE] and `rows` input rows. */
INLINE void write_tile(const struct matrix *m, int64_t row, const float *products, const float *factor, int64_t rows,
                       float *output)
{
    __m512i lines[TILE];
    __m512 scale = m->groups ? _mm512_set1_ps(1) : _mm512_loadu_ps(m->scale + row), bias = _mm512_loadu_ps(m->bias + row);
    for (int r = 0; r < TILE; r++) lines[r] = _mm512_loadu_si512(products + r * TILE);
    transpose(lines);
    for (int64_t j = 0; j < rows; j++)
        _mm512_storeu_ps(output + j * m->rows + row,
                         finish(_mm512_castsi512_ps(lines[j]), scale, _mm512_set1_ps(factor[j]), bias));
}

INLINE void tile_block(const struct matrix *m, int64_t row, const struct integers *in, int64_t rows, float *output,
                       const int bits, const int blocks)
{
    int8_t weights[CHUNK_STEPS * BLOCKS * TILE * STEP] __attribute__((aligned(64)));
    int32_t sums[MOST / TILE][BLOCKS * 2 * TILE * TILE] __attribute__((aligned(64)));
    float products[MOST / TILE][BLOCKS * TILE * TILE] __attribute__((aligned(64)));
    int64_t step = step_columns(bits), chunk = CHUNK_STEPS * step;
    int64_t group = group_columns(m), tiles = (rows + TILE - 1) / TILE, count;
    memset(products, 0, tiles * sizeof *products);
    for (int64_t k = 0; k < m->columns; k += count) {
        count = group - k % group < chunk ? group - k % group : chunk;
        copy_weights(m, row, k, count, weights, bits, blocks);
        for (int64_t t = 0; t < tiles; t++) {
            const int8_t *inputs = in[t].values + k * TILE * 2;
            if (bits == 16) multiply_bfloat16_tiles(weights, count / step, inputs, sums[t], k == 0, blocks);
            else multiply_tiles(weights, count / step, inputs, sums[t], k % group == 0, blocks);
            if ((k + count) % group == 0)
                add_group_of_tiles(m, row, k / group, in + t, sums[t], products[t], bits, blocks);
        }
    }
    for (int64_t t = 0; t < tiles; t++)
        for (int b = 0; b < blocks; b++)
            write_tile(m, row + b * TILE, products[t] + b * TILE * TILE, in[t].factor,
                       rows - t * TILE < TILE ? rows - t * TILE : TILE, output + t * TILE * m->rows);
}

/* All input rows times weight rows `first` to `end`. */
INLINE void tile_rows(const struct matrix *m, int64_t first, int64_t end, const struct integers *in, int64_t rows,
                      float *output, const int bits)
{
    struct tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.bytes[i] = STEP, shapes.rows[i] = TILE;
    _tile_loadconfig(&shapes);
    int64_t row = first;
    for (; row + BLOCKS * TILE <= end; row += BLOCKS * TILE) tile_block(m, row, in, rows, output, bits, BLOCKS);
    for (; row < end; row += TILE) tile_block(m, row, in, rows, output, bits, 1);
    _tile_release();
}

/* Round `rows` input rows to bfloat16. */
static void round_to_bfloat16(const struct matrix *m, const float *input, int64_t rows, const struct integers *in)
{
    for (int64_t j = 0; j < rows; j++) in->factor[j] = 1;
    for (int64_t k = 0; k < m->columns; k += LANES)
        for (int64_t j = 0; j < rows; j++) {
            __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(input + j * m->columns + k));
            int8_t *to = in->values + k / (STEP / 2) * STEP * TILE + 4 * j;
            put_integers(to, k % (STEP / 2) * 2, TILE, _mm256_castsi256_si128(rounded), 1);
            put_integers(to, k % (STEP / 2) * 2 + 16, TILE, _mm256_extracti128_si256(rounded, 1), 1);
        }
}

/* Columns `first` to `end` of the product. */
INLINE void tile_matmul(const struct matrix *m, const float *input, int64_t rows, float *output, float *scratch,
                        int64_t first, int64_t end, const int bits)
{
    struct integers in[MOST / TILE];
    for (int64_t j = 0; j < rows; j += TILE) {
        int64_t count = rows - j < TILE ? rows - j : TILE;
        in[j / TILE] = place_integers(m, TILE, (int8_t *)scratch + j * integer_bytes(m));
        if (count < TILE) memset(in[j / TILE].values, 0, TILE * integer_bytes(m));
        if (bits == 16) round_to_bfloat16(m, input + j * m->columns, count, in + j / TILE);
        else round_rows(m, input + j * m->columns, count, in + j / TILE, bits, 1);
    }
    tile_rows(m, first, end, in, rows, output, bits);
}
