"""What results may do to the client that opens them, with `results = "data"` and without.

Real swarms run the applications of apps/hostile.py; what no honest slave sends is given to the reader alone.
"""

import collections
import os
import pickle
import time
import tracemalloc

import pytest
from conftest import APPS, at_once, in_time, module_in

from concurrent_swarm import components, rpc

hostile = module_in(APPS / "hostile.py")  # the applications that run on the swarm
DATA, NUMPY = rpc.READERS["data"], rpc.READERS["data,numpy"]


def run(swarm, app, how, folder=""):
    """What an application of hostile.py tells of the result that it got."""
    words = [f"--set=hostile.{key}={value}" for key, value in {"how": how, "folder": folder}.items()]
    ended = swarm.run_client("hostile.py", "--app", app, *words)
    assert "result" in ended.about, ended.err
    assert 'rpc.py"' not in ended.err and 'pickle.py"' not in ended.err  # tracebacks are the user's own
    return ended.about["result"]


# -- on a swarm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["Any", "Data", "Arrays", "AnySystem", "DataSystem"])
@at_once
def test_plain_data_comes_home_as_what_it_was(swarm_of_module, app):
    told = run(swarm_of_module, app, "data")
    assert told["equal"] is True, told


@pytest.mark.parametrize("app", ["Data", "DataSystem"])
@at_once
def test_a_result_that_runs_code_when_it_is_opened_is_a_failure_that_names_what_it_would_call(
        swarm_of_module, app, tmp_path):  # fmt: skip
    told = run(swarm_of_module, app, "runs", tmp_path)
    assert told["kind"] == "TaskError" and told["message"].endswith(".note"), told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("app", ["Any", "AnySystem"])
@at_once
def test_without_data_a_result_runs_its_code_in_the_client_and_nowhere_else(swarm_of_module, app, tmp_path):
    told = run(swarm_of_module, app, "runs", tmp_path)
    assert told["kind"] == "NoneType"
    assert [path.name for path in tmp_path.iterdir()] == [f"ran-{told['pid']}"]


@pytest.mark.parametrize("app", ["Data", "DataSystem"])
def test_a_result_of_few_bytes_that_asks_for_eight_gigabytes_is_refused_in_little_memory(swarm_of_module, app):
    told = run(swarm_of_module, app, "eight")
    assert told["message"] == "a result holds builtins.bytearray" and told["peak"] < 300


@pytest.mark.parametrize("app", ["Any", "AnySystem"])
@at_once
def test_a_result_that_does_not_want_to_be_opened_is_a_failure_and_the_client_goes_on(swarm_of_module, app):
    told = run(swarm_of_module, app, "raises")
    assert (told["kind"], told["error"]) == ("RuntimeError", "it does not want to be opened")


@pytest.mark.parametrize("app", ["Data", "DataSystem"])
@at_once
def test_an_exception_comes_as_its_description_to_who_takes_data_only(swarm_of_module, app):
    told = run(swarm_of_module, app, "own error")
    assert told["kind"] == "TaskError" and "OwnError: ours" in told["error"], told
    assert run(swarm_of_module, "Any", "own error")["kind"] == "OwnError"


@at_once
def test_arrays_come_home_where_the_application_says_so_and_are_refused_elsewhere(swarm_of_module):
    pytest.importorskip("numpy")
    assert run(swarm_of_module, "Arrays", "array")["equal"] is True
    told = run(swarm_of_module, "Data", "array")
    assert told["kind"] == "TaskError" and "numpy" in told["message"]


@at_once
def test_what_a_task_has_published_can_be_fetched_as_data(swarm_of_module):
    assert run(swarm_of_module, "Data", "published")["equal"] is True


@at_once
def test_an_unknown_kind_of_results_is_refused_before_anything_runs(swarm_of_module):
    ended = swarm_of_module.run_client("hostile.py", "--app", "Unknown")
    assert ended.code == 2 and "results = 'pickle'" in ended.err and "data,numpy" in ended.err
    assert "Traceback" not in ended.err


