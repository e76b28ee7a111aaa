/* tsan.h: what ThreadSanitizer is told, if the kernels are built with it and the simulator, with DLLM_SIM_TSAN, is not: every fiber is
 * a thread of its own, and only barriers order what they do. */
#ifndef DLLM_SIM_TSAN_H
#define DLLM_SIM_TSAN_H
#if defined(DLLM_SIM_TSAN)
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void *, unsigned);
void __tsan_acquire(void *);
void __tsan_release(void *);
void __tsan_read_range(void *, unsigned long);
void __tsan_write_range(void *, unsigned long);
}
static inline void *tsan_current() { return __tsan_get_current_fiber(); }
static inline void *tsan_create() { return __tsan_create_fiber(0); }
static inline void tsan_switch(void *f) { __tsan_switch_to_fiber(f, 1 /* switching alone orders nothing */); }
static inline void tsan_acquire(void *p) { __tsan_acquire(p); }
static inline void tsan_release(void *p) { __tsan_release(p); }
static inline void tsan_read(const void *p, unsigned long n) { __tsan_read_range((void *)p, n); }
static inline void tsan_write(void *p, unsigned long n) { __tsan_write_range(p, n); }
#else
static inline void *tsan_current() { return nullptr; }
static inline void *tsan_create() { return nullptr; }
static inline void tsan_switch(void *) {}
static inline void tsan_acquire(void *) {}
static inline void tsan_release(void *) {}
static inline void tsan_read(const void *, unsigned long) {}
static inline void tsan_write(void *, unsigned long) {}
#endif
#endif
