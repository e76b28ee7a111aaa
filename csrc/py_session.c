/* py_session.c: _core.Session. The GIL is released around every pass; one thread at a time may be inside. */

#include "py_module.h"

typedef struct {
    PyObject_HEAD
    dllm_py_model *model;
    dllm_session *session;
    int64_t sequences;
    PyObject *noise;      /* source of recorded random numbers, or NULL */
    PyArrayObject *drawn; /* what it gave last: the core reads it until the next draw */
    bool busy;
} py_session;

/* ---- recorded random numbers: the core asks, Python answers, with the GIL taken back for as long ------------------------------------- */
static PyObject *call_source(PyObject *source, dllm_draw kind, PyObject *shape)
{
    if (kind == DLLM_DRAW_EXPONENTIAL) return PyObject_CallMethod(source, "exponential", "(O)", shape);
    return PyObject_CallMethod(source, "uniform", "Os", shape, kind == DLLM_DRAW_TOKEN_UNIFORM ? "float64" : "float32");
}

static int take_drawn(py_session *self, PyObject *given, dllm_draw kind, PyObject *shape)
{
    const int type = kind == DLLM_DRAW_TOKEN_UNIFORM ? NPY_FLOAT64 : NPY_FLOAT32;
    PyArrayObject *a = (PyArrayObject *)PyArray_FROMANY(given, type, 0, 0, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (!a) return -1;
    PyObject *got = PyObject_GetAttrString((PyObject *)a, "shape");
    const int same = got ? PyObject_RichCompareBool(got, shape, Py_EQ) : -1;
    if (same == 0) PyErr_Format(PyExc_ValueError, "noise source: shape %R was asked for, %R came", shape, got);
    Py_XDECREF(got);
    if (same != 1) {
        Py_DECREF(a);
        return -1;
    }
    Py_XSETREF(self->drawn, a);
    return 0;
}

static const void *draw_noise(void *arg, dllm_draw kind, const int64_t *dims, int ndim)
{
    py_session *self = arg;
    const PyGILState_STATE gil = PyGILState_Ensure();
    const void *numbers = NULL;
    PyObject *shape = PyTuple_New(ndim), *given = NULL;
    for (int i = 0; shape && i < ndim; i++) {
        PyObject *n = PyLong_FromLongLong(dims[i]);
        if (!n) Py_CLEAR(shape);
        else PyTuple_SET_ITEM(shape, i, n);
    }
    if (shape) given = call_source(self->noise, kind, shape);
    if (given && take_drawn(self, given, kind, shape) == 0) numbers = PyArray_DATA(self->drawn);
    Py_XDECREF(given);
    Py_XDECREF(shape);
    PyGILState_Release(gil);
    return numbers;
}

/* ---- opening ----------------------------------------------------------------------------------------------------------------------------- */
/* Everything of the arguments that the core reads while it opens the session. */
typedef struct {
    dllm_prompt *prompts;
    PyArrayObject **arrays; /* ids and positions, two a prompt */
    Py_ssize_t n;
} open_arguments;

static void release(open_arguments *a)
{
    for (Py_ssize_t i = 0; a->arrays && i < 2 * a->n; i++) Py_XDECREF(a->arrays[i]);
    PyMem_Free(a->arrays);
    PyMem_Free(a->prompts);
}

static PyArrayObject *ids_array(PyObject *given)
{
    return (PyArrayObject *)PyArray_FROMANY(given, NPY_INT32, 1, 1, NPY_ARRAY_IN_ARRAY);
}

/* Calls set(i, item) for every item of an optional sequence that must be as long as the prompts. */
static int each(open_arguments *a, PyObject *sequence, const char *what,
                int (*set)(open_arguments *a, Py_ssize_t i, PyObject *item))
{
    if (sequence == Py_None) return 0;
    PyObject *fast = PySequence_Fast(sequence, what);
    if (!fast) return -1;
    int status = 0;
    if (PySequence_Fast_GET_SIZE(fast) != a->n) {
        PyErr_Format(PyExc_ValueError, "%zd %s for %zd prompts", PySequence_Fast_GET_SIZE(fast), what, a->n);
        status = -1;
    }
    for (Py_ssize_t i = 0; status == 0 && i < a->n; i++) status = set(a, i, PySequence_Fast_GET_ITEM(fast, i));
    Py_DECREF(fast);
    return status;
}

static int set_ids(open_arguments *a, Py_ssize_t i, PyObject *item)
{
    PyArrayObject *ids = a->arrays[2 * i] = ids_array(item);
    if (!ids) return -1;
    if (PyArray_SIZE(ids) > INT32_MAX / 2) {
        PyErr_Format(PyExc_ValueError, "prompt %zd has %zd ids", i, (Py_ssize_t)PyArray_SIZE(ids));
        return -1;
    }
    a->prompts[i].ids = PyArray_DATA(ids);
    a->prompts[i].n = (int32_t)PyArray_SIZE(ids);
    a->prompts[i].stream = (uint64_t)i;
    return 0;
}

static int set_positions(open_arguments *a, Py_ssize_t i, PyObject *item)
{
    PyArrayObject *positions = a->arrays[2 * i + 1] = ids_array(item);
    if (!positions) return -1;
    if (PyArray_SIZE(positions) != a->prompts[i].n) {
        PyErr_Format(PyExc_ValueError, "prompt %zd has %d ids but %zd positions", i, a->prompts[i].n,
                     (Py_ssize_t)PyArray_SIZE(positions));
        return -1;
    }
    a->prompts[i].positions = PyArray_DATA(positions);
    return 0;
}

static int set_condition(open_arguments *a, Py_ssize_t i, PyObject *item)
{
    const long n = PyLong_AsLong(item);
    if (n == -1 && PyErr_Occurred()) return -1;
    a->prompts[i].condition = n < 0 || n > INT32_MAX ? -1 : (int32_t)n;
    return 0;
}

static int set_seed(open_arguments *a, Py_ssize_t i, PyObject *item)
{
    unsigned long long seed, stream;
    if (!PyTuple_Check(item)) {
        PyErr_Format(PyExc_TypeError, "seed %zd is %R: a pair (seed, stream) expected", i, item);
        return -1;
    }
    if (!PyArg_ParseTuple(item, "KK", &seed, &stream)) return -1;
    a->prompts[i].seed = seed;
    a->prompts[i].stream = stream;
    return 0;
}

static int gather(open_arguments *a, PyObject *ids, PyObject *positions, PyObject *condition, PyObject *seeds)
{
    a->n = PySequence_Size(ids);
    if (a->n < 0) return -1;
    a->prompts = PyMem_Calloc((size_t)a->n + 1, sizeof *a->prompts);
    a->arrays = PyMem_Calloc(2 * (size_t)a->n + 1, sizeof *a->arrays);
    if (!a->prompts || !a->arrays) {
        PyErr_NoMemory();
        return -1;
    }
    if (a->n > 1 << 20) {
        PyErr_Format(PyExc_ValueError, "%zd prompts in one batch", a->n);
        return -1;
    }
    if (each(a, ids, "prompts", set_ids) < 0 || each(a, positions, "positions", set_positions) < 0) return -1;
    if (each(a, condition, "conditions", set_condition) < 0) return -1;
    return each(a, seeds, "seeds", set_seed);
}

/* Somebody may have written weights just now that the model borrows. */
static int come_after_weights(py_session *self)
{
    const dllm_py_model *m = self->model;
    for (int i = 0; i < m->n_tensors; i++)
        if (m->tensors[i].exchange && m->tensors[i].device_type == DLPACK_CUDA)
            return dllm_py_come_after(m->tensors[i].exchange, dllm_session_device(self->session));
    return 0;
}

static PyObject *open_session(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "model", "params", "prompts", "positions", "condition", "seeds", "noise", NULL };
    PyObject *module = PyType_GetModule(type), *mapping, *ids, *noise = Py_None;
    PyObject *positions = Py_None, *condition = Py_None, *seeds = Py_None;
    const dllm_py_state *state = PyModule_GetState(module);
    dllm_py_model *model;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OO|$OOOO", names, state->model, &model, &mapping, &ids, &positions,
                                     &condition, &seeds, &noise))
        return NULL;
    dllm_params p;
    if (dllm_py_params(module, mapping, dllm_model_config(model->model), &p) < 0) return NULL;
    py_session *self = (py_session *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    self->model = (dllm_py_model *)Py_NewRef((PyObject *)model);
    if (noise != Py_None) {
        self->noise = Py_NewRef(noise);
        p.noise = (dllm_noise){ draw_noise, self };
    }
    open_arguments a = { 0 };
    int status = gather(&a, ids, positions, condition, seeds);
    if (status == 0) {
        Py_BEGIN_ALLOW_THREADS
        status = dllm_session_open(&self->session, model->model, &p, a.prompts, (int)a.n);
        Py_END_ALLOW_THREADS
        if (status < 0) dllm_py_raise(module, status);
    }
    self->sequences = a.n;
    release(&a);
    if (status >= 0) status = come_after_weights(self);
    if (status < 0) Py_CLEAR(self);
    return (PyObject *)self;
}

