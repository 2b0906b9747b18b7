"""DNA curvature: where does a piece of DNA bend, and what path does its axis take?

    python client.py samples/dna.py --local
    python client.py samples/dna.py --local --set dnasample.length=1000000 --set dnasample.factor=20000
    python client.py samples/dna.py --local --app DNAOverloadNode

The first computes 10,000 nucleotides and writes dna.png; the last is the stress test: 10,001 tasks that carry 100 KB
each. It needs numpy, and matplotlib for the picture.

Neighbouring base pairs lie on each other like steps of a spiral stair that is slightly out of true. A *wedge model*
gives, for each of the 16 pairs of neighbours, the angles of a step (twist, roll, tilt), so a 4x4 matrix. The place of
a nucleotide, seen from the last one, is the product of all matrices from it to the end: n products of up to n
matrices. They share their ends, so a scan needs n in all, and blocks of it can be computed at once:

    step 1   a task per block: the product of its matrices
    between  the system multiplies these from the right: where each block ends, seen from the end of the sequence
    step 2   a task per block: places and curvatures of its nucleotides, beginning where it ends

Sources: D. S. Goodsell, R. E. Dickerson, Nucleic Acids Res. 22 (1994) 5497 (curvature and bend, tables b to e);
A. Bolshoy et al., PNAS 88 (1991) 2312 (the wedges of "trifonov"); L. Ulanovsky et al., PNAS 83 (1986) 862 (wedges of
AA alone); W. Kabsch et al., Nucleic Acids Res. 10 (1982) 1097 (twists). The numbers agree with those of C. Gohlke's
program dnacurve (1994-2024).
"""

import math
from functools import reduce
from itertools import accumulate, pairwise

from concurrent_swarm.client import ApplicationNode
from concurrent_swarm.components import BoolItem, ChoiceItem, ConfigItem, IntItem, UsageError, implements
from concurrent_swarm.tasks import IApp, ITaskSystem, Task

INSTALL = "pip install 'concurrent-swarm[samples]', in a checkout pip install -e '.[samples]'"

try:
    import numpy as np
except ModuleNotFoundError as missing:
    missing.msg += f"; this sample computes with it ({INSTALL})"
    raise


# -- the wedge models ----------------------------------------------------------------------------------------------

