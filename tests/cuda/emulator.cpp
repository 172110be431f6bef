// Emulates the part of the CUDA driver that crates/layer0/src/pooling/cuda.rs uses, without a GPU. Device memory is host memory, and a launch runs the
// kernels of crates/layer0/kernels/mean.cu on the CPU, one thread of the grid after the other. This tests what the program uploads and launches, and
// what the kernels compute. It tests neither what a compiler for GPUs makes of the kernels, nor a GPU.
//
// EMULATED_DEVICES is the number of devices (default: 1); -1 behaves as if no driver were installed. EMULATED_MEMORY is the memory of each
// device in bytes (default: no limit).

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <malloc.h>

struct Index { unsigned x, y, z; };
static thread_local Index blockIdx, threadIdx, blockDim;
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct alignas(16) float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float __uint_as_float(unsigned x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
#define __device__
#define __global__
#include "../../crates/layer0/kernels/mean.cu"

// Converts IEEE 754 binary16. The numbers of a table are finite.
float F16::half_to_float(unsigned short x) {
    const int exponent = x >> 10 & 31, fraction = x & 1023;
    const float size = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp((float)fraction, -24);
    return x & 0x8000 ? -size : size;
}

enum { OK = 0, OUT_OF_MEMORY = 2, STUB_LIBRARY = 34, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_FOUND = 500 };

static long variable(const char *name, long otherwise) {
    const char *text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}
static long devices() { return variable("EMULATED_DEVICES", 1); }

static int some;
static std::atomic<long> used;
static thread_local void *current;

template <class T> static T argument(void **arguments, int i) { return *(T *)arguments[i]; }

template <class F> static void each_thread(Index grid, F run) {
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) run();
}

typedef void (*Sums)(
    const u8 *, u64, const u32 *, const float *, const float *, u32, u32, const u32 *, const u32 *, u32, float *, float *
);
static const struct { const char *name; Sums sums; } KERNELS[] = {
    {"sums_bf16", sums_bf16}, {"sums_f16", sums_f16}, {"sums_f32", sums_f32}, {"sums_int8", sums_int8},
    {"sums_int4", sums_int4}, {"means", nullptr},
};

extern "C" {
int cuInit(unsigned) { return devices() < 0 ? STUB_LIBRARY : devices() == 0 ? NO_DEVICE : OK; }
int cuGetErrorString(int, const char **text) { return *text = "emulated", OK; }
int cuDeviceGetCount(int *count) { return *count = (int)devices(), OK; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal < devices() ? OK : INVALID_DEVICE; }
int cuDeviceGetAttribute(int *value, int, int) { return *value = 1, OK; }
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &some, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxGetCurrent(void **context) { return *context = current, OK; }
int cuCtxSetCurrent(void *context) { return current = context, OK; }
int cuCtxSynchronize() { return OK; }
int cuStreamCreate(void **stream, unsigned) { return *stream = &some, OK; }
int cuStreamDestroy_v2(void *) { return OK; }
int cuStreamSynchronize(void *) { return OK; }
int cuStreamWaitEvent(void *, void *, unsigned) { return OK; }
int cuStreamIsCapturing(void *, int *capturing) { return *capturing = 0, OK; }
int cuEventCreate(void **event, unsigned) { return *event = &some, OK; }
int cuEventRecord(void *, void *) { return OK; }
int cuEventSynchronize(void *) { return OK; }
int cuEventDestroy_v2(void *) { return OK; }

int cuMemAllocAsync(uint64_t *address, size_t size, void *) {
    const long limit = variable("EMULATED_MEMORY", 0);
    if (limit && used + (long)size > limit) return OUT_OF_MEMORY;
    void *memory = std::aligned_alloc(256, (size + 256) / 256 * 256);
    used += (long)malloc_usable_size(memory);
    // Memory is filled with NaN, so that a number that a kernel does not write is noticed.
    std::memset(memory, 0xff, size);
    *address = (uint64_t)memory;
    return OK;
}
int cuMemFreeAsync(uint64_t address, void *) {
    used -= (long)malloc_usable_size((void *)address);
    std::free((void *)address);
    return OK;
}
int cuMemAlloc_v2(uint64_t *address, size_t size) { return cuMemAllocAsync(address, size, nullptr); }
int cuMemFree_v2(uint64_t address) { return cuMemFreeAsync(address, nullptr); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *) { return std::memcpy((void *)to, from, size), OK; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *) { return std::memcpy(to, (void *)from, size), OK; }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *) { return std::memcpy((void *)to, (void *)from, size), OK; }
int cuMemsetD8Async(uint64_t to, unsigned char x, size_t size, void *) { return std::memset((void *)to, x, size), OK; }

int cuModuleLoadData(void **module, const void *) { return *module = &some, OK; }
int cuModuleUnload(void *) { return OK; }
int cuModuleGetFunction(const void **function, void *, const char *name) {
    for (const auto &kernel : KERNELS)
        if (!std::strcmp(kernel.name, name)) return *function = &kernel, OK;
    return NOT_FOUND;
}
int cuLaunchKernel(
    void *function, unsigned x, unsigned y, unsigned, unsigned threads, unsigned, unsigned, unsigned, void *, void **a, void **
) {
    blockDim = {threads, 1, 1};
    if (const Sums sums = ((decltype(&KERNELS[0]))function)->sums) {
        each_thread({x, y, 1}, [&] {
            sums(
                argument<const u8 *>(a, 0), argument<u64>(a, 1), argument<const u32 *>(a, 2), argument<const float *>(a, 3),
                argument<const float *>(a, 4), argument<u32>(a, 5), argument<u32>(a, 6), argument<const u32 *>(a, 7),
                argument<const u32 *>(a, 8), argument<u32>(a, 9), argument<float *>(a, 10), argument<float *>(a, 11)
            );
        });
    } else {
        each_thread({x, y, 1}, [&] {
            means(
                argument<const float *>(a, 0), argument<const float *>(a, 1), argument<const u32 *>(a, 2),
                argument<const u32 *>(a, 3), argument<const float *>(a, 4), argument<const float *>(a, 5),
                argument<u32>(a, 6), argument<u32>(a, 7), argument<const float *>(a, 8), argument<u32>(a, 9),
                argument<u32>(a, 10), argument<u32>(a, 11), argument<float *>(a, 12)
            );
        });
    }
    return OK;
}
}
