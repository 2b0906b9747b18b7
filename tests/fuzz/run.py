"""Gives random input to what reads bytes, for as long as wanted: `python tests/fuzz/run.py TARGET SECONDS [SEED]`.

With atheris (`pip install atheris`, which has the code covered guide it) or, where that is not, by changing good inputs
at random. The first input that breaks a promise is printed and kept in the current folder; then the exit code is 1.
"""

import importlib.util
import random
import sys
import time
from pathlib import Path


def main(target, seconds, seed=1):
    if importlib.util.find_spec("atheris"):
        guided(target, int(seconds), int(seed))
    else:
        sys.exit(unguided(target, float(seconds), random.Random(int(seed))))


def guided(target, seconds, seed):
    """Runs under atheris, which ends the process."""
    import tempfile

    import atheris

    with atheris.instrument_imports(include=["concurrent_swarm.rpc", "concurrent_swarm.components", "pickle", "json"]):
        import targets
    corpus = tempfile.mkdtemp(prefix=f"fuzz-{target}-")
    for number, data in enumerate(targets.SEEDS[target]):
        Path(corpus, f"seed-{number}").write_bytes(data)
    words = [f"-max_total_time={seconds}", f"-seed={seed}", "-rss_limit_mb=1024", "-timeout=20", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *words, corpus], targets.TARGETS[target])
    atheris.Fuzz()


def unguided(target, seconds, chance):
    """Runs until the time is up; returns 1 if something was found."""
    import targets

    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = changed(chance.choice(targets.SEEDS[target]), chance)
        count += 1
        try:
            targets.TARGETS[target](data)
        except BaseException:
            Path(f"found-{target}").write_bytes(data)
            print(f"{target}: broken by {data[:500]!r}, kept as found-{target}", file=sys.stderr)
            raise
    print(f"{target}: {count:,} inputs, nothing found")
    return 0


def changed(data, chance):
    """A good input with a few bytes changed, removed, doubled or put in."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 8)):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(4):
            case 0:
                made[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del made[at : at + chance.randrange(1, 9)]
            case 2:
                made[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                other = chance.randrange(len(made) + 1)
                made[at:at] = made[other : other + chance.randrange(1, 60)]
    return bytes(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
