/* fuzz_safetensors.c: any bytes as a safetensors file. What is accepted must lie inside the bytes and be readable to its end.
 *
 * An input that starts with '{' is a header alone, its last two bytes the size of the data behind it: so the fuzzer can change
 * the length of the header without having to find the number in front of it too. */
#include "../../csrc/safetensors.h"
#include "fuzz_replay.h"

static volatile unsigned sum;

static void check_tensor(const dllm_safetensors *s, const dllm_tensor *t, const uint8_t *file, size_t size)
{
    const uint8_t *data = t->data;
    MUST(data >= file + 8 && data <= file + size && t->bytes <= (size_t)(file + size - data));
    MUST(dllm_safetensors_find(s, t->name) == t);
    for (size_t i = 0; i < t->bytes; i++) sum += data[i];
    dllm_mat m;
    if (dllm_tensor_mat(&m, t) < 0) return;
    MUST(m.rows >= 0 && m.cols >= 0 && m.stride == m.cols && m.data == t->data);
    MUST(m.rows == 0 || m.cols <= INT64_MAX / m.rows);
    MUST((uint64_t)(m.rows * m.cols) * dllm_dtype_size(m.dtype) == t->bytes);
}

static void check_file(const uint8_t *file, size_t size)
{
    dllm_safetensors s;
    if (dllm_safetensors_parse(&s, file, size) < 0) {
        MUST(!s.tensors && !s.header && dllm_last_error()[0]);
        return;
    }
    size_t bytes = 0;
    for (size_t i = 0; i < s.n; i++) {
        MUST(i == 0 || strcmp(s.tensors[i - 1].name, s.tensors[i].name) < 0);
        check_tensor(&s, &s.tensors[i], file, size);
        bytes += s.tensors[i].bytes;
    }
    MUST(bytes <= size - 8);
    dllm_safetensors_close(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3 || data[0] != '{') {
        check_file(data, size);
        return 0;
    }
    const size_t header = size - 2, rest = data[size - 2] | (size_t)data[size - 1] << 8;
    uint8_t *file = calloc(8 + header + rest, 1);
    MUST(file);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)header >> 8 * i);
    memcpy(file + 8, data, header);
    check_file(file, 8 + header + rest);
    free(file);
    return 0;
}
