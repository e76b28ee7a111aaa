/* test_checkpoint.c: folders. Models made here, whole and broken in every way, and models given, which must open.
 *     test_checkpoint [folder] ... */
#define _XOPEN_SOURCE 700
#include <ftw.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "refuse.h"

static char root[] = "/tmp/dllm_checkpoint_XXXXXX"; /* everything is made in here */
enum { PATH = 512, HEADER = 16384 };

static const char *in(const char *folder, const char *name)
{
    static char paths[4][PATH];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, PATH, "%s/%s/%s", root, folder, name);
    return path;
}

static const char *folder_of(const char *name)
{
    static char path[PATH];
    snprintf(path, sizeof path, "%s/%s", root, name);
    return path;
}

static void write_bytes(const char *path, const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    check(file && fwrite(bytes, 1, n, file) == n, path);
    if (file) fclose(file);
}

static void write_text(const char *path, const char *text) { write_bytes(path, text, strlen(text)); }

/* ---- a model of one layer --------------------------------------------------------------------------------------------------- */
static const char config[] =
    "{\"model_type\":\"llada\",\"d_model\":4,\"n_layers\":1,\"n_heads\":2,\"n_kv_heads\":1,\"mlp_hidden_size\":6,"
    "\"vocab_size\":8,\"rope\":true,\"block_type\":\"llama\",\"layer_norm_type\":\"rms\",\"activation_type\":\"silu\",\"weight_"
    "tying\":false}";

typedef struct {
    const char *name, *dtype;
    int rows, cols; /* rows 0: a vector */
} tensor;

#define T "model.transformer."
#define B T "blocks.0."
static const tensor tensors[] = {
    { T "wte.weight", "BF16", 8, 4 },      { T "ln_f.weight", "F32", 0, 4 },     { T "ff_out.weight", "BF16", 8, 4 },
    { B "attn_norm.weight", "F32", 0, 4 }, { B "q_proj.weight", "BF16", 4, 4 },  { B "k_proj.weight", "BF16", 2, 4 },
    { B "v_proj.weight", "BF16", 2, 4 },   { B "attn_out.weight", "F16", 4, 4 }, { B "ff_norm.weight", "F32", 0, 4 },
    { B "ff_proj.weight", "BF16", 6, 4 },  { B "up_proj.weight", "BF16", 6, 4 }, { B "ff_out.weight", "BF16", 4, 6 },
};
enum { TENSORS = sizeof tensors / sizeof *tensors, BYTES = 2 * (8 * 4 * 2 + 16 + 8 + 8 + 16 + 24 * 3) + 4 * 12 };

static size_t size_of(const tensor *t)
{
    return (size_t)(t->rows ? t->rows : 1) * (size_t)t->cols * (t->dtype[0] == 'F' && t->dtype[1] == '3' ? 4 : 2);
}

/* Writes the tensors [first, last) and then `extra`, which replaces the one of its name; a replacement without a dtype
 * leaves it out. shift makes the header longer than writers do. */
static void write_tensors(const char *path, int first, int last, const tensor *extra, int extras, size_t shift)
{
    static char file[8 + HEADER + 4096];
    char *header = file + 8;
    size_t n = (size_t)snprintf(header, HEADER, "{\"__metadata__\":{\"format\":\"pt\"}"), data = 0;
    memset(file + 8 + n, 0, sizeof file - 8 - n);
    for (int i = first; i < last + extras; i++) {
        const tensor *t = i < last ? &tensors[i] : &extra[i - last];
        bool replaced = !t->dtype;
        for (int j = 0; i < last && j < extras; j++) replaced |= strcmp(extra[j].name, t->name) == 0;
        if (replaced) continue;
        char rows[16] = "";
        if (t->rows) snprintf(rows, sizeof rows, "%d,", t->rows);
        n += (size_t)snprintf(header + n, HEADER - n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s%d],\"data_offsets\":[%zu,%zu]}",
                              t->name, t->dtype, rows, t->cols, data, data + size_of(t));
        data += size_of(t);
    }
    header[n++] = '}';
    for (const size_t end = (n + 7) / 8 * 8 + shift; n < end; n++) header[n] = ' ';
    for (int i = 0; i < 8; i++) file[i] = (char)((uint64_t)n >> 8 * i);
    for (size_t i = 0; i < data; i++) header[n + i] = (char)(i / 2);
    write_bytes(path, file, 8 + n + data);
}

/* A folder with a config and, for extra and shift, one file; name is the folder's. */
static void make_model(const char *name, const char *text, const tensor *extra, int extras, size_t shift)
{
    check(mkdir(folder_of(name), 0700) == 0, name);
    write_text(in(name, "config.json"), text);
    write_tensors(in(name, "model.safetensors"), 0, TENSORS, extra, extras, shift);
}

