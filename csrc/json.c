/* json.c: text -> array of values. One pass counts how many values there can be at most, one pass reads them. */
#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *text;
    size_t n, at;
    dllm_json *values;
    uint32_t count;
    char *strings;                      /* where the next decoded string goes */
    uint32_t open[DLLM_JSON_MAX_DEPTH]; /* the containers around the cursor, as indices of values */
    int depth;
} parser;

static int fail(const parser *p, const char *what)
{
    return dllm_fail(DLLM_E_CHECKPOINT, "not valid JSON at byte %zu: %s", p->at, what);
}

/* The next byte, or 0 at the end; a zero byte in the text is no valid JSON anywhere, so the two may look alike. */
static char peek(const parser *p) { return p->at < p->n ? p->text[p->at] : 0; }

static char skip_space(parser *p)
{
    while (peek(p) == ' ' || peek(p) == '\n' || peek(p) == '\r' || peek(p) == '\t') p->at++;
    return peek(p);
}

/* ---- strings --------------------------------------------------------------------------------------------------------------- */
/* Bytes of the UTF-8 character at s, 0 if it is none: no overlong forms, no surrogates, nothing above U+10FFFF. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    const unsigned char c = s[0];
    if (c < 0x80) return 1;
    const size_t length = c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    if (length == 0 || length > n) return 0;
    const unsigned char low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return length;
}

static void put_utf8(parser *p, uint32_t c)
{
    if (c < 0x80) {
        *p->strings++ = (char)c;
        return;
    }
    const int rest = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    const uint32_t lead = rest == 1 ? 0xc0 : rest == 2 ? 0xe0 : 0xf0;
    *p->strings++ = (char)(lead | c >> 6 * rest);
    for (int i = rest - 1; i >= 0; i--) *p->strings++ = (char)(0x80 | (c >> 6 * i & 0x3f));
}

static int read_hex4(parser *p, uint32_t *out)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    *out = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        const char c = peek(p);
        const char *digit = c ? strchr(digits, c) : NULL;
        if (!digit) return fail(p, "four hexadecimal digits expected");
        const int value = (int)(digit - digits);
        *out = *out << 4 | (uint32_t)(value < 16 ? value : value - 6);
    }
    return 0;
}

static int read_unicode_escape(parser *p)
{
    uint32_t c, low;
    TRY(read_hex4(p, &c));
    if (c >= 0xd800 && c < 0xdc00) {
        if (p->n - p->at < 2 || memcmp(p->text + p->at, "\\u", 2) != 0) return fail(p, "half a surrogate pair");
        p->at += 2;
        TRY(read_hex4(p, &low));
        if (low < 0xdc00 || low > 0xdfff) return fail(p, "half a surrogate pair");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    } else if (c >= 0xdc00 && c <= 0xdfff) {
        return fail(p, "half a surrogate pair");
    }
    if (c == 0) return fail(p, "a zero character in a string");
    put_utf8(p, c);
    return 0;
}

static int read_escape(parser *p)
{
    static const char names[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";
    const char c = peek(p);
    const char *name = c ? strchr(names, c) : NULL;
    if (!name && c != 'u') return fail(p, "unknown escape");
    p->at++;
    if (!name) return read_unicode_escape(p);
    *p->strings++ = meaning[name - names];
    return 0;
}

static int read_string(parser *p, dllm_json *v)
{
    v->kind = DLLM_JSON_STRING;
    v->string = p->strings;
    for (p->at++; peek(p) != '"';) {
        if (p->at >= p->n) return fail(p, "the text ends inside a string");
        const unsigned char *s = (const unsigned char *)p->text + p->at;
        if (*s < 0x20) return fail(p, "a control character in a string");
        if (*s == '\\') {
            p->at++;
            TRY(read_escape(p));
            continue;
        }
        const size_t length = utf8_length(s, p->n - p->at);
        if (length == 0) return fail(p, "not UTF-8");
        memcpy(p->strings, s, length);
        p->strings += length;
        p->at += length;
    }
    p->at++;
    *p->strings++ = 0;
    return 0;
}

/* ---- numbers --------------------------------------------------------------------------------------------------------------- */
typedef struct {
    uint64_t mantissa;
    int64_t exponent; /* of ten */
    bool exact;       /* no digit was dropped */
} decimal;