static int traverse(py_session *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->model);
    Py_VISIT(self->noise);
    return 0;
}

static int clear(py_session *self)
{
    Py_CLEAR(self->noise);
    return 0;
}

static void dealloc(py_session *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    dllm_session_close(self->session);
    clear(self);
    Py_CLEAR(self->drawn);
    Py_CLEAR(self->model);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* ---- one thread at a time ------------------------------------------------------------------------------------------------------------------ */
static int enter(py_session *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "this session is in use by another thread, or by the callback that called it");
        return -1;
    }
    self->busy = true;
    return 0;
}

static PyObject *leave(py_session *self, int status, PyObject *result)
{
    self->busy = false;
    if (status >= 0) return result;
    Py_XDECREF(result);
    return dllm_py_raise_from((PyObject *)self, status);
}

/* ---- steps ------------------------------------------------------------------------------------------------------------------------------------ */
static PyObject *step(py_session *self, PyObject *unused)
{
    if (enter(self) < 0) return NULL;
    int left;
    Py_BEGIN_ALLOW_THREADS
    left = dllm_session_step(self->session);
    Py_END_ALLOW_THREADS
    return leave(self, left, left < 0 ? NULL : PyLong_FromLong(left));
}

static PyObject *forward(py_session *self, PyObject *unused)
{
    if (enter(self) < 0) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = dllm_session_forward(self->session);
    Py_END_ALLOW_THREADS
    return leave(self, status, Py_NewRef(Py_None));
}

