# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""The hot paths, compiled. Everything here has a twin in pure Python that gives the same results, only later.

    here           twin in tasks.py     what it does
    md5_search     pure_md5_search      the number whose decimal text has a given MD5
    run_alike      pure_run_alike       makes and calls the tasks of a lease, one after the other
    settle         pure_settle          hands the outcomes of a range to their owner's callbacks

The package runs without this file built: `tasks` binds these names over their twins when it finds the
extension, and `tasks.FASTPATH` says which of the two is at work. The functions take and return builtins,
import nothing of ours and pass the same tests as their twins (tests/test_fastpath.py).

How a search runs. The text of a number is at most 19 digits, so message, end mark and length fit MD5's one
block of sixteen 32-bit words, little-endian. Ten neighbours differ in their last digit alone:

    1763960 ──render──► words ──md5_matches──► no ──► last digit + 1, ten times ──► 1763970 ──render──► …

Divisions are needed once in ten numbers, and no byte is ever stored: the words are the only form of the text.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t


cdef extern from *:
    """
    #include <stdint.h>

    /* RFC 1321. A step mixes one word of the message and one constant into a, and turns the sum left. */
    #define MD5_F(x, y, z) (z ^ (x & (y ^ z)))
    #define MD5_G(x, y, z) ((x & z) + (y & ~z))
    #define MD5_H(x, y, z) (x ^ (y ^ z))
    #define MD5_I(x, y, z) (y ^ (x | ~z))
    #define MD5_STEP(mix, a, b, c, d, word, constant, turn)               \\
        a += word + constant; a += MD5_##mix(b, c, d); a = b + (a << turn | a >> (32 - turn));
    #define MD5_FOUR(mix, turn1, turn2, turn3, turn4, i, j, k, l, p, q, r, s) \\
        MD5_STEP(mix, a, b, c, d, words[i], p##u, turn1)                  \\
        MD5_STEP(mix, d, a, b, c, words[j], q##u, turn2)                  \\
        MD5_STEP(mix, c, d, a, b, words[k], r##u, turn3)                  \\
        MD5_STEP(mix, b, c, d, a, words[l], s##u, turn4)

    /* Whether the block `words` has the digest `target`, both as little-endian words. */
    static int md5_matches(const uint32_t words[16], const uint32_t target[4])
    {
        const uint32_t a0 = 0x67452301u, b0 = 0xefcdab89u, c0 = 0x98badcfeu, d0 = 0x10325476u;
        uint32_t a = a0, b = b0, c = c0, d = d0;

        MD5_FOUR(F, 7, 12, 17, 22,   0,  1,  2,  3,  0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee)
        MD5_FOUR(F, 7, 12, 17, 22,   4,  5,  6,  7,  0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501)
        MD5_FOUR(F, 7, 12, 17, 22,   8,  9, 10, 11,  0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be)
        MD5_FOUR(F, 7, 12, 17, 22,  12, 13, 14, 15,  0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821)

        MD5_FOUR(G, 5,  9, 14, 20,   1,  6, 11,  0,  0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa)
        MD5_FOUR(G, 5,  9, 14, 20,   5, 10, 15,  4,  0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8)
        MD5_FOUR(G, 5,  9, 14, 20,   9, 14,  3,  8,  0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed)
        MD5_FOUR(G, 5,  9, 14, 20,  13,  2,  7, 12,  0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a)

        MD5_FOUR(H, 4, 11, 16, 23,   5,  8, 11, 14,  0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c)
        MD5_FOUR(H, 4, 11, 16, 23,   1,  4,  7, 10,  0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70)
        MD5_FOUR(H, 4, 11, 16, 23,  13,  0,  3,  6,  0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05)
        MD5_FOUR(H, 4, 11, 16, 23,   9, 12, 15,  2,  0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665)

        MD5_FOUR(I, 6, 10, 15, 21,   0,  7, 14,  5,  0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039)
        MD5_FOUR(I, 6, 10, 15, 21,  12,  3, 10,  1,  0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1)
        MD5_FOUR(I, 6, 10, 15, 21,   8, 15,  6, 13,  0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1)
        MD5_FOUR(I, 6, 10, 15, 21,   4, 11,  2,  9,  0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391)

        return a + a0 == target[0] && b + b0 == target[1] && c + c0 == target[2] && d + d0 == target[3];
    }
    """
    bint md5_matches(const uint32_t *words, const uint32_t *target) noexcept nogil


cdef int render(uint64_t number, uint32_t *words) noexcept nogil:
    """Fills the words with the padded block of the number's decimal text; returns how many digits it has."""
    cdef uint64_t rest = number // 10
    cdef int digits = 1, at
    while rest:
        digits += 1
        rest //= 10
    for at in range(16):
        words[at] = 0
    words[digits // 4] |= <uint32_t>0x80 << (8 * (digits % 4))
    words[14] = 8 * digits
    for at in range(digits - 1, -1, -1):
        words[at // 4] |= <uint32_t>(48 + number % 10) << (8 * (at % 4))
        number //= 10
    return digits


cdef uint64_t search(const uint32_t *target, uint64_t start, uint64_t stop) noexcept nogil:
    """The first number in start..stop-1 that has the digest; stop if none has."""
    cdef uint32_t words[16]
    cdef uint32_t one
    cdef uint64_t number = start, row_stop
    cdef int last, word
    while number < stop:
        last = render(number, words) - 1
        word, one = last // 4, <uint32_t>1 << (8 * (last % 4))
        row_stop = min(stop, number + 10 - number % 10)
        while number < row_stop:
            if md5_matches(words, target):
                return number
            words[word] += one
            number += 1
    return stop


# -- what Python sees ----------------------------------------------------------------------------------------

def md5_search(digest: bytes, start: int, stop: int) -> int | None:
    """The first number in start..stop-1 whose decimal text has this MD5 digest (16 bytes); None if none has.

    The numbers lie in 0..2**63-1. Releases the GIL, and looks for signals (Ctrl-C) every million numbers.
    Raises ValueError for a digest that is not 16 bytes and for other numbers.
    """
    if not isinstance(digest, bytes) or len(digest) != 16:
        raise ValueError(f"an MD5 digest is 16 bytes, not {digest!r}")
    if not range(start, stop):
        return None
    if start < 0 or stop > 2**63:
        raise ValueError(f"md5_search knows the numbers 0..2**63-1, not {start}..{stop - 1}")
    cdef uint32_t target[4]
    cdef uint64_t at = start, end = stop, part, found
    cdef int word
    for word in range(4):
        target[word] = int.from_bytes(digest[4 * word:4 * word + 4], "little")
    while at < end:
        part = min(end, at + 1_000_000)
        with nogil:
            found = search(target, at, part)
        if found < part:
            return found
        PyErr_CheckSignals()
        at = part
    return None


# -- tasks ---------------------------------------------------------------------------------------------------

from cpython.object cimport PyObject, PyTypeObject
from time import perf_counter as _clock

cdef tuple NOTHING = ()
DEF GROUP_BYTES = 16384  # as in tasks.py


def run_alike(type cls, list states, Py_ssize_t place, Py_ssize_t stop, owner, Py_ssize_t first, list results,
              double until):
    """The loop of a worker: makes a task of each of states[place:stop] and calls it; its result goes to `results`.

    See its twin in tasks.py.
    """
    cdef dict state
    while place < stop:
        task = (<PyTypeObject *>cls).tp_new(cls, <PyObject *>NOTHING, NULL)
        state = (<dict>states[place]).copy()
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
        if <double>_clock() > until:
            break
    return place, None, None, None


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