static bool read_digits(parser *p, decimal *d, int64_t step)
{
    const size_t start = p->at;
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++) {
        const uint64_t digit = (uint64_t)(peek(p) - '0');
        if (d->mantissa <= (UINT64_MAX - digit) / 10) {
            d->mantissa = d->mantissa * 10 + digit;
            d->exponent += step;
        } else {
            d->exact = false;
            d->exponent += step + 1;
        }
    }
    return p->at > start;
}

static bool read_exponent(parser *p, decimal *d)
{
    const bool negative = peek(p) == '-';
    if (negative || peek(p) == '+') p->at++;
    const size_t start = p->at;
    int64_t e = 0;
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++)
        if (e < 100000) e = e * 10 + (peek(p) - '0');
    d->exponent += negative ? -e : e;
    return p->at > start;
}

/* Not strtod, whose decimal point depends on the locale of the process. Correctly rounded whenever mantissa and power are exact
 * doubles, which covers every number people write in configs; otherwise within a few units in the last place. */
static double scale(const decimal *d)
{
    const int64_t e = d->exponent < 0 ? -d->exponent : d->exponent;
    if (d->mantissa == 0 || d->exponent < -400) return 0;
    if (e > 400) return INFINITY;
    long double power = 1, square = 10;
    for (int64_t bit = e; bit > 0; bit >>= 1, square *= square)
        if (bit & 1) power *= square;
    if (d->mantissa <= (uint64_t)1 << 53 && e <= 22)
        return d->exponent < 0 ? (double)d->mantissa / (double)power : (double)d->mantissa * (double)power;
    return (double)(d->exponent < 0 ? (long double)d->mantissa / power : (long double)d->mantissa * power);
}

static int read_number(parser *p, dllm_json *v)
{
    decimal d = { .exact = true };
    const bool negative = peek(p) == '-';
    if (negative) p->at++;
    const bool zero = peek(p) == '0';
    const size_t start = p->at;
    if (!read_digits(p, &d, 0)) return fail(p, "a value expected");
    if (zero && p->at - start > 1) return fail(p, "a number with a leading zero");
    v->kind = DLLM_JSON_NUMBER;
    v->integral = d.exact && d.mantissa <= INT64_MAX && peek(p) != '.' && peek(p) != 'e' && peek(p) != 'E';
    if (v->integral) {
        v->integer = negative ? -(int64_t)d.mantissa : (int64_t)d.mantissa;
        return 0;
    }
    if (peek(p) == '.') {
        p->at++;
        if (!read_digits(p, &d, -1)) return fail(p, "a digit expected");
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        p->at++;
        if (!read_exponent(p, &d)) return fail(p, "a digit expected");
    }
    v->number = negative ? -scale(&d) : scale(&d);
    return isfinite(v->number) ? 0 : fail(p, "a number too large for a double");
}

/* ---- values ---------------------------------------------------------------------------------------------------------------- */
static dllm_json *push(parser *p)
{
    dllm_json *v = &p->values[p->count++];
    *v = (dllm_json){ .span = 1, .at = (uint32_t)p->at };
    return v;
}

static int read_word(parser *p, dllm_json *v)
{
    static const char *const words[] = { [DLLM_JSON_NULL] = "null", [DLLM_JSON_FALSE] = "false", [DLLM_JSON_TRUE] = "true" };
    for (uint8_t kind = DLLM_JSON_NULL; kind <= DLLM_JSON_TRUE; kind++) {
        const size_t length = strlen(words[kind]);
        if (p->n - p->at < length || memcmp(p->text + p->at, words[kind], length) != 0) continue;
        v->kind = kind;
        p->at += length;
        return 0;
    }
    return fail(p, "a value expected");
}

static char closer(const dllm_json *container) { return container->kind == DLLM_JSON_OBJECT ? '}' : ']'; }

