"""What the CPU waits for while a GPU trains, by the trace of an emulated one (tests/cuda_emulator/README.md)."""

import os

import pytest
from gpu import is_emulated
from tiny_run import config_of, start, write_data

STEPS, MICRO_BATCHES = 8, 3


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    if not is_emulated():
        pytest.skip("a GPU writes no trace")
    root = tmp_path_factory.mktemp("waits")
    tree = config_of(write_data(root / "data"), root / "run", STEPS, every=0, device="cuda", precision="bf16",
                     data__validation="", eval__every=0, train__micro_batch_size=2,
                     train__global_batch_size=2 * MICRO_BATCHES)
    start(root, tree, env=os.environ | {"JIBOIA_EMULATED_TRACE": str(root / "trace")})
    return [line.split() for line in (root / "trace").read_text().splitlines()]


@pytest.fixture(scope="module")
def updates(trace):
    """Where in the trace each step's last kernel is launched."""
    found = [i for i, line in enumerate(trace) if line == ["launch", "adamw"]]
    assert len(found) == STEPS
    return found


@pytest.fixture(scope="module")
def waits(trace, updates):
    """Indices in the trace of waits for what the GPU computes, and of those for uploads. Left out are waits for what an
    earlier wait has shown to be done."""
    computes = next(line[3] for line in trace[updates[0]:] if line[0] == "record")  # the step's end is marked there
    recorded, reached = {}, {}
    result = {"compute": [], "upload": []}
    for i, line in enumerate(trace):
        if line[0] == "record":
            recorded[line[1]] = (i, line[3])
        elif line[:2] == ["wait", "event"] and line[2] in recorded:
            at, stream = recorded[line[2]]
            if at > reached.get(stream, -1):
                result["compute" if stream == computes else "upload"].append(i)
                reached[stream] = at
        elif line[0] == "wait" and line[1] != "event":
            result["compute"].append(i)
            for stream in {computes} if line[1] == "copy" else {line[2]} if line[1] == "stream" else set():
                reached[stream] = i
    return result


def test_cuda_trace_shows_the_steps(trace, updates):
    launches = [sorted(line[1] for line in trace[begin + 1:end + 1] if line[0] == "launch")
                for begin, end in zip(updates, updates[1:])]
    assert all(step == launches[0] for step in launches)
    for op in ("selective_scan", "linear", "embedding", "global_norm", "adamw"):
        assert op in launches[0]


def test_cuda_step_is_launched_before_the_numbers_of_the_one_before_are_awaited(trace, updates, waits):
    for step in range(STEPS - 2):
        own = [i for i in waits["compute"] if updates[step] < i < updates[step + 2]]
        between = [i for i in own if i < updates[step + 1]]
        after = [i for i in own if i > updates[step + 1]]
        # The wait for the step before, then that for this one after the next one's launches.
        assert len(between) == (1 if step > 0 else 0) and len(after) == 1
        launched = [line for line in trace[updates[step + 1]:after[0]] if line[0] == "launch"]
        assert launched == [["launch", "adamw"]]
        awaited = trace[after[0]][2]
        marks = [i for i, line in enumerate(trace[:after[0]]) if line[:2] == ["record", awaited]]
        assert updates[step] < marks[-1] < updates[step + 1]


def test_cuda_uploads_wait_once_each_at_most(updates, waits):
    uploads = MICRO_BATCHES + 1  # batches and the update's rates
    for begin, end in zip(updates[1:], updates[2:]):
        assert len([i for i in waits["upload"] if begin < i < end]) <= uploads


def test_cuda_steps_are_recorded_once_and_launched_as_graphs(trace, updates):
    recordings = [i for i, line in enumerate(trace) if line == ["capture", "begins"]]
    assert len(recordings) == 3  # the first micro-step of a step, further ones, the optimizer
    assert recordings[-1] < updates[1]
    in_graph, outside, graphs = False, [], []
    for i, line in enumerate(trace):
        if line[0] == "graph":
            in_graph = line[1] == "begins"
            graphs += [i] if in_graph else []
        elif line[0] == "launch" and not in_graph:
            outside.append(i)
    assert [i for i in outside if i < updates[0]]
    assert not [i for i in outside if updates[0] < i < updates[-1]]
    for begin, end in zip(updates[1:], updates[2:]):
        assert len([i for i in graphs if begin < i < end]) == MICRO_BATCHES + 1


def test_cuda_takes_no_memory_after_the_first_step(trace, updates):
    # Until the last step has been launched; a checkpoint follows it.
    during = [line for line in trace[updates[0]:updates[-1]] if line[0] in ("malloc", "free")]
    assert during == []
