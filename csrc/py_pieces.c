/* py_pieces.c: parts of the engine by themselves, for tests and for replaying the official loops by hand. */
#include "py_module.h"

#include "session.h"

static PyObject *times(PyObject *module, PyObject *args)
{
    int steps;
    float eps;
    if (!PyArg_ParseTuple(args, "if", &steps, &eps)) return NULL;
    if (steps < 0 || steps > 1 << 24) return PyErr_Format(PyExc_ValueError, "%d steps", steps);
    const int64_t shape[] = { steps + 1 };
    PyObject *out = dllm_py_array(NPY_FLOAT32, 1, shape, NULL);
    if (out) dllm_times(PyArray_DATA((PyArrayObject *)out), steps, eps);
    return out;
}

static PyObject *rope_table(PyObject *module, PyObject *args)
{
    PyObject *given;
    int head_dim;
    float theta;
    if (!PyArg_ParseTuple(args, "Oif", &given, &head_dim, &theta)) return NULL;
    if (head_dim < 2 || head_dim > 1 << 16) return PyErr_Format(PyExc_ValueError, "head_dim %d", head_dim);
    PyArrayObject *positions = (PyArrayObject *)PyArray_FROMANY(given, NPY_INT32, 1, 1, NPY_ARRAY_IN_ARRAY);
    if (!positions) return NULL;
    const int64_t shape[] = { PyArray_SIZE(positions), head_dim / 2 };
    PyObject *c = dllm_py_array(NPY_FLOAT32, 2, shape, NULL), *s = dllm_py_array(NPY_FLOAT32, 2, shape, NULL);
    for (npy_intp i = 0; c && s && i < shape[0]; i++) {
        dllm_rope_row(PyArray_GETPTR2((PyArrayObject *)c, i, 0), PyArray_GETPTR2((PyArrayObject *)s, i, 0),
                      *(int32_t *)PyArray_GETPTR1(positions, i), head_dim, theta);
    }
    Py_DECREF(positions);
    PyObject *out = c && s ? PyTuple_Pack(2, c, s) : NULL;
    Py_XDECREF(c);
    Py_XDECREF(s);
    return out;
}

/* The numbers of a recorded draw, in the type that the sampling rule reads; NULL with an exception if they are not [rows, vocab]. */
static PyArrayObject *recorded_draw(PyObject *given, bool gumbel, int64_t rows, int64_t vocab)
{
    PyArrayObject *a = (PyArrayObject *)PyArray_FROMANY(given, gumbel ? NPY_FLOAT64 : NPY_FLOAT32, 2, 2, NPY_ARRAY_IN_ARRAY);
    if (a && (PyArray_DIM(a, 0) != rows || PyArray_DIM(a, 1) != vocab)) {
        PyErr_Format(PyExc_ValueError, "noise [%zd, %zd] for logits [%lld, %lld]", (Py_ssize_t)PyArray_DIM(a, 0),
                     (Py_ssize_t)PyArray_DIM(a, 1), (long long)rows, (long long)vocab);
        Py_CLEAR(a);
    }
    return a;
}

static PyObject *predict_array(PyObject *module, PyArrayObject *logits, const dllm_params *p, PyObject *given_noise)
{
    const int64_t rows = PyArray_DIM(logits, 0), vocab = PyArray_DIM(logits, 1);
    PyArrayObject *noise = given_noise == Py_None ? NULL : recorded_draw(given_noise, p->gumbel, rows, vocab);
    if (given_noise != Py_None && !noise) return NULL;
    PyObject *token = dllm_py_array(NPY_INT32, 1, &rows, NULL), *score = dllm_py_array(NPY_FLOAT32, 1, &rows, NULL);
    PyObject *prob = dllm_py_array(NPY_FLOAT32, 1, &rows, NULL), *out = NULL;
    if (token && score && prob) {
        const dllm_mat m = { PyArray_DATA(logits), rows, vocab, vocab, DLLM_F32 };
        const int status = dllm_predict(m, p, noise ? PyArray_DATA(noise) : NULL, PyArray_DATA((PyArrayObject *)token),
                                        PyArray_DATA((PyArrayObject *)score), PyArray_DATA((PyArrayObject *)prob));
        out = status < 0 ? dllm_py_raise(module, status) : PyTuple_Pack(3, token, score, prob);
    }
    Py_XDECREF(token);
    Py_XDECREF(score);
    Py_XDECREF(prob);
    Py_XDECREF(noise);
    return out;
}

