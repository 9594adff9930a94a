/* All ChatGLM layers of a decode step on a CPU, one token per row; each weight is read once.
   Adjacent rows of one slot are tokens that follow each other.

   `chatglm.model` is the reference.  The KV cache is bfloat16, all activations are float32. */

#include "matmul.h"

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
    /* Workspace: [rows, hidden] twice, [rows, max(3 * hidden, inner)], [rows, hidden], and [threads, scratch_size] */
    float *state, *normed, *wide, *mixed, *scratch;
    int64_t scratch_size;
};

/* The tokens of a step: slot, index in the slot, and positions [channels, rows]. */
struct tokens {
    int64_t rows;
    const int64_t *slots, *at, *positions;
};

INLINE floats at_least(floats low, floats numbers)
{
    ints less = numbers < low;
    return (floats)(((ints)low & less) | ((ints)numbers & ~less));
}

/* exp within 3e-7: Cody-Waite reduction to |rest| <= ln(2) / 2, then a Taylor series. */
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

/* RoPE: each channel's part of the head has its own position, and pairs (i, i + size / 2). */
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

/* One head of one token: append its key and value to the cache. */
static void append(const struct network *n, const struct layer *layer, const struct tokens *t, int64_t row,
                   int64_t head)
{
    int64_t size = n->head_dim, at = t->at[row];
    float *query = n->wide + (row * n->heads + head) * 3 * size, *key = query + size, *value = key + size;
    int64_t slot = (t->slots[row] * n->heads + head) * n->capacity * size;
    uint16_t *keys = layer->keys + slot, *values = layer->values + slot;

    rotate(n, t, row, query);
    rotate(n, t, row, key);
    for (int64_t k = 0; k < size; k++) {
        keys[at * size + k] = to_bfloat16(key[k]);
        values[at * size + k] = to_bfloat16(value[k]);
    }
}

/* One head of one token: attend to its slot, up to and including itself. */
static void attend(const struct network *n, const struct layer *layer, const struct tokens *t, int64_t row,
                   int64_t head, float *scores)
{
    int64_t size = n->head_dim, count = t->at[row] + 1;
    const float *query = n->wide + (row * n->heads + head) * 3 * size;
    int64_t slot = (t->slots[row] * n->heads + head) * n->capacity * size;
    const uint16_t *keys = layer->keys + slot, *values = layer->values + slot;

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

/* Whether a slot has several tokens, which then see each other's keys and values. */
static int has_drafts(const struct tokens *t)
{
    for (int64_t row = 1; row < t->rows; row++)
        if (t->slots[row] == t->slots[row - 1]) return 1;
    return 0;
}

/* Run all layers on `state`; the output of the last norm is in `normed`. */
void run_layers(const struct network *n, const struct tokens *t)
{
#pragma omp parallel num_threads(n->threads)
    {
        float *scratch = n->scratch + omp_get_thread_num() * n->scratch_size;
        int64_t rows = t->rows, first, end;
        int waits = has_drafts(t); /* else a thread reads only what it has written in this step */
        for (const struct layer *layer = n->layer; layer < n->layer + n->layers; layer++) {
            normalise(n, &layer->input, rows);
#pragma omp barrier
            matmul(&layer->query_key_value, n->normed, rows, n->wide, scratch, &first, &end);
#pragma omp barrier
            share(rows * n->heads, 1, &first, &end);
            for (int64_t i = first; i < end; i++) append(n, layer, t, i / n->heads, i % n->heads);
            if (waits) {
#pragma omp barrier
            }
            for (int64_t i = first; i < end; i++) attend(n, layer, t, i / n->heads, i % n->heads, scratch);
#pragma omp barrier
            matmul(&layer->dense, n->mixed, rows, n->state, scratch, &first, &end);
            add_residual(n, rows, first, end);
#pragma omp barrier
            normalise(n, &layer->post, rows);
#pragma omp barrier
            matmul(&layer->up, n->normed, rows, n->wide, scratch, &first, &end);
            for (int64_t j = 0; j < rows; j++) gelu(n->wide + j * n->inner + first, end - first);
#pragma omp barrier
            matmul(&layer->down, n->wide, rows, n->state, scratch, &first, &end);
            add_residual(n, rows, first, end);
#pragma omp barrier
        }
        normalise(n, &n->last, rows);
    }
}

/* Multiply [rows, columns] by a matrix; `scratch` holds `scratch_size` floats per thread: rows * columns, and a quarter
   more for the sums of groups. */
void multiply(const struct matrix *m, const float *input, int64_t rows, float *output, float *scratch,
              int64_t scratch_size, int64_t threads)
{
#pragma omp parallel num_threads(threads)
    {
        int64_t first, end;
        matmul(m, input, rows, output, scratch + omp_get_thread_num() * scratch_size, &first, &end);
    }
}

/* Convert weight rows `from` to `until` to bfloat16 [until - from, columns]; per-row scales are not applied. */
void convert(const struct matrix *m, int64_t from, int64_t until, uint16_t *output, int64_t threads)
{
#pragma omp parallel num_threads(threads)
    {
        int64_t first, end, width = m->columns / 2, group = m->groups ? width / m->groups : width;
        share(until - from, 1, &first, &end);
        for (int64_t row = from + first; row < from + end; row++) {
            uint16_t *to = output + (row - from) * m->columns;
            if (m->bits == 8) {
                for (int64_t k = 0; k < m->columns; k++) to[k] = to_bfloat16(m->values[row * m->columns + k]);
                continue;
            }
            for (int64_t k = 0; k < width; k += group) {
                const uint16_t *pair = m->grid + 2 * (row * m->groups + k / group);
                float scale = m->groups ? from_bfloat16(pair[0]) : 1, zero = m->groups ? from_bfloat16(pair[1]) : 0;
                const int8_t *packed = m->values + row * width + k;
                for (int64_t i = 0; i < group; i++) {
                    to[2 * (k + i)] = to_bfloat16((float)(packed[i] >> 4) * scale + zero);
                    to[2 * (k + i) + 1] = to_bfloat16((float)((int8_t)(packed[i] << 4) >> 4) * scale + zero);
                }
            }
        }
    }
}
