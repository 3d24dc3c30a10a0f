/* 3x3 convolutions with padding 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin, Gray 2016): four outputs a side
   from 36 products instead of 144, so a core does up to four times what its multipliers could do directly. Forward, and
   the gradient at the weights; that at the inputs is the convolution with the flipped weights.

   Channels last: images (N, H, W, C). A tile is 6x6 inputs for 4x4 outputs; each of its 36 places is a matrix product
   of its own over tiles and channels. Channels come in vectors, and in panels of a few vectors, which a product reads
   from the first cache; their number is a multiple of 16.

   winograd.h has all of it for one type of images. Float32: rounding is about six times that of the direct sum, 1e-6
   relative. Bfloat16, where the processor multiplies pairs of them: transformed inputs and weights are rounded to it,
   1e-2 relative, and summed in float32. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define VECTORS 4 /* 24 sums, 4 columns and a row's value in 32 registers */
#else
#define LANES 8
#define VECTORS 2 /* 12 sums, 2 columns and a row's value in 16 */
#endif
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));

enum { ROWS = 6, PANEL = VECTORS * LANES, SIDE = 6, OUT = 4, PLACES = SIDE * SIDE };
enum { TILES = 96 }; /* at once: their transforms stay near the core */

/* What lies between two places' matrices: without it their rows would fall on the same few lines of the cache. */
static int64_t apart(int64_t rows, int64_t columns) { return rows * columns + LANES; }

static const float zeros[1024];

/* ---- the transforms of one line: six inputs, three weights, four outputs, and the latter two transposed ----

   Toom and Cook's, at the points 0, -P, P, -Q, Q and infinity with P^2 = 1/2 and Q^2 = 2, whose rounding is half of
   that of the usual 0, -1, 1, -2, 2 (2.0e-6 relative to 1.0e-6 at 128 channels). */

#define P 0.70710678118654752f
#define Q 1.41421356237309505f

static inline void of_inputs(const vector *d, int64_t step, vector *out, int64_t out_step) {
    vector a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
    vector even = f - 2 * c, odd = P * (e - 2 * b), wide = f - 0.5f * c, far = Q * (e - 0.5f * b);
    out[0] = a - 2.5f * c + f;
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    out[3 * out_step] = wide + far;
    out[4 * out_step] = wide - far;
    out[5 * out_step] = b - 2.5f * e + g;
}

static inline void of_weights(const vector *w, int64_t step, vector *out, int64_t out_step) {
    vector a = w[0], b = w[step], c = w[2 * step];
    vector near = a * (-2.0f / 3) - c * (1.0f / 3), far = a * (1.0f / 6) + c * (1.0f / 3);
    out[0] = a;
    out[out_step] = near - b * (P * 2 / 3);
    out[2 * out_step] = near + b * (P * 2 / 3);
    out[3 * out_step] = far + b * (Q / 6);
    out[4 * out_step] = far - b * (Q / 6);
    out[5 * out_step] = c;
}

static inline void to_weights(const vector *m, int64_t step, vector *out, int64_t out_step) {
    vector near = m[step] + m[2 * step], far = m[3 * step] + m[4 * step];
    out[0] = m[0] - near * (2.0f / 3) + far * (1.0f / 6);
    out[out_step] = (m[2 * step] - m[step]) * (P * 2 / 3) + (m[3 * step] - m[4 * step]) * (Q / 6);
    out[2 * out_step] = (far - near) * (1.0f / 3) + m[5 * step];
}

static inline void to_outputs(const vector *m, int64_t step, vector *out, int64_t out_step) {
    vector near = m[step] + m[2 * step], between = P * (m[step] - m[2 * step]);
    vector far = m[3 * step] + m[4 * step], wide = Q * (m[3 * step] - m[4 * step]);
    out[0] = m[0] + near + far;
    out[out_step] = between + wide;
    out[2 * out_step] = 0.5f * near + 2 * far;
    out[3 * out_step] = 0.5f * between + 2 * wide + m[5 * step];
}

static inline void of_outputs(const vector *y, int64_t step, vector *out, int64_t out_step) {
    vector a = y[0], b = y[step], c = y[2 * step], e = y[3 * step];
    vector even = a + 0.5f * c, odd = P * (b + 0.5f * e), wide = a + 2 * c, far = Q * (b + 2 * e);
    out[0] = a;
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    out[3 * out_step] = wide + far;
    out[4 * out_step] = wide - far;
    out[5 * out_step] = e;
}

/* ---- tiles of images ---- */

typedef struct {
    int64_t height, width, down, across; /* of an image: pixels, tiles */
} grid;

static grid grid_of(int64_t height, int64_t width) {
    return (grid){height, width, (height + OUT - 1) / OUT, (width + OUT - 1) / OUT};
}

/* Of one matrix of weights, one of inputs and one of outputs at each place */
static void *scratch_for(int64_t inputs, int64_t outputs) {
    return malloc(4 * PLACES * (apart(inputs, outputs) + apart(TILES, inputs) + apart(TILES, outputs)));
}

/* ---- float32: a unit of depth is one number ---- */

#define NAME(OF) OF##_float
#define PIXEL float
#define UNIT float
#define DEPTH(COUNT) (COUNT)

static inline vector load_float(const float *from) { return *(const vector *)from; }
static inline void store_float(float *to, vector value) { *(vector *)to = value; }
/* Where depth runs along a row, and where it runs down a column of `width` */
static inline void put_row_float(float *row, int64_t at, vector value) { *(vector *)(row + at) = value; }
static inline void put_column_float(float *to, int64_t depth, int64_t width, int64_t at, vector value) {
    *(vector *)(to + depth * width + at) = value;
}
static inline vector add_product_float(vector sum, float left, const float *right) {
    return sum + left * *(const vector *)right;
}

#include "winograd.h"

#undef NAME
#undef PIXEL
#undef UNIT
#undef DEPTH

/* ---- bfloat16: a unit of depth is a pair of numbers ---- */

#ifdef __AVX512BF16__
#include <immintrin.h>

#define NAME(OF) OF##_bfloat
#define PIXEL uint16_t
#define UNIT uint32_t
#define DEPTH(COUNT) (((COUNT) + 1) / 2)

static inline __m256i rounded(vector value) { return (__m256i)_mm512_cvtneps_pbh((__m512)value); }
static inline vector load_bfloat(const uint16_t *from) {
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
}
static inline void store_bfloat(uint16_t *to, vector value) { _mm256_storeu_si256((__m256i *)to, rounded(value)); }
static inline void put_row_bfloat(uint32_t *row, int64_t at, vector value) {
    store_bfloat((uint16_t *)row + at, value);
}
static inline void put_column_bfloat(uint32_t *to, int64_t depth, int64_t width, int64_t at, vector value) {
    uint32_t *pairs = to + depth / 2 * width + at;
    __m512i own = _mm512_cvtepu16_epi32(rounded(value));
    if (depth % 2) own = _mm512_or_si512(_mm512_loadu_si512(pairs), _mm512_slli_epi32(own, 16));
    _mm512_storeu_si512(pairs, own);
}
static inline vector add_product_bfloat(vector sum, uint32_t left, const uint32_t *right) {
    __m512i pairs = _mm512_set1_epi32((int)left);
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)_mm512_loadu_si512(right));
}

#include "winograd.h"
#endif

int multiplies_bfloat16(void) {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}