/* Tensors [0, 5) in a.safetensors, the rest in b.safetensors. */
static void make_shards(const char *name)
{
    check(mkdir(folder_of(name), 0700) == 0, name);
    write_text(in(name, "config.json"), config);
    write_tensors(in(name, "a.safetensors"), 0, 5, NULL, 0, 0);
    write_tensors(in(name, "b.safetensors"), 5, TENSORS, NULL, 0, 0);
}

/* The index of those, with the file of the last tensor given, and `more` in addition. */
static void write_index(const char *name, const char *last_file, const char *more)
{
    char text[HEADER] = "{\"metadata\":{\"total_size\":1},\"weight_map\":{";
    for (int i = 0; i < TENSORS; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s\"%s\":\"%s\"", i ? "," : "", tensors[i].name,
                 i < 5             ? "a.safetensors"
                 : i < TENSORS - 1 ? "b.safetensors"
                                   : last_file);
    snprintf(text + strlen(text), sizeof text - strlen(text), "%s}}", more);
    write_text(in(name, "model.safetensors.index.json"), text);
}

static void refuse_folder(const char *name, int status, const char *part)
{
    dllm_checkpoint *c;
    const int got = dllm_checkpoint_open(&c, folder_of(name));
    check(!c, name);
    refuse(got, status, part, name);
    dllm_checkpoint_close(c);
}

static dllm_checkpoint *open_folder(const char *name)
{
    dllm_checkpoint *c;
    check(dllm_checkpoint_open(&c, folder_of(name)) == 0, name);
    return c;
}

/* ---- one file --------------------------------------------------------------------------------------------------------------- */
static void test_whole_model(void)
{
    make_model("whole", config, NULL, 0, 0);
    dllm_checkpoint *c = open_folder("whole");
    if (!c) return;
    const dllm_weights *w = dllm_checkpoint_weights(c);
    const dllm_layer *l = w->layers;
    check(dllm_checkpoint_bytes(c) == BYTES && dllm_checkpoint_config(c)->dtype == DLLM_BF16,
          "bytes, and the dtype of the embedding");
    check(w->embed.rows == 8 && w->embed.cols == 4 && w->embed.dtype == DLLM_BF16 && ((uint8_t *)w->embed.data)[3] == 1,
          "the embedding");
    check(w->norm.rows == 1 && w->norm.cols == 4 && w->norm.dtype == DLLM_F32, "a vector");
    check((char *)w->head.data == (char *)w->embed.data + 64 + 16, "the head is the top ff_out");
    check(l->down.rows == 4 && l->down.cols == 6 && l->k.rows == 2 && l->o.dtype == DLLM_F16 && !l->q_bias.data,
          "the layer's own ff_out");
    dllm_checkpoint_close(c);
    dllm_checkpoint_close(NULL);
}

static void test_variants(void)
{
    static const tensor biases[] = { { B "q_proj.bias", "BF16", 0, 4 },
                                     { B "k_proj.bias", "BF16", 0, 2 },
                                     { B "v_proj.bias", "BF16", 0, 2 } };
    static const tensor others[] = { { "ids", "I16", 0, 4 }, { T "ff_out.weight", NULL, 0, 0 } };
    char tied[sizeof config];
    snprintf(tied, sizeof tied, "%.*strue}", (int)(strlen(config) - strlen("false}")), config);
    make_model("biases", config, biases, 3, 0);
    make_model("two_biases", config, biases, 2, 0);
    make_model("tied", tied, others + 1, 1, 0);
    make_model("tied_copy", tied, NULL, 0, 0);
    make_model("no_head", config, others, 2, 0);
    dllm_checkpoint *c = open_folder("biases");
    if (c) check(dllm_checkpoint_weights(c)->layers[0].k_bias.cols == 2 && dllm_checkpoint_bytes(c) == BYTES + 16, "biases");
    dllm_checkpoint_close(c);
    refuse_folder("two_biases", DLLM_E_CHECKPOINT, "model.transformer.blocks.0 has biases for 2 of query, key and value");
    refuse_folder("no_head", DLLM_E_CHECKPOINT, "tensor model.transformer.ff_out.weight is missing");
    for (int copy = 0; copy < 2; copy++) {
        c = open_folder(copy ? "tied_copy" : "tied");
        if (c)
            check(dllm_checkpoint_weights(c)->head.data == dllm_checkpoint_weights(c)->embed.data &&
                      dllm_checkpoint_bytes(c) == BYTES - 64,
                  "tied");
        dllm_checkpoint_close(c);
    }
}

