/* checkpoint.c: a Hugging Face folder -> config and weights, all of them views of mapped files. Only headers are read here, so a
 * folder of any size opens at once, and only pages that a kernel touches are ever loaded. */
#define _DEFAULT_SOURCE /* realpath, madvise */
#include "checkpoint.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "safetensors.h"

typedef struct {
    const char *name; /* NULL: the one file of a folder without index */
    dllm_safetensors file;
} shard;

typedef struct {
    const char *tensor, *file;
    int shard;
} place;

enum { MAX_SHARDS = 4096 };

struct dllm_checkpoint {
    dllm_config config;
    dllm_weights weights;
    size_t bytes;
    char *folder; /* without symbolic links */
    shard *shards;
    int n_shards;
    dllm_json *index; /* NULL: one file; else it owns the names below */
    place *places;    /* ascending tensor names */
    size_t n_places;
};

/* ---- files of the folder --------------------------------------------------------------------------------------------------- */
static bool is_inside(const char *path, const char *folder)
{
    const size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && (folder[n - 1] == '/' || path[n] == '/');
}

/* The Hugging Face cache keeps files as <model>/blobs/<hash> and a folder of links <model>/snapshots/<revision>. */
static bool is_blob(const char *path, const char *folder)
{
    static const char snapshots[] = "/snapshots", blobs[] = "/blobs/";
    const char *revision = strrchr(folder, '/');
    const size_t parent = (size_t)(revision - folder);
    if (parent < sizeof snapshots - 1) return false;
    const size_t n = parent - (sizeof snapshots - 1);
    if (memcmp(folder + n, snapshots, sizeof snapshots - 1) != 0) return false;
    if (strncmp(path, folder, n) != 0 || strncmp(path + n, blobs, sizeof blobs - 1) != 0) return false;
    return strchr(path + n + sizeof blobs - 1, '/') == NULL;
}

static int join(char path[PATH_MAX], const char *folder, const char *name)
{
    FAIL_IF(snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX, DLLM_E_FILE, "%.200s/%.200s: path too long", folder, name);
    return 0;
}

/* The path of a file, links resolved. A folder may come from a stranger, and a link in it must not make this process read, and
 * perhaps show, whatever else the user may read: links may lead to places inside the folder, or, in the Hugging Face cache, to
 * the model's own blobs. Nowhere else. */
static int resolve(char path[PATH_MAX], const char *folder, const char *name)
{
    char link[PATH_MAX];
    TRY(join(link, folder, name));
    FAIL_IF(!realpath(link, path), DLLM_E_FILE, "%.800s: %s", link, strerror(errno));
    REFUSE_IF(!is_inside(path, folder) && !is_blob(path, folder), "%.400s is a link out of the folder, to %.400s", link, path);
    return 0;
}

static bool exists(const char *folder, const char *name)
{
    char path[PATH_MAX];
    return join(path, folder, name) == 0 && access(path, F_OK) == 0;
}

/* ---- config.json ----------------------------------------------------------------------------------------------------------- */
static int read_config(dllm_checkpoint *c, bool *has_dtype)
{
    char path[PATH_MAX];
    dllm_map text;
    TRY(resolve(path, c->folder, "config.json"));
    TRY(dllm_map_open(&text, path));
    const int status = dllm_config_read(&c->config, has_dtype, text.data, text.size);
    dllm_map_close(&text);
    return status < 0 ? dllm_fail(status, "%.400s/config.json: %s", c->folder, dllm_last_error()) : 0;
}

