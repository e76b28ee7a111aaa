/* trial.h: what a case is made of. A trial holds arrays, as every run finds them, and a function that calls the kernel on them;
 * trial.c runs it on the tested table and on the twin and compares. Files cases_*.c make the trials. */
#ifndef DLLM_TRIAL_H
#define DLLM_TRIAL_H
#include "../bits.h"
#include "check.h"

typedef enum {
    TRIAL_F32 = DLLM_F32,
    TRIAL_BF16 = DLLM_BF16,
    TRIAL_F16 = DLLM_F16,
    TRIAL_I8 = DLLM_I8, /* int8 weights, as a row of bytes */
    TRIAL_I32,
    TRIAL_F64,
    TRIAL_KEY
} dllm_trial_kind;

typedef enum {
    TRIAL_IN,    /* must not change */
    TRIAL_OUT,   /* compared in the rows asked for */
    TRIAL_SPENT, /* the rows asked for may change, and nobody looks */
    TRIAL_WORK,  /* belongs to run() */
} dllm_trial_role;

typedef struct {
    dllm_trial_kind kind;
    dllm_trial_role role;
    bool shared;                /* host and device address it alike: numbers of rows and the like; not matrices */
    int64_t rows, cols, stride; /* elements */
    size_t bytes, start;        /* of image; of row 0 in it */
    unsigned char *image;       /* guard, rows, guard; NULL: out of memory */
    int order;                  /* array of row numbers less first, or -1: row i of the trial is row first + i here */
    int32_t first;
    double *slack; /* outputs: what is added to an epsilon of the value, in row i of the trial */
} dllm_trial_array;

typedef struct dllm_checker dllm_checker;
typedef struct dllm_trial dllm_trial;
struct dllm_trial {
    dllm_checker *checker;
    const char *kernel;
    char name[96];
    int32_t rows;         /* run() is asked for all of them or for a few that follow each other */
    bool counts;          /* the kernel takes row sets of which only the device knows how many there are; then, while it does, */
    const int32_t *count; /* where it finds that, else NULL */
    double tolerance;     /* epsilons */
    dllm_trial_array array[12];
    int n_arrays;
    dllm_config config; /* what scratch is asked for */
    dllm_dtype act;
    int64_t keys;

    /* at[i]: where row 0 of array i is */
    void (*run)(const dllm_trial *t, dllm_device *d, void *const *at, int32_t first, int32_t n);
    /* Whether row i may differ although the numbers say no: a near tie. NULL: never. */
    bool (*excuse)(const dllm_trial *t, void *const *want, void *const *got, int32_t i);

    float scalar; /* arguments of the kernels */
    bool flag;
    int32_t head_dim, heads, kv_heads, n_spans;
    dllm_sampling how;
};

/* A trial of `kernel` with room for a printed name; then arrays, contents, and dllm_trial_end, which runs it and frees everything.
 * */
void dllm_trial_begin(dllm_checker *k, dllm_trial *t, const char *kernel, int32_t rows);
__attribute__((format(printf, 2, 3))) void dllm_trial_name(dllm_trial *t, const char *format, ...);
void dllm_trial_end(dllm_trial *t);
bool dllm_trial_timing(const dllm_checker *k);
bool dllm_trial_library(const dllm_checker *k); /* are products of many rows a library's? */
bool dllm_trial_int8(const dllm_checker *k);    /* does the table multiply int8 weights? those of processors do */

/* Adds an array [rows, cols]; returns its number. stride 0: cols. Outputs begin as a pattern, the others as zeros. */
int dllm_trial_add(dllm_trial *t, dllm_trial_role role, dllm_trial_kind kind, int64_t rows, int64_t cols, int64_t stride);
int dllm_trial_add_shared(dllm_trial *t, dllm_trial_role role, dllm_trial_kind kind, int64_t rows, int64_t cols); /* not a matrix */
void dllm_trial_slack(dllm_trial *t, int array, int32_t row, double slack);
/* The rows of the trial lie in `array` in a random order, for which it needs at least t->rows rows; or from `first` on. */
void dllm_trial_gather(dllm_trial *t, int array);
int64_t dllm_trial_place(const dllm_trial *t, int array, int32_t row);

double dllm_trial_get(const dllm_trial *t, int array, int64_t row, int64_t col);
void dllm_trial_set(dllm_trial *t, int array, int64_t row, int64_t col, double value);
void dllm_trial_fill(dllm_trial *t, int array, double scale); /* about normal, of that standard deviation */
/* Euclidean length of a row, or of the longest row for row < 0. */
double dllm_trial_norm(const dllm_trial *t, int array, int64_t row);

double dllm_trial_uniform(dllm_checker *k);           /* [0, 1) */
int32_t dllm_trial_below(dllm_checker *k, int32_t n); /* 0 ... n - 1 */
double dllm_trial_epsilon(dllm_trial_kind kind);      /* the distance from 1 to the next number */

/* For run(): array i as a kernel gets it, from row `first` of it on; and the row set of rows [first, first + n) of the trial in it.
 * */
dllm_mat dllm_trial_mat(const dllm_trial *t, int array, void *const *at, int32_t first);
dllm_rows dllm_trial_rows(const dllm_trial *t, int array, void *const *at, int32_t first, int32_t n);

static const dllm_trial_kind dllm_trial_floats[3] = { TRIAL_F32, TRIAL_BF16, TRIAL_F16 };
static inline const char *dllm_trial_kind_name(dllm_trial_kind k)
{
    return k == TRIAL_F32 ? "f32" : k == TRIAL_BF16 ? "bf16" : "f16";
}

void dllm_check_embed(dllm_checker *k);
void dllm_check_rmsnorm(dllm_checker *k);
void dllm_check_linear(dllm_checker *k);
void dllm_check_rope(dllm_checker *k);
void dllm_check_attend(dllm_checker *k);
void dllm_check_attend_delta(dllm_checker *k);
void dllm_check_copy(dllm_checker *k);
void dllm_check_replace(dllm_checker *k);
void dllm_check_cosine(dllm_checker *k);
void dllm_check_importance(dllm_checker *k);
void dllm_check_pick(dllm_checker *k);
void dllm_check_turn(dllm_checker *k);
void dllm_check_swiglu(dllm_checker *k);
void dllm_check_add(dllm_checker *k);
void dllm_check_guide(dllm_checker *k);
void dllm_check_guide_keep(dllm_checker *k);
void dllm_check_guide_again(dllm_checker *k);
void dllm_check_predict(dllm_checker *k);
void dllm_check_head_predict(dllm_checker *k);
void dllm_check_nll(dllm_checker *k);
#endif