@at_once
def test_in_one_process_results_are_read_in_the_same_way(swarm_of_module, tmp_path):
    words = ["--workers", "0", "--app", "Data", "--set=hostile.how=runs", f"--set=hostile.folder={tmp_path}", "--json"]
    told = swarm_of_module.start("client", str(APPS / "hostile.py"), *words).wait().about["result"]
    assert told["kind"] == "TaskError" and list(tmp_path.iterdir()) == []


# -- the reader alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", hostile.data(), ids=lambda value: type(value).__name__)
def test_a_value_of_every_kind_is_read_as_pickle_reads_it(value):
    found = DATA(pickle.dumps([value, value], rpc.PICKLE_PROTOCOL))
    assert found == [value, value] and type(found[0]) is type(value)
    assert found[0] is found[1] or isinstance(value, (int, float))


def arrays():
    numpy = pytest.importorskip("numpy")
    full = numpy.arange(24).reshape(4, 6)
    turned = full.reshape(2, 3, 4).transpose(1, 0, 2)
    return [full, full.T, full[::2, ::3], turned, full.astype(">f4"), full.astype(str), full > 3, full[0, 0],
            numpy.float64(1),
            numpy.array(5), numpy.zeros(0), numpy.zeros((3, 0)), numpy.zeros(10_000), numpy.str_("x")]  # fmt: skip


def test_arrays_and_their_elements_are_read_as_pickle_reads_them():
    for value in arrays():
        for sealed in (pickle.dumps([value, value], 5), b"".join(rpc.seal_pieces([value, value]))):
            first, second = rpc.open_sealed(sealed, NUMPY)
            assert first.shape == value.shape and first.dtype == value.dtype and first.tolist() == value.tolist()
            assert type(first) is type(value) and first is second


def objects():
    numpy = pytest.importorskip("numpy")
    return [numpy.array([{}]), numpy.zeros(2, [("a", "O")]), numpy.zeros(2, "V8"), numpy.zeros(2, "M8[s]")]


def test_a_byte_order_cannot_say_what_an_element_is():
    pytest.importorskip("numpy")
    data = pickle.dumps(arrays()[0], 5).replace(b"\x8c\x01<", b"\x8c\x02O,")
    with pytest.raises(components.Error, match=r"numpy\.dtype"):
        NUMPY(data[:2] + data[11:])  # without the frame, whose length is another now


def test_arrays_of_objects_and_of_fields_are_refused():
    for value in objects():
        with pytest.raises(components.Error, match=r"a result holds numpy\.dtype"):
            NUMPY(pickle.dumps(value, 5))


