"""The report card: numbers that a hand computes, masks, seeds, forms, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fkd
from fkd import batch, student, teacher
from fkd.loops import collect, report_card
from fkd.loops._card.axes import Plot
from fkd.loops._card.measure import method
from fkd.loops._card.quality import Reference, certainty, divergences, quality, reliability
from fkd.metrics import accuracy

ACCURACY = {"accuracy": fkd.metric(accuracy, student.logits, batch.labels)}


class Net(nn.Module):
    """Logits and two hidden layers; dropout, so that eval mode matters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, width), nn.Linear(width, width)
        self.drop, self.head = nn.Dropout(0.9), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        one = torch.tanh(self.one(x))
        two = torch.tanh(self.two(self.drop(one)))
        return {"logits": self.head(two), "hidden_states": (one, two)}


def batches(count: int = 10, size: int = 6) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(size - (i == count - 1), 4, generator=g) for i in range(count)]
    return [{"x": x, "labels": torch.randint(3, (len(x),), generator=g)} for x in made]


def nets(*widths: int) -> list[Net]:
    torch.manual_seed(1)
    return [Net(width) for width in widths]


def test_it_is_what_a_hand_computes():
    large, small = nets(8, 2)
    small.train()
    data = batches()
    card = report_card(large, {"small": small}, data, ACCURACY, repeats=2)
    assert small.training and card.students[0].name == "small"  # left as it was
    x, y = torch.cat([b["x"] for b in data]), torch.cat([b["labels"] for b in data])
    with torch.no_grad():
        s, t = small.eval()(x)["logits"], large.eval()(x)["logits"]
    row = card.students[0]
    right = (s.argmax(-1) == y).double().mean().item()
    assert row.quality["accuracy"].mean == pytest.approx(right)
    teachers = (t.argmax(-1) == y).double().mean().item()
    assert row.quality["accuracy"].kept == pytest.approx(right / teachers)
    assert row.agreement == pytest.approx((s.argmax(-1) == t.argmax(-1)).double().mean().item())
    log_s, log_t = s.double().log_softmax(-1), t.double().log_softmax(-1)
    apart = (log_t.exp() * (log_t - log_s)).sum(-1)
    assert row.divergence == pytest.approx(apart.mean().item())
    assert [d.index for d in row.disagreements] == apart.topk(5).indices.tolist()
    assert row.disagreements[0].label == int(y[row.disagreements[0].index])
    assert row.calibration is not None
    assert row.calibration.nll == pytest.approx(nn.functional.cross_entropy(s, y).item(), rel=1e-5)
    assert sum(row.calibration.count) == len(y)
    assert row.cost.parameters == sum(p.numel() for p in small.parameters())
    assert row.cost.megabytes == pytest.approx(row.cost.parameters * 4 / 1e6)
    assert row.cost.gflops == pytest.approx(2 * (4 * 2 + 2 * 2 + 2 * 3) / 1e9)
    assert 0 < row.cost.latency_ms <= row.cost.latency_p95_ms and row.cost.throughput > 0
    assert row.cost.peak_megabytes > 0


def test_the_teacher_agrees_with_itself():
    [large] = nets(8)
    card = report_card(large, {"same": large}, batches(), ACCURACY, repeats=1)
    for row in card.rows:
        assert row.agreement == 1.0 and row.divergence == pytest.approx(0.0, abs=1e-12)
    assert card.students[0].quality["accuracy"].kept == 1.0
    assert card.teacher.disagreements == ()


def test_seeds_give_an_interval_and_share_a_row():
    large, *small = nets(8, 2, 2, 2)
    card = report_card(large, {"small": small}, batches(), ACCURACY, repeats=1)
    found = card.students[0].quality["accuracy"]
    assert len(found.seeds) == 3 and found.mean == pytest.approx(np.mean(found.seeds))
    half = 4.303 * np.std(found.seeds, ddof=1) / math.sqrt(3)
    assert found.low is not None and found.mean - found.low == pytest.approx(half)
    each = [report_card(large, {"s": one}, batches(), ACCURACY, repeats=1) for one in small]
    assert found.seeds == tuple(c.students[0].quality["accuracy"].mean for c in each)