static PyObject *decide_on(py_session *self, dllm_mat logits)
{
    int left;
    Py_BEGIN_ALLOW_THREADS
    left = dllm_session_decide(self->session, logits);
    Py_END_ALLOW_THREADS
    return leave(self, left, left < 0 ? NULL : PyLong_FromLong(left));
}

static PyObject *decide_on_tensor(py_session *self, PyObject *given)
{
    dllm_py_tensor t;
    dllm_mat m;
    PyObject *out = NULL;
    if (dllm_py_tensor_get(given, "logits", dllm_session_device(self->session), &t) == 0 && dllm_py_matrix("logits", &t, &m) == 0)
        out = decide_on(self, m);
    else leave(self, 0, NULL);
    dllm_py_tensor_release(&t);
    return out;
}

static PyObject *decide(py_session *self, PyObject *args)
{
    PyObject *given = Py_None;
    if (!PyArg_ParseTuple(args, "|O", &given) || enter(self) < 0) return NULL;
    if (given == Py_None) return decide_on(self, (dllm_mat){ 0 });
    const int on_gpu = dllm_py_room_wanted(given, dllm_session_device(self->session));
    if (on_gpu > 0) return decide_on_tensor(self, given);
    PyArrayObject *logits =
        on_gpu < 0 ? NULL : (PyArrayObject *)PyArray_FROMANY(given, NPY_FLOAT32, 2, 2, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (!logits) return leave(self, 0, NULL);
    const int64_t rows = PyArray_DIM(logits, 0), cols = PyArray_DIM(logits, 1);
    PyObject *left = decide_on(self, (dllm_mat){ PyArray_DATA(logits), rows, cols, cols, DLLM_F32 });
    Py_DECREF(logits);
    return left;
}

/* ---- ids and what a step did ---------------------------------------------------------------------------------------------------------------------- */
static PyObject *tokens(py_session *self, PyObject *unused)
{
    const int64_t rows = dllm_session_rows(self->session);
    PyObject *out = dllm_py_array(NPY_INT32, 1, &rows, NULL);
    if (!out) return NULL;
    if (enter(self) < 0) {
        Py_DECREF(out);
        return NULL;
    }
    return leave(self, dllm_session_tokens(self->session, PyArray_DATA((PyArrayObject *)out), rows), out);
}

static PyObject *set_tokens(py_session *self, PyObject *given)
{
    PyArrayObject *ids = ids_array(given);
    if (!ids) return NULL;
    int status = enter(self);
    if (status == 0) {
        status = dllm_session_set_tokens(self->session, PyArray_DATA(ids), PyArray_SIZE(ids));
        leave(self, status, NULL);
    }
    Py_DECREF(ids);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *candidates(py_session *self, PyObject *unused)
{
    if (enter(self) < 0) return NULL;
    const int32_t *rows, *chosen;
    const float *scores, *probs;
    const int64_t n = dllm_session_candidates(self->session, &rows, &chosen, &scores, &probs);
    return leave(self, 0,
                 Py_BuildValue("NNNN", dllm_py_array(NPY_INT32, 1, &n, rows), dllm_py_array(NPY_INT32, 1, &n, chosen),
                               dllm_py_array(NPY_FLOAT32, 1, &n, scores), dllm_py_array(NPY_FLOAT32, 1, &n, probs)));
}

static PyObject *revealed(py_session *self, PyObject *unused)
{
    if (enter(self) < 0) return NULL;
    const int32_t *rows;
    const int64_t n = dllm_session_revealed(self->session, &rows);
    return leave(self, 0, dllm_py_array(NPY_INT32, 1, &n, rows));
}

static PyObject *watched(py_session *self, PyObject *unused)
{
    const int8_t *mode;
    const uint8_t *chosen;
    const float *seen;
    if (enter(self) < 0) return NULL;
    const int layers = dllm_session_watched(self->session, &mode, &chosen, &seen);
    if (layers < 0) return leave(self, layers, NULL);
    const int64_t modes[] = { layers, self->sequences }, rows[] = { layers, dllm_session_rows(self->session) };
    return leave(self, 0,
                 Py_BuildValue("NNN", dllm_py_array(NPY_INT8, 2, modes, mode), dllm_py_array(NPY_BOOL, 2, rows, chosen),
                               dllm_py_array(NPY_FLOAT32, 2, rows, seen)));
}

static PyObject *kept_array(dllm_session *s, dllm_mat m)
{
    const int64_t shape[] = { m.rows, m.cols };
    if (!m.data) return Py_NewRef(Py_None);
    PyObject *out = dllm_py_array(m.dtype == DLLM_F32 ? NPY_FLOAT32 : NPY_UINT16, 2, shape, NULL);
    if (out) dllm_session_read(s, PyArray_DATA((PyArrayObject *)out), m);
    return out;
}

static PyObject *kept(py_session *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "sequence", "layer", "branch", NULL };
    int sequence, layer, branch = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "ii|i", names, &sequence, &layer, &branch)) return NULL;
    if (enter(self) < 0) return NULL;
    dllm_kept k;
    dllm_session *s = self->session;
    const int status = dllm_session_kept(s, sequence, branch, layer, &k);
    if (status < 0) return leave(self, status, NULL);
    return leave(self, 0,
                 Py_BuildValue("{s:N,s:N,s:N,s:N,s:N}", "k", kept_array(s, k.k), "v", kept_array(s, k.v), "context",
                               kept_array(s, k.context), "attn", kept_array(s, k.attn), "ffn", kept_array(s, k.ffn)));
}

