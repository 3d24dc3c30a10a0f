/* Convolution and weight gradient for images of PIXEL; winograd.c says how, and what the macros are. Matrices of
   products have rows and columns of numbers, and a depth of units, a number or a pair of them. */

/* ---- products: c (rows, width) (+)= a (rows, depth) b (depth, width), depth in units ---- */

static inline __attribute__((always_inline)) void NAME(block)(int rows, int vectors, int64_t depth, const UNIT *a,
                                                              int64_t a_row, int64_t a_step, const UNIT *b, float *c,
                                                              int64_t c_row, int add) {
    vector sum[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sum[r][v] = add ? *(const vector *)(c + r * c_row + v * LANES) : (vector){0};
    for (int64_t k = 0; k < depth; k++, a += a_step, b += vectors * LANES) {
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                sum[r][v] = NAME(add_product)(sum[r][v], a[r * a_row], b + v * LANES);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) *(vector *)(c + r * c_row + v * LANES) = sum[r][v];
}

#define BLOCK(COUNT, OF_ROWS) NAME(block)(OF_ROWS, COUNT, depth, a, a_row, a_step, b, c, c_row, add)
#define OF_VECTORS(COUNT)                                                                                             \
    switch (rows) {                                                                                                   \
    case 1: BLOCK(COUNT, 1); break;                                                                                   \
    case 2: BLOCK(COUNT, 2); break;                                                                                   \
    case 3: BLOCK(COUNT, 3); break;                                                                                   \
    case 4: BLOCK(COUNT, 4); break;                                                                                   \
    case 5: BLOCK(COUNT, 5); break;                                                                                   \
    default: BLOCK(COUNT, 6);                                                                                         \
    }

/* b: its columns in panels of PANEL, each (depth, width of the panel) */
static void NAME(product)(int64_t all_rows, int64_t columns, int64_t depth, const UNIT *left, int64_t a_row,
                          int64_t a_step, const UNIT *b, float *to, int add) {
    for (int64_t column = 0; column < columns; column += PANEL) {
        int64_t width = columns - column < PANEL ? columns - column : PANEL, c_row = columns;
        const UNIT *a = left;
        float *c = to + column;
        for (int64_t row = 0; row < all_rows; row += ROWS, a += ROWS * a_row, c += ROWS * c_row) {
            int rows = all_rows - row < ROWS ? (int)(all_rows - row) : ROWS;
            switch (width / LANES) {
            case 1: OF_VECTORS(1) break;
#if VECTORS > 2
            case 2: OF_VECTORS(2) break;
            case 3: OF_VECTORS(3) break;
#endif
            default: OF_VECTORS(VECTORS)
            }
        }
        b += depth * width;
    }
}

#undef BLOCK
#undef OF_VECTORS

/* ---- what goes into products, and what comes out ---- */

/* The pixels of a tile, row by row; those outside of the image are zero. */
static void NAME(pixels_of)(const PIXEL *images, grid g, int64_t channels, int64_t tile, int side, int margin,
                            const PIXEL **found) {
    int64_t each = g.down * g.across, of_image = tile % each;
    const PIXEL *image = images + tile / each * g.height * g.width * channels;
    int64_t top = of_image / g.across * OUT - margin, left = of_image % g.across * OUT - margin;
    for (int64_t y = top; y < top + side; y++)
        for (int64_t x = left; x < left + side; x++) {
            int inside = y >= 0 && y < g.height && x >= 0 && x < g.width;
            *found++ = inside ? image + (y * g.width + x) * channels : (const PIXEL *)zeros;
        }
}

/* (tiles, channels) at each place, depth along the rows or down the columns */
static void NAME(inputs_of)(const PIXEL *images, grid g, int64_t channels, int64_t first, int64_t tiles, int columns,
                            UNIT *out) {
    int64_t between = columns ? apart(DEPTH(tiles), channels) : apart(tiles, DEPTH(channels));
    for (int64_t t = 0; t < tiles; t++) {
        const PIXEL *from[PLACES];
        NAME(pixels_of)(images, g, channels, first + t, SIDE, 1, from);
        for (int64_t c = 0; c < channels; c += LANES) {
            vector d[PLACES], half[PLACES], whole[PLACES];
            for (int i = 0; i < PLACES; i++) d[i] = NAME(load)(from[i] + c);
            for (int x = 0; x < SIDE; x++) of_inputs(d + x, SIDE, half + x, SIDE);
            for (int y = 0; y < SIDE; y++) of_inputs(half + y * SIDE, 1, whole + y * SIDE, 1);
            for (int i = 0; i < PLACES; i++)
                if (columns)
                    NAME(put_column)(out + i * between, t, channels, c, whole[i]);
                else
                    NAME(put_row)(out + i * between + t * DEPTH(channels), c, whole[i]);
        }
    }
}

/* Gradients at the outputs: (tiles, channels) at each place, depth down the columns, these in panels */
static void NAME(gradients_of)(const PIXEL *images, grid g, int64_t channels, int64_t first, int64_t tiles,
                               UNIT *out) {
    for (int64_t t = 0; t < tiles; t++) {
        const PIXEL *from[OUT * OUT];
        NAME(pixels_of)(images, g, channels, first + t, OUT, 0, from);
        for (int64_t c = 0; c < channels; c += LANES) {
            vector d[OUT * OUT], half[SIDE * OUT], whole[PLACES];
            int64_t panel = c / PANEL * PANEL, width = channels - panel < PANEL ? channels - panel : PANEL;
            for (int i = 0; i < OUT * OUT; i++) d[i] = NAME(load)(from[i] + c);
            for (int x = 0; x < OUT; x++) of_outputs(d + x, OUT, half + x, OUT);
            for (int y = 0; y < SIDE; y++) of_outputs(half + y * OUT, 1, whole + y * SIDE, 1);
            for (int i = 0; i < PLACES; i++) {
                UNIT *place = out + i * apart(DEPTH(tiles), channels) + panel * DEPTH(tiles);
                NAME(put_column)(place, t, width, c - panel, whole[i]);
            }
        }
    }
}

/* Products (tiles, channels) at each place to pixels */
static void NAME(outputs_from)(const float *products, grid g, int64_t channels, const float *bias, int64_t first,
                               int64_t tiles, PIXEL *images) {
    int64_t each = g.down * g.across;
    for (int64_t t = 0; t < tiles; t++) {
        PIXEL *image = images + (first + t) / each * g.height * g.width * channels;
        int64_t top = (first + t) % each / g.across * OUT, left = (first + t) % each % g.across * OUT;
        for (int64_t c = 0; c < channels; c += LANES) {
            vector m[PLACES], half[OUT * SIDE], whole[OUT * OUT], shift = *(const vector *)(bias + c);
            for (int i = 0; i < PLACES; i++)
                m[i] = *(const vector *)(products + i * apart(tiles, channels) + t * channels + c);
            for (int x = 0; x < SIDE; x++) to_outputs(m + x, SIDE, half + x, SIDE);
            for (int y = 0; y < OUT; y++) to_outputs(half + y * SIDE, 1, whole + y * OUT, 1);
            for (int y = 0; y < OUT && top + y < g.height; y++)
                for (int x = 0; x < OUT && left + x < g.width; x++)
                    NAME(store)(image + ((top + y) * g.width + left + x) * channels + c, whole[y * OUT + x] + shift);
        }
    }
}

/* Weights (3, 3, inputs, outputs) to (inputs, outputs) at each place, depth down the columns, these in panels */
static void NAME(weights_of)(const float *weights, int64_t inputs, int64_t outputs, UNIT *out) {
    for (int64_t i = 0; i < inputs; i++)
        for (int64_t o = 0; o < outputs; o += LANES) {
            vector w[9], half[SIDE * 3], whole[PLACES];
            int64_t panel = o / PANEL * PANEL, width = outputs - panel < PANEL ? outputs - panel : PANEL;
            for (int k = 0; k < 9; k++) w[k] = *(const vector *)(weights + (k * inputs + i) * outputs + o);
            for (int x = 0; x < 3; x++) of_weights(w + x, 3, half + x, 3);
            for (int y = 0; y < SIDE; y++) of_weights(half + y * 3, 1, whole + y * SIDE, 1);
            for (int k = 0; k < PLACES; k++) {
                UNIT *place = out + k * apart(DEPTH(inputs), outputs) + panel * DEPTH(inputs);
                NAME(put_column)(place, i, width, o - panel, whole[k]);
            }
        }
}

/* (inputs, outputs) at each place to weights (3, 3, inputs, outputs) */
static void NAME(weights_from)(const float *sums, int64_t inputs, int64_t outputs, float *weights) {
    for (int64_t at = 0; at < inputs * outputs; at += LANES) {
        vector m[PLACES], half[3 * SIDE], whole[9];
        for (int k = 0; k < PLACES; k++) m[k] = *(const vector *)(sums + k * apart(inputs, outputs) + at);
        for (int x = 0; x < SIDE; x++) to_weights(m + x, SIDE, half + x, SIDE);
        for (int y = 0; y < 3; y++) to_weights(half + y * SIDE, 1, whole + y * 3, 1);
        for (int k = 0; k < 9; k++) *(vector *)(weights + k * inputs * outputs + at) = whole[k];
    }
}

/* ---- what is called; 0 where there is no memory ---- */

/* images (groups * each, H, W, inputs), weights (groups, 3, 3, inputs, outputs), bias (outputs): (..., outputs), of the
   images from `begin` to `end` */
int NAME(convolution)(const PIXEL *images, const float *weights, const float *bias, int64_t begin, int64_t end,
                      int64_t each, int64_t height, int64_t width, int64_t inputs, int64_t outputs, PIXEL *found) {
    grid g = grid_of(height, width);
    UNIT *scratch = scratch_for(inputs, outputs);
    if (!scratch) return 0;
    UNIT *transformed = scratch + PLACES * apart(inputs, outputs);
    float *products = (float *)(transformed + PLACES * apart(TILES, inputs));
    int64_t depth = DEPTH(inputs);
    for (int64_t image = begin, stop; image < end; image = stop) {
        int64_t group = image / each;
        stop = (group + 1) * each < end ? (group + 1) * each : end;
        NAME(weights_of)(weights + group * 9 * inputs * outputs, inputs, outputs, scratch);
        const PIXEL *own = images + image * height * width * inputs;
        PIXEL *out = found + image * height * width * outputs;
        int64_t all = (stop - image) * g.down * g.across;
        for (int64_t first = 0; first < all; first += TILES) {
            int64_t tiles = all - first < TILES ? all - first : TILES;
            NAME(inputs_of)(own, g, inputs, first, tiles, 0, transformed);
            for (int place = 0; place < PLACES; place++)
                NAME(product)(tiles, outputs, depth, transformed + place * apart(tiles, depth), depth, 1,
                              scratch + place * apart(depth, outputs), products + place * apart(tiles, outputs), 0);
            NAME(outputs_from)(products, g, outputs, bias, first, tiles, out);
        }
    }
    free(scratch);
    return 1;
}

/* images (groups * each, H, W, inputs), gradients (..., outputs): those at weights (groups, 3, 3, inputs, outputs) */
int NAME(weight_gradient)(const PIXEL *images, const PIXEL *gradients, int64_t groups, int64_t each, int64_t height,
                          int64_t width, int64_t inputs, int64_t outputs, float *found) {
    grid g = grid_of(height, width);
    float *scratch = scratch_for(inputs, outputs);
    if (!scratch) return 0;
    UNIT *left = (UNIT *)scratch + PLACES * apart(inputs, outputs), *right = left + PLACES * apart(TILES, inputs);
    int64_t all = each * g.down * g.across;
    for (int64_t group = 0; group < groups; group++) {
        const PIXEL *own = images + group * each * height * width * inputs;
        const PIXEL *above = gradients + group * each * height * width * outputs;
        for (int64_t first = 0; first < all; first += TILES) {
            int64_t tiles = all - first < TILES ? all - first : TILES, depth = DEPTH(tiles);
            NAME(inputs_of)(own, g, inputs, first, tiles, 1, left);
            NAME(gradients_of)(above, g, outputs, first, tiles, right);
            for (int place = 0; place < PLACES; place++)
                NAME(product)(inputs, outputs, depth, left + place * apart(depth, inputs), 1, inputs,
                              right + place * apart(depth, outputs), scratch + place * apart(inputs, outputs),
                              first > 0);
        }
        NAME(weights_from)(scratch, inputs, outputs, found + group * 9 * inputs * outputs);
    }
    free(scratch);
    return 1;
}
