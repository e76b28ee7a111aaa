/* py_params.c: a dict of names and values as dllm_params. */
#include <stddef.h>
#include <string.h>

#include "py_module.h"

typedef enum { FIELD_INT, FIELD_FLOAT, FIELD_BOOL, FIELD_RULE, FIELD_SCORE, FIELD_SHIFT } field_kind;

static const struct {
    const char *name;
    field_kind kind;
    size_t at;
} fields[] = {
    { "answer_len", FIELD_INT, offsetof(dllm_params, answer_len) },
    { "block_len", FIELD_INT, offsetof(dllm_params, block_len) },
    { "steps", FIELD_INT, offsetof(dllm_params, steps) },
    { "rule", FIELD_RULE, offsetof(dllm_params, rule) },
    { "score", FIELD_SCORE, offsetof(dllm_params, score) },
    { "gumbel", FIELD_BOOL, offsetof(dllm_params, gumbel) },
    { "temperature", FIELD_FLOAT, offsetof(dllm_params, temperature) },
    { "top_p", FIELD_FLOAT, offsetof(dllm_params, top_p) },
    { "top_k", FIELD_INT, offsetof(dllm_params, top_k) },
    { "alg_temp", FIELD_FLOAT, offsetof(dllm_params, alg_temp) },
    { "eps", FIELD_FLOAT, offsetof(dllm_params, eps) },
    { "argmax", FIELD_BOOL, offsetof(dllm_params, argmax) },
    { "cfg_scale", FIELD_FLOAT, offsetof(dllm_params, cfg_scale) },
    { "cfg_interval", FIELD_INT, offsetof(dllm_params, cfg_interval) },
    { "shift", FIELD_SHIFT, offsetof(dllm_params, shift) },
    { "watch", FIELD_BOOL, offsetof(dllm_params, watch) },
    { "threshold", FIELD_FLOAT, offsetof(dllm_params, threshold) },
    { "factor", FIELD_FLOAT, offsetof(dllm_params, factor) },
    { "early_stop", FIELD_BOOL, offsetof(dllm_params, early_stop) },
    { "logits_eos_inf", FIELD_BOOL, offsetof(dllm_params, logits_eos_inf) },
    { "confidence_eos_eot_inf", FIELD_BOOL, offsetof(dllm_params, confidence_eos_eot_inf) },
    { "mask_id", FIELD_INT, offsetof(dllm_params, mask_id) },
    { "eos_id", FIELD_INT, offsetof(dllm_params, eos_id) },
    { "eot_id", FIELD_INT, offsetof(dllm_params, eot_id) },
};

static const char *const rules[] = {
    [DLLM_RULE_QUOTA] = "quota", [DLLM_RULE_TIMES] = "times", [DLLM_RULE_FIRST] = "first", [DLLM_RULE_STEADY] = "steady", NULL
};
static const char *const shifts[] = { [DLLM_SHIFT_CARRY] = "carry", [DLLM_SHIFT_OWN] = "own", [DLLM_SHIFT_FLAT] = "flat", NULL };
static const char *const scores[] = {
    [DLLM_SCORE_PROB] = "prob",     [DLLM_SCORE_MARGIN] = "margin", [DLLM_SCORE_ENTROPY] = "entropy",
    [DLLM_SCORE_RANDOM] = "random", [DLLM_SCORE_ORIGIN] = "origin", NULL,
};

static int set_name(void *to, const char *const *names, const char *field, PyObject *value)
{
    const char *given = PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    for (int i = 0; given && names[i]; i++) {
        if (strcmp(names[i], given) == 0) {
            memcpy(to, &i, sizeof i);
            return 0;
        }
    }
    if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%s %R is not known", field, value);
    return -1;
}

static int set_int(int32_t *to, const char *field, PyObject *value)
{
    const long long x = PyLong_AsLongLong(value);
    if (x == -1 && PyErr_Occurred()) {
        PyErr_Format(PyErr_ExceptionMatches(PyExc_OverflowError) ? PyExc_ValueError : PyExc_TypeError, "%s %R: an integer expected",
                     field, value);
        return -1;
    }
    if (x < INT32_MIN || x > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%s %lld is out of range", field, x);
        return -1;
    }
    *to = (int32_t)x;
    return 0;
}

static int set_float(float *to, const char *field, PyObject *value)
{
    const double x = PyFloat_AsDouble(value);
    if (x == -1 && PyErr_Occurred()) {
        PyErr_Format(PyExc_TypeError, "%s %R: a number expected", field, value);
        return -1;
    }
    *to = (float)x;
    return 0;
}

static int set_field(dllm_params *p, size_t i, PyObject *value)
{
    void *to = (char *)p + fields[i].at;
    switch (fields[i].kind) {
    case FIELD_INT:
        return set_int(to, fields[i].name, value);
    case FIELD_FLOAT:
        return set_float(to, fields[i].name, value);
    case FIELD_RULE:
        return set_name(to, rules, fields[i].name, value);
    case FIELD_SCORE:
        return set_name(to, scores, fields[i].name, value);
    case FIELD_SHIFT:
        return set_name(to, shifts, fields[i].name, value);
    case FIELD_BOOL: {
        const int truth = PyObject_IsTrue(value);
        *(bool *)to = truth > 0;
        return truth < 0 ? -1 : 0;
    }
    }
    return -1;
}

/* strategy: a name, or (name, {option: value}). */
static int set_strategy(PyObject *module, dllm_params *p, PyObject *value)
{
    const char *name;
    PyObject *options = NULL, *option, *number;
    if (PyTuple_Check(value) ? !PyArg_ParseTuple(value, "sO!", &name, &PyDict_Type, &options) : !(name = PyUnicode_AsUTF8(value)))
        return -1;
    int status = dllm_params_use(p, name);
    for (Py_ssize_t at = 0; status >= 0 && options && PyDict_Next(options, &at, &option, &number);) {
        const char *of = PyUnicode_AsUTF8(option);
        const double x = PyFloat_AsDouble(number);
        if (!of || (x == -1 && PyErr_Occurred())) return -1;
        status = dllm_params_set(p, of, x);
    }
    if (status < 0) dllm_py_raise(module, status);
    return status;
}

static int set_one(PyObject *module, dllm_params *p, PyObject *key, PyObject *value)
{
    const char *name = PyUnicode_AsUTF8(key);
    if (!name) return -1;
    if (value == Py_None) return 0; /* the family's default */
    if (strcmp(name, "strategy") == 0) return set_strategy(module, p, value);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (strcmp(fields[i].name, name) == 0) return set_field(p, i, value);
    }
    PyErr_Format(PyExc_TypeError, "no parameter %R", key);
    return -1;
}

int dllm_py_params(PyObject *module, PyObject *mapping, const dllm_config *c, dllm_params *p)
{
    dllm_params_init(p, c);
    PyObject *items = PyMapping_Items(mapping);
    if (!items) return -1;
    int status = 0;
    for (Py_ssize_t i = 0; status == 0 && i < PyList_GET_SIZE(items); i++) {
        PyObject *pair = PyList_GET_ITEM(items, i);
        status = set_one(module, p, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1));
    }
    Py_DECREF(items);
    return status;
}
