// The recorder's markers: instructions without effect on any processor.
static inline void marker_begin(void)
{
#ifdef __aarch64__
    __asm__ volatile("hint #0x7a" ::: "memory");
#else
    unsigned a = 0x51a70001, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
#endif
}

static inline void marker_end(void)
{
#ifdef __aarch64__
    __asm__ volatile("hint #0x7b" ::: "memory");
#else
    unsigned a = 0x51a70002, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
#endif
}