static void test_broken_tensors(void)
{
    static const tensor missing = { B "up_proj.weight", NULL, 0, 0 }, shape = { B "k_proj.weight", "BF16", 4, 4 },
                        vector = { B "ff_norm.weight", "F32", 0, 6 }, integers = { B "q_proj.weight", "I16", 4, 4 };
    make_model("missing", config, &missing, 1, 0);
    make_model("shape", config, &shape, 1, 0);
    make_model("vector", config, &vector, 1, 0);
    make_model("integers", config, &integers, 1, 0);
    make_model("shifted", config, NULL, 0, 1);
    make_model("shifted_by_2", config, NULL, 0, 2);
    refuse_folder("missing", DLLM_E_CHECKPOINT, "/missing: tensor model.transformer.blocks.0.up_proj.weight is missing");
    refuse_folder("shape", DLLM_E_CHECKPOINT, "tensor model.transformer.blocks.0.k_proj.weight is [4, 4]; [2, 4] expected");
    refuse_folder("vector", DLLM_E_CHECKPOINT, "tensor model.transformer.blocks.0.ff_norm.weight is [1, 6]; [1, 4] expected");
    refuse_folder("integers", DLLM_E_CHECKPOINT, "q_proj.weight has dtype I16; float32, bfloat16 or float16 expected");
    refuse_folder("shifted", DLLM_E_CHECKPOINT, "tensor model.transformer.wte.weight is not aligned to the 2 bytes of bfloat16");
    refuse_folder("shifted_by_2", DLLM_E_CHECKPOINT,
                  "tensor model.transformer.ln_f.weight is not aligned to the 4 bytes of float32");
}

static void test_broken_files(void)
{
    make_model("short", config, NULL, 0, 0);
    check(truncate(in("short", "model.safetensors"), 1000) == 0, "truncate");
    refuse_folder("short", DLLM_E_CHECKPOINT, "/short/model.safetensors: ");
    check(truncate(in("short", "model.safetensors"), 0) == 0, "truncate");
    refuse_folder("short", DLLM_E_CHECKPOINT, "model.safetensors: 0 bytes are too few");
    write_text(in("short", "config.json"), "");
    refuse_folder("short", DLLM_E_CHECKPOINT, "/short/config.json: not valid JSON at byte 0");
    write_text(in("short", "config.json"), "{\"model_type\":\"llada2_moe\",\"num_experts\":12}");
    refuse_folder("short", DLLM_E_CHECKPOINT,
                  "config.json: mixture of experts is not supported: architectures = absent, num_experts = 12");
    check(unlink(in("short", "config.json")) == 0, "unlink");
    refuse_folder("short", DLLM_E_FILE, "/short/config.json: No such file");
    refuse_folder("nowhere", DLLM_E_FILE, "/nowhere: No such file");
    refuse_folder("whole/config.json", DLLM_E_FILE, "Not a directory");

    make_model("pipe", config, NULL, 0, 0);
    check(unlink(in("pipe", "model.safetensors")) == 0, "unlink");
    refuse_folder("pipe", DLLM_E_FILE, "/pipe has neither model.safetensors nor model.safetensors.index.json");
    check(mkfifo(in("pipe", "model.safetensors"), 0600) == 0, "mkfifo"); /* nobody writes into it: must not wait */
    refuse_folder("pipe", DLLM_E_FILE, "model.safetensors: not a file");
    check(unlink(in("pipe", "model.safetensors")) == 0 && mkdir(in("pipe", "model.safetensors"), 0700) == 0, "mkdir");
    refuse_folder("pipe", DLLM_E_FILE, "model.safetensors: not a file");
}

/* ---- shards ----------------------------------------------------------------------------------------------------------------- */
static void test_shards(void)
{
    make_shards("shards");
    write_index("shards", "b.safetensors", "");
    dllm_checkpoint *c = open_folder("shards");
    if (c)
        check(dllm_checkpoint_bytes(c) == BYTES && ((uint8_t *)dllm_checkpoint_weights(c)->layers[0].k.data)[2] == 1, "two shards");
    dllm_checkpoint_close(c);

    write_index("shards", "b.safetensors", ",\"" B "q_proj.weight\":\"a.safetensors\"");
    refuse_folder("shards", DLLM_E_CHECKPOINT, "index.json: tensor model.transformer.blocks.0.q_proj.weight is there twice");
    write_index("shards", "c.safetensors", "");
    refuse_folder("shards", DLLM_E_FILE, "/shards/c.safetensors: No such file");
    write_index("shards", "a.safetensors", "");
    refuse_folder("shards", DLLM_E_CHECKPOINT, "tensor model.transformer.blocks.0.ff_out.weight is not in a.safetensors");
    write_index("shards", "b.safetensors", ",\"x\":\"b.safetensors\"");
    refuse_folder("shards", DLLM_E_CHECKPOINT, "tensor x is not in b.safetensors");
    write_index("shards", "b.safetensors", ",\"x\":7");
    refuse_folder("shards", DLLM_E_CHECKPOINT, "weight_map does not say the file of tensor x");
    write_text(in("shards", "model.safetensors.index.json"), "{\"weight_map\":[]}");
    refuse_folder("shards", DLLM_E_CHECKPOINT, "model.safetensors.index.json: no weight_map");
    write_text(in("shards", "model.safetensors.index.json"), "{\"weight_map\":{}}");
    refuse_folder("shards", DLLM_E_CHECKPOINT, "tensor model.transformer.wte.weight is missing");

    write_index("shards", "b.safetensors", "");
    write_tensors(in("shards", "b.safetensors"), 4, TENSORS, NULL, 0, 0);
    refuse_folder("shards", DLLM_E_CHECKPOINT,
                  "tensor model.transformer.blocks.0.q_proj.weight is there twice, in a.safetensors and in b.safetensors");

    static const char *const names[] = { "../whole/model.safetensors", "/etc/passwd", "sub/b.safetensors", "..", "" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char part[100];
        write_index("shards", names[i], "");
        snprintf(part, sizeof part, "shard name \"%s\" is not the name of a file", names[i]);
        refuse_folder("shards", DLLM_E_CHECKPOINT, part);
    }
}