/* ---- shards ---------------------------------------------------------------------------------------------------------------- */
/* name must live as long as the checkpoint. Returns the shard's number. */
static int open_shard(dllm_checkpoint *c, const char *name)
{
    char path[PATH_MAX];
    for (int i = c->n_shards - 1; i >= 0; i--)
        if (strcmp(c->shards[i].name, name) == 0) return i;
    REFUSE_IF(name[0] == 0 || strchr(name, '/') || strstr(name, ".."), "shard name \"%.200s\" is not the name of a file", name);
    REFUSE_IF(c->n_shards == MAX_SHARDS, "more than %d shards", MAX_SHARDS);
    shard *more = realloc(c->shards, ((size_t)c->n_shards + 1) * sizeof *more);
    FAIL_IF(!more, DLLM_E_MEMORY, "out of memory: a list of %d shards", c->n_shards + 1);
    c->shards = more;
    c->shards[c->n_shards] = (shard){ .name = name };
    TRY(resolve(path, c->folder, name));
    TRY(dllm_safetensors_open(&c->shards[c->n_shards].file, path));
    return c->n_shards++;
}

static int compare_places(const void *a, const void *b) { return strcmp(((const place *)a)->tensor, ((const place *)b)->tensor); }

static const place *find_place(const dllm_checkpoint *c, const char *name)
{
    const place wanted = { .tensor = name };
    return c->n_places > 0 ? bsearch(&wanted, c->places, c->n_places, sizeof wanted, compare_places) : NULL;
}

/* weight_map {tensor: file} -> places, sorted. */
static int read_places(dllm_checkpoint *c)
{
    const dllm_json *map = NULL;
    if (c->index->kind == DLLM_JSON_OBJECT) TRY(dllm_json_get(&map, c->index, "weight_map"));
    REFUSE_IF(!map || map->kind != DLLM_JSON_OBJECT, "no weight_map");
    c->places = calloc(map->span, sizeof *c->places);
    FAIL_IF(!c->places, DLLM_E_MEMORY, "out of memory: a list of %u tensors", map->span);
    for (const dllm_json *k = dllm_json_first(map); k < dllm_json_next(map); k = dllm_json_next(k + 1)) {
        REFUSE_IF(k[1].kind != DLLM_JSON_STRING, "weight_map does not say the file of tensor %.200s", k->string);
        c->places[c->n_places++] = (place){ .tensor = k->string, .file = k[1].string };
    }
    qsort(c->places, c->n_places, sizeof *c->places, compare_places);
    for (size_t i = 1; i < c->n_places; i++)
        REFUSE_IF(compare_places(&c->places[i - 1], &c->places[i]) == 0, "tensor %.200s is there twice", c->places[i].tensor);
    return 0;
}

/* Index and shards must agree: every tensor is where the index says, and in no other shard. */
static int check_places(const dllm_checkpoint *c)
{
    for (size_t i = 0; i < c->n_places; i++) {
        const place *p = &c->places[i];
        REFUSE_IF(!dllm_safetensors_find(&c->shards[p->shard].file, p->tensor), "tensor %.200s is not in %.200s", p->tensor,
                  p->file);
    }
    for (int s = 0; s < c->n_shards; s++) {
        const dllm_safetensors *file = &c->shards[s].file;
        for (size_t i = 0; i < file->n; i++) {
            const place *p = find_place(c, file->tensors[i].name);
            REFUSE_IF(p && p->shard != s, "tensor %.200s is there twice, in %.200s and in %.200s", p->tensor, p->file,
                      c->shards[s].name);
        }
    }
    return 0;
}

static int parse_index(dllm_checkpoint *c)
{
    char path[PATH_MAX];
    dllm_map text;
    TRY(resolve(path, c->folder, "model.safetensors.index.json"));
    TRY(dllm_map_open(&text, path));
    int status = dllm_json_parse(&c->index, text.data, text.size);
    dllm_map_close(&text);
    if (status == 0) status = read_places(c);
    return status < 0 ? dllm_fail(status, "%.400s/model.safetensors.index.json: %s", c->folder, dllm_last_error()) : 0;
}

static int open_shards(dllm_checkpoint *c)
{
    TRY(parse_index(c));
    for (size_t i = 0; i < c->n_places; i++) {
        c->places[i].shard = open_shard(c, c->places[i].file);
        TRY(c->places[i].shard);
    }
    const int status = check_places(c);
    return status < 0 ? dllm_fail(status, "%.400s: %s", c->folder, dllm_last_error()) : 0;
}