static PyObject *predict(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "logits", "params", "noise", NULL };
    PyObject *given, *mapping, *noise = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|O", names, &given, &mapping, &noise)) return NULL;
    /* A copy: the kernel works in place. */
    PyArrayObject *logits = (PyArrayObject *)PyArray_FROMANY(given, NPY_FLOAT32, 2, 2, NPY_ARRAY_DEFAULT | NPY_ARRAY_ENSURECOPY);
    if (!logits) return NULL;
    const dllm_config c = {
        .family = DLLM_LLADA, .vocab = (int32_t)PyArray_DIM(logits, 1), .mask_id = -1, .eos_id = -1, .eot_id = -1
    };
    dllm_params p;
    PyObject *out = dllm_py_params(module, mapping, &c, &p) < 0 ? NULL : predict_array(module, logits, &p, noise);
    Py_DECREF(logits);
    return out;
}

/* ---- DyLLM's partial attention ------------------------------------------------------------------------------------------------------- */
enum { QUERIES, KEYS, DELTAS, OLD, MATRICES };

typedef struct {
    PyArrayObject *given[MATRICES], *changed;
    dllm_mat m[MATRICES];
} delta_arguments;

static void drop(delta_arguments *a)
{
    for (int i = 0; i < MATRICES; i++) Py_XDECREF(a->given[i]);
    Py_XDECREF(a->changed);
}

static int read_delta(delta_arguments *a, PyObject *const *from, PyObject *changed, int heads, int kv_heads)
{
    for (int i = 0; i < MATRICES; i++) {
        a->given[i] = (PyArrayObject *)PyArray_FROMANY(from[i], NPY_FLOAT32, 2, 2, NPY_ARRAY_IN_ARRAY);
        if (!a->given[i]) return -1;
        a->m[i] = (dllm_mat){ PyArray_DATA(a->given[i]), PyArray_DIM(a->given[i], 0), PyArray_DIM(a->given[i], 1),
                              PyArray_DIM(a->given[i], 1), DLLM_F32 };
    }
    a->changed = (PyArrayObject *)PyArray_FROMANY(changed, NPY_INT32, 1, 1, NPY_ARRAY_IN_ARRAY);
    if (!a->changed) return -1;
    const dllm_mat *m = a->m;
    bool ok = heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && m[QUERIES].cols % heads == 0 &&
              m[OLD].cols == m[QUERIES].cols && m[OLD].rows == m[QUERIES].rows && m[KEYS].cols == m[DELTAS].cols &&
              m[KEYS].cols * heads == m[QUERIES].cols * kv_heads && m[DELTAS].rows == PyArray_SIZE(a->changed);
    for (npy_intp i = 0; ok && i < PyArray_SIZE(a->changed); i++) {
        const int32_t key = *(int32_t *)PyArray_GETPTR1(a->changed, i);
        ok = key >= 0 && key < m[KEYS].rows;
    }
    if (!ok) PyErr_SetString(PyExc_ValueError, "attend_delta: the shapes, or the changed keys, do not fit each other");
    return ok ? 0 : -1;
}

static PyObject *run_delta(PyObject *module, const delta_arguments *a, int heads, int kv_heads)
{
    const dllm_ops *op = &dllm_ops_c;
    const int32_t n = (int32_t)a->m[QUERIES].rows, keys = (int32_t)a->m[KEYS].rows, changed = (int32_t)PyArray_SIZE(a->changed);
    const int64_t shape[] = { n, a->m[OLD].cols };
    const dllm_config c = { .heads = heads, .kv_heads = kv_heads };
    dllm_device d = { .ops = op, .threads = 1 };
    d.scratch = op->alloc(&d, op->scratch(&d, &c, DLLM_F32, n, keys));
    PyObject *out = dllm_py_array(NPY_FLOAT32, 2, shape, NULL), *cosine = dllm_py_array(NPY_FLOAT32, 1, shape, NULL);
    if (!d.scratch) PyErr_NoMemory();
    else if (out && cosine) {
        const dllm_mat to = { PyArray_DATA((PyArrayObject *)out), n, shape[1], shape[1], DLLM_F32 };
        const dllm_rows all = dllm_range(0, n), columns = { .idx = PyArray_DATA(a->changed), .n = changed };
        const dllm_span span = { 0, n, 0, keys };
        const dllm_spans spans = { &span, &(dllm_columns){ 0, changed }, 1, n, keys };
        op->attend_delta(&d, to, a->m[QUERIES], all, a->m[OLD], all, a->m[KEYS], a->m[DELTAS], columns, spans, heads, kv_heads);
        op->cosine(&d, PyArray_DATA((PyArrayObject *)cosine), to, all, a->m[OLD], all, 1e-8f);
    }
    op->free(&d, d.scratch);
    PyObject *both = PyErr_Occurred() ? NULL : PyTuple_Pack(2, out, cosine);
    Py_XDECREF(out);
    Py_XDECREF(cosine);
    return both;
}

