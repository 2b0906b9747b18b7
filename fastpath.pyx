# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False, cdivision=True
"""The hot paths, compiled. Everything here has a twin in pure Python that gives the same results, only later.

    here           twin in tasks.py     what it does
    md5_search     pure_md5_search      the number whose decimal text has a given MD5
    run_alike      pure_run_alike       makes and calls the tasks of a lease, one after the other
    number_tasks   pure_number_tasks    tells the tasks of a batch their ordinals
    settle         pure_settle          hands the outcomes of a range to their owner's callbacks
    mandelbrot     pure_mandelbrot      the escape counts of some columns of the Mandelbrot set
    simd, openmp   pure_simd, …         which instructions are at work, and whether several cores can be
                   twin in rpc.py
    join_parts     pure_join_parts      makes a message of small parts
    cut_parts      pure_cut_parts       takes it apart

The package runs without this file built: `tasks` and `rpc` bind these names over their twins when they find the
extension, and `tasks.kernels()` says what is at work. The functions take and return builtins, import nothing
of ours and pass the same tests as their twins (tests/test_fastpath.py).

Both kernels are C macros that are written once and compiled once per level: `avx512`, `avx2`, `sse2` or `neon`
with the vector extensions of gcc and clang, and `plain` for every other compiler. The best level that the
processor has is chosen when the module is loaded. A kernel uses OMP_NUM_THREADS cores, as the variable stands
at the call, one if it is not set; the module itself starts no thread.
"""

import os
from operator import index
from time import perf_counter

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject, PyTypeObject
from cython cimport boundscheck
from cython.parallel cimport prange
from libc.math cimport isfinite, sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy


