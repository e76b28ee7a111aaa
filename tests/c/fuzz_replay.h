/* fuzz_replay.h: what the fuzz targets share, and with -DDLLM_REPLAY a main() that feeds them files, so that any compiler
 * runs the collected inputs as a test:
 *     files="tests/c/fuzz_config.c csrc/json.c csrc/config.c csrc/error.c"
 *     cc -std=c11 -DDLLM_REPLAY -fsanitize=address,undefined $files -lm && ./a.out tests/c/fuzz_seeds/config
 *     clang -fsanitize=fuzzer,address,undefined $files -lm && ./a.out corpus tests/c/fuzz_seeds/config
 */
#ifndef DLLM_FUZZ_REPLAY_H
#define DLLM_FUZZ_REPLAY_H
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An assertion that no NDEBUG removes. */
#define MUST(condition)                                                                                                            \
    do {                                                                                                                           \
        if (!(condition)) {                                                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                                        \
            abort();                                                                                                               \
        }                                                                                                                          \
    } while (0)

#ifdef DLLM_REPLAY
#include <dirent.h>

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    MUST(fseek(file, 0, SEEK_END) == 0);
    const long size = ftell(file);
    rewind(file);
    uint8_t *data = malloc(size > 0 ? (size_t)size : 1);
    MUST(data && fread(data, 1, (size_t)size, file) == (size_t)size);
    fclose(file);
    LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    return 1;
}

static int replay(const char *path)
{
    char name[4096];
    DIR *folder = opendir(path);
    if (!folder) return replay_file(path);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        count += replay_file(name);
    }
    closedir(folder);
    return count;
}

int main(int argc, char **argv)
{
    int count = 0;
    for (int i = 1; i < argc; i++) count += replay(argv[i]);
    printf("%d inputs replayed\n", count);
    return count > 0 ? 0 : 1;
}
#endif
#endif
