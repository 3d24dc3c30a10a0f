/* 3x3 convolutions, padded by one, of images with few channels, such as photographs: a library's are made for many.
   Where the norm, ReLU and pool follow, the convolution is computed again for its gradient; that costs less than keeping
   it. A row of a padded image holds 3 I neighbours of a pixel side by side. convolution.py and first_block.py call it. */

#include "activations.h"
#include <stdlib.h>

/* of norm_relu_pool.c */
void forward_float(const float *z, const float *gamma, const float *beta, float eps, int64_t images, int64_t height,
                   int64_t width, int64_t channels, float *pooled, float *mean, float *rstd);
void forward_bfloat(const uint16_t *z, const float *gamma, const float *beta, float eps, int64_t images, int64_t height,
                    int64_t width, int64_t channels, uint16_t *pooled, float *mean, float *rstd);
void backward_float(const float *z, const float *gradient, const float *gamma, const float *beta, const float *mean,
                    const float *rstd, int64_t images, int64_t height, int64_t width, int64_t channels, float *to_z,
                    float *to_gamma, float *to_beta);
void backward_bfloat(const uint16_t *z, const uint16_t *gradient, const float *gamma, const float *beta,
                     const float *mean, const float *rstd, int64_t images, int64_t height, int64_t width,
                     int64_t channels, uint16_t *to_z, float *to_gamma, float *to_beta);

typedef float lanes __attribute__((vector_size(64), aligned(4)));
#define LANES 64 /* channels at a time: four vectors, which stay in registers */
#define AT(pointer, k) (*(const lanes *)((pointer) + 16 * (k)))
#define PIXELS 8 /* at a time, where each has few sums */

/* On a border of cache lines: a vector that lies across two costs two loads. */
static void *room_for(int64_t numbers, int64_t size) { return aligned_alloc(64, (numbers * size + 63) / 64 * 64); }

/* One pixel of z: bias + sum over neighbours; `row` floats lie between a neighbour and the one below it. */
static inline void thin_pixel(const float *restrict from, int64_t row, const float *restrict weight,
                              const float *restrict bias, int64_t inputs, int64_t outputs, float *restrict pixel) {
    int64_t o = 0;
    for (; o + LANES <= outputs; o += LANES) {
        lanes a = AT(bias + o, 0), b = AT(bias + o, 1), c = AT(bias + o, 2), d = AT(bias + o, 3);
        const float *w = weight + o;
        for (int64_t dy = 0; dy < 3; dy++)
            for (int64_t t = 0; t < 3 * inputs; t++, w += outputs) {
                float v = from[dy * row + t];
                a += v * AT(w, 0), b += v * AT(w, 1), c += v * AT(w, 2), d += v * AT(w, 3);
            }
        lanes *to = (lanes *)(pixel + o);
        to[0] = a, to[1] = b, to[2] = c, to[3] = d;
    }
    for (int64_t c = o; c < outputs; c++) pixel[c] = bias[c];
    for (int64_t dy = 0; dy < 3 && o < outputs; dy++)
        for (int64_t t = 0; t < 3 * inputs; t++)
            for (int64_t c = o; c < outputs; c++)
                pixel[c] += from[dy * row + t] * weight[(dy * 3 * inputs + t) * outputs + c];
}

/* to_weight += sum over a row's pixels of padded x gradient (W, O). Row by row, a gradient stays in the first cache. */
static void thin_to_weight(const float *restrict padded, int64_t row, const float *restrict gradient, int64_t width,
                           int64_t inputs, int64_t outputs, float *restrict to_weight) {
    int64_t o = 0;
    for (; o + LANES <= outputs; o += LANES)
        for (int64_t tap = 0; tap < 9 * inputs; tap += 3) {
            const float *from = padded + tap / (3 * inputs) * row + tap % (3 * inputs);
            lanes sum[3][4] = {{{0}}};
            for (int64_t x = 0; x < width; x++) {
                const float *v = from + x * inputs, *g = gradient + x * outputs + o;
                for (int t = 0; t < 3; t++)
                    for (int k = 0; k < 4; k++) sum[t][k] += v[t] * AT(g, k);
            }
            for (int t = 0; t < 3; t++)
                for (int k = 0; k < 4; k++) *(lanes *)(to_weight + (tap + t) * outputs + o + 16 * k) += sum[t][k];
        }
    for (int64_t x = 0; x < width && o < outputs; x++)
        for (int64_t tap = 0; tap < 9 * inputs; tap++) {
            float v = padded[tap / (3 * inputs) * row + x * inputs + tap % (3 * inputs)];
            const float *g = gradient + x * outputs;
            for (int64_t c = o; c < outputs; c++) to_weight[tap * outputs + c] += v * g[c];
        }
}