def test_one_seed_is_bootstrapped_where_there_are_batches_enough():
    large, small = nets(8, 2)
    few = report_card(large, {"s": small}, batches(4), ACCURACY, repeats=1).students[0]
    assert few.quality["accuracy"].low is None
    many = report_card(large, {"s": small}, batches(12), ACCURACY, repeats=1)
    found = many.students[0].quality["accuracy"]
    assert found.low is not None and found.high is not None
    assert found.low <= found.mean <= found.high and found.low < found.high
    apart = found.difference
    assert apart.mean == pytest.approx(found.mean - many.teacher.quality["accuracy"].mean)
    assert apart.low <= apart.mean <= apart.high


def test_the_difference_is_paired():
    # Batches are hard or easy for both, and the student is behind by 0.1 on each of them.
    teacher = [(0.3 + 0.05 * i, 8) for i in range(12)]
    small = [(value - 0.1, n) for value, n in teacher]
    mean = sum(v for v, _ in small) / 12
    found = quality("accuracy", [mean], small, Reference(mean + 0.1, teacher))
    assert found.high - found.low > 0.1
    assert found.difference.low == pytest.approx(-0.1) == found.difference.high
    seeds = quality("accuracy", [0.5, 0.6, 0.7], (), Reference(0.55, ()))
    assert seeds.difference.mean == pytest.approx(0.05)
    assert seeds.difference.low == pytest.approx(seeds.low - 0.55)
    assert quality("accuracy", [0.5], (), None).difference is None


def test_what_is_no_mean_has_no_interval_of_one_seed():
    large, small = nets(8, 2)
    metrics = {"most": collect(lambda logits: float(torch.cat(logits).max()), student.logits)}
    found = report_card(large, {"s": small}, batches(), metrics, repeats=1)
    assert found.students[0].quality["most"].low is None


def test_masked_positions_count_nowhere_even_as_nan():
    large, small = nets(8, 2)
    data = batches()
    kept = [{**b, "mask": torch.arange(len(b["x"])) != 1} for b in data]
    bad = [{**b, "x": b["x"].masked_fill(~b["mask"][:, None], math.nan)} for b in kept]
    metric = fkd.metric(accuracy, student.logits, batch.labels, where=batch.mask)
    made = report_card(
        large, {"s": small}, bad, {"accuracy": metric}, where=batch.mask, repeats=1
    ).students[0]
    cut = [{n: x[b["mask"]] for n, x in b.items()} for b in kept]
    other = report_card(large, {"s": small}, cut, ACCURACY, repeats=1).students[0]
    assert made.agreement == other.agreement
    assert made.divergence == pytest.approx(other.divergence)
    assert made.calibration == other.calibration
    assert made.quality["accuracy"].mean == pytest.approx(other.quality["accuracy"].mean)
    assert made.disagreements[0].index % 6 != 1


def test_layers_are_compared():
    large, small = nets(8, 2)
    layers = (student.hidden_states, teacher.hidden_states)
    card = report_card(large, {"s": small}, batches(), layers=layers, repeats=1)
    found = np.array(card.students[0].similarity)
    assert found.shape == (2, 2) and (found >= 0).all() and (found <= 1).all()
    assert np.diag(np.array(card.teacher.similarity)) == pytest.approx([1.0, 1.0])


def test_a_layer_is_no_sequence_of_layers():
    large, small = nets(8, 2)
    one = student.hidden_states[1], teacher.hidden_states[1]
    words = r"layers\[0\]=student.hidden_states\[1\] is a tensor .*; a list or tuple"
    with pytest.raises(ValueError, match=words):
        report_card(large, {"s": small}, batches(), layers=one, repeats=1)
    layers = [fkd.call(lambda *x: x, layer) for layer in one]
    card = report_card(large, {"s": small}, batches(), layers=tuple(layers), repeats=1)
    assert np.array(card.students[0].similarity).shape == (1, 1)