/* ---- passes ------------------------------------------------------------------------------------------------------------------------------------------ */
static int storage_of(dllm_dtype t) { return t == DLLM_F32 ? NPY_FLOAT32 : NPY_UINT16; }

static int run_logits(py_session *self, dllm_mat m, PyArrayObject *cells, bool shifted)
{
    int status;
    const int32_t *at = cells ? PyArray_DATA(cells) : NULL;
    Py_BEGIN_ALLOW_THREADS
    status = dllm_session_logits_at(self->session, m, at, shifted);
    Py_END_ALLOW_THREADS
    return status;
}

static PyObject *logits_as_array(py_session *self, dllm_mat m, PyArrayObject *cells, bool shifted)
{
    const int64_t shape[] = { m.rows, m.cols };
    PyObject *out = dllm_py_array(storage_of(m.dtype), 2, shape, NULL);
    if (!out) return leave(self, 0, NULL);
    m.data = PyArray_DATA((PyArrayObject *)out);
    return leave(self, run_logits(self, m, cells, shifted), out);
}

static PyObject *logits_as_tensor(py_session *self, PyObject *like, dllm_mat m, PyArrayObject *cells, bool shifted)
{
    dllm_py_room room;
    dllm_device *d = dllm_session_device(self->session);
    if (dllm_py_room_open(&room, "logits", like, d, self->model, m) < 0) return leave(self, 0, NULL);
    const int status = run_logits(self, room.place, cells, shifted);
    PyObject *out = status < 0 ? NULL : dllm_py_room_give(&room, PyType_GetModule(Py_TYPE(self)));
    dllm_py_room_close(&room);
    return leave(self, status, out);
}