/* sums (PIXELS, across) = pixels (PIXELS, inputs) weight (inputs, across), across a few vectors */
static inline __attribute__((always_inline)) void dots(int vectors, const float *restrict pixels, int64_t inputs,
                                                       const float *restrict weight, float *restrict sums) {
    lanes sum[PIXELS][3] = {{{0}}};
    for (int64_t i = 0; i < inputs; i++)
        for (int v = 0; v < vectors; v++)
            for (int p = 0; p < PIXELS; p++) sum[p][v] += pixels[p * inputs + i] * AT(weight + i * vectors * 16, v);
    for (int p = 0; p < PIXELS; p++)
        for (int v = 0; v < vectors; v++) *(lanes *)(sums + (p * vectors + v) * 16) = sum[p][v];
}

/* One group of images is after another, `each` of them, with weights of their own. False: no memory.

   thin_convolution: images (N, H, W, I), weights (G, 3, 3, I, O) -> z (N, H, W, O), images first to end - 1 alone.
   thin_weight_gradient: images and gradients at z of G groups -> to_weights (G, 3, 3, I, O).
   narrow_convolution: as thin_convolution, but O is small and I is not; weights (G, I, across), flipped, 9 O of them
   side by side and zeros up to whole vectors. Each pixel adds to its nine neighbours.
   thin_forward: images -> pooled, mean, rstd. thin_backward adds to to_weight, to_gamma and to_beta. */
