/* 3x3 convolutions with padding 1 by Winograd's minimal filtering F(4x4, 3x3) (Lavin, Gray 2016): four outputs a side
   from 36 products instead of 144, so a core does up to four times what its multipliers could do directly. Forward, and
   the gradient at the weights; that at the inputs is the convolution with the flipped weights.

   Channels last: images (N, H, W, C). A tile is 6x6 inputs for 4x4 outputs; each of its 36 places is a matrix product
   of its own over tiles and channels. Channels come in vectors, and in panels of a few vectors, which a product reads
   from the first cache; their number is a multiple of 16. Float32 throughout: rounding is about six times that of the
   direct sum, 1e-6 relative. */

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

/* ---- products: c (rows, width) (+)= a (rows, depth) b (depth, width), width a multiple of 16 up to PANEL ---- */

static inline __attribute__((always_inline)) void block(int rows, int vectors, int64_t depth, const float *a,
                                                        int64_t a_row, int64_t a_step, const float *b, float *c,
                                                        int64_t c_row, int add) {
    vector sum[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? *(const vector *)(c + r * c_row + v * LANES) : (vector){0};
    for (int64_t k = 0; k < depth; k++, a += a_step, b += vectors * LANES) {
        vector right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) right[v] = *(const vector *)(b + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            float left = a[r * a_row];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) *(vector *)(c + r * c_row + v * LANES) = sum[r][v];
}

#define OF_ROWS(COUNT)                                                                                                \
    switch (rows) {                                                                                                   \
    case 1: block(1, COUNT, depth, a, a_row, a_step, b, c, c_row, add); break;                                      \
    case 2: block(2, COUNT, depth, a, a_row, a_step, b, c, c_row, add); break;                                      \
    case 3: block(3, COUNT, depth, a, a_row, a_step, b, c, c_row, add); break;                                      \
    case 4: block(4, COUNT, depth, a, a_row, a_step, b, c, c_row, add); break;                                      \
    case 5: block(5, COUNT, depth, a, a_row, a_step, b, c, c_row, add); break;                                      \
    default: block(6, COUNT, depth, a, a_row, a_step, b, c, c_row, add);                                            \
    }

static void panel_product(int64_t rows_all, int vectors, int64_t depth, const float *a, int64_t a_row, int64_t a_step,
                          const float *b, float *c, int64_t c_row, int add) {
    for (int64_t row = 0; row < rows_all; row += ROWS, a += ROWS * a_row, c += ROWS * c_row) {
        int rows = rows_all - row < ROWS ? (int)(rows_all - row) : ROWS;
        switch (vectors) {
        case 1: OF_ROWS(1) break;
#if VECTORS > 2
        case 2: OF_ROWS(2) break;
        case 3: OF_ROWS(3) break;
#endif
        default: OF_ROWS(VECTORS)
        }
    }
}

/* b: its columns in panels of PANEL, each (depth, width of the panel) */
static void product(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t a_row, int64_t a_step,
                    const float *b, float *c, int add) {
    for (int64_t column = 0; column < columns; column += PANEL) {
        int64_t width = columns - column < PANEL ? columns - column : PANEL;
        panel_product(rows, (int)(width / LANES), depth, a, a_row, a_step, b + column * depth, c + column, columns,
                      add);
    }
}

/* ---- the transforms of one line: six inputs, three weights, four outputs, and the latter two transposed ----

   Toom and Cook's, at the points 0, -P, P, -Q, Q and infinity with P^2 = 1/2 and Q^2 = 2, whose rounding is half of that
   of the usual 0, -1, 1, -2, 2 (2.0e-6 relative to 1.0e-6 at 128 channels). */

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

/* The pixels of a tile, row by row; those outside of the image are zero. */
static void pixels_of(const float *image, grid g, int64_t channels, int64_t tile, int side, int margin,
                      const float **found) {
    int64_t top = tile / g.across * OUT - margin, left = tile % g.across * OUT - margin;
    for (int64_t y = top; y < top + side; y++)
        for (int64_t x = left; x < left + side; x++) {
            int inside = y >= 0 && y < g.height && x >= 0 && x < g.width;
            *found++ = inside ? image + (y * g.width + x) * channels : zeros;
        }
}

/* (tiles, channels) at each place, rows of `channels` */
static void inputs_of(const float *images, grid g, int64_t channels, int64_t first, int64_t tiles, float *out) {
    int64_t each = g.down * g.across;
    for (int64_t t = 0; t < tiles; t++) {
        const float *from[PLACES];
        pixels_of(images + (first + t) / each * g.height * g.width * channels, g, channels, (first + t) % each, SIDE, 1,
                  from);
        for (int64_t c = 0; c < channels; c += LANES) {
            vector d[PLACES], half[PLACES], whole[PLACES];
            for (int i = 0; i < PLACES; i++) d[i] = *(const vector *)(from[i] + c);
            for (int x = 0; x < SIDE; x++) of_inputs(d + x, SIDE, half + x, SIDE);
            for (int y = 0; y < SIDE; y++) of_inputs(half + y * SIDE, 1, whole + y * SIDE, 1);
            for (int i = 0; i < PLACES; i++)
                *(vector *)(out + i * apart(tiles, channels) + t * channels + c) = whole[i];
        }
    }
}

/* Gradients at the outputs: (tiles, channels) at each place, columns in panels */
static void gradients_of(const float *images, grid g, int64_t channels, int64_t first, int64_t tiles, float *out) {
    int64_t each = g.down * g.across;
    for (int64_t t = 0; t < tiles; t++) {
        const float *from[OUT * OUT];
        pixels_of(images + (first + t) / each * g.height * g.width * channels, g, channels, (first + t) % each, OUT, 0,
                  from);
        for (int64_t c = 0; c < channels; c += LANES) {
            vector d[OUT * OUT], half[SIDE * OUT], whole[PLACES];
            int64_t panel = c / PANEL * PANEL, width = channels - panel < PANEL ? channels - panel : PANEL;
            for (int i = 0; i < OUT * OUT; i++) d[i] = *(const vector *)(from[i] + c);
            for (int x = 0; x < OUT; x++) of_outputs(d + x, OUT, half + x, OUT);
            for (int y = 0; y < SIDE; y++) of_outputs(half + y * OUT, 1, whole + y * SIDE, 1);
            for (int i = 0; i < PLACES; i++)
                *(vector *)(out + i * apart(tiles, channels) + panel * tiles + t * width + c - panel) = whole[i];
        }
    }
}

/* products (tiles, channels) at each place to pixels */
static void outputs_from(const float *products, grid g, int64_t channels, const float *bias, int64_t first,
                         int64_t tiles, float *images) {
    int64_t each = g.down * g.across;
    for (int64_t t = 0; t < tiles; t++) {
        float *image = images + (first + t) / each * g.height * g.width * channels;
        int64_t top = (first + t) % each / g.across * OUT, left = (first + t) % each % g.across * OUT;
        for (int64_t c = 0; c < channels; c += LANES) {
            vector m[PLACES], half[OUT * SIDE], whole[OUT * OUT], shift = *(const vector *)(bias + c);
            for (int i = 0; i < PLACES; i++)
                m[i] = *(const vector *)(products + i * apart(tiles, channels) + t * channels + c);
            for (int x = 0; x < SIDE; x++) to_outputs(m + x, SIDE, half + x, SIDE);
            for (int y = 0; y < OUT; y++) to_outputs(half + y * SIDE, 1, whole + y * OUT, 1);
            for (int y = 0; y < OUT && top + y < g.height; y++)
                for (int x = 0; x < OUT && left + x < g.width; x++)
                    *(vector *)(image + ((top + y) * g.width + left + x) * channels + c) = whole[y * OUT + x] + shift;
        }
    }
}

/* weights (3, 3, inputs, outputs) to (inputs, outputs) at each place, columns in panels */
static void weights_of(const float *weights, int64_t inputs, int64_t outputs, float *out) {
    for (int64_t i = 0; i < inputs; i++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            vector w[9], half[SIDE * 3], whole[PLACES];
            int64_t panel = o / PANEL * PANEL, width = outputs - panel < PANEL ? outputs - panel : PANEL;
            for (int k = 0; k < 9; k++) w[k] = *(const vector *)(weights + (k * inputs + i) * outputs + o);
            for (int x = 0; x < 3; x++) of_weights(w + x, 3, half + x, 3);
            for (int y = 0; y < SIDE; y++) of_weights(half + y * 3, 1, whole + y * SIDE, 1);
            for (int k = 0; k < PLACES; k++)
                *(vector *)(out + k * apart(inputs, outputs) + panel * inputs + i * width + o - panel) = whole[k];
        }
}

/* (inputs, outputs) at each place to weights (3, 3, inputs, outputs) */
static void weights_from(const float *sums, int64_t inputs, int64_t outputs, float *weights) {
    for (int64_t at = 0; at < inputs * outputs; at += LANES) {
        vector m[PLACES], half[3 * SIDE], whole[9];
        for (int k = 0; k < PLACES; k++) m[k] = *(const vector *)(sums + k * apart(inputs, outputs) + at);
        for (int x = 0; x < SIDE; x++) to_weights(m + x, SIDE, half + x, SIDE);
        for (int y = 0; y < 3; y++) to_weights(half + y * SIDE, 1, whole + y * 3, 1);
        for (int k = 0; k < 9; k++) *(vector *)(weights + k * inputs * outputs + at) = whole[k];
    }
}

/* Of one matrix of weights, one of inputs and one of outputs at each place */
static float *scratch_for(int64_t inputs, int64_t outputs) {
    return malloc(sizeof(float) * PLACES * (apart(inputs, outputs) + apart(TILES, inputs) + apart(TILES, outputs)));
}

/* ---- what is called; 0 where there is no memory ---- */

/* images (groups * each, H, W, inputs), weights (groups, 3, 3, inputs, outputs), bias (outputs): (..., outputs), of the
   images from `begin` to `end` */
int convolution_float(const float *images, const float *weights, const float *bias, int64_t begin, int64_t end,
                      int64_t each, int64_t height, int64_t width, int64_t inputs, int64_t outputs, float *found) {
    grid g = grid_of(height, width);
    float *scratch = scratch_for(inputs, outputs);
    if (!scratch) return 0;
    float *transformed = scratch + PLACES * apart(inputs, outputs);
    float *products = transformed + PLACES * apart(TILES, inputs);
    for (int64_t image = begin, stop; image < end; image = stop) {
        int64_t group = image / each;
        stop = (group + 1) * each < end ? (group + 1) * each : end;
        weights_of(weights + group * 9 * inputs * outputs, inputs, outputs, scratch);
        const float *own = images + image * height * width * inputs;
        float *out = found + image * height * width * outputs;
        int64_t all = (stop - image) * g.down * g.across;
        for (int64_t first = 0; first < all; first += TILES) {
            int64_t tiles = all - first < TILES ? all - first : TILES;
            inputs_of(own, g, inputs, first, tiles, transformed);
            for (int place = 0; place < PLACES; place++)
                product(tiles, outputs, inputs, transformed + place * apart(tiles, inputs), inputs, 1,
                        scratch + place * apart(inputs, outputs), products + place * apart(tiles, outputs), 0);
            outputs_from(products, g, outputs, bias, first, tiles, out);
        }
    }
    free(scratch);
    return 1;
}

/* images (groups * each, H, W, inputs), gradients (..., outputs): those at weights (groups, 3, 3, inputs, outputs) */
int weight_gradient_float(const float *images, const float *gradients, int64_t groups, int64_t each, int64_t height,
                          int64_t width, int64_t inputs, int64_t outputs, float *found) {
    grid g = grid_of(height, width);
    float *scratch = scratch_for(inputs, outputs);
    if (!scratch) return 0;
    float *left = scratch + PLACES * apart(inputs, outputs), *right = left + PLACES * apart(TILES, inputs);
    int64_t all = each * g.down * g.across;
    for (int64_t group = 0; group < groups; group++) {
        const float *own = images + group * each * height * width * inputs;
        const float *above = gradients + group * each * height * width * outputs;
        for (int64_t first = 0; first < all; first += TILES) {
            int64_t tiles = all - first < TILES ? all - first : TILES;
            inputs_of(own, g, inputs, first, tiles, left);
            gradients_of(above, g, outputs, first, tiles, right);
            for (int place = 0; place < PLACES; place++)
                product(inputs, outputs, tiles, left + place * apart(tiles, inputs), 1, inputs,
                        right + place * apart(tiles, outputs), scratch + place * apart(inputs, outputs), first > 0);
        }
        weights_from(scratch, inputs, outputs, found + group * 9 * inputs * outputs);
    }
    free(scratch);
    return 1;
}
