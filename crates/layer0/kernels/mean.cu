// Computes sums of scaled rows, and means from the sums, for crates/layer0/src/pooling/cuda.rs. Every number of the table is read once. A thread reads
// 16 bytes at a time, with eight rows in flight. Only sums are written.
//
// The kernels use no shared memory and no synchronization, because tests/cuda/emulator.cpp runs their threads one after the other on the
// CPU. build.rs compiles this file.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

// The number of rows in flight in each thread.
#define AHEAD 8

struct Bf16 {
    enum { PER_WORD = 2 };
    static __device__ float number(u32 word, int i) { return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u); }
};

struct F16 {
    enum { PER_WORD = 2 };
    static __device__ float number(u32 word, int i) { return half_to_float((unsigned short)(word >> 16 * i)); }
#ifdef __CUDACC__
    static __device__ float half_to_float(unsigned short x) {
        float y;
        asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
        return y;
    }
#else
    static float half_to_float(unsigned short x);
#endif
};

struct F32 {
    enum { PER_WORD = 1 };
    static __device__ float number(u32 word, int) { return __uint_as_float(word); }
};

struct Int8 {
    enum { PER_WORD = 4 };
    static __device__ float number(u32 word, int i) { return (float)(signed char)(word >> 8 * i); }
};

// The even column is in the low four bits. Each number is stored plus 8.
struct Int4 {
    enum { PER_WORD = 8 };
    static __device__ float number(u32 word, int i) { return (float)(int)((word >> 4 * i) & 15u) - 8.0f; }
};

// Block (p, y) sums tile y of the rows of part p, whose tokens are ids[bounds[p]] to ids[bounds[p + 1]]. An ID beyond the table
// adds nothing. Shapes:
//   table:   stored rows x width bytes, where width is a multiple of 16;  mapping: rows, the stored row of each ID
//   scale:   rows;  per_row: corrections x rows
//   sums:    parts x stride, where stride is a multiple of the numbers that a thread sums;  along: parts x corrections
template <class Dtype>
static __device__ void add_up(
    const u8 *__restrict__ table, u64 width, const u32 *__restrict__ mapping, const float *__restrict__ scale,
    const float *__restrict__ per_row, u32 corrections, u32 rows, const u32 *__restrict__ ids,
    const u32 *__restrict__ bounds, u32 stride, float *__restrict__ sums, float *__restrict__ along
) {
    const int numbers = 4 * Dtype::PER_WORD;
    const u32 part = blockIdx.x;
    const u32 begin = bounds[part], end = bounds[part + 1];

    if (blockIdx.y == 0 && threadIdx.x < corrections) {
        float sum = 0.0f;
        for (u32 t = begin; t < end; t++) {
            const u32 id = ids[t];
            sum += id < rows ? per_row[(u64)threadIdx.x * rows + id] : 0.0f;
        }
        along[(u64)part * corrections + threadIdx.x] = sum;
    }

    const u32 place = blockIdx.y * blockDim.x + threadIdx.x;
    const u32 column = place * numbers;
    if (column >= stride) return;

    float sum[numbers];
#pragma unroll
    for (int i = 0; i < numbers; i++) sum[i] = 0.0f;

    for (u32 t = begin; t < end; t += AHEAD) {
        uint4 words[AHEAD];
        float scales[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const u32 id = t + i < end ? ids[t + i] : 0xffffffffu;
            words[i] = make_uint4(0, 0, 0, 0);
            scales[i] = 0.0f;
            if (id < rows) {
                const u64 row = mapping[id];
                words[i] = *(const uint4 *)(table + row * width + (u64)place * 16);
                scales[i] = scale[id];
            }
        }
        // Eight rows are added before their sum is added to the total: a number that passes through fewer additions loses less to rounding.
#pragma unroll
        for (int j = 0; j < numbers; j++) {
            float group = 0.0f;
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const u32 word[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
                group += scales[i] * Dtype::number(word[j / Dtype::PER_WORD], j % Dtype::PER_WORD);
            }
            sum[j] += group;
        }
    }
    float4 *to = (float4 *)(sums + (u64)part * stride + column);
#pragma unroll
    for (int i = 0; i < numbers; i += 4) to[i / 4] = make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
}

#define SUMS(NAME, DTYPE)                                                                                                \
    extern "C" __global__ void NAME(                                                                                     \
        const u8 *table, u64 width, const u32 *mapping, const float *scale, const float *per_row,                        \
        u32 corrections, u32 rows, const u32 *ids, const u32 *bounds, u32 stride, float *sums, float *along              \
    ) {                                                                                                                  \
        add_up<DTYPE>(                                                                                                   \
            table, width, mapping, scale, per_row, corrections, rows, ids, bounds, stride, sums, along                   \
        );                                                                                                               \
    }

SUMS(sums_bf16, Bf16)
SUMS(sums_f16, F16)
SUMS(sums_f32, F32)
SUMS(sums_int8, Int8)
SUMS(sums_int4, Int4)

// Text x has the parts firsts[x] to firsts[x + 1], which are added in their order, so the mean of a text does not depend on its batch.
// Shapes:
//   sums: parts x stride;  directions: corrections x dimensions;  means: texts x columns
extern "C" __global__ void means(
    const float *__restrict__ sums, const float *__restrict__ along, const u32 *__restrict__ bounds,
    const u32 *__restrict__ firsts, const float *__restrict__ weight, const float *__restrict__ directions,
    u32 corrections, u32 dimensions, const float *__restrict__ bias, u32 biased, u32 columns, u32 stride,
    float *__restrict__ means
) {
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    const u32 first = firsts[blockIdx.x], last = firsts[blockIdx.x + 1];
    const float share = 1.0f / (float)(bounds[last] - bounds[first]);
    float sum = 0.0f;
    for (u32 part = first; part < last; part++) sum += sums[(u64)part * stride + column];
    float mean = sum * share * weight[column];
    for (u32 k = 0; k < corrections; k++) {
        float total = 0.0f;
        for (u32 part = first; part < last; part++) total += along[(u64)part * corrections + k];
        mean += total * share * directions[(u64)k * dimensions + column];
    }
    means[(u64)blockIdx.x * columns + column] = biased ? mean + bias[column] : mean;
}