static void close_container(parser *p)
{
    const uint32_t index = p->open[--p->depth];
    dllm_json *v = &p->values[index];
    p->at++;
    v->span = p->count - index;
    v->len = (uint32_t)p->at - v->at;
}

/* Leaves the container open: its contents, or its end, come next. */
static int open_container(parser *p, dllm_json *v)
{
    if (p->depth == DLLM_JSON_MAX_DEPTH) return fail(p, "nested too deeply");
    v->kind = peek(p) == '{' ? DLLM_JSON_OBJECT : DLLM_JSON_ARRAY;
    p->open[p->depth++] = (uint32_t)(v - p->values);
    p->at++;
    return 0;
}

static int read_scalar(parser *p, dllm_json *v)
{
    const char c = peek(p);
    const int status = c == '"' ? read_string(p, v) : c == '-' || (c >= '0' && c <= '9') ? read_number(p, v) : read_word(p, v);
    v->len = (uint32_t)p->at - v->at;
    return status;
}

static int read_key(parser *p)
{
    if (skip_space(p) != '"') return fail(p, "a key expected");
    TRY(read_scalar(p, push(p)));
    if (skip_space(p) != ':') return fail(p, "':' expected");
    p->at++;
    return 0;
}

/* Behind a value: closes what ends here and eats the comma before the next value, if there is one. */
static int read_separators(parser *p)
{
    while (p->depth > 0) {
        const dllm_json *container = &p->values[p->open[p->depth - 1]];
        const char c = skip_space(p);
        if (c == ',') {
            p->at++;
            return 0;
        }
        if (c != closer(container)) return fail(p, "',' or the end of the array or object expected");
        close_container(p);
    }
    return 0;
}

static int read_document(parser *p)
{
    do {
        if (p->depth > 0 && p->values[p->open[p->depth - 1]].kind == DLLM_JSON_OBJECT) TRY(read_key(p));
        const char c = skip_space(p);
        dllm_json *v = push(p);
        if (c == '{' || c == '[') {
            TRY(open_container(p, v));
            if (skip_space(p) != closer(v)) continue;
            close_container(p);
        } else {
            TRY(read_scalar(p, v));
        }
        TRY(read_separators(p));
    } while (p->depth > 0);
    skip_space(p);
    return p->at == p->n ? 0 : fail(p, "text after the end");
}

/* Every value but the root stands behind one of these bytes. Inside strings they are counted in vain, and so is no harm done. */
static size_t count_values(const char *text, size_t n)
{
    size_t count = 1;
    for (size_t i = 0; i < n; i++) count += text[i] == ',' || text[i] == ':' || text[i] == '[' || text[i] == '{';
    return count;
}

int dllm_json_parse(dllm_json **out, const char *text, size_t n)
{
    *out = NULL;
    REFUSE_IF(n > DLLM_JSON_MAX_BYTES, "%zu bytes of JSON; at most %d are read", n, DLLM_JSON_MAX_BYTES);
    const size_t count = count_values(text, n);
    REFUSE_IF(count > DLLM_JSON_MAX_VALUES, "about %zu JSON values; at most %d are read", count, DLLM_JSON_MAX_VALUES);
    /* A decoded string with its zero byte is shorter than what it was read from, so n bytes hold all strings. */
    const size_t bytes = count * sizeof(dllm_json) + n;
    dllm_json *values = malloc(bytes);
    FAIL_IF(!values, DLLM_E_MEMORY, "out of memory: %zu bytes to read %zu bytes of JSON", bytes, n);
    parser p = { .text = text, .n = n, .values = values, .strings = (char *)(values + count) };
    const int status = read_document(&p);
    if (status < 0) free(values);
    else *out = values;
    return status;
}

void dllm_json_free(dllm_json *root) { free(root); }

int dllm_json_get(const dllm_json **out, const dllm_json *object, const char *key)
{
    *out = NULL;
    for (const dllm_json *k = dllm_json_first(object); k < dllm_json_next(object); k = dllm_json_next(k + 1)) {
        if (strcmp(k->string, key) != 0) continue;
        REFUSE_IF(*out, "\"%s\" is there twice", key);
        *out = k + 1;
    }
    return 0;
}