def test_models_that_choose_nothing():
    def distance(ours: Tensor, theirs: Tensor) -> Tensor:
        return (ours - theirs).abs().mean(-1)

    large, small = nets(8, 8)
    metrics = {"error": fkd.metric(distance, student.hidden_states[1], teacher.hidden_states[1])}
    data = [{"x": b["x"]} for b in batches()]
    card = report_card(large, {"s": small}, data, metrics, compare=None, labels=None, repeats=1)
    row = card.students[0]
    assert row.agreement is None and row.calibration is None and row.disagreements == ()
    assert card.teacher.quality["error"].mean == 0 and row.quality["error"].kept is None
    assert "agreement" not in str(card) and "Calibration" not in card.html()


def test_embeddings_are_compared_by_a_distance_of_their_own():
    large, small = nets(8, 8)
    compare = (student.hidden_states[1], teacher.hidden_states[1])
    options = {"compare": compare, "distance": fkd.losses.cosine, "repeats": 1}
    card = report_card(
        large, {"s": small}, batches(), describe=lambda b: [f"{v:.3f}" for v in b["x"][:, 0]],
        **options,
    )  # fmt: skip
    x = torch.cat([b["x"] for b in batches()])
    with torch.no_grad():
        ours, theirs = (m.eval()(x)["hidden_states"][1] for m in (small, large))
    apart = 1 - nn.functional.cosine_similarity(ours, theirs)
    row = card.students[0]
    assert row.divergence == pytest.approx(apart.mean().item(), rel=1e-5)
    assert [d.index for d in row.disagreements] == apart.topk(5).indices.tolist()
    assert (
        row.agreement is None and row.calibration is None and row.disagreements[0].student is None
    )
    first = row.disagreements[0]
    assert first.example == f"{x[first.index, 0]:.3f}"
    assert "cosine" in str(card) and "KL" not in str(card) and "| cosine |" in card.markdown()
    assert json.loads(json.dumps(card.json()))["students"][0]["disagreements"][0]["teacher"] is None
    assert "None" not in card.html()


def test_tokens_are_positions_and_embeddings_with_a_mask_are_too():
    class Tagger(nn.Linear):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": super().forward(x)}

    large, small = Tagger(4, 3), Tagger(4, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    one = {"x": torch.randn(2, 3, 4), "labels": torch.randint(3, (2, 3)), "mask": mask}
    one["x"][~mask] = math.nan
    card = report_card(large, {"s": small}, [one], where=batch.mask, repeats=1)
    found = card.students[0]
    assert found.calibration is not None and sum(found.calibration.count) == 3
    assert {d.index for d in found.disagreements} == {0, 1, 3}
    card = report_card(
        large, {"s": small}, [one], where=batch.mask, distance=fkd.losses.mse, repeats=1
    )
    assert {d.index for d in card.students[0].disagreements} == {0, 1, 3}
    assert math.isfinite(card.students[0].divergence or math.nan)


def test_models_with_inputs_of_their_own_and_labels_that_are_missing():
    large, small = nets(8, 2)
    data = [{"x": b["x"], "big": 2 * b["x"], "labels": b["labels"] - 1} for b in batches()]
    large_model = fkd.frozen(large, inputs=lambda b: {"x": b["big"]})
    card = report_card(large_model, {"s": small}, data, repeats=1)
    found = card.students[0].calibration
    assert found is not None and sum(found.count) == sum(
        int((b["labels"] >= 0).sum()) for b in data
    )


def test_examples_are_described():
    large, small = nets(8, 2)
    card = report_card(
        large, {"s": small}, batches(), describe=lambda b: [f"<{v:.2f}>" for v in b["x"][:, 0]],
        examples=3, repeats=1,
    )  # fmt: skip
    worst = card.students[0].disagreements
    assert len(worst) == 3 and worst[0].divergence >= worst[1].divergence
    x = torch.cat([b["x"] for b in batches()])[:, 0]
    assert worst[0].example == f"<{x[worst[0].index]:.2f}>"
    assert "&lt;" in card.html() and worst[0].example not in card.html()
    assert worst[0].example in card.markdown()


def test_it_is_saved_in_every_form(tmp_path: Path):
    large, small, tiny = nets(8, 4, 2)
    card = report_card(large, {"small": small, "ti|ny": tiny}, batches(), ACCURACY, repeats=1)
    saved = json.loads(card.save(tmp_path / "card.json").read_text())
    assert saved == card.json() and saved["students"][1]["name"] == "ti|ny"
    page = card.save(tmp_path / "card.html").read_text()
    assert page.count("<svg") == 2 + 3  # quality over two costs, reliability of three models
    for drawing in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + drawing.split("</svg>")[0] + "</svg>")
    text = card.save(tmp_path / "card.md").read_text()
    assert "ti\\|ny" in text and "| kept |" in text
    assert card.save(tmp_path / "card.txt").read_text() == f"{card}\n"
    with pytest.raises(ValueError, match=r"ends in '\.pdf'; one of \.json"):
        card.save(tmp_path / "card.pdf")


