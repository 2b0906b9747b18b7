"""The page of a node, in a real browser: Chromium of this system, driven by Playwright, against real swarms.

`page` opens addresses in a window of its own and fails the test if the page complained or called anybody but its node.
`town` is a swarm that the tests share: two slaves with two workers each, and an application that has failed.
"""

import gzip
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import CHECKOUT, PATIENCE, SAMPLES, Swarm, descriptors_of, in_time, wait_until
from generator import Crowd, stage

PAGE = CHECKOUT / "dashboard.html"
MOST_BYTES, MOST_PACKED = 40_000, 16_000  # of the page
ENDLESS = ("--set", "shown.count=400", "--set", "shown.seconds=0.2")
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def found(*names):
    """The first program of these that is here; the test is skipped without."""
    path = next(filter(None, map(shutil.which, names)), None)
    return path or pytest.skip(f"there is no browser here: none of {', '.join(names)}")


@pytest.fixture(scope="session")
def chromium():
    return found("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser(chromium):
    """One browser for all tests, to which evil.example is this machine."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install '.[browser]'")
    with api.sync_playwright() as playwright:
        rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", rules])
        yield opened
        opened.close()


def host_of(address):
    return re.sub(r"^(\w+:/*[^/]*).*", r"\1", address)


@pytest.fixture
def page(browser):
    """page(address, size=(1280, 900), **options of a context): a window at an address."""
    windows, complaints, called, visited = [], [], set(), set()

    def open_page(address, size=(1280, 900), **options):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        windows.append(context)
        one = context.new_page()
        one.set_default_timeout(1000 * PATIENCE)
        one.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        one.on("pageerror", lambda error: complaints.append(str(error)))
        one.on("request", lambda request: called.add(host_of(request.url)))
        one.complaints = complaints
        visited.add(host_of(address))
        one.goto(address)
        return one

    yield open_page
    for context in windows:
        context.close()
    assert complaints == [] and {place for place in called if place.startswith("http")} <= visited


def token_of(swarm):
    return json.loads((swarm.master.folder / "keys" / "token.json").read_text())["token"]


def address_of(swarm, place=""):
    """The address of the master's page for who has the token."""
    return f"http://{swarm.address}/#token={token_of(swarm)}{place and '&' + place}"


@pytest.fixture(scope="module")
def town():
    one = Swarm()
    try:
        one.start_master()
        one.start_slave(workers=2)
        one.start_slave(workers=2)
        one.run_client("failing.py")
        yield one
    finally:
        one.close()


def runs_system(swarm, *more, app="shown.py"):
    """Starts a client with a task system; returns the client and the system's name."""
    before = {row["name"] for row in swarm.proxy.systems()}
    client = swarm.start_client(app, *more)
    new = wait_until(lambda: {row["name"] for row in swarm.proxy.systems()} - before, "the system is there")
    return client, new.pop()


def row_of(window, panel, text):
    return window.locator(f"#{panel} tbody tr", has_text=text).first


def text_of(window, query):
    return window.locator(query).inner_text()


def told(window, pattern):
    """Waits until the page says this of a control, in place of what it said of the one before."""
    return see(window, lambda: re.search(pattern, text_of(window, "#said")), f"the page says {pattern}")


def beside(window, query):
    """A text, while the page goes on."""
    window.wait_for_timeout(50)
    return text_of(window, query)


def see(window, condition, what, seconds=PATIENCE):
    """Waits for a condition that looks at the page."""
    return wait_until(lambda: window.wait_for_timeout(50) or condition(), what, seconds)


# -- the file, without a browser ------------------------------------------------------------------------------------


def test_the_page_is_small():
    content = PAGE.read_bytes()
    assert len(content) <= MOST_BYTES and len(gzip.compress(content, 9)) <= MOST_PACKED


def test_the_page_names_no_other_address_and_makes_nothing_of_text():
    text = PAGE.read_text("utf-8")
    assert not re.findall(r"https?:|\bsrc=|@import|url\(", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    markup = re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)
    assert not re.findall(r"<[^>]*\s(?:on\w+|style)=", markup)
    assert text.count("<script") == text.count("<style") == 1


def get(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_every_node_shows_it_by_get_under_a_policy_and_answers_calls_there_by_post(town):
    for address in (town.address, town.slaves[0].started["address"]):
        status, headers, body = get(f"http://{address}/")
        assert (status, headers["Content-Type"], body) == (200, "text/html; charset=utf-8", PAGE.read_bytes())
        assert headers["Content-Security-Policy"].count("sha256-") == 2
        call = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
        request = urllib.request.Request(f"http://{address}/", call, {"Content-Type": "application/json"})
        assert json.load(urllib.request.urlopen(request, timeout=PATIENCE))["result"] == "pong"


def test_a_master_without_a_page_answers_calls_alone(swarm):
    here = swarm(slaves=0, master=["--no-page"])
    assert get(f"http://{here.address}/")[0] == 405 and here.proxy.ping() == "pong"
    assert "#token" not in here.master.err


def test_the_master_prints_the_address_of_its_page_and_where_the_token_is(town):
    file = town.master.folder / "keys" / "token.json"
    assert f"  page     http://{town.address}/  (token: {file})\n" in town.master.err


def test_a_bare_browser_shows_what_the_master_tells(town, chromium, tmp_path):
    command = [chromium, "--headless", "--no-sandbox", f"--user-data-dir={tmp_path}", "--virtual-time-budget=4000",
               "--dump-dom", f"http://{town.address}/"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE).stdout
    assert "done since start</dt>" in shown and ">s1</a>" in shown and "ValueError" in shown


# -- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_an_empty_swarm_to_a_system_that_is_done_without_a_reload(swarm, page):
    here = swarm(slaves=0)
    window = page(address_of(here))
    command = f"python slave.py --master {here.address}"
    window.locator("#systems", has_text=f"No slave connected. On any machine: {command}").wait_for()
    assert [text_of(window, f"#{name} .box ~ p, #{name} > p:last-child") for name in ("stream", "errors")] == [
        "Every worker of every slave gets one lane here.", "No errors."]
    assert text_of(window, "#charts").count("No task finished yet.") == 3
    here.start_slave(workers=2)
    began = time.monotonic()
    row_of(window, "slaves", "up").wait_for()
    assert in_time(time.monotonic() - began, 3)
    window.locator("#systems", has_text="No task system yet. Run one: python client.py samples/md5.py").wait_for()
    client, _ = runs_system(here, "--set", "shown.count=20", "--set", "shown.seconds=0.2")
    row_of(window, "systems", "running").wait_for()
    row_of(window, "systems", "done").wait_for()
    assert client.wait().code == 0
    assert "60 / 60" in text_of(window, "#systems tbody")
    assert re.search(r"steps: 1 ▬+ 20 → 2 ▬+ 20 → 3 ▬+ 20", text_of(window, "#systems"))


def test_failures_are_grouped_with_their_traceback(town, page):
    window = page(address_of(town))
    group = window.locator("#errors summary", has_text="3 x ValueError: range end before start")
    group.click()
    assert "range(self.start, self.end)" in text_of(window, "#errors details[open] pre") or "failing.py" in text_of(
        window, "#errors details[open] pre")
    assert "failing.py:18" in text_of(window, "#errors details[open]")
    assert "1 kind, 3 tasks" in text_of(window, "#errors")


def test_who_has_no_token_sees_numbers_and_no_contents(town, page):
    window = page(f"http://{town.address}/")
    row_of(window, "slaves", "s1").wait_for()
    assert "Read-only. Open the address that the master printed" in text_of(window, "#attention")
    window.locator("#errors summary", has_text="3 x ValueError: failing.py:18").click()
    assert text_of(window, "#errors pre").startswith("Read-only.")
    assert "Read-only." in text_of(window, "#log") and window.locator("#log .box p").count() == 0
    runs = runs_system(town, *ENDLESS)
    row_of(window, "systems", "running").wait_for()
    cancel = row_of(window, "systems", "running").get_by_role("button", name="Cancel")
    assert cancel.is_disabled() and "Read-only" in cancel.get_attribute("title")
    runs[0].ends(signal.SIGINT)


def test_the_token_leaves_the_address_and_lives_as_long_as_the_window(town, page):
    window = page(address_of(town, "slave=s1"))
    window.locator("#side", has_text="slave s1").wait_for()
    assert window.url == f"http://{town.address}/#slave=s1"
    window.reload()
    window.locator("#log .box p", has_text="slave s1").first.wait_for()
    assert token_of(town) not in window.url
    stranger = page(f"http://{town.address}/")
    stranger.locator("#attention", has_text="Read-only.").wait_for()


def test_the_token_that_is_put_behind_the_address_of_an_open_page_opens_the_contents_too(town, page):
    window = page(f"http://{town.address}/")
    window.locator("#errors summary", has_text="3 x ValueError: failing.py:18").click()
    window.goto(address_of(town))  # only what is behind the #: the page stays
    window.locator("#errors pre", has_text="in __call__").wait_for()
    window.locator("#log .box p", has_text="slave s1").first.wait_for()
    assert not window.locator("#attention", has_text="Read-only.").count()


def test_things_of_the_same_kind_that_need_a_person_have_one_line_each(swarm, page):
    here = swarm(slaves=3)
    window = page(address_of(here))
    see(window, lambda: window.locator("#slaves tbody tr").count() == 3, "three are there")
    for slave in here.slaves[:2]:
        slave.send(signal.SIGKILL)
    see(window, lambda: window.locator("#attention p", has_text="lost").count() == 2, "two are lost")
    before = window.evaluate("page.t")
    see(window, lambda: window.evaluate("page.t") > before + 2, "answers come")
    assert window.locator("#attention p", has_text="lost").count() == 2
    assert window.evaluate("document.querySelectorAll('#attention p').length") <= 3


def test_what_the_page_says_is_seen_while_a_dialog_is_open(town, page):
    window = page(address_of(town, "slave=s1"), size=(390, 800))
    window.locator("#side", has_text="slave s1").wait_for()
    window.evaluate("say('it is said')")
    box = window.locator("#said").bounding_box()
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    assert window.evaluate("([x, y]) => document.elementFromPoint(x, y).id", at) == "said"


def test_text_of_tasks_is_never_markup(town, page):
    window = page(address_of(town))
    client = town.start_client("shown.py", "--set", "shown.count=5", "--set", "shown.failing=5")
    window.locator("#errors summary", has_text="<img src=x onerror=").wait_for()
    client.wait()
    assert window.locator("main img[src=x]").count() == 0 and "owned" not in window.title()


def test_the_picture_of_a_system_is_an_image(town, page):
    window = page(address_of(town))
    client, name = runs_system(town, "--set", "shown.count=8", "--set", "shown.seconds=0.1")
    window.locator(f"#view img[alt^='System {name} ']").wait_for()
    assert see(window, lambda: window.evaluate("document.querySelector('#view img').naturalWidth") == 90, "it is drawn")
    assert window.locator("#view img").get_attribute("src").startswith("data:image/svg+xml;")
    client.wait()


@pytest.mark.slow
def test_a_master_that_is_gone_dims_the_page_and_one_that_is_back_revives_it(swarm, page):
    here = swarm(slaves=1)
    window = page(address_of(here))
    row_of(window, "slaves", "s1").wait_for()
    port = int(here.address.rpartition(":")[2])
    here.master.ends(signal.SIGKILL)
    window.locator("main.stale").wait_for(timeout=25_000)
    told = text_of(window, "#attention")
    assert re.search(r"The master has not answered for [1-9]\d s\. Everything below is from \d\d:\d\d:\d\d\.", told)
    assert "✗ gone" in text_of(window, "#live") and "retries" in text_of(window, "#live")
    here.start_master(port=port)
    back = time.monotonic()
    window.get_by_role("button", name="Retry now").click()
    see(window, lambda: "● live" in text_of(window, "#live"), "the page lives again")
    assert in_time(time.monotonic() - back, 5)
    assert "The master was started again" in text_of(window, "#said")
    window.complaints.clear()  # the browser itself notes that nobody answered


# -- controls -------------------------------------------------------------------------------------------------------


def confirm(window, word):
    """Says yes to what the page asks; returns the question."""
    question = text_of(window, "#ask")
    window.locator("#ask").get_by_role("button", name=word, exact=True).click()
    return question


def test_a_system_is_paused_let_go_on_and_cancelled(town, page):
    window = page(address_of(town))
    client, name = runs_system(town, *ENDLESS)
    row = window.locator("#systems tbody tr", has=window.locator(f"a[href='#system={name}']"))
    row.get_by_role("button", name="Pause").click()
    assert re.search(rf"Pause #{name} Naps\?\s+\d+ waiting tasks will be kept, \d running", confirm(window, "Pause"))
    row.locator("td", has_text="paused").wait_for()
    row.get_by_role("button", name="Go on").click()
    confirm(window, "Go on")
    row.locator("td", has_text="running").wait_for()
    row.get_by_role("button", name="Cancel").click()
    assert re.search(r"\d+ waiting tasks will be dropped", text_of(window, "#ask"))
    window.locator("#ask").get_by_role("button", name="Leave it").click()
    assert name in {one["name"] for one in town.proxy.systems()}
    row.get_by_role("button", name="Cancel").click()
    window.locator("#ask input[name=kill]").check()
    confirm(window, "Cancel")
    told(window, rf"Cancel #{name} Naps: .*waiting \d+, running \d")
    wait_until(lambda: name not in {one["name"] for one in town.proxy.systems()}, "the master has cancelled it")
    row.locator("td", has_text="cancelled").wait_for()
    client.wait()


def test_a_system_in_lock_step_runs_a_step_at_a_time(town, page):
    window = page(address_of(town))
    client, name = runs_system(town, "--step", "--set", "shown.count=2", "--set", "shown.steps=2")
    row = window.locator("#systems tbody tr", has=window.locator(f"a[href='#system={name}']"))
    row.locator("td", has_text="waiting").wait_for()
    row.get_by_role("button", name="Run one step").click()
    assert "0 waiting tasks will be let run" in confirm(window, "Run one step")
    row.locator("td", has_text="4 / 4").wait_for()
    client.ends(signal.SIGINT)


def test_a_system_in_lock_step_runs_on_to_its_end(town, page):
    window = page(address_of(town))
    client, name = runs_system(town, "--step", "--set", "shown.count=2", "--set", "shown.steps=3")
    row = window.locator("#systems tbody tr", has=window.locator(f"a[href='#system={name}']"))
    row.get_by_role("button", name="Run on", exact=True).click()
    assert "0 waiting tasks will be let run without further stops" in confirm(window, "Run on")
    row.locator("td", has_text="done").wait_for()
    assert client.wait().code == 0 and "6 / 6" in row.inner_text()


def test_of_a_result_of_plain_data_who_has_the_token_sees_a_few_words(town, page):
    client, name = runs_system(town, "--set", "shown.count=6", "--set", "shown.failing=2")
    client.wait()
    facts = page(address_of(town, f"system={name}")).locator("#side dl")
    facts.locator("dt:text-is('result') + dd", has_text=re.compile("^9$")).wait_for()
    guest = page(f"http://{town.address}/#system={name}").locator("#side dl")
    guest.locator("dt:text-is('elapsed')").wait_for()
    assert guest.locator("dt:text-is('result')").count() == 0


def test_the_stream_is_narrowed_to_a_slave_or_a_system(town, page):
    clients, names = zip(*[runs_system(town, *ENDLESS) for _ in range(2)], strict=True)
    window = page(address_of(town))

    def owners():
        return set(window.evaluate("page.spans.map(one => one.owner)"))

    see(window, lambda: owners() >= set(names), "tasks of both are there")
    window.locator("#lane").fill("S2")
    see(window, lambda: window.evaluate("stream.lanes.join()") == "s2/w0,s2/w1", "only one slave is left")
    window.locator("#lane").fill("nobody")
    window.locator("#stream", has_text="No slave is “nobody”.").wait_for()
    window.locator("#lane").fill("")
    window.goto(f"http://{town.address}/#system={names[1]}")
    see(window, lambda: owners() == {names[1]}, "only the system that is open is left")
    assert f"Only system {names[1]} Naps." in text_of(window, "#stream")
    window.goto(f"http://{town.address}/#")
    see(window, lambda: owners() >= set(names), "both are there again")
    window.locator("#window").select_option("system")
    see(window, lambda: owners() == {names[1]}, "the one that was looked at last is left")
    for client in clients:
        client.ends(signal.SIGINT)


def saved(window, panel, name):
    """The content of what a button of a panel saves."""
    with window.expect_download() as coming:
        window.locator(f"#{panel}").get_by_role("button", name=name).click()
    return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


def test_the_stream_is_saved_as_a_trace_and_as_a_picture(town, page):
    window = page(address_of(town))
    client, name = runs_system(town, "--set", "shown.count=3", "--set", "shown.steps=1")
    client.wait()
    see(window, lambda: window.evaluate("stream.drawn.length") > 2, "its tasks are drawn")
    file, trace = saved(window, "stream", "Export trace")
    events = json.loads(trace)["traceEvents"]
    assert file == "trace-all.json"
    assert any(one.get("args", {}).get("task") == f"{name}.0" for one in events), events[:9]
    file, picture = saved(window, "stream", "Save picture")
    assert file == "stream.png" and picture.startswith(b"\x89PNG")
    size = window.evaluate("[lanes.width, lanes.height]")
    assert [int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)] == size
    assert window.evaluate("lanes.getContext('2d').getImageData(0, 0, 1, 1).data[3]") == 255, "it has a ground"
    assert saved(window, "charts", "Save picture")[0] == "Throughput.png"
    guest = page(f"http://{town.address}/")
    row_of(guest, "slaves", "s1").wait_for()
    assert guest.get_by_role("button", name="Export trace").is_disabled()


def workers_of(swarm, slave):
    return {one["name"]: one["workers"] for one in swarm.proxy.slaves()}[slave]


@pytest.mark.slow
def test_a_slave_gets_other_workers_and_is_drained_and_removed(town, page):
    extra = [town.start_slave(workers=1), town.start_slave(workers=1)]
    try:
        first, second = map(town.name_of, extra)
        window = page(address_of(town, f"slave={first}"))
        window.locator("#side").get_by_role("button", name="Set workers").click()
        window.locator("#ask input[name=workers]").fill("3")
        assert f"Set workers {first}?" in confirm(window, "Set workers")
        wait_until(lambda: workers_of(town, first) == 3, "it has them")
        window.locator("#side").get_by_role("button", name="Drain").click()
        assert "It finishes its 0 running leases, gets no new ones, then leaves." in confirm(window, "Drain")
        assert extra[0].wait().code == 0
        window.goto(f"http://{town.address}/#slave={second}")
        window.locator("#side", has_text=second).get_by_role("button", name="Remove").click()
        confirm(window, "Remove")
        assert extra[1].wait().code == 3 and "was removed from the swarm" in extra[1].err
    finally:
        for one in extra:
            town.slaves.remove(one)


def test_what_was_set_is_seen_where_it_was_set(town, page):
    window = page(address_of(town, "settings"))
    window.locator("#side input[type=search]").fill("max_lease")
    item = window.locator("#side tbody tr", has_text="master.max_lease")
    before = item.locator("td").first.inner_text()
    try:
        item.get_by_role("button", name="Set").click()
        window.locator("#ask [name=value]").fill("77")
        confirm(window, "Set")
        item.locator("td", has_text=re.compile("^77$")).wait_for()
        told(window, "^Set master.max_lease: 77$")
        item.get_by_role("button", name="Set").click()
        assert window.locator("#ask [name=value]").input_value() == "77"
    finally:
        town.proxy.config.set("master", "max_lease", before)


def test_the_scheduler_and_what_else_is_configured_change_while_the_master_runs(town, page):
    window = page(address_of(town, "settings"))
    window.locator("#side input[type=search]").fill("task_scheduler")
    window.locator("#side tbody").get_by_role("button", name="Set").click()
    choices = window.locator("#ask [name=value]")
    assert choices.evaluate("one => one.tagName") in ("SELECT", "INPUT")
    choose = choices.select_option if choices.evaluate("one => one.tagName") == "SELECT" else choices.fill
    choose("GenericTaskScheduler")
    confirm(window, "Set")
    wait_until(lambda: town.proxy.status()["scheduler"] == "GenericTaskScheduler", "the master has another scheduler")
    town.proxy.config.set("master", "task_scheduler", "ZMQTaskScheduler")
    window.locator("#ask").wait_for(state="hidden")
    window.locator("#side input[type=search]").fill("master.max_lease")
    window.locator("#side tbody").get_by_role("button", name="Set").click()
    window.locator("#ask [name=value]").fill("-4")
    confirm(window, "Set")
    told(window, "max_lease.*-4|-4.*max_lease")


@pytest.mark.slow
def test_an_application_is_uploaded_and_started(town, page):
    window = page(address_of(town, "start"))
    window.locator("#side input[type=file]").set_input_files(str(SAMPLES / "hello.py"))
    window.locator("#side").get_by_role("button", name="Start").click()
    row_of(window, "side", "ended").wait_for(timeout=30_000)
    assert "Hello World" in text_of(window, "#side tbody")


# -- addresses and keys ---------------------------------------------------------------------------------------------


def test_places_have_addresses_and_going_back_closes_them(town, page):
    window = page(address_of(town))
    row_of(window, "slaves", "s1").locator("a").click()
    window.locator("#side", has_text="slave s1").wait_for()
    assert window.url.endswith("#slave=s1")
    window.locator("#side", has_text="active").wait_for()
    window.go_back()
    window.locator("#side").wait_for(state="hidden")
    window.go_forward()
    window.locator("#side", has_text="slave s1").wait_for()
    window.keyboard.press("Escape")
    window.locator("#side").wait_for(state="hidden")
    see(window, lambda: not window.url.endswith("s1"), "the address goes back")


def test_a_client_s_link_lands_on_its_system_with_its_steps(town, page):
    client, name = runs_system(town, "--set", "shown.count=3", "--set", "shown.steps=2")
    client.wait()
    window = page(address_of(town, f"system={name}"))
    window.locator("#side", has_text=f"system {name}").wait_for()
    see(window, lambda: window.locator("#side tbody tr").count() == 2, "both steps are there")
    assert [cell.split("\t")[:3] for cell in window.locator("#side tbody tr").all_inner_texts()] == [
        ["1", "3", "3"], ["2", "3", "3"]]


def focus(window):
    return window.evaluate("document.activeElement.id || document.activeElement.textContent.slice(0, 30)")


def test_everything_is_reached_by_keys_alone(town, page):
    window = page(address_of(town))
    client, name = runs_system(town, *ENDLESS)
    row_of(window, "systems", "running").wait_for()
    see(window, lambda: window.evaluate("stream.drawn.length") > 8, "there are tasks in the stream")
    keys = window.keyboard
    for number, title in enumerate(["Task systems", "Task stream", "Charts", "Slaves", "Errors", "Log", "Stats"], 1):
        keys.press(str(number))
        assert focus(window) == title
    keys.press("/")
    assert focus(window) == "filter"
    keys.type("s2")
    see(window, lambda: window.locator("#slaves tbody tr").count() == 1, "only one slave is left")
    window.locator("#filter").fill("")
    window.evaluate("document.activeElement.blur()")
    keys.press("]")
    assert window.locator("#window").input_value() == "60"
    keys.press("[")
    assert window.locator("#window").input_value() == "10"
    window.locator("#lanes").focus()
    keys.press("ArrowRight")
    first = text_of(window, "#picked")
    keys.press("ArrowRight")
    assert first != text_of(window, "#picked") and "attempt 1" in first
    keys.press("ArrowDown")
    task = text_of(window, "#picked").split(" ")[0]
    keys.press("Enter")
    window.locator("#side h2", has_text=f"task {task}").wait_for()
    keys.press("Escape")
    window.locator("#side").wait_for(state="hidden")
    keys.press("c")
    window.locator("#ask", has_text=f"Cancel #{name}").wait_for()
    assert focus(window) == "Leave it"
    keys.press("Escape")
    window.locator("#ask").wait_for(state="hidden")
    assert name in {one["name"] for one in town.proxy.systems()}
    keys.press("?")
    assert focus(window) == "keys"
    window.locator("#keys").uncheck()
    window.locator("#lanes").focus()
    keys.press("p")
    assert "paused" not in text_of(window, "#live")
    client.ends(signal.SIGINT)


def test_a_focus_survives_new_data(town, page):
    window = page(address_of(town))
    row_of(window, "slaves", "s1").locator("a").focus()
    before = window.evaluate("page.t")
    see(window, lambda: window.evaluate("page.t") > before + 1.5, "two answers came")
    assert focus(window) == "s1"


def test_a_page_that_is_paused_stays_as_it_is_while_data_goes_on(town, page):
    client, _ = runs_system(town, *ENDLESS)  # an idle master that is some minutes old says the same for long
    window = page(address_of(town))
    row_of(window, "systems", "running").wait_for()
    window.locator("header").get_by_role("button", name="Pause").click()
    before, head = window.evaluate("page.t"), text_of(window, "#head")
    see(window, lambda: window.evaluate("page.t") > before + 1.5, "answers come")
    assert text_of(window, "#head") == head
    see(window, lambda: "‖ paused" in text_of(window, "#live"), "it says so, unless an answer is late")
    window.locator("header").get_by_role("button", name="Go on").click()
    see(window, lambda: text_of(window, "#head") != head, "it goes on")
    client.ends(signal.SIGINT)


def test_the_theme_is_kept(town, page):
    window = page(address_of(town), color_scheme="light")
    colour = "getComputedStyle(document.body).color"
    light = window.evaluate(colour)
    window.locator("#theme").select_option("dark")
    dark = window.evaluate(colour)
    window.reload()
    assert window.evaluate(colour) == dark != light


# -- who may look ---------------------------------------------------------------------------------------------------


def test_under_a_foreign_name_the_page_is_not_shown(town, page):
    port = town.address.rpartition(":")[2]
    window = page(f"http://evil.example:{port}/")
    assert "is not this node" in window.content() and window.locator("main").count() == 0
    window.complaints.clear()  # the browser's own line about the status


@pytest.mark.slow
def test_a_seventh_window_works_as_the_first(town, page):
    windows = [page(address_of(town))]
    for _ in range(6):  # of one browser, which opens six connections to a node
        windows.append(windows[0].context.new_page())
        windows[-1].goto(address_of(town))
    for window in windows:
        row_of(window, "slaves", "s1").wait_for()
    before = [window.evaluate("page.t") for window in windows]
    wait_until(lambda: windows[0].wait_for_timeout(100) or all(
        window.evaluate("page.t") > t for window, t in zip(windows, before, strict=True)), "all go on")


# -- for everybody --------------------------------------------------------------------------------------------------


def violations(window):
    """What axe-core finds against the rules of WCAG, A and AA."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None:
        pytest.skip("axe-core is missing: pip install '.[browser]'")
    window.evaluate(Path(spec.origin).with_name("axe.min.js").read_text("utf-8"))
    found = window.evaluate("tags => axe.run({runOnly: tags})", STANDARDS)["violations"]
    return [(one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"]) for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["wide", "narrow"])
def test_no_rule_of_wcag_is_broken(town, page, scheme, size):
    window = page(address_of(town), size, color_scheme=scheme)
    client, _ = runs_system(town, *ENDLESS, "--set", "shown.failing=7")
    row_of(window, "systems", "running").wait_for()
    window.locator("#errors summary").first.click()
    assert violations(window) == []
    client.ends(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("scheme, size", [("light", (1280, 900)), ("dark", (390, 844))], ids=["wide", "narrow"])
def test_no_rule_of_wcag_is_broken_in_dialogs(town, page, scheme, size):
    window = page(address_of(town), size, color_scheme=scheme)
    client, _ = runs_system(town, *ENDLESS)
    row_of(window, "systems", "running").get_by_role("button", name="Cancel").click()
    assert violations(window) == []
    window.keyboard.press("Escape")
    for place in ("slave=s1", "settings", "start", "table"):
        window.goto(f"http://{town.address}/#{place}")
        window.locator("#side h2", has_text=place.partition("=")[0]).wait_for()
        see(window, lambda: window.evaluate("side.innerText.length") > 60, f"{place} is filled")
        assert (place, violations(window)) == (place, [])
    client.ends(signal.SIGINT)


def test_no_rule_of_wcag_is_broken_where_nothing_is(swarm, page):
    window = page(f"http://{swarm(slaves=0).address}/")
    window.locator("#systems", has_text="No slave connected").wait_for()
    assert violations(window) == []


@pytest.mark.parametrize("width", [390, 640])  # a telephone; 1280 pixels at twice the size
def test_no_page_is_wider_than_its_screen(town, page, width):
    window = page(address_of(town), (width, 800))
    row_of(window, "slaves", "s1").wait_for()
    for place in ("", "slave=s1", "settings", "start", "table"):
        window.goto(f"http://{town.address}/#{place}")
        window.wait_for_timeout(300)
        assert window.evaluate("document.documentElement.scrollWidth") <= width


# -- pages of other nodes -------------------------------------------------------------------------------------------


def test_a_slave_shows_its_own_workers(town, page):
    client, _ = runs_system(town, *ENDLESS)
    window = page(f"http://{town.slaves[0].started['address']}/")
    row_of(window, "workers", "runs").wait_for()
    assert "shown.py" in row_of(window, "workers", "runs").inner_text()
    assert window.locator("footer a[href='#start']").is_hidden() and "Read-only" not in text_of(window, "#attention")
    assert "Concurrent slave s1" in text_of(window, "h1") and window.locator("#slaves").is_hidden()
    assert "files\nactive" in text_of(window, "#sandbox") or "off" in text_of(window, "#sandbox")
    client.ends(signal.SIGINT)


def test_a_client_shows_its_own_systems(town, page):
    client, _ = runs_system(town, *ENDLESS)
    listening = wait_until(lambda: ports_of(client.pid), "the client listens")
    window = page(f"http://127.0.0.1:{listening[0]}/")
    row_of(window, "systems", "Naps").wait_for()
    assert "Concurrent client" in text_of(window, "h1")
    window.context.close()  # it would complain once nobody answers
    client.ends(signal.SIGINT)


def ports_of(pid):
    """TCP ports at which a process listens."""
    sockets = {target[8:-1] for target in descriptors_of(pid).values()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in sockets]


# -- a large swarm --------------------------------------------------------------------------------------------------


@contextmanager
def crowded(slaves=1000, tasks=100_000, past=15.0):
    """The page's address for a swarm that never was, in the midst of its work."""
    crowd = Crowd(slaves, 8, tasks, seed=7, start=time.monotonic() - past)
    crowd.run(until=crowd.start + past)
    with stage(crowd) as address:
        yield f"http://{address}/#token=letmein"


@pytest.fixture(scope="module")
def metropolis():
    with crowded() as address:
        yield address


def work_of(debugger):
    """Seconds that the window's thread has computed, with layout and drawing."""
    metrics = {one["name"]: one["value"] for one in debugger.send("Performance.getMetrics")["metrics"]}
    return metrics["TaskDuration"]


@pytest.mark.slow
def test_a_thousand_slaves_and_100_000_tasks_are_drawn_in_time_and_space(metropolis, page):
    window = page(metropolis)
    row_of(window, "slaves", "s1").wait_for()
    window.evaluate("drawn = 0; const before = draw; draw = () => { drawn++; before(); }")
    debugger = window.context.new_cdp_session(window)
    debugger.send("Performance.enable", {"timeDomain": "threadTicks"})  # others on this machine do not count
    began = work_of(debugger)
    see(window, lambda: window.evaluate("drawn") >= 10, "it was drawn a few times")
    assert in_time((work_of(debugger) - began) / window.evaluate("drawn"), 0.05)
    assert window.evaluate("document.querySelectorAll('*').length") < 2500
    assert "1,000" in text_of(window, "#head") and "200 of 1,000" in text_of(window, "#stream")
    assert "most recent of" in text_of(window, "#stream")


@pytest.mark.slow
def test_rows_are_drawn_as_they_are_scrolled_to(metropolis, page):
    window = page(metropolis)
    row_of(window, "slaves", "s1").wait_for()
    box = window.locator("#slaves .box")
    box.evaluate("one => one.scrollTop = 31 * 700")
    row_of(window, "slaves", "s705").wait_for()
    assert window.locator("#slaves tbody tr").count() <= 60
    assert box.evaluate("one => one.scrollHeight") > 31 * 990
    window.locator("#filter").fill("node0999")
    see(window, lambda: window.locator("#slaves tbody tr").count() == 1, "one is left")
    assert "s999" in text_of(window, "#slaves tbody")


@pytest.mark.slow
def test_ten_minutes_of_answers_do_not_fill_the_memory(metropolis, page):
    window = page(metropolis)
    row_of(window, "slaves", "s1").wait_for()
    window.evaluate("""async () => {
        for (let n = 0; n <= 600; n++) { paused = n % 10 > 0; clearTimeout(timer); await poll(); }
    }""")
    debugger = window.context.new_cdp_session(window)
    debugger.send("HeapProfiler.collectGarbage")
    assert debugger.send("Runtime.getHeapUsage")["usedSize"] < 60e6
    assert window.evaluate("document.querySelectorAll('*').length") < 2500
