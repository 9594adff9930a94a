/* Many input rows on CPUs with vectors of 32 bytes or less: a block of weights is converted once for all of them.

   With longer vectors `some_rows` converts it for each tile: this was not measured there. */

enum {
    MANY = 6,    /* up to so many input rows `some_rows` is as fast */
    CHUNK = 256, /* columns of a block: its weights and a tile of input rows stay in the fastest cache */
    WIDE = 3     /* input rows per tile: TOGETHER * WIDE sums, a weight and WIDE inputs are 16 registers */
};

/* Columns of a block: for int4 a group, or part of the only one. */
INLINE int64_t block_columns(const struct matrix *m)
{
    return m->bits == 4 && m->groups > 1 ? m->columns / m->groups : CHUNK;
}

INLINE int is_for_many(const struct matrix *m, int64_t rows)
{
    /* Sums of one group with a zero are not kept between blocks. */
    return m->bits < 16 && rows > MANY && block_columns(m) <= CHUNK && (m->groups != 1 || m->columns <= CHUNK);
}

/* Convert columns `first` to `first + count` of LEAST weight rows, in the order of `interleave`, to [LEAST, CHUNK]. */
static void decode(const struct matrix *m, int64_t row, int64_t first, int64_t count, float *to)
{
    int64_t width = m->columns * m->bits / 8, bytes = count * m->bits / 8;
    const int8_t *values = m->values + row * width + first * m->bits / 8;
    for (int r = 0; r < LEAST; r++, values += width, to += CHUNK) {
        for (int64_t k = 0; k < bytes; k += LINE) __builtin_prefetch(values + bytes + k);
        for (int64_t k = 0; k < bytes; k += LANES) {
            ints both = load_bytes(values + k);
            if (m->bits == 8) {
                store(to + k, as_floats(both));
            } else {
                store(to + 2 * k, as_floats(both >> 4));
                store(to + 2 * k + LANES, as_floats(both << 28));
            }
        }
    }
}

/* The products of a block [LEAST, CHUNK] and a tile of input rows, added to `sums` [LEAST, tokens]: as they are, or
   those of group `group` with its scale and zero. */
INLINE void add_products(const struct matrix *m, int64_t row, int64_t group, const float *weights, const float *inputs,
                         const float *group_sums, int64_t count, floats *sums, const int tokens, const int size)
{
    for (int first = 0; first < LEAST; first += TOGETHER, weights += TOGETHER * CHUNK, sums += TOGETHER * tokens) {
        floats sum[TOGETHER][WIDE];
        UNROLL for (int r = 0; r < TOGETHER; r++)
            UNROLL for (int j = 0; j < tokens; j++) sum[r][j] = group < 0 ? sums[r * tokens + j] : (floats){0};
        for (int64_t k = 0; k < count; k += size)
            UNROLL for (int part = 0; part < size; part += LANES) {
                floats x[WIDE];
                UNROLL for (int j = 0; j < tokens; j++) x[j] = load(inputs + k * tokens + j * size + part);
                UNROLL for (int r = 0; r < TOGETHER; r++) {
                    floats weight = load(weights + r * CHUNK + k + part);
                    UNROLL for (int j = 0; j < tokens; j++) sum[r][j] += weight * x[j];
                }
            }
        UNROLL for (int r = 0; r < TOGETHER; r++) {
            float scale = 1, zero = 0;
            if (group >= 0) read_grid(m, row + first + r, group, &scale, &zero);
            UNROLL for (int j = 0; j < tokens; j++)
                sums[r * tokens + j] = group < 0 ? sum[r][j]
                                                 : add_group(sums[r * tokens + j], sum[r][j],
                                                             load(group_sums + j * LANES), scale, zero);
        }
    }
}

static void add_tile(const struct matrix *m, int64_t row, int64_t group, const float *weights, const float *inputs,
                     const float *group_sums, int64_t count, floats *sums, int tokens)
{
#define CASE(N)                                                                                                    \
    case N:                                                                                                        \
        if (m->bits == 8) add_products(m, row, -1, weights, inputs, group_sums, count, sums, N, LANES);            \
        else add_products(m, row, group, weights, inputs, group_sums, count, sums, N, 2 * LANES);                  \
        break;
    switch (tokens) {
        CASE(1) CASE(2) CASE(3)
    }
#undef CASE
}

/* As the other kernels, with the same sums in the same order, from MANY rows on up to MOST. */
static void many_rows(const struct matrix *m, int64_t first, int64_t end, const float *blocks, const float *group_sums,
                      int64_t rows, float *output)
{
    float weights[LEAST * CHUNK];
    floats sums[LEAST * MOST];
    int64_t most = block_columns(m), groups = m->groups ? m->groups : 1;
    int is_grouped = m->bits == 4 && m->groups > 0, is_scaled = m->bits == 8 || !m->groups;
    for (int64_t row = first; row < end; row += LEAST) {
        memset(sums, 0, rows * LEAST * sizeof *sums);
        for (int64_t k = 0; k < m->columns; k += most) {
            int64_t count = m->columns - k < most ? m->columns - k : most, group = is_grouped ? k / most : -1;
            decode(m, row, k, count, weights);
            for (int64_t j = 0; j < rows; j += WIDE) {
                int tokens = (int)(rows - j < WIDE ? rows - j : WIDE);
                const float *its_sums = group_sums + (j * groups + (is_grouped ? group * tokens : 0)) * LANES;
                add_tile(m, row, group, weights, blocks + j * m->columns + k * tokens, its_sums, count,
                         sums + j * LEAST, tokens);
            }
        }
        for (int64_t j = 0; j < rows; j++) {
            int64_t tile = j / WIDE * WIDE, tokens = rows - tile < WIDE ? rows - tile : WIDE;
            for (int64_t r = 0; r < LEAST; r++) {
                float sum = total(sums[tile * LEAST + r * tokens + j - tile]);
                output[j * m->rows + row + r] = sum * (is_scaled ? m->scale[row + r] : 1) + m->bias[row + r];
            }
        }
    }
}