/* ---- links ------------------------------------------------------------------------------------------------------------------ */
static void link_to(const char *target, const char *path)
{
    unlink(path);
    check(symlink(target, path) == 0, path);
}

static void test_links(void)
{
    make_model("links", config, NULL, 0, 0);
    check(rename(in("links", "model.safetensors"), in("links", "real.safetensors")) == 0, "rename");
    link_to("real.safetensors", in("links", "model.safetensors"));
    dllm_checkpoint_close(open_folder("links"));
    link_to("../whole/model.safetensors", in("links", "model.safetensors"));
    refuse_folder("links", DLLM_E_CHECKPOINT, "/links/model.safetensors is a link out of the folder, to ");
    refuse_folder("links", DLLM_E_CHECKPOINT, "/whole/model.safetensors");
    link_to("/etc/passwd", in("links", "config.json"));
    refuse_folder("links", DLLM_E_CHECKPOINT, "/links/config.json is a link out of the folder, to /etc/passwd");
    link_to("links", folder_of("linked")); /* the folder itself may be one */
    refuse_folder("linked", DLLM_E_CHECKPOINT, "/links/config.json is a link out of the folder");

    check(mkdir(folder_of("hub"), 0700) == 0 && mkdir(folder_of("hub/blobs"), 0700) == 0 &&
              mkdir(folder_of("hub/blobs/sub"), 0700) == 0 && mkdir(folder_of("hub/snapshots"), 0700) == 0,
          "a cache of the Hugging Face hub");
    make_model("hub/snapshots/0a1b", config, NULL, 0, 0);
    check(rename(in("hub/snapshots/0a1b", "model.safetensors"), in("hub/blobs", "77ff")) == 0, "rename");
    link_to("../../blobs/77ff", in("hub/snapshots/0a1b", "model.safetensors"));
    dllm_checkpoint_close(open_folder("hub/snapshots/0a1b"));
    check(rename(in("hub/blobs", "77ff"), in("hub/blobs/sub", "77ff")) == 0, "rename");
    link_to("../../blobs/sub/77ff", in("hub/snapshots/0a1b", "model.safetensors"));
    refuse_folder("hub/snapshots/0a1b", DLLM_E_CHECKPOINT, "is a link out of the folder, to ");
    link_to("gone", in("hub/snapshots/0a1b", "model.safetensors"));
    refuse_folder("hub/snapshots/0a1b", DLLM_E_FILE, "has neither model.safetensors nor");
}

/* ---- models given ------------------------------------------------------------------------------------------------------------ */
static void test_model(const char *folder)
{
    dllm_checkpoint *c;
    if (!check(dllm_checkpoint_open(&c, folder) == 0, folder)) return;
    const dllm_config *k = dllm_checkpoint_config(c);
    const dllm_weights *w = dllm_checkpoint_weights(c);
    check(w->embed.rows == k->vocab && w->head.cols == k->dim && (w->head.data == w->embed.data) == k->tied_head, folder);
    check(w->layers[k->layers - 1].down.cols == k->ffn_dim && dllm_checkpoint_bytes(c) > (size_t)k->vocab * (size_t)k->dim * 2,
          folder);
    check(!!w->layers[0].q_bias.data == (k->family == DLLM_DREAM), folder);
    dllm_checkpoint_close(c);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *place) { return remove(path); }

int main(int argc, char **argv)
{
    if (!check(mkdtemp(root) != NULL, "a temporary folder")) return report();
    test_whole_model();
    test_variants();
    test_broken_tensors();
    test_broken_files();
    test_shards();
    test_links();
    check(nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0, "the temporary folder goes");
    for (int i = 1; i < argc; i++) test_model(argv[i]);
    return report();
}