#define THIN(SUFFIX, TYPE)                                                                                            \
    static void thin_pad_##SUFFIX(const TYPE *restrict image, int64_t height, int64_t width, int64_t inputs,          \
                                  float *restrict padded) {                                                           \
        int64_t row = (width + 2) * inputs;                                                                           \
        memset(padded, 0, (height + 2) * row * sizeof(float));                                                        \
        for (int64_t y = 0; y < height; y++)                                                                          \
            for (int64_t t = 0; t < width * inputs; t++)                                                              \
                padded[(y + 1) * row + inputs + t] = load_##SUFFIX(image + y * width * inputs + t);                   \
    }                                                                                                                 \
                                                                                                                      \
    static void thin_convolve_##SUFFIX(const float *restrict padded, const float *restrict weight,                    \
                                       const float *restrict bias, int64_t height, int64_t width, int64_t inputs,     \
                                       int64_t outputs, TYPE *restrict z) {                                           \
        _Alignas(64) float pixel[MOST_CHANNELS];                                                                      \
        for (int64_t y = 0; y < height; y++)                                                                          \
            for (int64_t x = 0; x < width; x++) {                                                                     \
                const float *from = padded + y * (width + 2) * inputs + x * inputs;                                   \
                TYPE *to = z + (y * width + x) * outputs;                                                             \
                thin_pixel(from, (width + 2) * inputs, weight, bias, inputs, outputs, pixel);                         \
                for (int64_t o = 0; o < outputs; o++) store_##SUFFIX(to + o, pixel[o]);                               \
            }                                                                                                         \
    }                                                                                                                 \
                                                                                                                      \
    /* to_weight += sum over pixels of padded x gradient (H, W, O); full: room for a row of it */                     \
    static void thin_rows_##SUFFIX(const float *restrict padded, const TYPE *restrict gradient, int64_t height,       \
                                   int64_t width, int64_t inputs, int64_t outputs, float *restrict full,              \
                                   float *restrict to_weight) {                                                       \
        int64_t row = (width + 2) * inputs, size = width * outputs;                                                   \
        for (int64_t y = 0; y < height; y++) {                                                                        \
            for (int64_t i = 0; i < size; i++) full[i] = load_##SUFFIX(gradient + y * size + i);                      \
            thin_to_weight(padded + y * row, row, full, width, inputs, outputs, to_weight);                           \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    int thin_convolution_##SUFFIX(const TYPE *restrict images, const float *restrict weights,                         \
                                  const float *restrict bias, int64_t first, int64_t end, int64_t each,               \
                                  int64_t height, int64_t width, int64_t inputs, int64_t outputs,                     \
                                  TYPE *restrict z) {                                                                 \
        float *padded = room_for((height + 2) * (width + 2) * inputs, sizeof(float));                                  \
        for (int64_t n = first; padded && n < end; n++) {                                                             \
            thin_pad_##SUFFIX(images + n * height * width * inputs, height, width, inputs, padded);                   \
            thin_convolve_##SUFFIX(padded, weights + n / each * 9 * inputs * outputs, bias, height, width, inputs,    \
                                   outputs, z + n * height * width * outputs);                                        \
        }                                                                                                             \
        free(padded);                                                                                                 \
        return padded != 0;                                                                                           \
    }                                                                                                                 \
                                                                                                                      \
    int thin_weight_gradient_##SUFFIX(const TYPE *restrict images, const TYPE *restrict gradients, int64_t groups,    \
                                      int64_t each, int64_t height, int64_t width, int64_t inputs, int64_t outputs,   \
                                      float *restrict to_weights) {                                                   \
        float *padded = room_for((height + 2) * (width + 2) * inputs, sizeof(float));                                  \
        float *full = room_for(width * outputs, sizeof(float));                                                        \
        int done = padded && full;                                                                                    \
        memset(to_weights, 0, groups * 9 * inputs * outputs * sizeof(float));                                         \
        for (int64_t n = 0; done && n < groups * each; n++) {                                                         \
            thin_pad_##SUFFIX(images + n * height * width * inputs, height, width, inputs, padded);                   \
            thin_rows_##SUFFIX(padded, gradients + n * height * width * outputs, height, width, inputs, outputs,      \
                               full, to_weights + n / each * 9 * inputs * outputs);                                   \
        }                                                                                                             \
        free(padded), free(full);                                                                                     \
        return done;                                                                                                  \
    }                                                                                                                 \
                                                                                                                      \
    int narrow_convolution_##SUFFIX(const TYPE *restrict images, const float *restrict weights,                       \
                                    const float *restrict bias, int64_t first, int64_t end, int64_t each,             \
                                    int64_t height, int64_t width, int64_t inputs, int64_t outputs,                   \
                                    TYPE *restrict z) {                                                               \
        int vectors = (int)(9 * outputs + 15) / 16;                                                                   \
        int64_t row = (width + 2) * outputs, all = height * width;                                                    \
        float *padded = room_for((height + 2) * row, sizeof(float)), *pixels = room_for(PIXELS * inputs, sizeof(float)); \
        float sums[PIXELS * 48];                                                                                      \
        int done = padded && pixels;                                                                                  \
        for (int64_t n = first; done && n < end; n++) {                                                               \
            const float *weight = weights + n / each * inputs * vectors * 16;                                         \
            memset(padded, 0, (height + 2) * row * sizeof(float));                                                    \
            for (int64_t start = 0; start < all; start += PIXELS) {                                                   \
                int64_t here = all - start < PIXELS ? all - start : PIXELS;                                           \
                const TYPE *from = images + (n * all + start) * inputs;                                               \
                for (int64_t i = 0; i < here * inputs; i++) pixels[i] = load_##SUFFIX(from + i);                      \
                for (int64_t i = here * inputs; i < PIXELS * inputs; i++) pixels[i] = 0;                              \
                switch (vectors) {                                                                                    \
                case 1: dots(1, pixels, inputs, weight, sums); break;                                                 \
                case 2: dots(2, pixels, inputs, weight, sums); break;                                                 \
                default: dots(3, pixels, inputs, weight, sums);                                                       \
                }                                                                                                     \
                for (int64_t p = 0; p < here; p++) {                                                                  \
                    float *to = padded + (start + p) / width * row + (start + p) % width * outputs;                   \
                    for (int dy = 0; dy < 3; dy++)                                                                    \
                        for (int t = 0; t < 3 * outputs; t++)                                                         \
                            to[dy * row + t] += sums[p * vectors * 16 + dy * 3 * outputs + t];                        \
                }                                                                                                     \
            }                                                                                                         \
            for (int64_t y = 0; y < height; y++)                                                                      \
                for (int64_t t = 0; t < width * outputs; t++)                                                         \
                    store_##SUFFIX(z + (n * height + y) * width * outputs + t,                                        \
                                   padded[(y + 1) * row + outputs + t] + bias[t % outputs]);                          \
        }                                                                                                             \
        free(padded), free(pixels);                                                                                   \
        return done;                                                                                                  \
    }                                                                                                                 \
                                                                                                                      \
    int thin_forward_##SUFFIX(const TYPE *restrict images, const float *restrict weight, const float *restrict bias,  \
                              const float *restrict gamma, const float *restrict beta, float eps, int64_t count,      \
                              int64_t height, int64_t width, int64_t inputs, int64_t outputs,                         \
                              TYPE *restrict pooled, float *restrict mean, float *restrict rstd) {                    \
        float *padded = room_for((height + 2) * (width + 2) * inputs, sizeof(float));                                  \
        TYPE *z = room_for(height * width * outputs, sizeof(TYPE));                                                    \
        for (int64_t n = 0; padded && z && n < count; n++) {                                                          \
            thin_pad_##SUFFIX(images + n * height * width * inputs, height, width, inputs, padded);                   \
            thin_convolve_##SUFFIX(padded, weight, bias, height, width, inputs, outputs, z);                          \
            forward_##SUFFIX(z, gamma, beta, eps, 1, height, width, outputs,                                          \
                             pooled + n * (height / 2) * (width / 2) * outputs, mean + n * outputs,                   \
                             rstd + n * outputs);                                                                     \
        }                                                                                                             \
        int done = padded && z;                                                                                       \
        free(padded), free(z);                                                                                        \
        return done;                                                                                                  \
    }                                                                                                                 \
                                                                                                                      \
    int thin_backward_##SUFFIX(const TYPE *restrict images, const TYPE *restrict gradient,                            \
                               const float *restrict weight, const float *restrict bias, const float *restrict gamma, \
                               const float *restrict beta, const float *restrict mean, const float *restrict rstd,    \
                               int64_t count, int64_t height, int64_t width, int64_t inputs, int64_t outputs,         \
                               float *restrict to_weight, float *restrict to_gamma, float *restrict to_beta) {        \
        int64_t size = height * width * outputs;                                                                      \
        float *padded = room_for((height + 2) * (width + 2) * inputs, sizeof(float));                                  \
        float *full = room_for(width * outputs, sizeof(float));                                                        \
        TYPE *z = room_for(size, sizeof(TYPE)), *to_z = room_for(size, sizeof(TYPE));                                   \
        int done = padded && full && z && to_z;                                                                       \
        for (int64_t n = 0; done && n < count; n++) {                                                                 \
            thin_pad_##SUFFIX(images + n * height * width * inputs, height, width, inputs, padded);                   \
            thin_convolve_##SUFFIX(padded, weight, bias, height, width, inputs, outputs, z);                          \
            backward_##SUFFIX(z, gradient + n * (height / 2) * (width / 2) * outputs, gamma, beta,                    \
                              mean + n * outputs, rstd + n * outputs, 1, height, width, outputs, to_z, to_gamma,      \
                              to_beta);                                                                               \
            thin_rows_##SUFFIX(padded, to_z, height, width, inputs, outputs, full, to_weight);                        \
        }                                                                                                             \
        free(padded), free(full), free(z), free(to_z);                                                                \
        return done;                                                                                                  \
    }

THIN(float, float)
THIN(bfloat, uint16_t)
