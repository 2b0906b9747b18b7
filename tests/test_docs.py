"""The documents say what is true: their commands are run, their outputs compared, their files executed.

How a page is read: in a `console` block a line that begins with `$ ` is a command and the lines below it are what it
shows (`…` stands for anything, lines in between may be left out); a command that starts a master or slave stays until
the end of its block. A `python` block whose first line is `# name.py` is that file. All of it happens in a folder that
looks like the checkout, with port 8080 replaced by a free one. The blocks of `five-minutes.md` are played one after the
other: what is started in a numbered terminal goes on, `^C` stops it, `# terminal 3` says what is seen there next.
"""

import contextlib
import doctest
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import at_once, pace, quick_compiler

from concurrent_swarm import client, master, rpc, slave, tasks

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MODULES = sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "setup")
FENCE = re.compile(r"(?:<!-- ([^\n]+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE_MARK = re.compile(r"<!-- [^\n]+ -->\n")
THEIRS = "pip pytest pdoc git ruff useradd systemctl apt-get COPY SBATCH docker config create backup doctor journal"
OTHERS = re.compile(rf"\b({THEIRS.replace(' ', '|')})\b")  # have options of their own
ROLES = {"master": master, "slave": slave, "client": client}
COMMANDS = {"config", "create", "backup", "doctor", "keys", "stats"}  # they end by themselves
PATIENCE = 60.0  # seconds for one command


class Block(NamedTuple):
    """A fenced block: where it stands, its language, its text, and the mark in the comment before it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str


def blocks(page):
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(page, line, found[2], found[3], found[1] or "")


def named(*pages, language, wanted):
    """The blocks as parameters of a test, each called by its page and line."""
    found = (block for page in pages for block in blocks(page) if block.language == language and wanted(block))
    return [pytest.param(block, id=f"{block.page.name}:{block.line}") for block in found]


def file_name(block):
    found = re.match(r"# (\w+\.py)\n", block.text)
    return found and found[1]


def is_application(block):
    return bool(file_name(block)) and "(ApplicationNode)" in block.text and "from concurrent_swarm" in block.text


def marked(mark):
    return next(block.text.strip() for page in PAGES for block in blocks(page) if block.mark == mark)


# -- running what a page shows -------------------------------------------------------------------------------------


def steps(block):
    """(command, lines it shows) of a console block."""
    found = []
    for line in block.text.splitlines():
        if line.startswith(("$ ", "^C", "# terminal")):
            found.append((line.removeprefix("$ "), []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def stays(command):
    """Whether a command starts a node that runs until it is stopped."""
    found = re.search(r"python (?:master|slave)\.py ?(\w*)", command)
    return bool(found) and found[1] not in COMMANDS


def unseen(shown, output):
    """The shown lines that the output has not, looked for in order."""
    lines, missing = iter(output.splitlines()), []
    for wanted in shown:
        pattern = re.compile(".*".join(map(re.escape, wanted.rstrip().split("…"))))
        if not any(pattern.fullmatch(line.rstrip().rpartition("\r")[2]) for line in lines):
            missing.append(wanted)
            lines = iter(output.splitlines())
    return missing


class Desk:
    """A folder that looks like the checkout, and processes that are gone when the test is."""

    patience = PATIENCE

    def __init__(self, folder):
        self.folder = folder / "desk"
        self.folder.mkdir()
        for path in [*ROOT.glob("*.py"), *ROOT.glob("*.so"), *ROOT.glob("*.pyd")]:
            (self.folder / path.name).symlink_to(path)
        shutil.copytree(ROOT / "samples", self.folder / "samples", ignore=shutil.ignore_patterns("__pycache__"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        self.environ = {key: value for key, value in os.environ.items() if not key.startswith("CONCURRENT_SWARM")}
        self.environ["CONCURRENT_SWARM_STATE"] = str(folder / "state")
        self.environ |= {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "PYTHONPATH": ""}
        self._staying = []
        self.terminals = {}  # number -> the process that was started there, and the file of its output

    def move_the_master(self):
        """Nodes meet at the free port, though the commands do not name it."""
        for name in ("SLAVE_MASTER", "CLIENT_MASTER"):
            self.environ[f"CONCURRENT_SWARM_{name}"] = f"127.0.0.1:{self.port}"
        self.environ["CONCURRENT_SWARM_MASTER_PORT"] = self.port

    def write_files(self, page):
        for block in blocks(page):
            if block.language == "python" and file_name(block):
                (self.folder / file_name(block)).write_text(block.text, "utf-8")

    def start(self, command):
        command = f'python() {{ "{sys.executable}" "$@"; }}\n' + command.replace("8080", self.port)
        log = self.folder / f"output-{len(list(self.folder.glob('output-*')))}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", command], cwd=self.folder, env=self.environ, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )
        self._staying.append(process)
        return process, log

    def run(self, command):
        """Runs a command to its end; returns its exit code and what it wrote."""
        process, log = self.start(command)
        code = process.wait(self.patience)
        return code, log.read_text("utf-8", "replace")

    def follow(self, command, shown):
        """Starts a command that stays; returns when all it should show is there."""
        return self.until(*self.start(command), shown)

    def until(self, process, log, shown):
        """Waits until a command has shown this."""
        shown = [line.replace("8080", self.port) for line in shown]
        deadline = time.monotonic() + self.patience
        while (ended := process.poll(), missing := unseen(shown, output := log.read_text("utf-8", "replace")))[1]:
            assert ended is None, f"{process.args} ended without {missing}:\n{output}"
            assert time.monotonic() < deadline, f"{process.args} does not show {missing}:\n{output}"
            time.sleep(0.02)

    def interrupt(self, number):
        """Presses Ctrl-C in a terminal."""
        os.killpg(self.terminals[number][0].pid, signal.SIGINT)

    def expect(self, command, shown):
        """Runs a command to its end, which must show this and be a success."""
        code, output = self.run(command)
        missing = unseen(shown, output)
        assert not missing, f"{command} (exit code {code}) does not show {missing}:\n{output}"
        assert code == 0, f"{command} ended with {code}:\n{output}"

    def close(self):
        for process in reversed(self._staying):
            for number in (signal.SIGINT, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(PATIENCE)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="the commands of the documents are for bash")
@pytest.mark.parametrize("block", named(*PAGES, language="console", wanted=lambda block: "within" not in block.mark))
@at_once
def test_the_commands_show_what_the_page_says(block, tmp_path_factory):
    with contextlib.closing(Desk(tmp_path_factory.mktemp("commands"))) as desk:
        show(block, desk)


def show(block, desk):
    """Runs the commands of a block, which must show what the block says."""
    desk.write_files(block.page)
    if any(stays(command) for command, _ in steps(block)):
        desk.move_the_master()
    if "my-master/" in block.text:
        desk.run("python master.py create my-master")
    for command, shown in steps(block):
        if stays(command):
            desk.follow(command, shown)
        else:
            desk.expect(command, shown)


def play(block, desk):
    """Does what a person does at several terminals, of which each goes on."""
    for command, shown in steps(block):
        number = (re.findall(r"# terminal (\d)", command) or [""])[0]
        if command.startswith("^C"):
            desk.interrupt(number)
        elif not command.startswith("#") and number:
            desk.terminals[number] = desk.start(command)
        if number:
            desk.until(*desk.terminals[number], shown)
        else:
            desk.expect(command, shown)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="the commands of the documents are for bash")
def test_the_first_five_minutes_go_as_the_page_says_and_as_fast(tmp_path):
    late = []
    with contextlib.closing(Desk(tmp_path)) as desk:
        desk.move_the_master()
        desk.patience = 5 * PATIENCE
        for block in blocks(ROOT / "docs" / "five-minutes.md"):
            if block.language == "console":
                limit = float(re.match(r"within (\d+) s", block.mark)[1]) * (2 if os.environ.get("CI") else 1)
                before, began = pace(), time.monotonic()
                play(block, desk)
                took = time.monotonic() - began
                if took > limit * max(before, pace()):
                    late.append(f"line {block.line}: {took:.1f} s, and at most {limit:g} s on a laptop at rest")
        run, _ = desk.terminals["3"]
        assert run.wait(PATIENCE) == 0
    assert not late


APPLICATIONS = named(*PAGES, language="python", wanted=is_application)


@pytest.mark.slow
@pytest.mark.parametrize("block", APPLICATIONS)
@at_once
def test_the_applications_of_the_pages_run_in_one_process(block, tmp_path_factory):
    with contextlib.closing(Desk(tmp_path_factory.mktemp("alone"))) as desk:
        desk.write_files(block.page)
        code, output = desk.run(f"python client.py {file_name(block)} --workers 0 -q")
    failing = "raise" not in block.text and "/ self." in block.text  # an example of an error
    assert code == (1 if failing else 0), output
    assert "Traceback" not in output or failing, output


def test_the_ported_application_differs_only_in_imports_and_spellings():
    files = {file_name(block): block.text.splitlines() for block in blocks(ROOT / "docs" / "porting.md")}
    old, new = files["old_md5.py"], files["new_md5.py"]
    assert len(old) == len(new)
    spellings = ("import", "xrange", "md5.new", "print", ") / ", "# old_md5.py")
    assert all(any(word in was for word in spellings) for was, now in zip(old, new, strict=True) if was != now)


@pytest.mark.slow
@at_once
def test_the_first_command_sets_up_a_fresh_copy_and_runs(tmp_path):
    skipped = shutil.ignore_patterns(".git", ".venv", "venv", "build", "*.so", "*.pyd", "*.egg-info", "__pycache__")
    copy = shutil.copytree(ROOT, tmp_path / "clone", ignore=skipped)
    command = f'python3() {{ "{sys.executable}" "$@"; }}\n' + marked("first command")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("CONCURRENT_SWARM", "PYTHON"))}
    environ |= {"CONCURRENT_SWARM_STATE": str(tmp_path / "state"), "CC": quick_compiler(tmp_path)}
    done = subprocess.run(["bash", "-c", command], cwd=copy, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "result   1763965"


# -- docstrings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    module = importlib.import_module(name if name == "concurrent_swarm" else f"concurrent_swarm.{name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.slow
@at_once
def test_the_api_reference_builds_without_a_warning(tmp_path):
    pytest.importorskip("pdoc", reason="the API reference needs pdoc: pip install -e '.[docs]'")
    words = marked("api reference").split()
    assert words[:3] == ["python", "-m", "pdoc"]
    words = [sys.executable, *words[1:]]
    words[words.index("-o") + 1] = str(tmp_path)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "concurrent_swarm" / "tasks.html").is_file()


# -- what the pages name -------------------------------------------------------------------------------------------


def anchor(heading):
    """The anchor that a heading gets on the page."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"`|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text("utf-8"))
    for target, _, part in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)\s]*))?\)", text):
        other = page.parent / target if target else page
        assert other.exists(), f"{page.name} leads to {target}"
        if part:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", other.read_text("utf-8")), re.MULTILINE)
            assert part in map(anchor, headings), f"{page.name} leads to {target}#{part}"


def options_of(role):
    return {option for action in ROLES[role].parser()._actions for option in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_a_page_names_exists(page):
    of_keys = {option for action in master.keys_parser()._actions for option in action.option_strings}
    of_stats = {option for action in rpc.stats_parser("master")._actions for option in action.option_strings}
    everyone = set().union(*map(options_of, ROLES), of_keys, of_stats)
    for line in FENCE_MARK.sub("", page.read_text("utf-8")).splitlines():
        role = re.search(r"(master|slave|client)\.py(?! (?:config|create|backup|doctor|journal|keys))", line)
        named_here = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line))
        if "master.py keys" in line or ".py stats" in line:
            assert named_here <= (of_stats if ".py stats" in line else of_keys), line
        elif role and line.count(".py ") == 1:
            assert named_here <= options_of(role[1]), line
        elif not OTHERS.search(line):
            assert named_here <= everyone, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_that_a_page_imports_exists(page):
    text = page.read_text("utf-8")
    for module, names in re.findall(r"from (concurrent_swarm(?:\.\w+)?) import ([\w, ]+)", text):
        for name in re.split(r",\s*", names.strip()):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


ITEMS = """
import json
from concurrent_swarm import client, components, master, rpc, slave, tasks
kind = lambda item: type(item).__name__.removesuffix("Item").replace("Config", "Text")
rows = sorted(components.ConfigItem.registry.items())
print(json.dumps([[i.section, i.key, kind(i), i.format(i.default), i.doc] for _, i in rows if i.key != "*"]))
"""


def test_the_page_on_configuration_has_every_item():
    done = subprocess.run([sys.executable, "-c", ITEMS], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = [
        [f"`{section}.{key}`", kind, f"`{default}`" if default else "", meaning.replace("|", "\\|")]
        for section, key, kind, default, meaning in json.loads(done.stdout)
    ]
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    table = re.search(r"\|---\|---\|---\|---\|---\|\n(.*?)\n\n", text.partition("<!-- items:")[2], re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    assert [row[:4] for row in rows] == wanted
    assert {row[4] for row in rows} <= {"at once", "next start"}


def test_every_environment_variable_that_a_page_names_is_read():
    source = "".join(path.read_text("utf-8") for path in ROOT.glob("*.py"))
    items = json.loads(subprocess.run([sys.executable, "-c", ITEMS], cwd=ROOT, capture_output=True, check=True).stdout)
    known = {f"CONCURRENT_SWARM_{section}_{key}".upper() for section, key, *_ in items}
    for page in PAGES:
        for name in re.findall(r"CONCURRENT_SWARM_[A-Z_]+\b", page.read_text("utf-8")):
            assert name in known or name in source or name == "CONCURRENT_SWARM_STATE", f"{page.name} names {name}"


def test_what_continuous_integration_runs_is_in_the_readme():
    assert marked("ci: test") == "pip install -e '.[test]' && pytest"
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 150


def test_the_limits_on_the_page_are_those_of_the_code():
    page = (ROOT / "docs" / "programming-model.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.partition("## Limits")[2], re.MULTILINE))
    wanted = {
        "tasks an owner": f"{tasks.WINDOW:,}, or {tasks.WINDOW_BYTES >> 20} MiB",
        "one message": f"{rpc.MAX_MESSAGE >> 20} MiB",
        "source": f"{rpc.BUNDLE_LIMIT >> 20} MiB, {rpc.FILES_LIMIT:,} files",
        "unsettled": f"{master.LIMIT:,}",
    }
    for start, limit in wanted.items():
        assert next(value for name, value in rows.items() if name.startswith(start)).startswith(limit)
    assert (master.MAX_ATTEMPTS, master.MAX_LOSSES) == (3, 10)  # "the third death", "the tenth loss"


@at_once
def test_an_installed_package_brings_a_plug_in(tmp_path):
    desk = Desk(tmp_path)
    about = desk.folder / "demo-1.0.dist-info"  # what an installer leaves
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[concurrent_swarm.components]\nleast = samples.plugins.least_time\n")
    desk.environ["PYTHONPATH"] = str(desk.folder)
    with contextlib.closing(desk):
        desk.follow("python master.py --port 0 --set master.task_scheduler=LeastTimeScheduler", ["ready in … s, …"])
