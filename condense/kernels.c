/* Instance norm with scale and shift, ReLU and 2x2 average pool and its gradient; the same with a 3x3 convolution of few
   channels before them. An image at a time, which stays in the cache. Channels last: images (N, H, W, C), so that every inner loop runs over channels and
   vectorises. Activations are float32 or bfloat16 (as uint16), everything else is float32. Built by kernels.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
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
void twice_float(const float *restrict z, const float *restrict gradient, const float *restrict v,
                 const float *restrict gamma, const float *restrict beta, const float *restrict mean,
                 const float *restrict rstd, int64_t images, int64_t height, int64_t width, int64_t channels,
                 float *restrict to_gradient, float *restrict to_z) {
    float sv[MOST_CHANNELS], sg[MOST_CHANNELS], svx[MOST_CHANNELS], sgx[MOST_CHANNELS], svg[MOST_CHANNELS];
    float zeros[MOST_CHANNELS] = {0}, nowhere[MOST_CHANNELS];
    float inverse = 1 / (float)(height * width);
    int64_t rows = height / 2, columns = width / 2;
    for (int64_t n = 0; n < images; n++) {
        int64_t start = n * height * width * channels;
        const float *image = z + start, *along = v + start, *m = mean + n * channels, *r = rstd + n * channels;
        float *out = to_z + start, *pooled = to_gradient + n * rows * columns * channels;
        const float *from = gradient + n * rows * columns * channels;
        for (int64_t c = 0; c < channels; c++) sv[c] = sg[c] = svx[c] = sgx[c] = svg[c] = 0;
        memset(pooled, 0, rows * columns * channels * sizeof(float));
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                const float *a = image + (y * width + x) * channels, *u = along + (y * width + x) * channels;
                int inside = y < 2 * rows && x < 2 * columns;
                const float *g = inside ? from + (y / 2 * columns + x / 2) * channels : zeros;
                for (int64_t c = 0; c < channels; c++) {
                    float unit = (a[c] - m[c]) * r[c];
                    float passed = unit * gamma[c] + beta[c] > 0 ? 0.25f * g[c] : 0;
                    sv[c] += u[c];
                    sg[c] += passed;
                    svx[c] += u[c] * unit;
                    sgx[c] += passed * unit;
                    svg[c] += u[c] * passed;
                }
            }
        for (int64_t c = 0; c < channels; c++) /* A */
            svg[c] -= inverse * (sv[c] * sg[c] + svx[c] * sgx[c]);
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                int64_t at = (y * width + x) * channels;
                const float *a = image + at, *u = along + at;
                int inside = y < 2 * rows && x < 2 * columns;
                const float *g = inside ? from + (y / 2 * columns + x / 2) * channels : zeros;
                float *to = inside ? pooled + (y / 2 * columns + x / 2) * channels : nowhere;
                for (int64_t c = 0; c < channels; c++) {
                    float unit = (a[c] - m[c]) * r[c], scale = gamma[c] * r[c];
                    int passes = unit * gamma[c] + beta[c] > 0;
                    float passed = passes ? 0.25f * g[c] : 0;
                    float flat = inverse * (sgx[c] * sv[c] + svx[c] * sg[c]) - sgx[c] * u[c] - svx[c] * passed;
                    float bent = unit * (2 * inverse * svx[c] * sgx[c] - svg[c]);
                    out[at + c] = scale * r[c] * inverse * (flat + bent);
                    float back = 0.25f * scale * (u[c] - inverse * (sv[c] + unit * svx[c]));
                    to[c] = passes ? to[c] + back : to[c];
                }
            }
    }
}

/* The first block: z is the 3x3 convolution, padded by one, of few input channels I. It is computed again for its
   gradient: that is cheaper than to keep it, and than a library's convolution, which is made for many channels.
   weight and to_weight (3, 3, I, O); a row of a padded image holds 3 I neighbours of a pixel side by side. */
typedef float lanes __attribute__((vector_size(64), aligned(4)));
#define LANES 64 /* channels at a time: four vectors, which stay in registers */
#define AT(pointer, k) (*(const lanes *)((pointer) + 16 * (k)))

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