static PyObject *attend_delta(PyObject *module, PyObject *args)
{
    PyObject *from[MATRICES], *changed;
    int heads, kv_heads;
    if (!PyArg_ParseTuple(args, "OOOOOii", &from[QUERIES], &from[KEYS], &from[DELTAS], &changed, &from[OLD], &heads, &kv_heads))
        return NULL;
    delta_arguments a = { 0 };
    PyObject *out = read_delta(&a, from, changed, heads, kv_heads) < 0 ? NULL : run_delta(module, &a, heads, kv_heads);
    drop(&a);
    return out;
}

/* ---- single kernels, for benchmarks ----------------------------------------------------------------------------------------- */
enum { OUT, FIRST, SECOND, THIRD, TENSORS };

typedef struct {
    dllm_py_tensor given[TENSORS];
    dllm_mat m[TENSORS];
    dllm_config shape;
    dllm_device device;
} kernel_call;

static void release(kernel_call *c)
{
    for (int i = 0; i < TENSORS; i++) dllm_py_tensor_release(&c->given[i]);
}

static int read_call(kernel_call *c, PyObject *const *from, const char *const *names, int n, int threads, const char *level)
{
    c->device = (dllm_device){ .ops = dllm_ops_cpu(level), .threads = threads };
    if (!c->device.ops || threads < 1) {
        PyErr_Format(PyExc_ValueError, "level '%s' with %d threads: a level of this processor and at least 1 expected", level,
                     threads);
        return -1;
    }
    for (int i = 0; i < n; i++) {
        if (dllm_py_tensor_get(from[i], names[i], NULL, &c->given[i]) < 0 || dllm_py_matrix(names[i], &c->given[i], &c->m[i]) < 0)
            return -1;
        if (c->m[i].rows > INT32_MAX || c->m[i].cols > INT32_MAX || (i == OUT && c->given[i].read_only)) {
            PyErr_Format(PyExc_ValueError, "'%s' is too large, or cannot be written", names[i]);
            return -1;
        }
    }
    return 0;
}

static void run_linear(kernel_call *c)
{
    const dllm_rows rows = dllm_range(0, (int32_t)c->m[OUT].rows);
    c->device.ops->linear(&c->device, c->m[OUT], rows, c->m[FIRST], rows, c->m[SECOND], (dllm_mat){ 0 });
}

static void run_attend(kernel_call *c)
{
    const int32_t n = (int32_t)c->m[OUT].rows, keys = (int32_t)c->m[SECOND].rows;
    const dllm_span span = { 0, n, 0, keys };
    const dllm_spans spans = { &span, NULL, 1, n, keys };
    c->device.ops->attend(&c->device, c->m[OUT], c->m[FIRST], dllm_range(0, n), c->m[SECOND], c->m[THIRD], spans, c->shape.heads,
                          c->shape.kv_heads);
}

/* Seconds inside the kernel. Scratch is taken before, as a session does when it opens. */
static PyObject *run_timed(PyObject *module, kernel_call *c, void (*run)(kernel_call *))
{
    dllm_device *d = &c->device;
    const int64_t keys = c->m[THIRD].data ? c->m[THIRD].rows : 0;
    double seconds;
    int status;
    d->scratch_bytes = d->ops->scratch(d, &c->shape, c->m[FIRST].dtype, c->m[OUT].rows, keys);
    d->scratch = d->ops->alloc(d, d->scratch_bytes);
    if (!d->scratch) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    seconds = dllm_seconds();
    run(c);
    seconds = dllm_seconds() - seconds;
    status = d->ops->sync(d);
    d->ops->free(d, d->scratch);
    Py_END_ALLOW_THREADS
    if (status < 0) dllm_fail(status, "%s", d->why);
    return status < 0 ? dllm_py_raise(module, status) : PyFloat_FromDouble(seconds);
}

static bool same_type(const kernel_call *c, int n)
{
    bool same = true;
    for (int i = FIRST; i < n; i++) same &= c->m[i].dtype == c->m[FIRST].dtype;
    return same && c->m[OUT].dtype == c->m[FIRST].dtype;
}

