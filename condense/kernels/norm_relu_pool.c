/* Instance norm with scale and shift, ReLU and 2x2 average pool, and its gradients. It takes one image at a time, which
   stays in the cache. Images are channels last, (N, H, W, C), so that every inner loop runs over channels and vectorises.
   norm_relu_pool.py calls it. */

#include "activations.h"
#include <math.h>

/* forward: z (N, H, W, C) -> pooled (N, H/2, W/2, C), mean and rstd (N, C).
   backward: gradient of pooled -> gradient of z, and to_gamma, to_beta (C) grow by theirs. An odd last row or column is not pooled, as in PyTorch. */
#define BLOCK(SUFFIX, TYPE)                                                                                           \
    void forward_##SUFFIX(const TYPE *restrict z, const float *restrict gamma, const float *restrict beta, float eps, \
                          int64_t images, int64_t height, int64_t width, int64_t channels, TYPE *restrict pooled,     \
                          float *restrict mean, float *restrict rstd) {                                               \
        float sum[MOST_CHANNELS], square[MOST_CHANNELS], scale[MOST_CHANNELS], shift[MOST_CHANNELS];                  \
        float pixels = (float)(height * width);                                                                       \
        for (int64_t n = 0; n < images; n++) {                                                                        \
            const TYPE *image = z + n * height * width * channels;                                                    \
            for (int64_t c = 0; c < channels; c++) sum[c] = square[c] = 0;                                            \
            for (int64_t p = 0; p < height * width; p++)                                                              \
                for (int64_t c = 0; c < channels; c++) sum[c] += load_##SUFFIX(image + p * channels + c);             \
            for (int64_t c = 0; c < channels; c++) sum[c] /= pixels;                                                  \
            for (int64_t p = 0; p < height * width; p++)                                                              \
                for (int64_t c = 0; c < channels; c++) {                                                              \
                    float apart = load_##SUFFIX(image + p * channels + c) - sum[c];                                   \
                    square[c] += apart * apart;                                                                       \
                }                                                                                                     \
            for (int64_t c = 0; c < channels; c++) {                                                                  \
                float m = sum[c];                                                                                     \
                float r = 1 / sqrtf(square[c] / pixels + eps);                                                        \
                mean[n * channels + c] = m;                                                                           \
                rstd[n * channels + c] = r;                                                                           \
                scale[c] = gamma[c] * r;                                                                              \
                shift[c] = beta[c] - m * scale[c];                                                                    \
            }                                                                                                         \
            for (int64_t y = 0; y < height / 2; y++)                                                                  \
                for (int64_t x = 0; x < width / 2; x++) {                                                             \
                    const TYPE *a = image + (2 * y * width + 2 * x) * channels, *b = a + width * channels;            \
                    TYPE *out = pooled + ((n * (height / 2) + y) * (width / 2) + x) * channels;                       \
                    for (int64_t c = 0; c < channels; c++) {                                                          \
                        float s = scale[c], t = shift[c];                                                             \
                        float v0 = load_##SUFFIX(a + c) * s + t, v1 = load_##SUFFIX(a + channels + c) * s + t;        \
                        float v2 = load_##SUFFIX(b + c) * s + t, v3 = load_##SUFFIX(b + channels + c) * s + t;        \
                        v0 = v0 > 0 ? v0 : 0, v1 = v1 > 0 ? v1 : 0, v2 = v2 > 0 ? v2 : 0, v3 = v3 > 0 ? v3 : 0;       \
                        store_##SUFFIX(out + c, 0.25f * (v0 + v1 + v2 + v3));                                         \
                    }                                                                                                 \
                }                                                                                                     \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    void backward_##SUFFIX(const TYPE *restrict z, const TYPE *restrict gradient, const float *restrict gamma,        \
                           const float *restrict beta, const float *restrict mean, const float *restrict rstd,        \
                           int64_t images, int64_t height, int64_t width, int64_t channels, TYPE *restrict to_z,      \
                           float *restrict to_gamma, float *restrict to_beta) {                                       \
        float first[MOST_CHANNELS], second[MOST_CHANNELS], scale[MOST_CHANNELS], shift[MOST_CHANNELS];                \
        float pixels = (float)(height * width);                                                                       \
        int64_t rows = height / 2, columns = width / 2;                                                               \
        for (int64_t n = 0; n < images; n++) {                                                                        \
            const TYPE *image = z + n * height * width * channels;                                                    \
            TYPE *out = to_z + n * height * width * channels;                                                         \
            const float *m = mean + n * channels, *r = rstd + n * channels;                                           \
            for (int64_t c = 0; c < channels; c++) {                                                                  \
                first[c] = second[c] = 0;                                                                             \
                scale[c] = gamma[c] * r[c];                                                                           \
                shift[c] = beta[c] - m[c] * scale[c];                                                                 \
            }                                                                                                         \
            for (int64_t y = 0; y < 2 * rows; y++)                                                                    \
                for (int64_t x = 0; x < 2 * columns; x++) {                                                           \
                    const TYPE *a = image + (y * width + x) * channels;                                               \
                    const TYPE *g = gradient + ((n * rows + y / 2) * columns + x / 2) * channels;                     \
                    for (int64_t c = 0; c < channels; c++) {                                                          \
                        float value = load_##SUFFIX(a + c);                                                           \
                        float passed = value * scale[c] + shift[c] > 0 ? load_##SUFFIX(g + c) : 0;                    \
                        first[c] += passed;                                                                           \
                        second[c] += passed * (value - m[c]);                                                         \
                    }                                                                                                 \
                }                                                                                                     \
            /* to_z = gamma rstd (g - mean(g) - x mean(g x)), x = (z - m) rstd; g is a quarter of what is pooled */   \
            for (int64_t c = 0; c < channels; c++) {                                                                  \
                to_beta[c] += 0.25f * first[c];                                                                       \
                to_gamma[c] += 0.25f * second[c] * r[c];                                                              \
                first[c] *= 0.25f / pixels;                                                                           \
                second[c] *= 0.25f * r[c] * r[c] / pixels;                                                            \
            }                                                                                                         \
            for (int64_t y = 0; y < height; y++)                                                                      \
                for (int64_t x = 0; x < width; x++) {                                                                 \
                    const TYPE *a = image + (y * width + x) * channels;                                               \
                    TYPE *o = out + (y * width + x) * channels;                                                       \
                    if (y < 2 * rows && x < 2 * columns) {                                                            \
                        const TYPE *g = gradient + ((n * rows + y / 2) * columns + x / 2) * channels;                 \
                        for (int64_t c = 0; c < channels; c++) {                                                      \
                            float value = load_##SUFFIX(a + c);                                                       \
                            float passed = value * scale[c] + shift[c] > 0 ? 0.25f * load_##SUFFIX(g + c) : 0;        \
                            store_##SUFFIX(o + c, scale[c] * (passed - first[c] - (value - m[c]) * second[c]));       \
                        }                                                                                             \
                    } else {                                                                                          \
                        for (int64_t c = 0; c < channels; c++) {                                                      \
                            float value = load_##SUFFIX(a + c);                                                       \
                            store_##SUFFIX(o + c, scale[c] * (-first[c] - (value - m[c]) * second[c]));               \
                        }                                                                                             \
                    }                                                                                                 \
                }                                                                                                     \
        }                                                                                                             \
    }

BLOCK(float, float)
BLOCK(bfloat, uint16_t)

/* backward's own gradient: of the sum over pixels of v * to_z, at the gradient of pooled and at z. With x = (z - m) r, g
   the gradient that ReLU lets pass (a quarter of what is pooled), N pixels and sums over them,
       to_z = gamma r (g - sum(g) / N - x sum(g x) / N)
       A = sum(v g) - sum(v) sum(g) / N - sum(v x) sum(g x) / N
       d/dz = gamma r r / N ((sum(g x) sum(v) + sum(v x) sum(g)) / N - sum(g x) v - sum(v x) g
                             + x (2 sum(v x) sum(g x) / N - A)) */
#define TWICE(SUFFIX, TYPE)                                                                                           \
    void twice_##SUFFIX(const TYPE *restrict z, const TYPE *restrict gradient, const TYPE *restrict v,                \
                        const float *restrict gamma, const float *restrict beta, const float *restrict mean,          \
                        const float *restrict rstd, int64_t images, int64_t height, int64_t width, int64_t channels,  \
                        TYPE *restrict to_gradient, TYPE *restrict to_z) {                                            \
        float sv[MOST_CHANNELS], sg[MOST_CHANNELS], svx[MOST_CHANNELS], sgx[MOST_CHANNELS], svg[MOST_CHANNELS];       \
        float back[MOST_CHANNELS];                                                                                    \
        TYPE zeros[MOST_CHANNELS] = {0};                                                                              \
        float inverse = 1 / (float)(height * width);                                                                  \
        int64_t rows = (height + 1) / 2, columns = (width + 1) / 2, pooled = width / 2;                               \
        for (int64_t n = 0; n < images; n++) {                                                                        \
            int64_t start = n * height * width * channels, first = n * (height / 2) * pooled * channels;              \
            const TYPE *image = z + start, *along = v + start;                                                        \
            const float *m = mean + n * channels, *r = rstd + n * channels;                                           \
            for (int64_t c = 0; c < channels; c++) sv[c] = sg[c] = svx[c] = sgx[c] = svg[c] = 0;                      \
            for (int64_t y = 0; y < height; y++)                                                                      \
                for (int64_t x = 0; x < width; x++) {                                                                 \
                    const TYPE *a = image + (y * width + x) * channels, *u = along + (y * width + x) * channels;      \
                    int inside = y / 2 < height / 2 && x / 2 < pooled;                                                \
                    const TYPE *g = inside ? gradient + first + (y / 2 * pooled + x / 2) * channels : zeros;          \
                    for (int64_t c = 0; c < channels; c++) {                                                          \
                        float unit = (load_##SUFFIX(a + c) - m[c]) * r[c], up = load_##SUFFIX(u + c);                 \
                        float passed = unit * gamma[c] + beta[c] > 0 ? 0.25f * load_##SUFFIX(g + c) : 0;              \
                        sv[c] += up;                                                                                  \
                        sg[c] += passed;                                                                              \
                        svx[c] += up * unit;                                                                          \
                        sgx[c] += passed * unit;                                                                      \
                        svg[c] += up * passed;                                                                        \
                    }                                                                                                 \
                }                                                                                                     \
            for (int64_t c = 0; c < channels; c++) /* A */                                                            \
                svg[c] -= inverse * (sv[c] * sg[c] + svx[c] * sgx[c]);                                                \
            for (int64_t cell = 0; cell < rows * columns; cell++) { /* up to four pixels, pooled where there are four */ \
                int64_t top = 2 * (cell / columns), left = 2 * (cell % columns);                                      \
                int inside = top / 2 < height / 2 && left / 2 < pooled;                                               \
                int64_t at = first + (top / 2 * pooled + left / 2) * channels;                                        \
                const TYPE *g = inside ? gradient + at : zeros;                                                       \
                for (int64_t c = 0; c < channels; c++) back[c] = 0;                                                   \
                for (int64_t y = top; y < top + 2 && y < height; y++)                                                 \
                    for (int64_t x = left; x < left + 2 && x < width; x++) {                                          \
                        const TYPE *a = image + (y * width + x) * channels, *u = along + (y * width + x) * channels;  \
                        TYPE *to = to_z + start + (y * width + x) * channels;                                         \
                        for (int64_t c = 0; c < channels; c++) {                                                      \
                            float unit = (load_##SUFFIX(a + c) - m[c]) * r[c], up = load_##SUFFIX(u + c);             \
                            int passes = unit * gamma[c] + beta[c] > 0;                                               \
                            float passed = passes ? 0.25f * load_##SUFFIX(g + c) : 0;                                 \
                            float flat = inverse * (sgx[c] * sv[c] + svx[c] * sg[c]) - sgx[c] * up - svx[c] * passed; \
                            float bent = unit * (2 * inverse * svx[c] * sgx[c] - svg[c]);                             \
                            store_##SUFFIX(to + c, gamma[c] * r[c] * r[c] * inverse * (flat + bent));                 \
                            back[c] += passes ? up - inverse * (sv[c] + unit * svx[c]) : 0;                           \
                        }                                                                                             \
                    }                                                                                                 \
                for (int64_t c = 0; inside && c < channels; c++)                                                      \
                    store_##SUFFIX(to_gradient + at + c, 0.25f * gamma[c] * r[c] * back[c]);                          \
            }                                                                                                         \
        }                                                                                                             \
    }

TWICE(float, float)
TWICE(bfloat, uint16_t)