# -- vectors -------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(__GNUC__) && (defined(__x86_64__) || defined(__aarch64__))
    #define VECTORS_OF(bytes) __attribute__((vector_size(bytes)))
    typedef uint32_t u4 VECTORS_OF(16);
    typedef double d2 VECTORS_OF(16);
    typedef int64_t i2 VECTORS_OF(16);
    #endif

    #if defined(__GNUC__) && defined(__x86_64__) && !defined(_WIN32)  /* there gcc misaligns them on the stack */
    #include <immintrin.h>
    #define AVX2 __attribute__((target("avx2")))
    #define AVX512 __attribute__((target("avx512f")))
    typedef uint32_t u8 VECTORS_OF(32);
    typedef double d4 VECTORS_OF(32);
    typedef int64_t i4 VECTORS_OF(32);
    typedef uint32_t u16 VECTORS_OF(64);
    typedef double d8 VECTORS_OF(64);
    typedef int64_t i8 VECTORS_OF(64);
    #endif

    #if defined(__clang__)
    #define UNROLL _Pragma("unroll")
    #elif defined(__GNUC__)
    #define UNROLL _Pragma("GCC unroll 64")
    #else
    #define UNROLL
    #endif
    #if defined(__GNUC__)
    #define INLINE static inline __attribute__((always_inline))
    #else
    #define INLINE static __forceinline
    #endif
    """


# -- the MD5 kernel ------------------------------------------------------------------------------------------

cdef extern from *:
    r"""
    /* RFC 1321. Step i mixes word MD5_WORD(i) of the message and a constant into the value of four steps ago:
       v[i] = v[i-1] + ((v[i-4] + mix(v[i-1], v[i-2], v[i-3]) + constant + word) turned left), kept in slot i % 4.

       The candidates of a run differ in one word, which step L uses last. From the digest back, the steps after L
       are undone once for all: that leaves v[L-3]..v[L]. Step L then gives v[L-4] as a constant less the word, and
       two more undone steps v[L-5] and v[L-6], the latter with few operations for each candidate. So the candidates
       go forward from the step that uses the word first to L-6 only, and one comparison of 32 bits tells nearly all. */
    #define MD5_F(x, y, z) (z ^ (x & (y ^ z)))
    #define MD5_G(x, y, z) (y ^ (z & (x ^ y)))
    #define MD5_H(x, y, z) (x ^ y ^ z)
    #define MD5_I(x, y, z) (y ^ (x | ~z))
    #define MD5_MIX(i, x, y, z) \
        ((i) < 16 ? MD5_F(x, y, z) : (i) < 32 ? MD5_G(x, y, z) : (i) < 48 ? MD5_H(x, y, z) : MD5_I(x, y, z))
    #define MD5_WORD(i) (((i) < 16 ? (i) : (i) < 32 ? 5 * (i) + 1 : (i) < 48 ? 3 * (i) + 5 : 7 * (i)) % 16)
    #define MD5_TURN(x, bits) ((x) << (bits) | (x) >> (32 - (bits)))
    static const uint8_t MD5_BITS[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
    static const uint32_t MD5_START[4] = {0x67452301, 0x10325476, 0x98badcfe, 0xefcdab89};  /* a, d, c, b */
    static const uint32_t MD5_CONSTANT[64] = {
        0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
        0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
        0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
        0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
        0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
        0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
        0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
        0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};

    static const int MD5_LAST[5] = {48, 55, 62, 53, 60};  /* the last step that uses word 0, 1, 2, 3, 4 */

    /* What all candidates of one run share: they differ in one word alone. */
    typedef struct {
        uint32_t sum[64];         /* of each step: its constant and its word, if that is fixed */
        uint32_t begin[4];        /* the slots before the first step that uses the word */
        uint32_t end[5];          /* of steps L, L-1, L-2: MD5_UNDO, for L less what it mixed; then v[L-2] and v[L-3] */
        const uint32_t *values;   /* what the word can be */
    } md5_run;

    INLINE void md5_step(int i, uint32_t v[4], uint32_t sum)
    {
        uint32_t b = v[(i + 3) & 3];
        sum += v[i & 3] + MD5_MIX(i, b, v[(i + 2) & 3], v[(i + 1) & 3]);
        v[i & 3] = b + MD5_TURN(sum, MD5_BITS[i / 16][i & 3]);
    }

    static int md5_matches(const uint32_t words[16], const uint32_t target[4])
    {
        uint32_t v[4];
        memcpy(v, MD5_START, sizeof v);
        for (int i = 0; i < 64; i++)
            md5_step(i, v, MD5_CONSTANT[i] + words[MD5_WORD(i)]);
        return !memcmp(v, target, sizeof v);
    }

    /* What step i turned left, less its sum: what it mixed is still to be taken off. */
    #define MD5_UNDO(i) \
        (MD5_TURN(v[(i) & 3] - v[((i) - 1) & 3], 32 - MD5_BITS[(i) / 16][(i) & 3]) - run->sum[i])

    static void md5_prepare(md5_run *run, int word, const uint32_t words[16], const uint32_t target[4])
    {
        const int last = MD5_LAST[word];
        uint32_t v[4];
        UNROLL for (int i = 0; i < 64; i++)
            run->sum[i] = MD5_CONSTANT[i] + words[MD5_WORD(i)];
        memcpy(run->begin, MD5_START, sizeof v);
        for (int i = 0; i < word; i++)
            md5_step(i, run->begin, run->sum[i]);
        memcpy(v, target, sizeof v);
        for (int i = 63; i > last; i--)
            v[i & 3] = MD5_UNDO(i) - MD5_I(v[(i + 3) & 3], v[(i + 2) & 3], v[(i + 1) & 3]);
        run->end[0] = MD5_UNDO(last) - MD5_MIX(last, v[(last + 3) & 3], v[(last + 2) & 3], v[(last + 1) & 3]);
        run->end[1] = MD5_UNDO(last - 1);
        run->end[2] = MD5_UNDO(last - 2);
        run->end[3] = v[(last - 2) & 3];
        run->end[4] = v[(last - 3) & 3];
    }

    #define MD5_ROUND(VEC, VECTORS, mix, from, upto)                                                            \
        UNROLL for (int i = (from); i < (upto); i++)                                                            \
            UNROLL for (int n = 0; n < VECTORS; n++) {                                                          \
                VEC b = v[(i + 3) & 3][n], s = v[i & 3][n] + run->sum[i];                                       \
                s += mix(b, v[(i + 2) & 3][n], v[(i + 1) & 3][n]);                                              \
                if (MD5_WORD(i) == word) s += w[n];                                                             \
                v[i & 3][n] = b + MD5_TURN(s, MD5_BITS[i / 16][i & 3]);                                         \
            }

    /* The first block from `at` on in which a candidate may match, by its position; stop if there is none. */
    #define MD5_SCAN(LEVEL, TARGET, VEC, LANES, VECTORS)                                                        \
    TARGET INLINE uint32_t md5_scan_##LEVEL(const int word, const md5_run *run, uint32_t at, uint32_t stop)     \
    {                                                                                                           \
        const int last = MD5_LAST[word], upto = last - 5;                                                       \
        for (; at < stop; at += LANES * VECTORS) {                                                              \
            VEC w[VECTORS], v[4][VECTORS], hit = (VEC){0};                                                      \
            uint32_t lanes[LANES], any = 0;                                                                     \
            UNROLL for (int n = 0; n < VECTORS; n++) {                                                          \
                memcpy(&w[n], run->values + at + n * LANES, sizeof w[n]);                                       \
                UNROLL for (int i = 0; i < 4; i++) v[i][n] = (VEC){0} + run->begin[i];                          \
            }                                                                                                   \
            MD5_ROUND(VEC, VECTORS, MD5_F, word, 16)                                                            \
            MD5_ROUND(VEC, VECTORS, MD5_G, 16, 32)                                                              \
            MD5_ROUND(VEC, VECTORS, MD5_H, 32, upto < 48 ? upto : 48)                                           \
            MD5_ROUND(VEC, VECTORS, MD5_I, 48, upto)                                                            \
            UNROLL for (int n = 0; n < VECTORS; n++) {                                                          \
                VEC p = (VEC){0} + run->end[3], q = (VEC){0} + run->end[4], x = run->end[0] - w[n];             \
                VEC y = run->end[1] - MD5_MIX(last - 1, p, q, x), z = run->end[2] - MD5_MIX(last - 2, q, x, y); \
                hit |= (VEC)(v[(last - 6) & 3][n] == z);                                                        \
            }                                                                                                   \
            memcpy(lanes, &hit, sizeof hit);                                                                    \
            UNROLL for (int n = 0; n < LANES; n++) any |= lanes[n];                                             \
            if (any) return at;                                                                                 \
        }                                                                                                       \
        return stop;                                                                                            \
    }                                                                                                           \
    TARGET static uint32_t md5_##LEVEL(int word, const md5_run *run, uint32_t at, uint32_t stop)                \
    {                                                                                                           \
        switch (word) {                                                                                         \
        case 0: return md5_scan_##LEVEL(0, run, at, stop);                                                      \
        case 1: return md5_scan_##LEVEL(1, run, at, stop);                                                      \
        case 2: return md5_scan_##LEVEL(2, run, at, stop);                                                      \
        case 3: return md5_scan_##LEVEL(3, run, at, stop);                                                      \
        default: return md5_scan_##LEVEL(4, run, at, stop);                                                     \
        }                                                                                                       \
    }

    #ifdef AVX512
    MD5_SCAN(avx512, AVX512, u16, 16, 6)
    MD5_SCAN(avx2, AVX2, u8, 8, 4)  /* registers hold 3, but what a step waits for takes longer than memory */
    #endif
    #ifdef VECTORS_OF
    MD5_SCAN(base, , u4, 4, 3)
    #endif
    MD5_SCAN(plain, , uint32_t, 1, 3)

    static void md5_found(volatile uint64_t *found, uint64_t number)
    {
        #ifdef _OPENMP
        #pragma omp critical
        #endif
        if (number < *found) *found = number;
    }
    """
    const int MD5_LAST[5]
    const uint32_t MD5_START[4]
    ctypedef struct md5_run:
        const uint32_t *values
    void md5_prepare(md5_run *run, int word, const uint32_t *words, const uint32_t *target) noexcept nogil
    bint md5_matches(const uint32_t *words, const uint32_t *target) noexcept nogil
    void md5_found(uint64_t *found, uint64_t number) noexcept nogil


# -- the Mandelbrot kernel -----------------------------------------------------------------------------------

cdef extern from *:
    r"""
    #define COLUMNS 4  /* of a tile */
    #define ROWS 64

    /* What a level does with its lanes: compare p < q; give those inside the limit at once; keep alive what is in the
       circle, for good; count what is alive; 2 * p + q, which rounds once, as doubling is exact. */
    #define VECTOR_LESS(p, q) ((p) < (q))
    #define VECTOR_FILL(inside, limit) ((inside) & (limit))
    #define VECTOR_KEEP(k, m) k &= (m) < 4.0
    #define VECTOR_COUNT(n, k) n -= k
    #define VECTOR_TWICE(p, q) ((p) + (p) + (q))
    #define SCALAR_LESS(p, q) (-(int64_t)((p) < (q)))
    #define SCALAR_FILL VECTOR_FILL
    #define SCALAR_KEEP(k, m) k &= SCALAR_LESS(m, 4.0)
    #define SCALAR_COUNT VECTOR_COUNT
    #define SCALAR_TWICE VECTOR_TWICE
    #define MASKED_LESS(p, q) _mm512_cmp_pd_mask((__m512d)(p), (__m512d)(q), _CMP_LT_OQ)
    #define MASKED_FILL(inside, limit) (i8)_mm512_maskz_set1_epi64(inside, limit)
    #define MASKED_KEEP(k, m) k = _mm512_mask_cmp_pd_mask(k, (__m512d)(m), _mm512_set1_pd(4.0), _CMP_LT_OQ)
    #define MASKED_COUNT(n, k) n = (i8)_mm512_mask_add_epi64((__m512i)n, k, (__m512i)n, _mm512_set1_epi64(1))
    #define MASKED_TWICE(p, q) (d8)_mm512_fmadd_pd((__m512d)(p), _mm512_set1_pd(2.0), (__m512d)(q))

    #define MANDEL_ALIVE(MASK, VECTORS) {                                                                       \
        MASK either = k[0];                                                                                     \
        uint64_t bits[(sizeof either + 7) / 8] = {0};                                                           \
        UNROLL for (int v = 1; v < VECTORS; v++) either |= k[v];                                                \
        memcpy(bits, &either, sizeof either);                                                                   \
        alive = 0;                                                                                              \
        UNROLL for (unsigned v = 0; v < sizeof bits / 8; v++) alive |= bits[v];                                 \
    }

    /* Which points need no iteration: those inside the cardioid or the circle of period 2 by a margin of
       1e-6 * sqrt(limit), far more than rounding moves the test. Why none of their rounded orbits escapes: let L be the
       multiplier of the attracting cycle, h = 1 - |L|, and a the point of the cycle whose basin V holds 0. The Riemann
       map f of the disc to V, f(0) = a, makes of the iteration (for the circle: of two) a Blaschke product of degree 2
       with its critical point at r, ((1 - r) / (1 + r))**2 = (1 - |L|) / (1 + |L|) >= h / 2. By Schwarz and Pick an
       exact orbit from 0 never leaves the hyperbolic disc through it, and a rounding error e moves it outwards by at
       most 2e / (D - e), with D its distance from V's border. While these add up to at most 1, Koebe gives
       D >= |f'(0)| ((1 - r) / (1 + r))**2 / 4e**2, and f(r) = 0 gives |f'(0)| >= |a| (1 - r)**2 / r. Cardioid:
       |a| = |L| / 2, so D >= h**2 / 118, e < 1e-15, and `limit` errors are too few if h >= 1e-6 * sqrt(limit); with
       w = 1 - L at the angle p, the test says that the margin is below y*y/4 - q*(q + x - 1/4)
       = |w|**3 (1 - |L|**2) (2 cos p + |w|) (|w|**2 + 4 sin(p)**2) / 256 <= h. Circle: |a| >= 0.2 |L|, e < 5e-15 for
       two steps, so D >= h**2 / 300, and h is at least 8 times the margin. */

    /* The counts of a tile: COLUMNS columns at cr, the first `rows` of its rows at ci. */
    #define MANDEL_TILE(LEVEL, TARGET, OPS, REAL, INT, MASK, LANES, VECTORS)                                    \
    TARGET static void mandel_##LEVEL(const double *cr, const double *ci, int rows, double margin,              \
                                      int64_t limit, uint32_t tile[COLUMNS][ROWS])                              \
    {                                                                                                           \
        for (int column = 0; column < COLUMNS; column += VECTORS)                                               \
        for (int row = 0; row < rows; row += LANES) {                                                           \
            REAL a[VECTORS], b, x[VECTORS], y[VECTORS];                                                         \
            INT n[VECTORS];                                                                                     \
            MASK k[VECTORS];                                                                                    \
            uint64_t alive;                                                                                     \
            memcpy(&b, ci + row, sizeof b);                                                                     \
            UNROLL for (int v = 0; v < VECTORS; v++) {                                                          \
                x[v] = a[v] = (REAL){0} + cr[column + v]; y[v] = b;                                             \
                REAL p = a[v] - 0.25, q = p * p + b * b, r = a[v] + 1.0;                                        \
                MASK inside = OPS##_LESS(q * (q + p) + margin, b * b * 0.25)                                    \
                            | OPS##_LESS(r * r + b * b + margin, (REAL){0} + 0.0625);                           \
                k[v] = ~inside;                                                                                 \
                n[v] = OPS##_FILL(inside, limit);                                                               \
            }                                                                                                   \
            MANDEL_ALIVE(MASK, VECTORS)                                                                         \
            for (int64_t i = 0; i < limit && alive; i += 4) {                                                   \
                UNROLL for (int step = 0; step < 4; step++)                                                     \
                    UNROLL for (int v = 0; v < VECTORS; v++) {                                                  \
                        REAL xx = x[v] * x[v], yy = y[v] * y[v], xy = x[v] * y[v];                              \
                        OPS##_KEEP(k[v], xx + yy);                                                              \
                        OPS##_COUNT(n[v], k[v]);                                                                \
                        x[v] = xx - yy + a[v];                                                                  \
                        y[v] = OPS##_TWICE(xy, b);                                                              \
                    }                                                                                           \
                MANDEL_ALIVE(MASK, VECTORS)                                                                     \
            }                                                                                                   \
            UNROLL for (int v = 0; v < VECTORS; v++) {                                                          \
                int64_t lanes[LANES];                                                                           \
                memcpy(lanes, &n[v], sizeof lanes);                                                             \
                for (int l = 0; l < LANES; l++)                                                                 \
                    tile[column + v][row + l] = (uint32_t)(lanes[l] < limit ? lanes[l] : limit);                \
            }                                                                                                   \
        }                                                                                                       \
    }

    /* A fused multiply and add would round once where Python rounds twice; these hold without the compiler's flag. */
    #if defined(__clang__)
    #pragma STDC FP_CONTRACT OFF
    #elif defined(__GNUC__)
    #pragma GCC push_options
    #pragma GCC optimize("fp-contract=off")
    #elif defined(_MSC_VER)
    #pragma fp_contract(off)
    #endif
    #ifdef AVX512
    MANDEL_TILE(avx512, AVX512, MASKED, d8, i8, __mmask8, 8, 4)
    MANDEL_TILE(avx2, AVX2, VECTOR, d4, i4, i4, 4, 2)
    #endif
    #ifdef VECTORS_OF
    MANDEL_TILE(base, , VECTOR, d2, i2, i2, 2, 4)
    #endif
    MANDEL_TILE(plain, , SCALAR, double, int64_t, int64_t, 1, 4)
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC pop_options
    #endif
    """
    enum: COLUMNS, ROWS


# -- levels and cores ----------------------------------------------------------------------------------------

cdef extern from *:
    r"""
    typedef struct {
        const char *name;
        int block;  /* how many candidates a scan looks at together */
        uint32_t (*scan)(int, const md5_run *, uint32_t, uint32_t);
        void (*tile)(const double *, const double *, int, double, int64_t, uint32_t (*)[ROWS]);
    } kernel_level;

    static const kernel_level LEVELS[] = {  /* the best first */
    #if defined(AVX512)
        {"avx512", 96, md5_avx512, mandel_avx512},
        {"avx2", 32, md5_avx2, mandel_avx2},
    #endif
    #if defined(VECTORS_OF) && defined(__x86_64__)
        {"sse2", 12, md5_base, mandel_base},
    #elif defined(VECTORS_OF)
        {"neon", 12, md5_base, mandel_base},
    #endif
        {"plain", 3, md5_plain, mandel_plain}};

    static int level_runs(const kernel_level *level)
    {
    #if defined(AVX512)
        if (level->scan == md5_avx512) return __builtin_cpu_supports("avx512f") != 0;
        if (level->scan == md5_avx2) return __builtin_cpu_supports("avx2") != 0;
    #endif
        return 1;
    }

    #define LEVEL_COUNT (int)(sizeof LEVELS / sizeof LEVELS[0])
    #if defined(_OPENMP)
    #define WITH_OPENMP 1
    #else
    #define WITH_OPENMP 0
    #endif
    """
    ctypedef struct kernel_level:
        const char *name
        int block
        uint32_t (*scan)(int word, const md5_run *run, uint32_t at, uint32_t stop) noexcept nogil
        void (*tile)(const double *cr, const double *ci, int rows, double margin, int64_t limit,
                     uint32_t (*tile)[ROWS]) noexcept nogil
    const kernel_level LEVELS[1]
    int level_runs(const kernel_level *level)
    int LEVEL_COUNT, WITH_OPENMP


cdef const kernel_level *level = NULL  # the one at work
cdef int pool_owner = 0  # the process that has run on several cores, it or the one it was forked from


def levels() -> list[str]:
    """The levels that this build has and this processor runs, the best first."""
    return [LEVELS[at].name.decode() for at in range(LEVEL_COUNT) if level_runs(&LEVELS[at])]


def simd() -> str:
    """The level at work: "avx512", "avx2", "sse2", "neon" or "plain"."""
    return level.name.decode()


def openmp() -> bool:
    """Whether this build can use several cores."""
    return bool(WITH_OPENMP)


def _use(name: str) -> None:
    """Puts another of `levels()` to work, in this process; for tests and measurements."""
    global level
    if name not in levels():
        raise ValueError(f"this processor has the levels {', '.join(levels())}, not {name!r}")
    for at in range(LEVEL_COUNT):
        if LEVELS[at].name == name.encode():
            level = &LEVELS[at]


cdef int cores():
    """How many threads a kernel may use now: OMP_NUM_THREADS, at most one per processor.

    A child of a process that has used several uses one: libgomp would wait for threads that the fork left behind.
    """
    global pool_owner
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    threads = min(int(said), os.cpu_count() or 1) if said.isdecimal() else 1
    if not WITH_OPENMP or threads < 2 or pool_owner not in (0, os.getpid()):
        return 1
    pool_owner = os.getpid()
    return threads


_use(levels()[0])


# -- the MD5 search ------------------------------------------------------------------------------------------

# The digits of a number fill the words of the message, four to a word. A *run* are the numbers that differ in one
# word: 1763 0000 to 1763 9999 in the second one, or 1000 965 to 9999 965, a thousand apart, in the first. Its
# candidates come from a table. So numbers are not tried in their order, but the first that matches is found even if
# several did: a match lowers `found`, and the runs that are left try only what lies below it.

cdef struct Search:  # of numbers with the same count of digits
    uint32_t target[4]  # the slots after the last step
    uint64_t start, found  # start..found-1 are tried; found is the least number known to match
    int digits, word
    uint64_t step, span  # from one number of a run to the next; how many values the word can have
    const uint32_t *values


cdef uint32_t VALUES[10_000 + 1_000 + 100 + 10 + 128]  # of words of 4, 3, 2, 1 digits; vectors may read past these
cdef const uint32_t *VALUES_OF[5]


cdef void render(uint64_t number, int digits, uint32_t *words) noexcept nogil:
    """Fills the words with the padded block of the number's decimal text, with zeros in front up to so many digits."""
    cdef int at
    for at in range(16):
        words[at] = 0
    words[digits // 4] = <uint32_t>0x80 << (8 * (digits % 4))
    words[14] = 8 * digits
    for at in range(digits - 1, -1, -1):
        words[at // 4] |= <uint32_t>(48 + number % 10) << (8 * (at % 4))
        number //= 10


cdef void fill_values() noexcept:
    cdef uint32_t words[16]
    cdef uint32_t *at = VALUES
    cdef uint64_t digits, value
    for digits in range(4, 0, -1):
        VALUES_OF[digits] = at
        for value in range(10 ** digits):
            render(value, digits, words)
            at[0] = words[0]
            at += 1


fill_values()


cdef void choose_word(Search *search) noexcept nogil:
    """Lets that word vary which makes a candidate cheapest. A run costs as much as 40 candidates to prepare."""
    cdef int word, width
    cdef double run, cost, least = 1e300
    cdef uint64_t step, span
    for word in range((search.digits + 3) // 4):
        width = min(4, search.digits - 4 * word)
        step, span = <uint64_t>10 ** (search.digits - 4 * word - width), <uint64_t>10 ** width
        run = min(<double>(search.found - search.start) / step, <double>span)  # below 1 if most are empty
        cost = (MD5_LAST[word] - word) * (1 + (40 + level.block / 2) / run)
        if cost < least:
            least, search.word, search.step, search.span, search.values = cost, word, step, span, VALUES_OF[width]


cdef void try_run(Search *search, uint64_t run_number) noexcept nogil:
    """Tries the numbers that have the same digits before the word, and the same tail behind it."""
    cdef uint64_t tail = run_number % search.step
    cdef uint64_t base = (search.start // search.step // search.span + run_number // search.step) * search.span
    cdef uint64_t first = max(base, (search.start - tail + search.step - 1) // search.step)
    cdef uint64_t last = min(base + search.span, (search.found - tail + search.step - 1) // search.step)
    cdef uint32_t words[16]
    cdef uint32_t at, stop, value
    cdef md5_run run
    if first >= last:
        return
    render(base * search.step + tail, search.digits, words)
    words[search.word] = 0
    md5_prepare(&run, search.word, words, search.target)
    run.values = search.values
    at, stop = first - base, last - base
    while at < stop:
        at = level.scan(search.word, &run, at, stop)
        for value in range(at, min(at + level.block, stop)):  # a candidate has 32 bits in common, or lies past the end
            words[search.word] = search.values[value]
            if md5_matches(words, search.target):
                md5_found(&search.found, (base + value) * search.step + tail)
                return
        at += level.block


cdef void try_runs(Search *search, int64_t first, int64_t stop, int threads) noexcept nogil:
    cdef int64_t at
    if threads == 1:
        for at in range(first, stop):
            try_run(search, at)
    else:
        for at in prange(first, stop, num_threads=threads, schedule="guided"):
            try_run(search, at)


cdef search_part(Search *search):
    """Sets search.found to the first number that matches, if one does; looks for Ctrl-C every few million numbers."""
    cdef uint64_t count = search.found - search.start, runs, at, group
    cdef int threads = cores() if count > 1_000_000 else 1
    choose_word(search)
    runs = (search.found - 1) // search.step // search.span - search.start // search.step // search.span + 1
    runs *= search.step
    group = <uint64_t>(runs * (4e6 * threads / count)) + 1
    for at in range(0, runs, group):
        with nogil:
            try_runs(search, at, min(at + group, runs), threads)
        PyErr_CheckSignals()


def md5_search(digest: bytes, start: int, stop: int) -> int | None:
    """The first number in start..stop-1 whose decimal text has this MD5 digest (16 bytes); None if none has.

    The numbers lie in 0..2**63-1. Releases the GIL, and looks for signals (Ctrl-C) every few million numbers.
    Raises ValueError for a digest that is not 16 bytes and for other numbers.
    """
    if not isinstance(digest, bytes) or len(digest) != 16:
        raise ValueError(f"an MD5 digest is 16 bytes, not {digest!r}")
    if not range(start, stop):
        return None
    if start < 0 or stop > 2**63:
        raise ValueError(f"md5_search knows the numbers 0..2**63-1, not {start}..{stop - 1}")
    cdef Search search
    cdef uint64_t at = start, end = stop
    cdef int slot
    for slot in range(4):
        word = digest[-4 * slot % 16:][:4]
        search.target[slot] = <uint32_t>int.from_bytes(word, "little") - MD5_START[slot]
    while at < end:
        search.start, search.digits = at, len(str(at))
        search.found = at = min(end, at + 1_000_000 * level.block, <uint64_t>10 ** search.digits)
        search_part(&search)
        if search.found < at:
            return search.found
    return None


# -- the Mandelbrot set --------------------------------------------------------------------------------------

cdef struct Image:  # of columns * height counts
    double *xs  # of the columns, and COLUMNS times the last one
    double *ys  # of the rows, and ROWS times the last one
    uint32_t *counts
    int64_t columns, height, limit
    double margin


cdef void draw_tile(Image *image, int64_t number) noexcept nogil:
    cdef int64_t high = (image.height + ROWS - 1) // ROWS
    cdef int64_t left = number // high * COLUMNS, top = number % high * ROWS, column
    cdef int rows = min(<int64_t>ROWS, image.height - top)
    cdef uint32_t tile[COLUMNS][ROWS]
    level.tile(image.xs + left, image.ys + top, rows, image.margin, image.limit, tile)
    for column in range(min(<int64_t>COLUMNS, image.columns - left)):
        memcpy(image.counts + (left + column) * image.height + top, tile[column], rows * sizeof(uint32_t))


cdef void draw_tiles(Image *image, int64_t first, int64_t stop, int threads) noexcept nogil:
    cdef int64_t at
    if threads == 1:
        for at in range(first, stop):
            draw_tile(image, at)
    else:
        for at in prange(first, stop, num_threads=threads, schedule="dynamic", chunksize=16):
            draw_tile(image, at)


cdef draw(Image *image):
    """Draws all tiles; looks for Ctrl-C every 100 million iterations."""
    cdef int64_t tiles = (image.columns + COLUMNS - 1) // COLUMNS * ((image.height + ROWS - 1) // ROWS), at
    cdef int threads = cores() if image.columns * image.height * <double>image.limit > 1e7 else 1
    cdef int64_t group = threads * (100_000_000 // (COLUMNS * ROWS * (image.limit + 1)) + 1)
    for at in range(0, tiles, group):
        with nogil:
            draw_tiles(image, at, min(at + group, tiles), threads)
        PyErr_CheckSignals()


def mandelbrot(left: float, right: float, top: float, bottom: float, width: int, height: int,
               start: int, stop: int, limit: int) -> bytes:
    """The escape counts of the columns start..stop-1 of an image, column by column: `height` native uint32 each.

    Pixel (px, py) is c = (left + (right-left)*px/width, top + (bottom-top)*py/height), reckoned in this order, so
    that no count depends on how the image was cut. Its count is the number of steps z = z*z + c, from z = 0, that
    leave |z|**2 = re*re + im*im below 4 before the first one that does not; at most `limit`. Every operation rounds
    as Python's does. Releases the GIL, and looks for signals (Ctrl-C) between tiles of the image.

    Needs 0 <= start <= stop <= width, width and height in 1..2**31-1, limit in 0..2**32-1, and a window whose
    corners, and sides times width or height, are finite. Raises ValueError for others.
    """
    cdef double x0 = left, x1 = right, y0 = top, y1 = bottom
    cdef int64_t wide = index(width), high = index(height), first = index(start), end = index(stop)
    cdef int64_t most = index(limit), at
    if not (0 <= first <= end <= wide < 2**31 and 0 < high < 2**31 and wide > 0 and 0 <= most < 2**32):
        raise ValueError("mandelbrot needs 0 <= start <= stop <= width, width and height in 1..2**31-1 and limit in "
                         f"0..2**32-1, not {start=}, {stop=}, {width=}, {height=}, {limit=}")
    if not (isfinite(x0) and isfinite((x1 - x0) * wide) and isfinite(y0) and isfinite((y1 - y0) * high)):
        raise ValueError(f"mandelbrot needs a window of finite size, not {left=}, {right=}, {top=}, {bottom=}")
    if first == end:
        return b""
    if (end - first) * high > 2**60:
        raise MemoryError(f"{end - first} columns of {height} counts are more than any memory")
    cdef Image image = Image(NULL, NULL, NULL, end - first, high, most, 1e-6 * sqrt(<double>most))
    xs, ys = bytearray(8 * (image.columns + COLUMNS)), bytearray(8 * (high + ROWS))
    counts = PyBytes_FromStringAndSize(NULL, 4 * image.columns * high)
    image.xs, image.ys = <double *>PyByteArray_AS_STRING(xs), <double *>PyByteArray_AS_STRING(ys)
    image.counts = <uint32_t *>PyBytes_AS_STRING(counts)
    for at in range(image.columns + COLUMNS):
        image.xs[at] = x0 + (x1 - x0) * <double>min(first + at, end - 1) / <double>wide
    for at in range(high + ROWS):
        image.ys[at] = y0 + (y1 - y0) * <double>min(at, high - 1) / <double>high
    draw(&image)
    return counts


# -- messages ------------------------------------------------------------------------------------------------

cdef Py_ssize_t INLINE = 64 * 1024, MAX_PARTS = 4096  # as in rpc.py


cdef inline unsigned char *put(unsigned char *to, uint64_t number, int size) noexcept:
    """Writes a number, its low bytes first; returns the place behind it."""
    cdef int at
    for at in range(size):
        to[at] = (number >> (8 * at)) & 0xFF
    return to + size


cdef inline uint32_t get(const unsigned char *at) noexcept:
    return at[0] | at[1] << 8 | at[2] << 16 | <uint32_t>at[3] << 24


def join_parts(list parts, bytes envelope):
    """A message of which all parts are bytes and shorter than INLINE, or None.

    See its twin in rpc.py.
    """
    cdef Py_ssize_t count = len(parts), total = 2 + 4 * count
    cdef Py_ssize_t ahead = 4 if envelope is None else len(envelope)
    if not 1 <= count <= MAX_PARTS:
        return None
    for part in parts:
        if type(part) is not bytes or PyBytes_GET_SIZE(part) >= INLINE:
            return None
        total += PyBytes_GET_SIZE(part)
    whole = PyBytes_FromStringAndSize(NULL, ahead + total)
    cdef unsigned char *to = <unsigned char *>PyBytes_AS_STRING(whole)
    if envelope is None:
        put(to, total, 4)
    else:
        memcpy(to, PyBytes_AS_STRING(envelope), ahead)
    cdef unsigned char *table = put(to + ahead, count, 2)
    to = table + 4 * count
    for part in parts:
        table = put(table, PyBytes_GET_SIZE(part), 4)
        memcpy(to, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))
        to += PyBytes_GET_SIZE(part)
    return whole


def cut_parts(body, Py_ssize_t start):
    """The parts of such a message, whose table is at `start`, or None.

    See its twin in rpc.py.
    """
    if type(body) is not bytes or not 0 <= start <= PyBytes_GET_SIZE(body) - 2:
        return None
    cdef const unsigned char *table = <const unsigned char *>PyBytes_AS_STRING(body) + start
    cdef Py_ssize_t count = table[0] | table[1] << 8, at = 2 + 4 * count, end = PyBytes_GET_SIZE(body) - start
    cdef Py_ssize_t whole = at, length, i
    if not 1 <= count <= MAX_PARTS or at > end:
        return None
    for i in range(count):
        length = get(table + 2 + 4 * i)
        if length >= INLINE:
            return None
        whole += length
    if whole != end:
        return None
    cdef list parts = []
    for i in range(count):
        length = get(table + 2 + 4 * i)
        parts.append(PyBytes_FromStringAndSize(<const char *>table + at, length))
        at += length
    return parts


def bytes_in(parts):
    """How long parts are together that are all simply bytes; -1 if some are not.

    See its twin in rpc.py.
    """
    cdef Py_ssize_t total = 0
    for part in parts:
        if type(part) is not bytes:
            return -1
        total += PyBytes_GET_SIZE(part)
    return total


# -- tasks ---------------------------------------------------------------------------------------------------

cdef tuple NOTHING = ()
cdef Py_ssize_t GROUP_BYTES = 16 * 1024  # as in tasks.py


def run_alike(type cls, list states, Py_ssize_t place, Py_ssize_t stop, owner, Py_ssize_t first, list results,
              double until):
    """The loop of a worker: makes a task of each of states[place:stop] and calls it; its result goes to `results`.

    See its twin in tasks.py.
    """
    cdef dict state
    while place < stop:
        task = (<PyTypeObject *>cls).tp_new(cls, <PyObject *>NOTHING, NULL)
        state = (<dict?>states[place]).copy()
        state["_owner"] = owner
        state["_ordinal"] = first + place
        task.__dict__ = state
        place += 1
        try:
            result = task()
        except BaseException as error:
            return place, task, None, error
        kind = type(result)
        if kind is str or kind is bytes:
            if len(result) > GROUP_BYTES:
                return place, task, result, None
        elif not (kind is int or result is None or kind is float or kind is bool or kind is complex):
            return place, task, result, None
        results.append(result)
        if <double>perf_counter() > until:
            break
    return place, None, None, None


def asks_nothing(list tasks, tuple names):
    """Whether none of the tasks, nor their classes, sets one of these attributes.

    See its twin in tasks.py.
    """
    known = None
    for task in tasks:
        if type(task) is not known:
            known = type(task)
            for name in names:
                if getattr(known, name, None) is not None:
                    return False
        state = getattr(task, "__dict__", None)
        if type(state) is not dict:
            return False
        for name in names:
            if name in <dict>state:
                return False
    return True


def number_tasks(list tasks, owner, first):
    """Tells tasks whose they are, and their ordinals."""
    for ordinal, task in enumerate(tasks, first):
        task._owner = owner
        task._ordinal = ordinal


@boundscheck(True)
def settle(owner, flight, Py_ssize_t lo, list results, handle, plain):
    """The loop of an owner: hands the results of tasks to its callback.

    See its twin in tasks.py.
    """
    cdef list tasks = flight.tasks
    cdef Py_ssize_t i = lo, first = flight.first
    callback, name = owner.callback, owner.name
    for result in results:
        task = tasks[i]
        i += 1
        if task is None or owner.closed:
            continue
        tasks[i - 1] = None
        task._ordinal = first + i - 1
        flight.open -= 1
        owner.done += 1
        if type(task).finished is not plain:
            task.finished(result, None)
        if handle is None:
            callback(task, result, None)
        else:
            told = handle(f"{name}.{first + i - 1}")
            told.task = task
            callback(told, result, None)