/* Where both are there, the single file wins, as with other readers of such folders. */
static int open_files(dllm_checkpoint *c)
{
    if (exists(c->folder, "model.safetensors")) return open_shard(c, "model.safetensors");
    FAIL_IF(!exists(c->folder, "model.safetensors.index.json"), DLLM_E_FILE,
            "%.400s has neither model.safetensors nor model.safetensors.index.json; other formats of weights are not read",
            c->folder);
    return open_shards(c);
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------- */
static int find(void *arg, const char *name, dllm_mat *m)
{
    dllm_checkpoint *c = arg;
    const place *p = c->index ? find_place(c, name) : NULL;
    if (c->index && !p) return 1;
    const dllm_tensor *t = dllm_safetensors_find(&c->shards[p ? p->shard : 0].file, name);
    if (!t) return 1;
    c->bytes += t->bytes;
    return dllm_tensor_mat(m, t);
}

static int open_checkpoint(dllm_checkpoint *c, const char *folder)
{
    bool has_dtype;
    c->folder = realpath(folder, NULL);
    FAIL_IF(!c->folder, DLLM_E_FILE, "%.800s: %s", folder, strerror(errno));
    TRY(read_config(c, &has_dtype));
    TRY(open_files(c));
    const int status = dllm_weights_bind(&c->weights, &c->config, find, c);
    if (status < 0) return dllm_fail(status, "%.400s: %s", c->folder, dllm_last_error());
    if (!has_dtype) c->config.dtype = c->weights.embed.dtype;
    return 0;
}

int dllm_checkpoint_open(dllm_checkpoint **out, const char *folder)
{
    *out = NULL;
    dllm_checkpoint *c = calloc(1, sizeof *c);
    FAIL_IF(!c, DLLM_E_MEMORY, "out of memory: %zu bytes for a checkpoint", sizeof *c);
    const int status = open_checkpoint(c, folder);
    if (status < 0) dllm_checkpoint_close(c);
    else *out = c;
    return status < 0 ? status : 0;
}

void dllm_checkpoint_close(dllm_checkpoint *c)
{
    if (!c) return;
    dllm_weights_free(&c->weights);
    for (int i = 0; i < c->n_shards; i++) dllm_safetensors_close(&c->shards[i].file);
    free(c->shards);
    free(c->places);
    dllm_json_free(c->index);
    free(c->folder);
    free(c);
}

const dllm_config *dllm_checkpoint_config(const dllm_checkpoint *c) { return &c->config; }

const dllm_weights *dllm_checkpoint_weights(const dllm_checkpoint *c) { return &c->weights; }

size_t dllm_checkpoint_bytes(const dllm_checkpoint *c) { return c->bytes; }

/* ---- for copies of the weights ------------------------------------------------------------------------------------------------ */
int dllm_checkpoint_sources(const dllm_checkpoint *c, char **out)
{
    enum { NUMBERS = 64 };
    size_t room = 1;
    for (int i = 0; i < c->n_shards; i++) room += strlen(c->shards[i].name) + NUMBERS;
    char *text = *out = calloc(1, room);
    FAIL_IF(!text, DLLM_E_MEMORY, "out of memory: the names of %d files", c->n_shards);
    for (int i = 0; i < c->n_shards; i++) {
        const dllm_map *map = &c->shards[i].file.map;
        text +=
            snprintf(text, room - (size_t)(text - *out), "%s %zu %lld\n", c->shards[i].name, map->size, (long long)map->changed);
    }
    return 0;
}

void dllm_checkpoint_let_go(const dllm_checkpoint *c, const dllm_mat *m)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)m->data,
                    end = first + (size_t)(m->rows * m->stride) * dllm_dtype_size(m->dtype);
    const uintptr_t from = (first + page - 1) / page * page, to = end / page * page;
    if (from < to)
        madvise((void *)from, to - from, MADV_DONTNEED); /* mapped and never written: a later reader reads the file again */
}
