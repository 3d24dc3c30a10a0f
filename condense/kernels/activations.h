/* Activations are float32 or bfloat16 (as uint16), everything else is float32. */

#include <stdint.h>
#include <string.h>

#define MOST_CHANNELS 1024 /* sums of one image's channels stand on the stack */

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
