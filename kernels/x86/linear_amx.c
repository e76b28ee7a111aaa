/* linear_amx.c: bfloat16 products on the AMX unit, by the way that suits the number of rows. */
#include "linear.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16,prefer-vector-width=512")
#include "linear_amx.h"

enum { MAX_ROWS = 512 }; /* of a pass: enough work for each weight read */

static int64_t padded(int64_t n) { return ceil_div(n, AMX_PADDED) * AMX_PADDED; }

static int64_t packed_bytes(int64_t rows, int64_t k) { return padded(at_most(rows, MAX_ROWS)) * padded(k) * 2; }

static int64_t homes_bytes(int threads, int64_t rows) { return threads * padded(at_most(rows, MAX_ROWS)) * AMX_OUTPUTS * 4; }

size_t dllm_linear_amx_scratch(int threads, int64_t rows, int64_t k)
{
    return (size_t)(packed_bytes(rows, k) + homes_bytes(threads, rows));
}

void dllm_linear_amx(const struct product *p)
{
    const int threads = p->d->threads > 1 ? p->d->threads : 1;
    const int64_t k = p->w.cols;
    if (p->in_rows.n <= 0) return;
    int64_t rows = at_most(p->in_rows.n, MAX_ROWS);
    while (rows > AMX_PADDED && dllm_linear_amx_scratch(threads, rows, k) > p->d->scratch_bytes) rows -= AMX_PADDED;
    const size_t needed = dllm_linear_amx_scratch(threads, rows, k);
    if (needed > p->d->scratch_bytes) {
        dllm_linear_refuse(p->d, needed);
        return;
    }
    for (int64_t first = 0; first < p->in_rows.n; first += rows) {
        struct amx_pass a = { .p = p, .threads = threads, .first = first, .rows = at_most(rows, p->in_rows.n - first) };
        a.packed = p->d->scratch;
        a.homes = a.packed + packed_bytes(a.rows, k);
        if (a.rows <= AMX_FEW) dllm_linear_amx_few(&a);
        else dllm_linear_amx_many(&a);
    }
}
#endif
