/* mma.h: what reaches the tensor cores, a warp at a time: on a GPU one PTX instruction each, in the simulator the same arithmetic on the
 * same fragments. T is DLLM_BF16 or DLLM_F16; a matrix of 16 bits has rows of whole 16-byte pieces in shared memory. */
#ifndef DLLM_MMA_H
#define DLLM_MMA_H
#include "gpu.h"

template <dllm_dtype T> __device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
#ifdef __CUDACC__
    if constexpr (T == DLLM_BF16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    const uint32_t b[2] = { b0, b1 };
    sim::mma(d, a, b, T, __LINE__);
#endif
}

/* Four 8 x 8 matrices from shared memory; lane 8 m + r gives the address of row r of matrix m. */
template <bool TRANSPOSED = false> __device__ inline void load_matrices(uint32_t (&r)[4], const void *row)
{
#ifdef __CUDACC__
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
#else
    sim::load_matrices(r, row, TRANSPOSED, __LINE__);
#endif
}

/* 16 bytes to shared memory, the first `bytes` of them from memory and zeros behind, some time before the wait for their group. */
__device__ inline void copy_async(void *to, const void *from, int bytes)
{
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from),
                 "r"(bytes)
                 : "memory");
#else
    sim::copy_later(to, from, (size_t)bytes, (size_t)(16 - bytes));
#endif
}

__device__ inline void close_group()
{
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    sim::commit_copies();
#endif
}

/* Until all groups but the latest LEFT have landed. */
template <int LEFT> __device__ inline void wait_groups()
{
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#else
    sim::wait_copies(LEFT);
#endif
}

/* Where piece `piece` (of 8 numbers) of a row of `pieces` lies in shared memory: turned by the row, so that the eight rows of a matrix
 * are in eight different banks. */
__device__ inline int place(int row, int piece, int pieces) { return (row * pieces + (piece ^ (row & 7))) * 8; }

/* Numbers k ... k + 7 of a row of n to shared memory, zeros behind its end; row NULL: zeros. Rows that lie where no copy can be
 * asynchronous are read at once. */
__device__ inline void fetch(uint16_t *to, const uint16_t *row, int64_t k, int64_t n)
{
    const int64_t left = row ? n - k : 0;
    const int count = left < 0 ? 0 : left > 8 ? 8 : (int)left;
    if (count == 0 || (uintptr_t)(row + k) % 16 == 0) {
        copy_async(to, count ? row + k : row, 2 * count);
        return;
    }
    for (int i = 0; i < 8; i++) to[i] = i < count ? row[k + i] : (uint16_t)0;
}

/* Two numbers in one register, the first in the lower half. */
template <dllm_dtype T> __device__ inline uint32_t pack(float first, float second)
{
    return narrow(first, T) | (uint32_t)narrow(second, T) << 16;
}
#endif