/* to_weight += sum over pixels of padded x gradient (H, W, O) */
static void thin_to_weight(const float *restrict padded, const float *restrict gradient, int64_t height, int64_t width,
                           int64_t inputs, int64_t outputs, float *restrict to_weight) {
    int64_t row = (width + 2) * inputs, o = 0;
    for (; o + LANES <= outputs; o += LANES)
        for (int64_t tap = 0; tap < 9 * inputs; tap += 3) {
            const float *from = padded + tap / (3 * inputs) * row + tap % (3 * inputs);
            lanes sum[3][4] = {{{0}}};
            for (int64_t y = 0; y < height; y++)
                for (int64_t x = 0; x < width; x++) {
                    const float *v = from + y * row + x * inputs, *g = gradient + (y * width + x) * outputs + o;
                    for (int t = 0; t < 3; t++)
                        for (int k = 0; k < 4; k++) sum[t][k] += v[t] * AT(g, k);
                }
            for (int t = 0; t < 3; t++)
                for (int k = 0; k < 4; k++) *(lanes *)(to_weight + (tap + t) * outputs + o + 16 * k) += sum[t][k];
        }
    for (int64_t y = 0; y < height && o < outputs; y++)
        for (int64_t x = 0; x < width; x++)
            for (int64_t tap = 0; tap < 9 * inputs; tap++) {
                float v = padded[(y + tap / (3 * inputs)) * row + x * inputs + tap % (3 * inputs)];
                const float *g = gradient + (y * width + x) * outputs;
                for (int64_t c = o; c < outputs; c++) to_weight[tap * outputs + c] += v * g[c];
            }
}

/* thin_forward: images (N, H, W, I) -> pooled, mean, rstd. thin_backward adds to to_weight, to_gamma and to_beta. False: no memory. */
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
        float pixel[MOST_CHANNELS];                                                                                   \
        for (int64_t y = 0; y < height; y++)                                                                          \
            for (int64_t x = 0; x < width; x++) {                                                                     \
                const float *from = padded + y * (width + 2) * inputs + x * inputs;                                   \
                TYPE *to = z + (y * width + x) * outputs;                                                             \
                thin_pixel(from, (width + 2) * inputs, weight, bias, inputs, outputs, pixel);                         \
                for (int64_t o = 0; o < outputs; o++) store_##SUFFIX(to + o, pixel[o]);                               \
            }                                                                                                         \
    }                                                                                                                 \
                                                                                                                      \
    int thin_forward_##SUFFIX(const TYPE *restrict images, const float *restrict weight, const float *restrict bias,  \
                              const float *restrict gamma, const float *restrict beta, float eps, int64_t count,      \
                              int64_t height, int64_t width, int64_t inputs, int64_t outputs,                         \
                              TYPE *restrict pooled, float *restrict mean, float *restrict rstd) {                    \
        float *padded = malloc((height + 2) * (width + 2) * inputs * sizeof(float));                                  \
        TYPE *z = malloc(height * width * outputs * sizeof(TYPE));                                                    \
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
        float *padded = malloc((height + 2) * (width + 2) * inputs * sizeof(float));                                  \
        float *full = malloc(size * sizeof(float));                                                                   \
        TYPE *z = malloc(size * sizeof(TYPE)), *to_z = malloc(size * sizeof(TYPE));                                   \
        int done = padded && full && z && to_z;                                                                       \
        for (int64_t n = 0; done && n < count; n++) {                                                                 \
            thin_pad_##SUFFIX(images + n * height * width * inputs, height, width, inputs, padded);                   \
            thin_convolve_##SUFFIX(padded, weight, bias, height, width, inputs, outputs, z);                          \
            backward_##SUFFIX(z, gradient + n * (height / 2) * (width / 2) * outputs, gamma, beta,                    \
                              mean + n * outputs, rstd + n * outputs, 1, height, width, outputs, to_z, to_gamma,      \
                              to_beta);                                                                               \
            for (int64_t i = 0; i < size; i++) full[i] = load_##SUFFIX(to_z + i);                                     \
            thin_to_weight(padded, full, height, width, inputs, outputs, to_weight);                                  \
        }                                                                                                             \
        free(padded), free(full), free(z), free(to_z);                                                                \
        return done;                                                                                                  \
    }

THIN(float, float)
THIN(bfloat, uint16_t)
