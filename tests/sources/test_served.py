"""A teacher behind fkd's own server: the bits, the limits, and everything that goes wrong."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import socket
import threading
import time
import urllib.parse

import pytest
import torch
from torch.utils.data import DataLoader

import fkd
from fkd import batch, call, frozen, student, teacher, term, trainable
from fkd.loops import LoopError, prefetch, run, train_step
from fkd.losses import kl, mse
from fkd.sources import ServedError, SourceError, ahead, bind, live, routed, serve, served
from fkd.sources._wire import CONTENT, Malformed, packed, unpacked
from tests.models import CNN, FEATURES, MLP

from . import faulty
from .test_ahead import Noisy, assert_same_state, padded
from .test_bind import assert_same, data, ensemble, mlps
from .test_cache import bert, collated, goal, loader, rows

QUICK = {"timeout": 5.0, "retries": 2}


def sgd(objective, **options):
    return train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), **options)


@pytest.fixture(scope="module")
def server():
    with serve(goal()) as made:
        yield made


@pytest.mark.parametrize("kind", ["mlp", "bert", "ensemble"])
def test_served_is_live_to_the_bit(kind):
    objective, made = {
        "mlp": lambda: (mlps(), [data(), data(3), data(4, 2)]),
        "bert": lambda: (bert(), padded()),
        "ensemble": lambda: (ensemble(), [data()]),
    }[kind]()
    with serve(objective) as served_by, served(served_by.url, batches=2) as source:
        assert source.codes == live(objective).codes
        cheap = bind(objective, source, compare=made[0])
        for one, attached in zip(made, source.attach(made), strict=True):
            assert_same(objective, cheap, one, attached)
        one = {**made[0], "text": ["not sent"] * len(made[0])}
        [attached] = routed("r", {"a": source}).routes["a"].attach([one])
        assert_same(objective, cheap, made[0], attached)


def test_only_what_the_teacher_reads_is_sent(server):
    with served(server.url) as source:
        one = {**collated(rows(), range(4)), "unread": torch.ones(4, 1000)}
        source.values(one)
        pieces, _, _ = source._question(one)
        assert sum(map(len, pieces)) < 1000 and list(source._fields.values()) == [["x"]]


def test_live_served_ahead_and_routed_train_alike(server, tmp_path):
    objective, made = goal(), loader(rows(), shuffle=True)
    marked = [{**r, "by": "a"} for r in rows()]
    ends = []
    with served(server.url, batches=2) as over_http, ahead(objective, batches=2) as beside:
        for source, accumulate in (
            (None, 1), (over_http, 1), (beside, 1), (ahead(over_http), 1),
            (routed("by", {"a": over_http}), 1), (None, 2), (over_http, 2),
        ):  # fmt: skip
            data_of = loader(marked, shuffle=True) if "routed" in repr(source) else made
            one = objective if source is None else bind(objective, source)
            train = data_of if source is None else source.attach(data_of)
            dev = loader(marked[:6], 3) if source is None else source.attach(loader(marked[:6], 3))
            step = sgd(one, compile=False, accumulate=accumulate)
            ends.append(run(step, step.init(3), train, epochs=2, dev=dev, best="loss/total",
                            progress=False))  # fmt: skip
    for end in ends[1:5]:
        assert_same_state(ends[0].state, end.state)
        assert end.evaluations == ends[0].evaluations
    assert_same_state(ends[5].state, ends[6].state)


def test_prefetch_and_workers(server):
    objective, made = goal(), rows()
    with served(server.url) as source:
        cheap = bind(objective, source)
        pairs = zip(loader(made), prefetch(source.attach(loader(made)), "cpu"), strict=True)
        for one, attached in pairs:
            assert_same(objective, cheap, one, attached)
        collate = source.attach_collate(torch.utils.data.default_collate)
        by_workers = DataLoader(made, 4, num_workers=2, collate_fn=collate)
        for one, attached in zip(loader(made), by_workers, strict=True):
            assert_same(objective, cheap, one, attached)
        other = pickle.loads(pickle.dumps(source))
        one = collated(made, range(3))
        assert torch.equal(other.values(one)["v0"], source.values(one)["v0"])


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
def test_a_compiled_step_takes_served_values(server):
    losses = []
    with served(server.url) as source:
        for one, train in ((goal(), loader(rows())),
                           (bind(goal(), source), source.attach(loader(rows())))):  # fmt: skip
            step, seen = sgd(one), []
            state = step.init()
            for b in train:
                state, metrics = step(state, b)
                seen.append(float(metrics["loss/total"]))
            assert step.compilations == 1
            losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_objective_needs_no_teacher_and_says_where_the_values_are_from(server):
    lone = fkd.Objective(dict(goal().terms), student=trainable(MLP(8)))
    with served(server.url) as source:
        cheap = bind(lone, source)
        [attached] = source.attach([collated(rows(), range(4))])
        text = str(fkd.check(cheap, attached))
        assert f"where {source.name} writes it (served at {server.url})" in text
        assert f"served at {server.url}" in fkd.draw(cheap).mermaid
        assert server.url not in repr(cheap)  # so that a run may go on from another address


def test_another_teacher_is_refused_with_what_differs(server):
    with served(server.url) as source:
        with pytest.raises(SourceError, match=r"teacher/tensors/.* at the server, .* here"):
            bind(goal(seed=9), source)
        other = goal(a=term(mse, student.logits, teacher.hidden_states[2]))
        with pytest.raises(SourceError, match="no term reads"):
            bind(other, source)


def test_a_cnn_on_images_whose_channels_are_last():
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "tap": term(mse, student.tap("first"), teacher.tap("first")),
            "kd": term(kl, student.logits, teacher.logits),
        },
        student=trainable(CNN(4), inputs=lambda b: b["image"] / 2),
        teacher=frozen(CNN(4), inputs=lambda b: b["image"] / 2),
    )
    image = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    with serve(objective) as made, served(made.url) as source:
        cheap = bind(objective, source)
        [attached] = source.attach([{"image": image}])
        assert_same(objective, cheap, {"image": image}, attached)
        theirs = attached[f"fkd.sources/{source.name}"]
    assert theirs["v0"].stride() == live(objective).values({"image": image})["v0"].stride()


def test_a_teacher_that_draws_answers_a_question_alike():
    noisy = fkd.Objective(dict(mlps().terms), teacher=frozen(Noisy()))
    with serve(noisy) as made, served(made.url) as source:
        one, other = source.values(data())["v0"], source.values(data(3))["v0"]
        assert torch.equal(one, source.values(data())["v0"])
        assert not torch.equal(one[:3] - data()["x"][:3, :, :5], other - data(3)["x"][..., :5])


# What goes wrong on the way


TRANSIENT = {
    "503": faulty.status(503), "429": faulty.status(429), "500": faulty.status(500),
    "hang up": faulty.hang_up, "cut off": faulty.cut_off, "garbage": faulty.garbage,
    "nan": faulty.not_finite, "another width": faulty.another_width,
    "another question": faulty.to_another_question, "no values": faulty.without_values,
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSIENT)
def test_what_goes_wrong_once_changes_nothing(server, name):
    objective = goal()
    with faulty.Faulty(server.url, [None, TRANSIENT[name]]) as before:
        # One request at a time, so that the right answer is the first to come.
        with served(before.url, **{**QUICK, "requests": 1}) as source:
            cheap = bind(objective, source)
            made = list(loader(rows()))[:3]
            for one, attached in zip(made, source.attach(made), strict=True):
                assert_same(objective, cheap, one, attached)
        assert before.posts == 4


LASTING = {
    "hang up": (faulty.hang_up, "failed 3 times .* RemoteDisconnected|failed 3 times .*Connection"),
    "stall": (faulty.stall(1.5), "failed 3 times .* no answer in 1 s"),
    "trickle": (faulty.trickle, "failed 3 times .* no answer in 1 s"),
    "cut off": (faulty.cut_off, "failed 3 times .*(cut off|IncompleteRead)"),
    "503": (faulty.status(503), "failed 3 times .* 503 overloaded"),
    "garbage": (faulty.garbage, "failed 3 times .* is damaged"),
    "nan": (faulty.not_finite, "failed 3 times .*teacher.logits has 1 values of 60 .* not finite"),
    "inf": (faulty.infinite, "60 values of 60 that are not finite.*nonfinite=True"),
    "rows": (faulty.fewer_rows, r"float32\[3, 3, 5\], .* were float32\[4, 3, 5\]"),
    "width": (faulty.another_width, r"float32\[4, 3, 4\], .* were float32\[4, 3, 5\]"),
    "axis": (faulty.another_axis, "failed 3 times"),
    "dtype": (faulty.another_dtype, "float64"),
    "no values": (faulty.without_values, "has not the values that are served"),
    "question": (faulty.to_another_question, "to another question"),
    "teacher": (faulty.of_another_teacher, "refuses: it serves 'served-00000000' now"),
    "400": (faulty.status(422, "no such field"), "refuses: 422 no such field"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_run_ends_after_its_checkpoint_and_goes_on_when_it_is_called_again(
    server, name, tmp_path
):
    fault, words = LASTING[name]
    objective, made = goal(), loader(rows(), shuffle=True)

    def train(url):
        timeout = 1.0 if name in ("stall", "trickle") else 5.0
        with served(url, timeout=timeout, retries=2, requests=1) as source:
            step = sgd(bind(objective, source), compile=False)
            return run(step, step.init(3), source.attach(made), epochs=2, progress=False,
                       checkpoint_dir=tmp_path)  # fmt: skip

    with faulty.Faulty(server.url, [None] * 3 + [fault] * 3) as before:
        with pytest.raises(LoopError, match=r"batch 3 of epoch 0.*") as error:
            train(before.url)
        assert isinstance(error.value.__cause__, ServedError)
        assert re.search(words, str(error.value.__cause__))
        assert fkd.loops.load_latest(tmp_path) is not None
    end = train(server.url)  # at another address
    assert end.state.step == 10
    step = sgd(objective, compile=False)
    assert_same_state(end.state, run(step, step.init(3), made, epochs=2, progress=False).state)


def test_a_server_that_dies_and_comes_back(tmp_path):
    objective, made = goal(), loader(rows())
    first = serve(objective)
    port = int(first.url.rpartition(":")[2])
    with served(first.url, retries=1, timeout=5.0) as source:
        step = sgd(bind(objective, source), compile=False)
        seen = []

        def stop(event):
            seen.append(event)
            if event.kind == "log" and event.step == 3:
                first.close()

        options = {"epochs": 2, "progress": False, "checkpoint_dir": tmp_path, "log_every": 1}
        with pytest.raises(LoopError, match="the loader failed"):
            run(step, step.init(), source.attach(made), callbacks=[stop], **options)
        with serve(objective, port=port):
            end = run(step, step.init(), source.attach(made), **options)
    step = sgd(objective, compile=False)
    assert_same_state(end.state, run(step, step.init(), made, epochs=2, progress=False).state)


def test_killed_while_it_trains_from_a_server(server, tmp_path):
    objective, made = goal(), loader(rows(), 2, shuffle=True)

    def train(folder):
        with served(server.url, batches=3) as source:
            step = sgd(bind(objective, source), compile=False)
            return run(step, step.init(), source.attach(made), epochs=3, save_every=1,
                       checkpoint_dir=folder, progress=False)  # fmt: skip

    whole, draw = train(tmp_path / "whole").state, random.Random(0)
    for i in range(2):
        folder = tmp_path / f"killed{i}"
        process = multiprocessing.get_context("fork").Process(target=train, args=(folder,))
        process.start()
        began = time.monotonic()
        while not list(folder.glob("*step*")) and time.monotonic() - began < 30:
            time.sleep(0.005)
        time.sleep(0.2 * draw.random())
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert_same_state(train(folder).state, whole)


def test_so_many_requests_at_a_time_and_in_order(server):
    slow = [_late(0.2 - 0.02 * i) for i in range(8)]
    with faulty.Faulty(server.url, slow) as before:
        with served(before.url, batches=6, requests=3) as source:
            made = list(loader(rows(), 2))
            given = [b["index"].tolist() for b in source.attach(made)]
        assert given == [b["index"].tolist() for b in made]
        assert before.most == 3


def _late(seconds):
    def fault(handler, answer):
        time.sleep(max(seconds, 0))
        return answer

    return fault


def test_batches_that_nobody_wants_are_not_asked_for(server):
    with faulty.Faulty(server.url, [_late(0.2)] * 10) as before:
        with served(before.url, batches=8, requests=1) as source:
            given = iter(source.attach(loader(rows(), 2)))
            next(given)
            given.close()
            del given
            time.sleep(0.3)
        assert before.posts <= 3


def test_values_that_are_meant_to_be_infinite():
    masked = fkd.call(_masked, teacher.logits)
    objective = goal(a=term(kl, fkd.call(_masked, student.logits), masked))
    with serve(objective) as made:
        with served(made.url, retries=0) as source:
            with pytest.raises(ServedError, match=r"failed once .*not finite"):
                source.values(collated(rows(), [0]))
        with served(made.url, nonfinite=True) as source:
            one = collated(rows(), range(4))
            [attached] = source.attach([one])
            assert_same(objective, bind(objective, source), one, attached)


def _masked(z):
    return torch.cat([z[..., :-1], torch.full_like(z[..., -1:], -torch.inf)], -1)


# The server's own door


def ask(url, method="POST", path="/fkd/values", body=b"", headers=None):
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": CONTENT, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def test_a_token_opens_the_door():
    token = "a secret of some length"
    with serve(goal(), token=token) as made:
        assert token not in repr(made)
        for wrong in (None, "a secret of some other length"):
            with pytest.raises(ServedError, match="refuses: 401 The token is missing or wrong"):
                served(made.url, token=wrong)
        with served(made.url, token=token) as source:
            assert token not in repr(source.address)
            assert source.values(collated(rows(), [0]))
        assert ask(made.url, "GET", "/fkd/about")[0] == 401


@pytest.mark.plain
def test_others_reach_it_only_with_a_token():
    for host in ("0.0.0.0", "", "::"):
        with pytest.raises(SourceError, match="so a token is needed"):
            serve(goal(), host=host)
    with pytest.raises(SourceError, match="less than 16 characters"):
        serve(goal(), token="short")
    with pytest.raises(SourceError, match="nothing of a frozen model"):
        serve(goal(a=term(mse, student.logits, batch.x[..., :5])))
    with serve(goal(), host="localhost") as made:
        port = int(made.url.rpartition(":")[2])
        with pytest.raises(SourceError, match="cannot be bound"):
            serve(goal(), port=port)


def test_what_is_not_a_request_is_refused_and_the_server_lives(server):
    right = b"".join(map(bytes, packed(collated(rows(), [0, 1]), {})))
    for status, words, request in (
        (404, "nothing at /", {"path": "/"}),
        (404, "nothing at /x", {"method": "GET", "path": "/x"}),
        (415, CONTENT, {"headers": {"Content-Type": "text/plain"}}),
        (411, "Content-Length", {"headers": {"Content-Length": "-1"}}),
        (413, "this server takes", {"headers": {"Content-Length": str(1 << 40)}}),
        (422, "Malformed", {"body": b"12345678" * 4}),
        (422, "a batch is expected", {"body": b"".join(map(bytes, packed([torch.ones(1)], {})))}),
        (422, "Error", {"body": b"".join(map(bytes, packed({"other": torch.ones(2)}, {})))}),
        (200, "", {"body": right}),
    ):
        got = ask(server.url, **request)
        assert got[0] == status and words in got[1], got
    assert ask(server.url, "GET", "/fkd/about")[0] == 200
    parts = urllib.parse.urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port)) as link:
        link.sendall(b"nonsense\r\n\r\n")
    with served(server.url) as source:
        assert source.values(collated(rows(), [0]))


def test_damaged_bytes_are_never_a_message():
    right = b"".join(map(bytes, packed({"x": torch.arange(6.0).reshape(2, 3), "y": [
        torch.tensor([True, False]), (torch.ones(1, dtype=torch.int64),)]}, {"a": 1})))  # fmt: skip
    tree, about = unpacked(bytearray(right))
    assert about == {"a": 1} and tree["y"][1][0].tolist() == [1] and tree["x"].shape == (2, 3)
    assert tree["y"][0].tolist() == [True, False]
    draw = random.Random(0)
    header = 8 + int.from_bytes(right[:8], "little")
    for _ in range(400):
        damaged = bytearray(right)
        damaged[draw.randrange(header)] ^= 1 << draw.randrange(8)
        try:
            other, _ = unpacked(damaged)
        except Malformed:
            continue
        assert sum(x.nbytes for x in fkd._base.trees.optree.tree_leaves(other)) <= len(right)
    for cut in range(0, len(right), 5):
        with pytest.raises(Malformed):
            unpacked(bytearray(right[:cut]))
    about = {"fkd": json.dumps({"structure": [[0]], "about": {}})}
    for text in (
        {},
        {"0": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}},
        {"0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": about},
    ):
        raw = json.dumps(text).encode()
        with pytest.raises(Malformed):
            unpacked(bytearray(len(raw).to_bytes(8, "little") + raw + b"1234"))


def test_sizes_are_limited_on_both_sides():
    with serve(goal(), max_bytes=1000) as made, served(made.url) as source:
        assert source.values(collated(rows(), [0]))
        with pytest.raises(ServedError, match=r"a batch has .* bytes .* takes 1,000"):
            source.values(collated(rows(), range(20)))
        with served(made.url, max_bytes=100) as small:
            with pytest.raises(ServedError, match=r"refuses: an answer of .* at most 100 are read"):
                small.values(collated(rows(), [0]))


def test_more_requests_than_there_are_places_come_again():
    with serve(goal(), connections=1) as made:
        with served(made.url, batches=8, requests=8, retries=20) as source:
            given = list(source.attach(loader(rows(), 1)))
    assert len(given) == 20


@pytest.mark.plain
def test_wrong_arguments_are_refused():
    for url in ("ftp://a", "http://", "http://a:b", "http://user:secret@127.0.0.1:1", "http://h?x"):
        with pytest.raises(SourceError):
            served(url)
    with pytest.raises(SourceError, match="requests=0"):
        served("127.0.0.1:1", requests=0)
    with pytest.raises(ServedError, match=r"failed once .* refused"):
        served("127.0.0.1:1", retries=0)
    with pytest.raises(SourceError, match="connections and timeout have to be positive"):
        serve(goal(), connections=0)


def test_another_kind_of_server_is_refused():
    with http.server.HTTPServer(("127.0.0.1", 0), _Hello) as hello:
        thread = threading.Thread(target=hello.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(ServedError, match="not a server of fkd; it said 'hello'"):
            served(f"127.0.0.1:{hello.server_address[1]}")
        hello.shutdown()


class _Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format, *args):
        pass


def test_packed_positions_are_sent():
    from fkd.loops import pack, take

    def taken(x):
        return call(take, x, batch.packed)

    torch.manual_seed(0)
    objective = fkd.Objective(
        {"a": term(kl, taken(student.logits), taken(teacher.logits), where=batch.packed.kept)},
        student=trainable(MLP(8)),
        teacher=frozen(MLP(8)),
    )
    made = {"x": torch.randn(4, 3, FEATURES), "packed": pack(torch.rand(4, 3) > 0.4, multiple=4)}
    with serve(objective) as server, served(server.url) as source:
        [attached] = source.attach([made])
        assert_same(objective, bind(objective, source), made, attached)


@pytest.mark.parametrize("fault", ["rows", "width", "axis", "dtype"])
def test_a_first_answer_that_is_wrong_does_not_make_the_others_wrong(server, fault):
    made = list(loader(rows()))
    with faulty.Faulty(server.url, [LASTING[fault][0]]) as before:
        with served(before.url, retries=3) as source:
            live = fkd.sources.live(goal()).values(made[0])
            values = source.values(made[0])
            assert all(torch.equal(values[k], live[k]) for k in live)
            assert before.posts == 2
