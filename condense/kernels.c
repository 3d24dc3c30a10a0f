/* Instance norm with scale and shift, ReLU and 2x2 average pool and its gradient, an image at a time, which stays in
   the cache. Channels last: images (N, H, W, C), so that every inner loop runs over channels and
   vectorises. Activations are float32 or bfloat16 (as uint16), everything else is float32. Built by kernels.py. */

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float load_float(const float *from) { return *from; }
static inline void store_float(float *to, float value) { *to = value; }

static inline float load_bfloat(const uint16_t *from) {
    uint32_t bits = (uint32_t)*from << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline void store_bfloat(uint16_t *to, float value) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    *to = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#define MOST_CHANNELS 1024

/* forward: z (N, H, W, C) -> pooled (N, H/2, W/2, C), mean and rstd (N, C).
   backward: gradient of pooled -> gradient of z. An odd last row or column is not pooled, as in PyTorch. */
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
                           int64_t images, int64_t height, int64_t width, int64_t channels, TYPE *restrict to_z) {    \
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