static PyObject *logits(py_session *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = { "shifted", "dtype", "like", "cells", "total", NULL };
    int shifted = 0;
    const char *name = "float32";
    PyObject *like = Py_None, *given = Py_None, *out = NULL;
    long long total = dllm_session_rows(self->session);
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$psOOL", names, &shifted, &name, &like, &given, &total)) return NULL;
    dllm_mat m = { .rows = total, .cols = dllm_model_config(self->model->model)->vocab };
    if (!dllm_dtype_find(name, &m.dtype)) return PyErr_Format(PyExc_ValueError, "dtype '%s' is not known", name);
    m.stride = m.cols;
    PyArrayObject *cells = given == Py_None ? NULL : ids_array(given);
    if (!cells && given != Py_None) return NULL;
    const int on_gpu = dllm_py_room_wanted(like, dllm_session_device(self->session));
    if (cells && PyArray_SIZE(cells) != dllm_session_rows(self->session))
        PyErr_Format(PyExc_ValueError, "%zd cells for %lld rows", (Py_ssize_t)PyArray_SIZE(cells),
                     (long long)dllm_session_rows(self->session));
    else if (total < 1) PyErr_Format(PyExc_ValueError, "total = %lld rows of logits", total);
    else if (on_gpu >= 0 && enter(self) == 0)
        out = on_gpu ? logits_as_tensor(self, like, m, cells, shifted) : logits_as_array(self, m, cells, shifted);
    Py_XDECREF(cells);
    return out;
}

static PyObject *holds(py_session *self, PyObject *tensor)
{
    const int on_gpu = dllm_py_room_wanted(tensor, dllm_session_device(self->session));
    return on_gpu < 0 ? NULL : PyBool_FromLong(on_gpu);
}

static PyObject *nll_of(py_session *self, PyArrayObject *rows, PyArrayObject *targets)
{
    const int64_t n = PyArray_SIZE(rows);
    if (PyArray_SIZE(targets) != n)
        return PyErr_Format(PyExc_ValueError, "%zd rows but %zd targets", (Py_ssize_t)n, (Py_ssize_t)PyArray_SIZE(targets));
    PyObject *out = dllm_py_array(NPY_FLOAT32, 1, &n, NULL);
    if (!out) return NULL;
    if (enter(self) < 0) {
        Py_DECREF(out);
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = dllm_session_nll(self->session, PyArray_DATA(rows), PyArray_DATA(targets), n, PyArray_DATA((PyArrayObject *)out));
    Py_END_ALLOW_THREADS
    return leave(self, status, out);
}

static PyObject *nll(py_session *self, PyObject *args)
{
    PyObject *given_rows, *given_targets;
    if (!PyArg_ParseTuple(args, "OO", &given_rows, &given_targets)) return NULL;
    PyArrayObject *rows = ids_array(given_rows), *targets = rows ? ids_array(given_targets) : NULL;
    PyObject *out = targets ? nll_of(self, rows, targets) : NULL;
    Py_XDECREF(rows);
    Py_XDECREF(targets);
    return out;
}

static PyObject *hidden(py_session *self, PyObject *unused)
{
    const dllm_config *c = dllm_model_config(self->model->model);
    const int64_t shape[] = { c->layers + 1, dllm_session_rows(self->session), c->dim };
    PyObject *out = dllm_py_array(storage_of(dllm_model_dtype(self->model->model)), 3, shape, NULL);
    if (!out) return NULL;
    if (enter(self) < 0) {
        Py_DECREF(out);
        return NULL;
    }
    int status;
    const size_t bytes = (size_t)PyArray_NBYTES((PyArrayObject *)out);
    Py_BEGIN_ALLOW_THREADS
    status = dllm_session_hidden(self->session, PyArray_DATA((PyArrayObject *)out), bytes);
    Py_END_ALLOW_THREADS
    return leave(self, status, out);
}

/* ---- looking at it -------------------------------------------------------------------------------------------------------------------------------------- */
static PyObject *stages_of(const dllm_stats *st)
{
    PyObject *all = PyDict_New();
    for (int i = 0; all && i < DLLM_STAGES; i++) {
        const dllm_stage_cost *c = &st->stages[i];
        PyObject *cost = Py_BuildValue("{s:d,s:K,s:K}", "seconds", c->seconds, "flops", c->flops, "bytes", c->bytes);
        if (!cost || PyDict_SetItemString(all, dllm_stage_name(i), cost) < 0) Py_CLEAR(all);
        Py_XDECREF(cost);
    }
    return all;
}

static PyObject *stats(py_session *self, PyObject *unused)
{
    dllm_stats st;
    dllm_session_stats(self->session, &st);
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:n,s:n,s:n,s:d,s:N,s:K,s:K,s:K,s:d}", "forwards",
                         st.forwards, "steps", st.steps, "tokens", st.tokens, "rows_v", st.rows_v, "rows_k", st.rows_k, "rows_q",
                         st.rows_q, "rows_out", st.rows_out, "rows_ffn", st.rows_ffn, "rows_head", st.rows_head, "flops", st.flops,
                         "flops_uncached", st.flops_uncached, "cache_bytes", (Py_ssize_t)st.cache_bytes, "scratch_bytes",
                         (Py_ssize_t)st.scratch_bytes, "weight_bytes", (Py_ssize_t)st.weight_bytes, "seconds", st.seconds, "stages",
                         stages_of(&st), "kernels", st.kernels, "launches", st.launches, "waits", st.waits, "waited", st.waited);
}

