"""The Mandelbrot set: one picture, computed column by column in four ways that give the same counts.

    python client.py samples/mandelbrot.py --local

writes mandelbrot.png and prints a checksum of the counts, which is the same for all of these:

    --app MandelbrotNode                                a task system on the master makes the tasks (the default)
    --app MandelbrotSimpleNode                          the client pushes plain tasks, in one batch
    --set mandelbrotsample.task_batch=false             ... or one by one
    --set mandelbrotsample.use_optimized_task=false     tasks carry the coordinates of each pixel, not five numbers
    --set mandelbrotsample.factor=100                   a task computes so many columns

The thesis measured with `iters` 20 and `factor` 1. The set lies in -2..1 by -1..1; see `tasks.mandelbrot` for what
is counted.
"""

import math
import struct
import zlib
from array import array
from itertools import chain, pairwise

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import BoolItem, ConfigItem, IntItem, implements
from concurrent_swarm.tasks import IApp, ITaskSystem, Task, mandelbrot

LEFT, RIGHT, TOP, BOTTOM = -2.0, 1.0, 1.0, -1.0
COUNT = array("I").itemsize  # bytes of a count


# -- tasks ---------------------------------------------------------------------------------------------------------


class MandelbrotTaskOptimized(Task):
    """The columns start..stop-1; the coordinates are made where they are needed."""

    def __call__(self):
        return mandelbrot(LEFT, RIGHT, TOP, BOTTOM, self.width, self.height, self.start, self.stop, self.iters)


class MandelbrotTask(Task):
    """The lazy form: `workload` holds a complex number for each pixel of the columns that begin at `start`."""

    def __call__(self):
        return array("I", (escape_count(c, self.iters) for c in self.workload)).tobytes()


def escape_count(c, iters):
    """After how many iterations of z*z + c the value leaves the circle of radius 2; `iters` if it stays."""
    z = 0j
    for i in range(iters):
        z = z * z + c
        if z.real * z.real + z.imag * z.imag >= 4:
            return i
    return iters


class Job:
    """What is to be computed: makes the tasks, and puts their results together, whatever their order."""

    def __init__(self, width, height, iters, factor, optimized):
        self.width, self.height, self.iters = width, height, iters
        self.factor, self.optimized = factor, optimized

    def tasks(self, system_id=None):
        """A task for each `factor` columns; the last one has what is left."""
        for start in range(0, self.width, self.factor):
            yield self.task(start, min(start + self.factor, self.width), system_id)

    def task(self, start, stop, system_id):
        """The task for the columns start..stop-1."""
        name = f"columns {start}..{stop - 1}"
        if self.optimized:
            size = {"width": self.width, "height": self.height}
            return MandelbrotTaskOptimized(name, system_id, start=start, stop=stop, iters=self.iters, **size)
        workload = [self.point(x, y) for x in range(start, stop) for y in range(self.height)]
        return MandelbrotTask(name, system_id, start=start, iters=self.iters, workload=workload)

    def point(self, x, y):
        """The number that a pixel stands for."""
        return complex(LEFT + (RIGHT - LEFT) * x / self.width, TOP + (BOTTOM - TOP) * y / self.height)

    def empty(self):
        """Room for the counts of all columns."""
        return bytearray(self.width * self.height * COUNT)

    def put(self, counts, task, result):
        """Puts a task's columns where they belong."""
        place = task.start * self.height * COUNT
        counts[place : place + len(result)] = result