CALLS = {  # the call that it would make -> a pickle that runs it when it is opened
    "os.system": b"cos\nsystem\n(S'exit 1'\ntR.",
    "builtins.eval": b"\x80\x05\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(NNtR.",
    "builtins.exec": b"(S'1'\nibuiltins\nexec\n.",  # INST
    "posix.system": b"(cposix\nsystem\nS'exit 1'\no.",  # OBJ
    "hostile.Reduced": b"\x80\x05\x8c\x07hostile\x8c\x07Reduced\x93)}\x92.",  # NEWOBJ_EX
    "builtins.bytearray": b"cbuiltins\nbytearray\n(I8000000000\ntR.",
    "datetime.date.today": b"\x80\x05\x8c\x08datetime\x8c\x0adate.today\x93)R.",
    "concurrent_swarm.rpc.named": b"cconcurrent_swarm.rpc\nnamed\n(S'slave'\nS'run'\ntR.",
    "__swarm__.named": b"c__swarm__\nnamed\n(S'slave'\nS'main'\ntR.",
    "numpy.core.multiarray._reconstruct": b"cnumpy.core.multiarray\n_reconstruct\n(NNNtR.",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_no_way_to_call_something_leads_there(name):
    with pytest.raises(components.Error) as caught:
        DATA(CALLS[name])
    assert name in str(caught.value) or "cannot be read as data" in str(caught.value)


def doubled(count):
    """A key of a dictionary, of tuples that hold the one before twice."""
    steps = b"".join(b"0h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(count))
    return b"\x80\x05)\x94" + steps + b"0}h" + bytes([count]) + b"K\x01s."


def nested(count):
    return b"\x80\x05})" + b"\x85" * count + b"K\x01s."


GREEDY = {
    "a bytearray of 8 GB": b"\x80\x05\x96" + (8 * 10**9).to_bytes(8, "little") + b".",
    "a memo of 32 GB": b"\x80\x05Nr\xff\xff\xff\x7f0(d.",
    "a long range in a deque": b"ccollections\ndeque\n(cbuiltins\nrange\n(I0\nI8000000000\ntRtR.",
    "a range without end": b"ccollections\ndeque\n(cbuiltins\nrange\n(I0\nI" + b"9" * 100 + b"\ntRtR.",
    "copies of copies": b"\x80\x05](\x8c\x0bcollections\x8c\x05deque\x93\x94]\x94("
                        + b"K\x00" * 1000 + b"e\x94" + b"h\x00h\x02\x85R" * 5000 + b"e.",
    "a long number, many times": b"\x80\x05](K\x00(" + b"K\x01" * 1000 + b"tK\x00t\x94cdecimal\nDecimal\n\x94"
                                 + b"h\x01h\x00\x85R" * 5000 + b"e.",
    "a long path, many times": b"\x80\x05](cpathlib\nPosixPath\n\x94\x8d" + (4000).to_bytes(8, "little") + b"a/" * 2000
                               + b"\x85R\x94" + b"h\x00h\x01\x85R" * 5000 + b"e.",
    "tuples that cannot be hashed": nested(1_000_000),
    "tuples that hold each other twice": doubled(60),
    "a decimal of many digits": b"\x80\x05cdecimal\nDecimal\n\x8b" + (300_000).to_bytes(4, "little")
                                + b"\x7f" * 300_000 + b"\x85R.",
    "a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "texts of a list of lists": b"cbuiltins\nstr\n(]tR.",
    "a frame of 8 GB": b"\x80\x05\x95" + (8 * 10**9).to_bytes(8, "little") + b"N.",
}  # fmt: skip


@pytest.mark.parametrize("what", GREEDY)
def test_no_pickle_takes_more_than_some_hundred_times_its_size(what):
    tracemalloc.start()
    began = time.process_time()
    try:
        DATA(GREEDY[what])
    except components.Error as error:
        assert "cannot be read as data" in error.what and error.why and error.fix
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * len(GREEDY[what]) + 100_000 and in_time(time.process_time() - began, 10)


def test_what_a_pickle_of_data_names_cannot_be_changed_for_others():
    state = b"\x80\x05ccollections\nOrderedDict\nN}\x8c\x04copy\x8c\x04evil\x86\x86b."  # sets an attribute of the class
    with pytest.raises(components.Error):
        DATA(state)
    assert callable(collections.OrderedDict.copy)


def test_nesting_of_lists_is_no_matter():
    found = DATA(b"\x80\x05" + b"]" * 50_000 + b"a" * 49_999 + b".")
    for _ in range(49_999):
        (found,) = found
    assert found == []


def test_what_cannot_be_read_names_the_reason_and_no_line_of_ours():
    for damaged in (b"", b"junk", pickle.dumps([1, 2], 5)[:-3], os.urandom(100)):
        with pytest.raises(components.Error) as caught:
            DATA(damaged)
        assert caught.value.what == "a result cannot be read as data" and caught.value.why
        frames = []
        place = caught.value.__traceback__
        while place:
            frames.append(place.tb_frame.f_code.co_filename)
            place = place.tb_next
        assert not [name for name in frames if name.endswith("pickle.py")] and caught.value.__cause__ is None
