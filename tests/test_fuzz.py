"""Random input for everything that reads what anybody may have made; see fuzz/targets.py for what is promised.

A little at every run of the tests; fuzz/run.py goes on for as long as wanted. What that has found is in FOUND.
"""

import random

import pytest
from conftest import APPS, module_in

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from concurrent_swarm import components, rpc  # noqa: E402

targets, run = (module_in(APPS.parent / "fuzz" / f"{name}.py") for name in ("targets", "run"))

LITTLE = settings(max_examples=60, deadline=5000, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

FOUND: dict[str, list[bytes]] = {  # target -> inputs that broke a promise once
    "messages": [], "calls": [], "configuration": [], "bundle": [],
    "results": [
        b"\x80\x05\x96" + (8 * 10**9).to_bytes(8, "little") + b".",  # took 8 GB
        b"\x80\x05Nr\xff\xff\xff\x7f.",  # a table of 32 GB
        b"\x80\x05})" + b"\x85" * 200_000 + b"K\x01s.",  # ended the process: a tuple that cannot be hashed
    ],
}  # fmt: skip

names = st.text("abcdefgh_", min_size=1, max_size=8)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner), max_leaves=8,
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=10,
)  # fmt: skip
calls = st.lists(json_values, max_size=4).map(lambda params: ["method", *params])
requests = st.fixed_dictionaries({}, optional={
    "jsonrpc": st.just("2.0") | json_values, "method": st.sampled_from(["every", "slave.drain", "nothing"]),
    "params": json_values, "id": json_values,
})  # fmt: skip


@pytest.mark.parametrize(("target", "data"), [(target, data) for target, found in FOUND.items() for data in found])
def test_what_was_found_once_keeps_its_promise(target, data):
    targets.TARGETS[target](data)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_good_inputs_are_taken(target):
    for data in targets.SEEDS[target]:
        assert targets.TARGETS[target](data) != "refused"


@pytest.mark.parametrize("target", targets.TARGETS)
def test_random_bytes_break_no_promise(target):
    @LITTLE
    @given(st.binary(max_size=2000))
    def attempt(data):
        targets.TARGETS[target](data)

    attempt()


@pytest.mark.parametrize("target", targets.TARGETS)
def test_good_inputs_with_a_few_bytes_changed_break_no_promise(target):
    chance = random.Random(target)
    for _ in range(150):
        data = run.changed(chance.choice(targets.SEEDS[target]), chance)
        targets.TARGETS[target](data)


@LITTLE
@given(call=calls, parts=st.lists(st.binary(max_size=300), max_size=5), number=st.integers(1, 2**60))
def test_what_is_packed_is_unpacked(call, parts, number):
    frames = rpc.pack(rpc.DATA, targets.SID, number, number, call, parts)
    message = rpc.unpack([bytes(frame) for frame in frames])
    assert (message.call, list(map(targets.plain, message.parts)), message.number) == (call, parts, number)
    assert targets.messages(targets.framed(*frames)) == rpc.DATA


@LITTLE
@given(st.one_of(requests, st.lists(requests, max_size=3)))
def test_every_request_has_an_answer_of_its_own(request):
    body = rpc.json.dumps(request).encode()
    _, *codes = targets.calls(body)
    if isinstance(request, dict) and request.get("jsonrpc") == "2.0" and request.get("method") == "nothing":
        assert not codes or codes[0] in (rpc.METHOD_NOT_FOUND, rpc.INVALID_REQUEST)


@LITTLE
@given(json_values)
def test_what_json_writes_is_parsed_as_it_was(value):
    depth = str(value).count("[") + str(value).count("{")
    if depth < rpc.MAX_DEPTH:
        assert rpc.parse(rpc.json.dumps(value).encode()) == value


@LITTLE
@given(st.dictionaries(names, st.dictionaries(names, st.text("ab 1#;=[]%$é\"'", min_size=1).map(str.strip))))
def test_a_configuration_that_is_saved_is_read_as_it_was(sections):
    text = "".join(f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())
                   for name, table in sections.items())  # fmt: skip
    targets.configuration(text.encode())


@LITTLE
@given(plain_values)
def test_plain_data_is_read_as_pickle_reads_it(value):
    data = rpc.dumps(value)
    found = rpc.READERS["data"](data)
    assert found == value and repr(found) == repr(rpc.pickle.loads(data))


@LITTLE
@given(st.sets(st.text("ab/.\\:x", min_size=1, max_size=6).map(lambda name: f"{name}.py"), max_size=3))
def test_a_bundle_with_odd_names_is_refused_or_unpacked_within_its_folder(names):
    told = targets.bundle(targets.archived(app__py="", **dict.fromkeys(names, "")))
    assert told in ("unpacked", "refused")


def test_each_target_refuses_only_by_the_error_that_it_documents():
    assert issubclass(rpc.ProtocolError, components.Error) and issubclass(components.UsageError, components.Error)