static PyObject *get_rows(py_session *self, void *unused) { return PyLong_FromLongLong(dllm_session_rows(self->session)); }

static PyObject *get_offsets(py_session *self, void *unused)
{
    int64_t n = 1;
    while (dllm_session_offset(self->session, (int)n - 1) < dllm_session_rows(self->session)) n++;
    PyObject *out = dllm_py_array(NPY_INT64, 1, &n, NULL);
    for (int64_t i = 0; out && i < n; i++)
        *(int64_t *)PyArray_GETPTR1((PyArrayObject *)out, i) = dllm_session_offset(self->session, (int)i);
    return out;
}

static PyMethodDef methods[] = {
    { "step", (PyCFunction)step, METH_NOARGS, "One step; how many sequences are still unfinished." },
    { "forward", (PyCFunction)forward, METH_NOARGS, "The first half of a step: the network." },
    { "decide", (PyCFunction)decide, METH_VARARGS, "decide(logits=None): the second half, on the model's logits or on these." },
    { "tokens", (PyCFunction)tokens, METH_NOARGS, "The ids of all packed rows." },
    { "set_tokens", (PyCFunction)set_tokens, METH_O, "set_tokens(ids): replaces the ids of all packed rows." },
    { "candidates", (PyCFunction)candidates, METH_NOARGS, "(packed rows, tokens, scores, probabilities) of the latest step." },
    { "revealed", (PyCFunction)revealed, METH_NOARGS, "Packed rows of the latest step, surest first in each sequence." },
    { "watched", (PyCFunction)watched, METH_NOARGS,
      "What the caching method did in the latest step: (mode [layers, sequences], chosen [layers, rows], seen [layers, rows])." },
    { "kept", (PyCFunction)(void (*)(void))kept, METH_VARARGS | METH_KEYWORDS,
      "kept(sequence, layer, branch=0): copies of what a layer keeps: k, v, context, attn, ffn; None where nothing is." },
    { "logits", (PyCFunction)(void (*)(void))logits, METH_VARARGS | METH_KEYWORDS,
      "logits(*, shifted=False, dtype='float32', like=None, cells=None, total=rows): an uncached pass over the current ids; "
      "[total, "
      "vocab], packed row r in row cells[r] of it, zeros elsewhere. A tensor of like's framework if like is on the model's GPU." },
    { "holds", (PyCFunction)holds, METH_O, "holds(tensor): does it lie on the GPU of this session?" },
    { "nll", (PyCFunction)nll, METH_VARARGS, "nll(rows, targets): the same pass; -log p(target) at each row." },
    { "hidden", (PyCFunction)hidden, METH_NOARGS, "The same pass: [layers + 1, rows, dim]." },
    { "stats", (PyCFunction)stats, METH_NOARGS, "What was computed and what is held." },
    { 0 },
};

static PyGetSetDef attributes[] = {
    { "rows", (getter)get_rows, NULL, "Packed rows of all sequences.", NULL },
    { "offsets", (getter)get_offsets, NULL, "First packed row of every sequence, then the total.", NULL },
    { 0 },
};

static PyType_Slot slots[] = {
    { Py_tp_new, open_session },
    { Py_tp_dealloc, dealloc },
    { Py_tp_traverse, traverse },
    { Py_tp_clear, clear },
    { Py_tp_methods, methods },
    { Py_tp_getset, attributes },
    { Py_tp_doc, "One denoising timeline of a batch of prompts. See csrc/dllm.h." },
    { 0, NULL },
};

PyType_Spec dllm_py_session_spec = {
    .name = "dllm_fast._core.Session",
    .basicsize = sizeof(py_session),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