class MandelbrotTaskSystem(ITaskSystem):
    """Runs on the master: makes the tasks in one step and keeps their counts until all are there."""

    def __init__(self, job):
        ITaskSystem.__init__(self)
        self.job = job

    def generate_tasks(self, master):
        self.counts = self.job.empty()
        return self.job.tasks(self.system_id)

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        self.job.put(self.counts, task, result)
        self.publish_view(self.preview)

    def preview(self):
        """What there is of the picture, in up to 384 columns and rows, for the master's page."""
        step = -(-max(self.job.width, self.job.height) // 384)
        return png_of(len(range(0, self.job.width, step)), list(rows_of(self.counts, self.job, step)))

    def gather_result(self, master):
        return bytes(self.counts)


# -- applications --------------------------------------------------------------------------------------------------


class Setting:
    """A configuration item of [mandelbrotsample]; the thesis' spelling, [mandlebrotsample], counts as well."""

    def __init__(self, kind, key, *rest, **bounds):
        self.item = kind("mandelbrotsample", key, *rest, **bounds)
        self.old = kind("mandlebrotsample", key, *rest, **bounds)

    def __get__(self, app, owner=None):
        given = app.config.origin(self.item) != "default"
        return app.config.get(self.item if given else self.old)


class MandelbrotNode(ApplicationNode):
    """Lets a task system do the work."""

    implements(IApp)

    width = Setting(IntItem, "width", 1536, "columns of the picture", minimum=1)
    height = Setting(IntItem, "height", 1024, "rows of the picture", minimum=1)
    iters = Setting(IntItem, "iters", 200, "iterations after which a point counts as inside", minimum=1)
    factor = Setting(IntItem, "factor", 16, "columns per task", minimum=1)
    use_optimized_task = Setting(BoolItem, "use_optimized_task", True, "send five numbers instead of all coordinates")
    task_batch = Setting(BoolItem, "task_batch", True, "push plain tasks in one batch instead of one by one")
    picture = Setting(ConfigItem, "picture", "mandelbrot.png", "file for the picture; empty: none")

    def app_init(self):
        self.job = Job(self.width, self.height, self.iters, self.factor, self.use_optimized_task)

    def get_task_system(self):
        return MandelbrotTaskSystem(self.job)

    def work_finished(self, result, task_system):
        self.show(result)

    def show(self, counts):
        """Writes the picture and ends."""
        self.result = f"{self.job.width} x {self.job.height} pixels, checksum {zlib.crc32(counts):08x}"
        if self.picture:
            write_png(self.picture, self.job.width, rows_of(counts, self.job))
            self.log.info("wrote %s", self.picture)
        self.shutdown_main_loop()


class MandelbrotSimpleNode(MandelbrotNode):
    """Pushes plain tasks and puts their results together itself."""

    def get_task_system(self):
        return None

    def start_processing(self):
        self.counts = self.job.empty()
        if self.task_batch:
            self.push_tasks(self.job.tasks())
        else:
            for task in self.job.tasks():
                self.push_task(task)

    def task_finished(self, task, result, error):
        if error:
            raise error
        self.job.put(self.counts, task.task, result)
        if not self.pending:
            self.show(bytes(self.counts))


application = MandelbrotNode  # which one runs without --app
MandlebrotNode, MandlebrotSimpleNode = MandelbrotNode, MandelbrotSimpleNode  # as they were spelled in 2014


# -- the picture ---------------------------------------------------------------------------------------------------

SHADES = [  # place on the scale, red, green, blue: from the night outside to the glow at the rim
    (0.00, 4, 6, 28), (0.30, 10, 38, 105), (0.42, 32, 107, 203), (0.53, 237, 250, 255), (0.66, 255, 176, 20),
    (0.84, 150, 34, 12), (1.00, 40, 4, 20),
]  # fmt: skip
INSIDE = bytes((0, 0, 0))


def rows_of(counts, job, step=1):
    """The picture's rows from top to bottom, three bytes a pixel; of every so manyth row and column."""
    counts = array("I", counts)
    colours = [colour(count, job.iters) for count in range(job.iters)] + [INSIDE]
    for y in range(0, job.height, step):
        yield b"".join(map(colours.__getitem__, counts[y :: job.height * step]))


def colour(count, iters):
    """Mixes the two nearest shades; the scale is logarithmic, for most of the picture lies at the small counts."""
    place = math.log1p(count) / math.log1p(iters)
    (low, *dark), (high, *light) = next(pair for pair in pairwise(SHADES) if place <= pair[1][0])
    share = (place - low) / (high - low)
    return bytes(round(a + (b - a) * share) for a, b in zip(dark, light, strict=True))


def write_png(path, width, rows):
    """Writes rows of three bytes a pixel as a PNG."""
    with open(path, "wb") as file:
        file.write(png_of(width, list(rows)))


def png_of(width, rows):
    """A PNG (ISO/IEC 15948): a header, the compressed rows, an end."""
    pixels = zlib.compress(b"".join(chain.from_iterable((b"\0", row) for row in rows)))  # 0: a row as it is
    header = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)  # 8 bits for each of red, green, blue
    made = [b"\x89PNG\r\n\x1a\n"]
    for name, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        made += [struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(name + data))]
    return b"".join(made)