def test_no_name_in_a_plot_covers_another():
    xs, ys = [10.0, 10.5, 10.2, 1000.0, 990.0], [0.9, 0.901, 0.899, 0.95, 0.95]
    names = ["logits", "logits and features", "features", "teacher", "the other teacher"]
    drawn = ElementTree.fromstring(f"<g>{Plot.around(xs, ys, log=True).names(xs, ys, names)}</g>")
    assert sorted(str(text.text) for text in drawn) == sorted(names)
    boxes = []
    for text in drawn:
        wide, x, y = 6 * len(text.text or ""), float(text.attrib["x"]), float(text.attrib["y"])
        boxes.append((x - wide if text.attrib["text-anchor"] == "end" else x, wide, y))
    for i, (a, wide, y) in enumerate(boxes):
        for b, other, line in boxes[:i]:
            assert a + wide <= b or b + other <= a or abs(y - line) >= 12


def test_a_saved_card_is_read_again(tmp_path: Path):
    large, *small = nets(8, 2, 2)
    layers = (student.hidden_states, teacher.hidden_states)
    students = {"seeds": small, "one": small[0]}
    card = report_card(large, students, batches(), ACCURACY, layers=layers, repeats=1)
    again = fkd.loops.ReportCard.load(card.save(tmp_path / "card.json"))
    assert again == card
    assert (str(again), again.markdown(), again.html()) == (str(card), card.markdown(), card.html())


def test_cards_of_other_versions_are_read(tmp_path: Path):
    large, small = nets(8, 2)
    data = report_card(large, {"s": small}, batches(4), ACCURACY, repeats=1).json()
    for row in (data["teacher"], *data["students"]):
        row["later"] = row["cost"]["later"] = 1
        row["calibration"] = None
        del row["quality"]["accuracy"]["difference"]
    path = tmp_path / "card.json"
    path.write_text(json.dumps(data))
    card = fkd.loops.ReportCard.load(path)
    assert "less teacher" not in str(card) and "ECE" not in str(card)
    assert card.students[0].quality["accuracy"].difference is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"teacher": 1}', "null"])
def test_what_is_no_card_is_refused_by_name(text: str, tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"(?s)other\.json is no report card.*card\.save"):
        fkd.loops.ReportCard.load(path)


def test_one_thread_is_one(monkeypatch: pytest.MonkeyPatch):
    for count, said in ((1, " 1 thread on cpu"), (2, " 2 threads on cpu")):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert method(3, torch.device("cpu")).endswith(said)


def test_calibration_of_what_is_known():
    """Always sure of class 0, right half of the time: the error is one half."""
    logits = torch.tensor([[50.0, 0.0]]).expand(10, 2)
    labels = torch.tensor([0, 1] * 5)
    assert reliability(certainty(logits, labels)).error == pytest.approx(0.5)
    assert reliability(certainty(torch.zeros(10, 2), labels)).error == pytest.approx(0.0)
    assert sum(reliability(certainty(logits, labels)).count) == 10


