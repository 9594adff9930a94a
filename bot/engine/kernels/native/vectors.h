/* Vectors of one register, and how a thread takes its share. */

#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* A vector is a register: gcc 12 keeps longer ones in memory. */
#if defined __AVX512F__
#define LANES 16
#elif defined __AVX2__
#define LANES 8
#else
#define LANES 4
#endif

enum {
    TOKENS = LANES == 16 ? 4 : 2, /* input rows per register tile */
    TOGETHER = 4,                 /* weight rows per register tile: all TOKENS * TOGETHER sums stay in registers */
    MOST = 64,                    /* input rows, as in matmul.py */
    BLOCK = 32,                   /* weight rows that stay in the cache across input tiles */
    LEAST = 16,                   /* all sizes are multiples of it */
    LINE = 64                     /* bytes of a cache line */
};

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float fours __attribute__((vector_size(4 * TOKENS), aligned(4), may_alias));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 4")

INLINE floats load(const float *from) { return *(const floats *)from; }
INLINE void store(float *to, floats numbers) { *(floats *)to = numbers; }
INLINE floats as_floats(ints numbers) { return __builtin_convertvector(numbers, floats); }

INLINE ints load_bytes(const int8_t *from)
{
#ifdef __AVX512F__
    /* gcc 12 compiles the generic line to code a quarter as fast. */
    return (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif defined __AVX2__
    return (ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    return __builtin_convertvector(*(const bytes *)from, ints);
#endif
}

INLINE floats load_bfloat16(const uint16_t *from)
{
#ifdef __AVX512F__
    return (floats)((ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)) << 16);
#elif defined __AVX2__
    return (floats)((ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)) << 16);
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
    typedef float four __attribute__((vector_size(16)));
    union { floats all; four part[LANES / 4]; } sum = {.all = numbers};
    for (int n = LANES / 8; n; n /= 2)
        for (int i = 0; i < n; i++) sum.part[i] += sum.part[i + n];
    four rest = sum.part[0];
    return (rest[0] + rest[1]) + (rest[2] + rest[3]);
}

/* This thread's share of `count`, in whole blocks. */
INLINE void share(int64_t count, int64_t block, int64_t *first, int64_t *end)
{
    int64_t blocks = (count + block - 1) / block, threads = omp_get_num_threads(), thread = omp_get_thread_num();
    *first = blocks * thread / threads * block;
    *end = blocks * (thread + 1) / threads * block;
    if (*end > count) *end = count;
}