static PyObject *linear(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "out", "x", "w", "threads", "level", NULL };
    PyObject *from[TENSORS];
    int threads = 1;
    const char *level = "";
    kernel_call c = { 0 };
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO|is", names, &from[OUT], &from[FIRST], &from[SECOND], &threads, &level))
        return NULL;
    PyObject *seconds = NULL;
    if (read_call(&c, from, (const char *const *)names, THIRD, threads, level) == 0) {
        const dllm_mat *m = c.m;
        c.shape = (dllm_config){ .dim = (int32_t)m[FIRST].cols, .vocab = (int32_t)m[SECOND].rows };
        if (m[OUT].rows == m[FIRST].rows && m[OUT].cols == m[SECOND].rows && m[FIRST].cols == m[SECOND].cols &&
            same_type(&c, SECOND))
            seconds = run_timed(module, &c, run_linear);
        else
            PyErr_Format(PyExc_ValueError,
                         "linear: out [%lld, %lld], x [%lld, %lld] and w [%lld, %lld], or their types, do not fit",
                         (long long)m[OUT].rows, (long long)m[OUT].cols, (long long)m[FIRST].rows, (long long)m[FIRST].cols,
                         (long long)m[SECOND].rows, (long long)m[SECOND].cols);
    }
    release(&c);
    return seconds;
}

static PyObject *attend(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "out", "q", "k", "v", "heads", "kv_heads", "threads", "level", NULL };
    PyObject *from[TENSORS];
    int heads, kv_heads, threads = 1;
    const char *level = "";
    kernel_call c = { 0 };
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOii|is", names, &from[OUT], &from[FIRST], &from[SECOND], &from[THIRD],
                                     &heads, &kv_heads, &threads, &level))
        return NULL;
    PyObject *seconds = NULL;
    if (read_call(&c, from, (const char *const *)names, TENSORS, threads, level) == 0) {
        const dllm_mat *m = c.m;
        const bool fit = heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && m[FIRST].cols % heads == 0 &&
                         same_type(&c, TENSORS) && m[OUT].rows == m[FIRST].rows && m[OUT].cols == m[FIRST].cols &&
                         m[SECOND].rows == m[THIRD].rows && m[SECOND].cols == m[THIRD].cols &&
                         m[SECOND].cols * heads == m[FIRST].cols * kv_heads;
        const int32_t head_dim = fit ? (int32_t)m[FIRST].cols / heads : 0;
        c.shape = (dllm_config){ .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .dim = (int32_t)m[FIRST].cols };
        if (fit) seconds = run_timed(module, &c, run_attend);
        else
            PyErr_Format(PyExc_ValueError,
                         "attend: q [%lld, %lld], k [%lld, %lld], v [%lld, %lld], out, %d heads and %d of k and v, or their types, "
                         "do not fit",
                         (long long)m[FIRST].rows, (long long)m[FIRST].cols, (long long)m[SECOND].rows, (long long)m[SECOND].cols,
                         (long long)m[THIRD].rows, (long long)m[THIRD].cols, heads, kv_heads);
    }
    release(&c);
    return seconds;
}

PyMethodDef dllm_py_pieces_methods[] = {
    { "times", times, METH_VARARGS, "times(steps, eps): torch.linspace(1, eps, steps + 1) in float32, bit for bit." },
    { "rope_table", rope_table, METH_VARARGS,
      "rope_table(positions, head_dim, theta): (cos, sin), each [positions, head_dim / 2]." },
    { "predict", (PyCFunction)(void (*)(void))predict, METH_VARARGS | METH_KEYWORDS,
      "predict(logits, params, noise=None): (token, score, probability) of every row, as a session would choose them." },
    { "attend_delta", attend_delta, METH_VARARGS,
      "attend_delta(q, k, dv, changed, old, heads, kv_heads): DyLLM's partial attention of one sequence, and its cosine with "
      "old." },
    { "linear", (PyCFunction)(void (*)(void))linear, METH_VARARGS | METH_KEYWORDS,
      "linear(out, x, w, threads=1, level=''): out = x w^T by the engine's kernel; the seconds it took." },
    { "attend", (PyCFunction)(void (*)(void))attend, METH_VARARGS | METH_KEYWORDS,
      "attend(out, q, k, v, heads, kv_heads, threads=1, level=''): attention of one sequence by the engine's kernel; the seconds "
      "it "
      "took." },
    { 0 },
};