def test_divergence_of_classes_without_probability():
    minus = -math.inf
    same = torch.tensor([[0.0, minus]])
    assert divergences(same, same).tolist() == [0.0]
    assert divergences(same, torch.zeros(1, 2)).tolist() == [math.inf]


def test_a_single_value_has_no_interval():
    assert (
        quality("f1", [0.5], (), None).low is None
        and quality("f1", [0.5], (), Reference(0.0, ())).kept is None
    )


@pytest.mark.plain
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"students": {}}, "students is dict of 0"),
        ({"students": {"s": []}}, "student 's' is an empty list"),
        ({"students": {"s": "model"}}, "s is a str; a torch.nn.Module"),
        ({"students": {"teacher": Net(2)}}, "a student is named 'teacher'"),
        ({"loader": []}, "the loader gave no batch"),
        ({"repeats": 0}, "repeats is 0; at least 1"),
        ({"labels": student.logits}, "class numbers"),
        ({"where": batch.x}, "where has shape"),
        ({"describe": lambda b: ["one"]}, "describe gave 1 texts"),
        ({"distance": lambda s, t: (s - t).mean()}, r"distance gave \(\) for values \(2, 3\)"),
        ({"students": {"s": nn.Linear(4, 2)}, "compare": (student.logits, teacher.logits)},
         "the student has 2 classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(arguments: dict[str, Any], message: str):
    one = {"x": torch.zeros(2, 4), "input": torch.zeros(2, 4), "labels": torch.tensor([0, 1])}
    given = {"teacher": Net(2), "students": {"s": Net(2)}, "loader": [one], "repeats": 1}
    with pytest.raises(ValueError, match=message):
        report_card(**{**given, **arguments})


@pytest.mark.plain
def test_labels_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="labels"):
        report_card(Net(2), {"s": Net(2)}, [{"x": torch.zeros(2, 4)}], repeats=1)


def test_the_terminal_stays_clean():
    """In a process of its own: torch's profiler reads its settings once."""
    code = (
        "import torch, fkd\n"
        "card = fkd.loops.report_card(torch.nn.Linear(2, 2), {'s': torch.nn.Linear(2, 2)},\n"
        "    [{'input': torch.ones(2, 2)}], repeats=1, labels=None)\n"
        "assert card.students[0].cost.peak_megabytes > 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and "profiler" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "teacher", "kept"),
    [
        ("accuracy", 0.6, 0.8, 0.75),
        ("error", 0.8, 0.6, 0.75),
        ("perplexity", 4.0, 5.0, 1.25),
        ("width", 4.0, 5.0, None),  # better or worse?
        ("error", 0.1, 0.0, None),
        ("r2", -0.1, 0.5, None),
    ],
)
def test_what_is_kept_of_an_error_is_its_inverse(name, value, teacher, kept):
    assert quality(name, [value], (), Reference(teacher, ())).kept == (
        None if kept is None else pytest.approx(kept)
    )


def test_small_models_have_readable_units_and_a_missing_interval_is_said():
    large, small = nets(8, 2)
    card = report_card(large, {"s": small, "both": [small, large]}, batches(4), ACCURACY, repeats=1)
    head = str(card).splitlines()[0].split()
    assert {"FLOP", "B"} <= {*head} and "MB" not in head[: head.index("peak")]
    lines = [line for line in str(card).splitlines()[:5] if line]
    assert not any("e-" in cell for line in lines for cell in line.split())
    said = card.method["intervals of 95 %"]
    assert said.startswith(
        "both: Student's t over the seeds; s: none, since there is one seed, and"
    )
    assert "4 batches where the bootstrap takes at least 8" in said and said in card.markdown()
    enough = report_card(large, {"s": small}, batches(12), ACCURACY, repeats=1)
    assert enough.method["intervals of 95 %"].startswith("s: the bootstrap over 12 batches")
    without = report_card(large, {"s": small}, batches(4), repeats=1)
    assert "intervals of 95 %" not in without.method