RISE = 3.38  # Å from one base pair to the next
PAIRS = ["AA", "AC", "AG", "AT", "CA", "GG", "CG", "GA", "GC", "TA"]  # the other six: these, on the other strand
MODELS = {  # degrees for each of these pairs: twist, roll, tilt
    "straight": ([360 / 10.5] * 10, [0] * 10, [0] * 10),
    "aawedge": (
        [35.62, 34.4, 27.7, 31.5, 34.5, 33.67, 29.8, 36.9, 40, 36],
        [-8.4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [2.4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
    "calladine": ([35, *[34] * 9], [0, *[3.3] * 8, 6.6], [0] * 10),
    "trifonov": (
        [35.62, 34.4, 27.7, 31.5, 34.5, 33.67, 29.8, 36.9, 40, 36],
        [-6.5, -0.9, 8.4, 2.6, 1.6, 1.2, 6.7, -2.7, -5, 0.9],
        [3.2, -0.7, -0.3, 0, 3.1, -1.8, 0, -4.6, 0, 0],
    ),
    "desantis": (
        [35.9, 34.6, 35.6, 35, 34.5, 33, 33.7, 35.8, 33.3, 34.6],
        [-5.4, -2.4, 1, -7.3, 6.7, 1.3, 4.6, 2, -3.7, 8],
        [-0.5, -2.7, -1.6, 0, 0.4, -0.6, 0, -1.7, 0, 0],
    ),
    "reversed": ([35, *[34] * 9], [3.3, *[0] * 8, -3.3], [0] * 10),
}


def steps_of(sequence, model):
    """The matrices from each nucleotide to the next, (n-1, 4, 4), for row vectors: place @ matrix."""
    known = matrices(model)
    return np.array([known[a + b] for a, b in pairwise(sequence)]).reshape(-1, 4, 4)


def matrices(model):
    """{pair: matrix} for all 16 pairs."""
    other = str.maketrans("ACGT", "TGCA")
    found = {}
    for pair, twist, roll, tilt in zip(PAIRS, *MODELS[model], strict=True):
        found[pair[::-1].translate(other)] = matrix(twist, roll, -tilt)  # from the other side it tilts the other way
        found[pair] = matrix(twist, roll, tilt)
    return found


def matrix(twist, roll, tilt):
    """One step: up by the rise, turned by roll, tilt and twist (degrees)."""
    (cr, sr), (ct, st), (cw, sw) = map(turn, (-roll, -tilt, twist))
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
    about_z = np.array([[cw, -sw, 0], [sw, cw, 0], [0, 0, 1]])
    made = np.eye(4)
    made[:3, :3] = (about_z @ about_y @ about_x).T  # transposed: row vectors
    made[3, 2] = RISE
    return made


def turn(degrees):
    """Cosine and sine."""
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


# -- geometry ------------------------------------------------------------------------------------------------------

RADIUS, BEND, SMOOTH = 10, 2, 15  # nucleotides to either side: one turn of the helix, neighbours, one and a half turns
KERNEL = np.array([0.5, *[1] * 9, 0.5]) / 10  # a turn of the helix
HALO = SMOOTH + len(KERNEL) // 2  # how far a nucleotide's curvature looks to either side
NUCLEOSOME = 0.0234  # 1/Å: the curvature of DNA around a nucleosome, by which all is divided


def frames_of(steps, last=None):
    """The frame of each nucleotide, (n, 4, 4): its matrix times that of the next; `last` is that of the last one.

    Row 3 of a frame is the place of the nucleotide on the axis (Å), row 2 the normal of its base pair.
    """
    frames = np.empty((len(steps) + 1, 4, 4))
    frames[-1] = np.eye(4) if last is None else last
    for i in range(len(steps) - 1, -1, -1):
        np.dot(steps[i], frames[i + 1], out=frames[i])
    return frames


def curvature_of(frames):
    """Curvature, bend and smoothed curvature of each nucleotide, (3, n), relative to a nucleosome; 0 near the ends.

    The curvature is one over the radius of the circle through three points of the axis, one turn apart. The bend is
    the angle between the base pairs on both sides. The smoothed curvature is that angle for normals averaged over a
    turn, one and a half turns away; its first and last five values are too large, for the averages at the very ends
    lack a part of the turn and count as shorter (as in dnacurve, so that the numbers are the same).
    """
    normals, _ = directions(frames[:, 2, :3])
    found = np.zeros((3, len(frames)))
    inside(found[0], RADIUS)[:] = circle(frames[:, 3, :3]) / NUCLEOSOME
    around = NUCLEOSOME * 2 * SMOOTH * RISE  # the angle by which DNA turns in 2 SMOOTH steps around a nucleosome
    inside(found[1], BEND)[:] = angle(normals, np.ones(len(normals)), BEND) / around
    inside(found[2], SMOOTH)[:] = angle(*smoothed(normals), SMOOTH) / around
    return found


def inside(values, window):
    """The part of an array whose entries have `window` neighbours on both sides."""
    return values[window : max(window, len(values) - window)]


def circle(axis):
    """One over the radius of the circle through points RADIUS before, at and RADIUS after: 4 area / (a b c)."""
    before, at, after = axis[: -2 * RADIUS], inside(axis, RADIUS), axis[2 * RADIUS :]
    a, b, c = at - before, after - at, after - before
    lengths = np.linalg.norm([a, b, c], axis=2).prod(axis=0)
    return 2 * np.linalg.norm(np.cross(a, c), axis=1) / lengths


def directions(vectors):
    """Unit vectors, and the lengths that the vectors had."""
    lengths = np.linalg.norm(vectors, axis=1)
    return vectors / lengths[:, None], lengths


def smoothed(normals):
    """Normals averaged over a turn of the helix: directions and lengths.

    The length counts as 1 where the turn is complete; at the ends it is what is left of the average.
    """
    half = len(KERNEL) // 2
    padded = np.pad(normals, ((half, half), (0, 0)))
    mean, lengths = directions(sum(weight * padded[k : k + len(normals)] for k, weight in enumerate(KERNEL)))
    inside(lengths, half)[:] = 1
    return mean, lengths


def angle(directions, lengths, window):
    """The arc cosine of the product of the vectors `window` before and after, in radians.

    Computed from the chord between them, for which small angles are as exact as large ones.
    """
    before, after = slice(-2 * window), slice(2 * window, None)
    chords = np.sum((directions[before] - directions[after]) ** 2, axis=1)
    product = lengths[before] * lengths[after]
    return 2 * np.arcsin(np.sqrt(np.minimum(1, (1 - product + product * chords / 2) / 2)))


def oriented(axis):
    """The path turned so that its ends lie on the x axis and its farthest bow points along z, and centred."""
    path = axis - axis[0]
    along = unit(path[-1])
    aside = path - np.outer(path @ along, along)
    bow = unit(aside[np.argmax(np.sum(aside**2, axis=1))])
    path = path @ np.array([along, np.cross(bow, along), bow]).T
    return path - (path.min(axis=0) + path.max(axis=0)) / 2


def unit(vector):
    """The vector at length 1; a vector of length 0 stays."""
    length = np.linalg.norm(vector)
    return vector / length if length > 1e-9 else vector


def curved(sequence, model):
    """Path (n, 3) and curvature (3, n) of a sequence, one nucleotide after the other: what the swarm must equal."""
    frames = frames_of(steps_of(sequence, model))
    return oriented(frames[:, 3, :3]), curvature_of(frames)


# -- tasks ---------------------------------------------------------------------------------------------------------


class BlockProduct(Task):
    """Step 1: the product of a block's matrices. `letters` are its nucleotides and the next one."""

    def __call__(self):
        return reduce(np.dot, steps_of(self.letters, self.model), np.eye(4))


class DNACurveTask(Task):
    """Step 2: places and curvature of the nucleotides lo..hi-1 of `letters`, whose last one has the frame `last`."""

    def __call__(self):
        frames = frames_of(steps_of(self.letters, self.model), self.last)
        return frames[self.lo : self.hi, 3, :3], curvature_of(frames)[:, self.lo : self.hi]


class DNACurveTaskSystem(ITaskSystem):
    """Cuts the sequence into blocks of `factor` nucleotides; see above for its two steps."""

    def __init__(self, sequence, model, factor):
        ITaskSystem.__init__(self)
        self.sequence, self.model, self.factor = sequence, model, factor

    def init_system(self, master):
        size = len(self.sequence)
        self.starts = range(0, size, self.factor)
        # A block's curvature looks HALO nucleotides past its end: so far each block of matrices reaches.
        self.ends = [min(start + self.factor + HALO, size) - 1 for start in self.starts]
        self.products = [None] * len(self.starts)
        self.path, self.curvature = np.empty((size, 3)), np.empty((3, size))

    def generate_tasks(self, master):
        return self.product_tasks() if master.step == 1 else self.curve_tasks()

    def product_tasks(self):
        """A task per block, from where the last one ended."""
        for block, (start, end) in enumerate(pairwise([0, *self.ends])):
            letters = self.sequence[start : end + 1]
            yield BlockProduct(f"product {block}", self.system_id, block=block, letters=letters, model=self.model)

    def curve_tasks(self):
        """A task per block, with what lies HALO to both sides, and the frame in which that ends."""
        lasts = list(accumulate(self.products[:0:-1], lambda last, product: product @ last, initial=np.eye(4)))[::-1]
        for start, end, last in zip(self.starts, self.ends, lasts, strict=True):
            first = max(0, start - HALO)
            stop = min(start + self.factor, len(self.sequence))
            yield DNACurveTask(
                f"curve {start}..{stop - 1}", self.system_id, letters=self.sequence[first : end + 1], model=self.model,
                last=last, lo=start - first, hi=stop - first, start=start, stop=stop,
            )  # fmt: skip

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        if master.step == 1:
            self.products[task.block] = result
        else:
            self.path[task.start : task.stop], self.curvature[:, task.start : task.stop] = result

    def is_complete(self, master):
        return master.step == 2 and master.outstanding == 0

    def gather_result(self, master):
        return oriented(self.path), self.curvature


# -- the overload --------------------------------------------------------------------------------------------------


class WindowTask(Task):
    """Carries the matrices of a window (128 bytes a nucleotide) and returns two numbers for each (16 bytes).

    These are the square of its distance from the first one (Å²) and the cosine between the two normals.
    """

    def __call__(self):
        frames = frames_of(self.steps)
        away = frames[1:, 3, :3] - frames[0, 3, :3]
        return np.array([np.sum(away**2, axis=1), frames[1:, 2, :3] @ frames[0, 2, :3]])


class DNAOverloadTaskSystem(ITaskSystem):
    """A window for each nucleotide; tasks are made as the swarm takes them, and results added up as they come."""

    def __init__(self, sequence, model, window):
        ITaskSystem.__init__(self)
        self.sequence, self.model, self.window = sequence, model, window

    def generate_tasks(self, master):
        steps = steps_of(self.sequence, self.model)
        self.windows, self.sum = len(steps) + 1 - self.window, np.zeros((2, self.window))
        for start in range(self.windows):
            yield WindowTask(f"window {start}", self.system_id, steps=steps[start : start + self.window])

    def task_finished(self, master, task, result, error):
        if error:
            raise error
        self.sum += result

    def gather_result(self, master):
        return self.sum / self.windows


def window_means(sequence, model, window):
    """The same means without windows, from the frames of the whole sequence."""
    frames = frames_of(steps_of(sequence, model))
    axis, normals, windows = frames[:, 3, :3], frames[:, 2, :3], len(frames) - window
    later = [slice(apart, apart + windows) for apart in range(1, window + 1)]
    squares = [np.mean(np.sum((axis[one] - axis[:windows]) ** 2, axis=1)) for one in later]
    return np.array([squares, [np.mean(np.sum(normals[one] * normals[:windows], axis=1)) for one in later]])


# -- applications --------------------------------------------------------------------------------------------------


class DNANode(ApplicationNode):
    """What both applications have: a sequence, a model, and a comparison with the computation without a swarm."""

    abstract = True
    implements(IApp)

    pattern = ConfigItem("dnasample", "sequence", "ATGCAAATTG", "nucleotides, repeated up to the length")
    length = IntItem("dnasample", "length", 10_000, "how many nucleotides", minimum=2, maximum=1_000_000)
    model = ChoiceItem("dnasample", "model", "trifonov", MODELS, "which wedge model")
    picture = ConfigItem("dnasample", "picture", "dna.png", "file for the picture; empty: none")
    verify = BoolItem("dnasample", "verify", True, "compute it once more without the swarm and compare")

    def sequence(self, length):
        """So many nucleotides."""
        letters = "".join(self.pattern.upper().split())
        if not letters or set(letters) - set("ACGT"):
            raise UsageError(f"dnasample.sequence = {self.pattern}", "a sequence has the letters A, C, G and T")
        return (letters * (length // len(letters) + 1))[:length]

    def compare(self, found, wanted):
        """Says how far the swarm's numbers are from those computed here; more than 1e-9 of the largest is too far."""
        apart = max(np.abs(a - b).max() / max(1, np.abs(b).max()) for a, b in zip(found, wanted, strict=True))
        self.log.info("differs from the computation without a swarm by %.0e of the largest number", apart)
        if not apart < 1e-9:
            self.fail(ArithmeticError(f"the swarm's numbers are off by {apart}"))

    size = 12, 8  # inches

    def draw(self, figure_of, *what):
        """Writes the picture, or says why there is none."""
        if not self.picture:
            return
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            self.log.info("no picture: matplotlib is not installed (%s)", INSTALL)
            return
        figure_of(Figure(figsize=self.size, layout="constrained"), *what).savefig(self.picture, dpi=120)
        self.log.info("wrote %s", self.picture)


class DNACurveNode(DNANode):
    """Path and curvature of a sequence."""

    size = 12, 10

    factor = IntItem("dnasample", "factor", 500, "nucleotides per task", minimum=1)
    table = ConfigItem("dnasample", "table", "", "file for the numbers, tab-separated; empty: none")

    def get_task_system(self):
        return DNACurveTaskSystem(self.sequence(self.length), self.model, self.factor)

    def work_finished(self, result, task_system):
        path, curvature = result
        self.result = f"{len(path):,} nucleotides, {np.linalg.norm(path[-1] - path[0]):,.1f} Å from end to end, "
        self.result += f"curvature {curvature[0].max():.6f} at most"
        if self.table:
            np.savetxt(self.table, np.column_stack([path, curvature.T]), "%.17g", "\t")
        if self.verify:
            self.compare(result, curved(self.sequence(self.length), self.model))
        self.draw(curve_figure, path, curvature, self.model)
        self.shutdown_main_loop()


class DNAOverloadNode(DNANode):
    """More than ten thousand tasks with heavy data: how far apart are nucleotides, by their number in between?"""

    windows = IntItem("dnasample", "windows", 10_001, "how many tasks", minimum=1)
    window = IntItem("dnasample", "window", 800, "nucleotides per task: 128 bytes in, 16 bytes out each", minimum=1)

    def get_task_system(self):
        return DNAOverloadTaskSystem(self.sequence(self.windows + self.window), self.model, self.window)

    def work_finished(self, result, task_system):
        self.result = f"{self.windows:,} windows, {math.sqrt(result[0][-1]):,.1f} Å across {self.window} nucleotides"
        if self.verify:
            self.compare(result, window_means(self.sequence(self.windows + self.window), self.model, self.window))
        self.draw(window_figure, result, self.model)
        self.shutdown_main_loop()


# -- pictures ------------------------------------------------------------------------------------------------------

CURVES = [  # row of the curvatures, nucleotides near the ends that are left out, label, colour
    (0, RADIUS, "curvature", "#b03a2e"), (2, HALO, "smoothed curvature", "#1f5fa8"), (1, BEND, "bend", "#9aa5a6"),
]  # fmt: skip
NEAR, DETAIL = 1000, 200  # nucleotides whose axis, and whose curves, are drawn in detail


def curve_figure(figure, path, curvature, model):
    """The axis from near and from afar, and the curves: along the whole sequence, and where it begins."""
    rows = figure.add_gridspec(3, 2, height_ratios=(2.6, 3, 2.4), width_ratios=(2, 5))
    figure.suptitle(f"{len(path):,} nucleotides of DNA, wedge model “{model}”", fontsize=15)
    draw_near(figure, figure.add_subplot(rows[0, :]), path[:NEAR], curvature[0, :NEAR])
    draw_projection(figure.add_subplot(rows[1, 0]), path)
    draw_overview(figure.add_subplot(rows[1, 1]), curvature[0])
    draw_detail(figure.add_subplot(rows[2, :]), curvature)
    return figure


def draw_near(figure, axes, path, curvature):
    """A piece of the axis laid along the page and tilted a little; what is farther away is drawn first."""
    path = path - path.mean(axis=0)
    path = path @ np.linalg.svd(path, full_matrices=False)[2].T  # its longest direction first
    (cosine, sine), across = turn(35), path[:, 0]
    depth = path[:, 2] * cosine - across * sine
    order, known = np.argsort(depth), curvature > 0
    axes.plot(across * cosine + path[:, 2] * sine, path[:, 1], color="#dfe4e6", linewidth=6, zorder=0)
    order = order[known[order]]
    places = (across * cosine + path[:, 2] * sine)[order], path[order, 1]
    dots = axes.scatter(*places, c=curvature[order], s=14, cmap="plasma", vmin=0, vmax=1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"The axis of the first {len(path):,} nucleotides (Å)")
    axes.spines[:].set_visible(False)
    figure.colorbar(dots, ax=axes, label="curvature", pad=0.01, aspect=12)


def draw_projection(axes, path):
    """The whole axis, seen from the side from which its bow is widest."""
    axes.plot(path[:, 0], path[:, 2], color="#34495e", linewidth=1)
    axes.plot(*path[0, ::2], "o", color="#27ae60", label="first nucleotide")
    axes.plot(*path[-1, ::2], "s", color="#b03a2e", label="last nucleotide")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(title="The whole axis from the side", xlabel="Å", ylabel="Å")
    axes.locator_params(axis="x", nbins=3)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize=8)


def draw_overview(axes, curvature):
    """Curvature along the whole sequence; where nucleotides share a column of the page, from the least to the most."""
    places = inside(np.arange(len(curvature)), RADIUS)
    columns = np.array_split(places, max(1, min(len(places), 900)))
    found = [(column.mean(), *np.quantile(curvature[column], (0, 0.5, 1))) for column in columns if len(column)]
    middle, low, median, high = np.array(found).reshape(-1, 4).T
    axes.fill_between(middle, low, high, color=CURVES[0][3], alpha=0.35, linewidth=0)
    axes.plot(middle, median, color=CURVES[0][3], linewidth=1)
    axes.set(title="Curvature along the whole sequence (1: as around a nucleosome)", xlim=(0, len(curvature)))
    axes.set_ylim(0, max(1, curvature.max() * 1.05))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def draw_detail(axes, curvature):
    """The curves of the first nucleotides."""
    size = curvature.shape[1]
    for row, ends, label, colour in CURVES:
        places = np.arange(ends, max(ends, min(DETAIL, size - ends)))
        axes.plot(places, curvature[row, places], color=colour, linewidth=1.6, label=label)
    axes.set(xlabel="nucleotide", xlim=(0, min(DETAIL, size)), ylim=(0, None))
    axes.set_title(f"Where the sequence begins: the first {min(DETAIL, size)}", loc="left")
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)


def window_figure(figure, means, model):
    """How distance and direction go with the number of nucleotides in between."""
    apart = np.arange(1, means.shape[1] + 1)
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"Mean over all windows, wedge model “{model}”", fontsize=15)
    left.plot(apart, apart * RISE, color="#9aa5a6", linestyle="--", label="if the axis were straight")
    left.plot(apart, np.sqrt(means[0]), color="#1f5fa8", linewidth=2, label="root mean square")
    left.set(title="Distance", xlabel="nucleotides apart", ylabel="Å", xlim=(0, None), ylim=(0, None))
    left.legend(frameon=False)
    right.axhline(0, color="#9aa5a6", linewidth=0.8)
    right.plot(apart, means[1], color="#b03a2e", linewidth=2)
    right.set(title="Do they point the same way?", xlabel="nucleotides apart", xlim=(0, None), ylim=(-1.02, 1.02))
    right.set_ylabel("mean cosine between the normals")
    for axes in left, right:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


application = DNACurveNode  # which one runs without --app
