"""The KnowledgeDistillation boundary against a plain eager loop of that package's rules."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import fkd
from fkd.interop.knowledge_distillation import (
    Adapted,
    KnowledgeDistiller,
    MultiLayerBasedDistillationEvaluator,
    MultiLayerBasedDistillationLoss,
    terms_from_config,
)

STEPS = 50
COMPILE = {"backend": "aot_eager"}


class Tiny(nn.Module):
    """Tokens -> hidden states, an attention-like map, logits; more layers for a teacher."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.head = nn.Linear(8, 3)
        self.unread = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: float = 1.0) -> Any:
        hidden = [self.embed(input_ids)]
        maps = []
        for layer in self.layers:
            hidden.append(torch.tanh(layer(hidden[-1])) * scale)
            heads = hidden[-1].unflatten(-1, (2, 4)).transpose(1, 2)
            maps.append(heads @ heads.transpose(-1, -2))
        self.unread(hidden[-1])
        return self.head(hidden[-1][:, 0]), tuple(hidden), tuple(maps)


def output_adaptor(output: Any) -> dict[str, dict[str, Tensor]]:
    logits, hidden, maps = output
    found = {"embedding": {"hidden": hidden[0]}, "head": {"logits": logits}}
    for i, (h, m) in enumerate(zip(hidden[1:], maps, strict=True), 1):
        found[f"layer{i}"] = {"hidden": h, "attention": m, "pooled": h[:, 0]}
    return found


def as_dicts(device: Any, batch: Any) -> Any:
    ids, mask, _ = (x.to(device) for x in batch)
    teacher_input = {"input_ids": ids, "attention_mask": mask}
    return teacher_input, {**teacher_input, "scale": 1.0}


def as_tuples(device: Any, batch: Any) -> Any:
    ids, mask, _ = (x.to(device) for x in batch)
    return (ids, mask), (ids, mask)


def loader(count: int = STEPS, seed: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(20, (4, 6), generator=generator)
        lengths = torch.randint(1, 7, (4, 1), generator=generator)
        labels = torch.randint(3, (4,), generator=generator)
        batches.append((ids, (torch.arange(6) < lengths).long(), labels))
    return batches


def entry(student: str, taught: str, loss: Any, weight: float = 1.0, **more: Any) -> dict[str, Any]:
    """An item from `"layer.output"` on both sides."""
    (sl, so), (tl, to) = student.split("."), taught.split(".")
    return {
        "teacher_layer_name": tl, "teacher_layer_output_name": to,
        "student_layer_name": sl, "student_layer_output_name": so,
        "loss": {"loss_function": loss, "args": more.pop("args", {})}, "weight": weight, **more,
    }  # fmt: skip


# A plain loop of the package's rules: every item is loss(teacher_output, student_output,
# teacher_input, student_input, **args) * weight, summed; one update a batch.


def plain_mse(t: Tensor, s: Tensor, *_: Any) -> Tensor:
    return ((t - s) ** 2).mean()


def plain_mse_with_mask(t: Tensor, s: Tensor, teacher_input: Any, *_: Any) -> Tensor:
    mask = teacher_input["attention_mask"].float()
    return ((t - s) ** 2 * mask[..., None]).sum() / (mask.sum() * s.shape[-1])


def plain_attention(t: Tensor, s: Tensor, teacher_input: Any, *_: Any) -> Tensor:
    mask = teacher_input["attention_mask"].float()
    pairs = mask[:, None, :, None] * mask[:, None, None, :]
    return ((t - s) ** 2 * pairs).sum() / (s.shape[1] * (mask.sum(1) ** 2).sum())


def plain_cos(t: Tensor, s: Tensor, *_: Any) -> Tensor:
    return (0.5 - 0.5 * F.cosine_similarity(t, s, dim=-1)).mean()


def plain_cross_entropy(t: Tensor, s: Tensor, *_: Any) -> Tensor:
    return -(t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean()


PLAIN = {
    "mse": plain_mse,
    "mse_with_mask": plain_mse_with_mask,
    "attention_mse_with_mask": plain_attention,
    "cos": plain_cos,
    "cross_entropy": plain_cross_entropy,
}


def own_loss(
    t: Tensor, s: Tensor, teacher_input: Any, student_input: Any, power: float = 2.0
) -> Tensor:
    mask = student_input["attention_mask"] * teacher_input["attention_mask"]
    return ((t - s).abs() ** power * mask[..., None]).mean()


def plain_loop(
    config: Any, teachers: Any, student: nn.Module, batches: Any, optimizer: Any,
    adaptor: Any = as_dicts, outputs: Any = output_adaptor, epochs: int = 1,
) -> list[float]:  # fmt: skip
    def run(model: nn.Module, given: Any) -> Any:
        return outputs(model(**given) if isinstance(given, dict) else model(*given))

    losses = []
    student.train()
    for batch in [b for _ in range(epochs) for b in batches]:
        teacher_input, student_input = adaptor("cpu", batch)
        with torch.no_grad():
            ts = [run(t.eval(), teacher_input) for t in teachers]
        s = run(student, student_input)
        loss = torch.zeros(())
        for item in config:
            name = item["loss"]["loss_function"]
            so = s[item["student_layer_name"]][item["student_layer_output_name"]]
            if item.get("type") == "hard_distill":
                truth = item["batch_data_to_label"](batch)
                loss = loss + F.cross_entropy(so, truth) * item["weight"]
                continue
            to = ts[item.get("teacher", 0)]
            to = to[item["teacher_layer_name"]][item["teacher_layer_output_name"]]
            fn = PLAIN[name] if isinstance(name, str) else name
            inputs = teacher_input, student_input
            loss = loss + fn(to, so, *inputs, **item["loss"]["args"]) * item["weight"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def adam(model: nn.Module) -> torch.optim.Optimizer:
    biases = [p for n, p in model.named_parameters() if "bias" in n]
    weights = [p for n, p in model.named_parameters() if "bias" not in n]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.Adam(groups, lr=1e-3)


def distill(config: Any, teacher: Any, student: nn.Module, batches: Any, **options: Any) -> Any:
    """Run a distiller; gives the losses that its evaluator saw."""
    seen: list[float] = []

    class Recorder:
        def evaluate(
            self, t: Any, s: Any, dev: Any, adaptor: Any, epoch: int, step: int, loss: Any
        ) -> None:
            assert t is teacher and s is student and dev == "dev" and adaptor == "adaptor"
            seen.append(float(loss))

    adaptor = options.pop("adaptor", as_dicts)
    outputs = options.pop("outputs", output_adaptor)
    loss_model = options.pop("loss_model", None) or MultiLayerBasedDistillationLoss(
        distill_config=config, teacher_output_adaptor=outputs, student_output_adaptor=outputs
    )
    KnowledgeDistiller(
        teacher_model=teacher, student_model=student, train_dataloader=batches,
        dev_dataloader="dev", device=torch.device("cpu"), loss_model=loss_model,
        optimizer=options.pop("optimizer", None) or adam(student),
        evaluator=options.pop("evaluator", None) or Recorder(),
        num_epoch=options.pop("num_epoch", 1), train_data_adaptor=adaptor,
        dev_data_adaptor="adaptor", **options,
    ).distillate()  # fmt: skip
    return seen


def pair(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    return Tiny(4), Tiny(2)


def agree(a: nn.Module, b: nn.Module, tolerance: float = 1e-5) -> None:
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert (x - y).abs().max() <= tolerance, name


FULL = [
    entry("embedding.hidden", "embedding.hidden", "mse_with_mask", 0.5),
    entry("layer1.hidden", "layer2.hidden", "mse_with_mask"),
    entry("layer2.hidden", "layer4.hidden", "mse"),
    entry("layer2.attention", "layer4.attention", "attention_mse_with_mask", 2.0),
    entry("layer2.pooled", "layer4.pooled", "cos", type="ts_distill"),
    entry("head.logits", "head.logits", "cross_entropy", 0.7),
    entry("layer1.hidden", "layer3.hidden", own_loss, 0.3, args={"power": 3.0}),
    {
        "type": "hard_distill", "student_layer_name": "head", "student_layer_output_name": "logits",
        "loss": {"loss_function": "cross_entropy", "args": {}}, "weight": 0.3,
        "batch_data_to_label": lambda batch: batch[2],
    },
]  # fmt: skip


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
@pytest.mark.parametrize("compile", [False, COMPILE, True], ids=["eager", "aot_eager", "inductor"])
def test_fifty_steps_agree_with_a_plain_loop(compile: Any) -> None:
    teacher, student = pair()
    plain, before = copy.deepcopy(student), copy.deepcopy(teacher)
    expected = plain_loop(FULL, [teacher], plain, loader(), adam(plain))
    losses = distill(FULL, teacher, student, loader(), compile=compile)
    agree(student, plain)
    agree(teacher, before, 0.0)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0]


def test_epochs_and_tuple_inputs() -> None:
    config = [
        entry("layer2.hidden", "layer4.hidden", "mse_with_mask"),
        entry("layer2.attention", "layer4.attention", "attention_mse_with_mask"),
    ]
    teacher, student = pair()
    plain = copy.deepcopy(student)
    plain_loop(config, [teacher], plain, loader(10), adam(plain), epochs=2)
    losses = distill(
        config, teacher, student, loader(10), adaptor=as_tuples, num_epoch=2, compile=False
    )
    assert len(losses) == 20
    agree(student, plain)


@pytest.mark.compile
def test_several_teachers() -> None:
    config = [
        entry("layer2.hidden", "layer4.hidden", "mse_with_mask", teacher=0),
        entry("layer2.hidden", "layer3.hidden", own_loss, teacher=1),
        entry("head.logits", "head.logits", "mse", 0.5, teacher=1),
    ]
    first, student = pair()
    teachers = [first, pair(1)[0]]
    plain = copy.deepcopy(student)
    plain_loop(config, teachers, plain, loader(), adam(plain))
    distill(config, teachers, student, loader(), compile=COMPILE)
    agree(student, plain)

    named = {"a": teachers[0], "b": teachers[1]}
    by_name = [{**item, "teacher": "ab"[item["teacher"]]} for item in config]

    def each(device: Any, batch: Any) -> Any:
        given, student_input = as_dicts(device, batch)
        return {"a": given, "b": given}, student_input

    again = pair()[1]
    distill(by_name, named, again, loader(), adaptor=each, compile=False)
    agree(again, plain)


@pytest.mark.compile
def test_the_example_script_of_the_package() -> None:
    """BERT as that package's README has it: an adaptor that unpacks a tuple, maps asked for in
    the config, a pooler that no loss reaches."""
    sizes: Any = dict(
        hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=20,
        max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = BertModel(BertConfig(num_hidden_layers=4, **sizes))
    student = BertModel(BertConfig(num_hidden_layers=2, **sizes))
    plain = copy.deepcopy(student)
    plain.set_attn_implementation("eager")

    def unpacking(output: Any) -> Any:
        _, pooled, hidden, maps = output
        found = {"embedding": {"hidden": hidden[0]}, "pred": {"pooled": pooled}}
        for i, attention in enumerate(maps):
            found[f"layer{i + 1}"] = {"hidden": hidden[i + 1], "attention": attention}
        return found

    def by_name(output: Any) -> Any:
        return unpacking((None, output.pooler_output, output.hidden_states, output.attentions))

    config = [
        entry("embedding.hidden", "embedding.hidden", "mse_with_mask"),
        entry("layer1.attention", "layer2.attention", "attention_mse_with_mask"),
        entry("layer2.hidden", "layer4.hidden", "mse_with_mask"),
    ]

    def adaptor(device: Any, batch: Any) -> Any:
        given = {"input_ids": batch[0].to(device), "attention_mask": batch[1].to(device)}
        return given, given

    distill(config, teacher, student, loader(), outputs=unpacking, adaptor=adaptor, compile=COMPILE)
    plain_loop(config, [teacher], plain, loader(), adam(plain), adaptor=adaptor, outputs=by_name)
    agree(student, plain)


def test_parameters_that_no_loss_reaches_keep_their_values() -> None:
    teacher, student = pair()
    before = copy.deepcopy(student)
    config = [entry("layer1.hidden", "layer1.hidden", "mse")]
    distill(config, teacher, student, loader(3), compile=False)
    assert torch.equal(student.layers[1].weight, before.layers[1].weight)  # type: ignore[index]
    assert not torch.equal(student.layers[0].weight, before.layers[0].weight)  # type: ignore[index]


def test_a_batch_of_padding_only_is_no_division_by_zero() -> None:
    teacher, student = pair()
    ids, mask, labels = loader(1)[0]
    config = [entry("layer1.hidden", "layer1.hidden", "mse_with_mask")]
    losses = distill(config, teacher, student, [(ids, mask * 0, labels)], compile=False)
    assert losses == [0.0]
    assert all(p.isfinite().all() for p in student.parameters())


def test_a_loss_by_name_and_a_loss_model_of_the_users_own() -> None:
    teacher, student = pair()
    config = [entry("layer1.hidden", "layer2.hidden", "mine", args={"power": 3.0})]
    loss_model = MultiLayerBasedDistillationLoss(config, output_adaptor, output_adaptor)
    loss_model.loss_functions["mine"] = own_loss
    plain = copy.deepcopy(student)
    direct = [{**config[0], "loss": {"loss_function": own_loss, "args": {"power": 3.0}}}]
    plain_loop(direct, [teacher], plain, loader(5), adam(plain))
    distill(config, teacher, student, loader(5), loss_model=loss_model, compile=False)
    agree(student, plain)

    class Whole(nn.Module):
        """A loss model with a parameter of its own, which the user's optimizer trains."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, t: Any, s: Any, teacher_input: Any, student_input: Any) -> Tensor:
            return own_loss(t[1][2], s[1][1] * self.scale, teacher_input, student_input, power=3.0)

    whole, again = Whole(), pair()[1]
    optimizer = torch.optim.Adam([*again.parameters(), *whole.parameters()], lr=1e-3)
    distill(None, teacher, again, loader(5), loss_model=whole, optimizer=optimizer, compile=False)
    assert not torch.equal(whole.scale, torch.ones(8))


@pytest.mark.compile
def test_what_cannot_be_compiled_runs_eagerly_with_a_warning() -> None:
    def looks_at_values(t: Tensor, s: Tensor, teacher_input: Any, student_input: Any) -> Tensor:
        counts = teacher_input["attention_mask"].bool()
        assert counts.sum().item() > 0
        return ((t - s)[counts] ** 2).mean()

    config = [entry("layer2.hidden", "layer4.hidden", looks_at_values)]
    teacher, student = pair()
    plain = copy.deepcopy(student)
    plain_loop(config, [teacher], plain, loader(5), adam(plain))
    with pytest.warns(UserWarning, match="runs eagerly"):
        distill(config, teacher, student, loader(5), compile=COMPILE)
    agree(student, plain)


def test_batch_statistics_are_the_students_own() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    torch.manual_seed(0)
    teacher, student = Normed(), Normed()
    plain, before = copy.deepcopy(student), copy.deepcopy(teacher)
    config = [entry("net.out", "net.out", "mse")]
    batches = [(torch.randn(8, 4),) for _ in range(STEPS)]
    options: Any = dict(
        adaptor=lambda device, batch: (batch, batch), outputs=lambda out: {"net": {"out": out}}
    )
    plain_loop(config, [teacher], plain, batches, adam(plain), **options)
    distill(config, teacher, student, batches, compile=False, **options)
    agree(student, plain)
    for x, y in zip(student.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(teacher.buffers(), before.buffers(), strict=True):
        assert torch.equal(x, y)


def test_the_evaluator_logs_and_saves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher, student = pair()
    config = [entry("head.logits", "head.logits", "mse")]
    evaluator = MultiLayerBasedDistillationEvaluator(
        tmp_path / "saved", save_step=2, print_loss_step=3
    )
    with caplog.at_level(logging.INFO):
        distill(
            config, teacher, student, loader(5), evaluator=evaluator, num_epoch=2, compile=False
        )
    folder = tmp_path / "saved"
    names = {"0-2", "0-4", "1-2", "1-4", "LossValue.txt"}
    assert {p.name for p in folder.iterdir()} == names
    lines = (folder / "LossValue.txt").read_text().splitlines()
    assert [line.rpartition(":")[0] for line in lines] == [
        "epoch:0,\tstep:3,\tloss value", "epoch:1,\tstep:3,\tloss value"
    ]  # fmt: skip
    assert lines[0] in [record.message for record in caplog.records]
    from safetensors.torch import load_model

    reloaded = Tiny(2)
    load_model(reloaded, str(folder / "1-4" / "model.safetensors"))
    agree(reloaded, student, 0.0)


def test_an_evaluator_without_a_folder_saves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    teacher, student = pair()
    evaluator = MultiLayerBasedDistillationEvaluator(save_dir=None, save_step=2, print_loss_step=20)
    config = [entry("head.logits", "head.logits", "mse")]
    distill(config, teacher, student, loader(5), evaluator=evaluator, compile=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_layer_name": "layer3"}, r"'layer3'.*Available: .*layer1, layer2"),
        ({"teacher_layer_name": "layer9"}, r"'layer9'.*Available: .*layer1, .*layer4"),
        ({"teacher_layer_output_name": "hiden"}, r"Did you mean 'hidden'\? Available: hidden"),
        ({"loss": {"loss_function": "mse_mask"}}, r"unknown loss 'mse_mask'.*mse_with_mask"),
        ({"type": "soft"}, r"'soft'; one of ts_distill, hard_distill"),
        ({"teacher": "other"}, r"'other'; there are 1 teachers, and one of teacher"),
    ],
)  # fmt: skip
def test_unknown_names_are_errors_before_any_update(change: Any, message: str) -> None:
    teacher, student = pair()
    before = copy.deepcopy(student)
    config = [{**entry("layer1.hidden", "layer1.hidden", "mse"), **change}]
    with pytest.raises(ValueError, match=message):
        distill(config, teacher, student, loader(2), compile=False)
    agree(student, before, 0.0)


def test_an_incomplete_item_says_what_it_lacks() -> None:
    item = entry("layer1.hidden", "layer1.hidden", "mse")
    del item["teacher_layer_name"]
    with pytest.raises(ValueError, match=r"distill_config\[0\]: no teacher_layer_name; it has"):
        terms_from_config([item])


@pytest.mark.compile
def test_constants_that_change_with_every_batch_are_refused_only_when_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fkd.interop.knowledge_distillation import _update

    monkeypatch.setattr(_update, "MOST_VARIANTS", 2)

    class Count:
        calls = 0

    def adaptor(device: Any, batch: Any) -> Any:
        Count.calls += 1
        teacher_input, student_input = as_dicts(device, batch)
        return teacher_input, {**student_input, "scale": 1.0 + Count.calls}

    config = [entry("layer1.hidden", "layer1.hidden", "mse")]
    teacher, student = pair()
    assert len(distill(config, teacher, student, loader(4), adaptor=adaptor, compile=False)) == 4
    with pytest.raises(ValueError, match=r"scale.*Make them tensors"):
        distill(config, teacher, student, loader(4), adaptor=adaptor, compile={"backend": "eager"})


def test_the_terms_go_on_in_fkds_own_style() -> None:
    config = FULL[:6]
    teacher, student = pair()
    plain = copy.deepcopy(student)
    fields = [{"input_ids": i, "attention_mask": m} for i, m, _ in loader()]
    plain_loop(config, [teacher], plain, loader(), adam(plain))

    def inputs(batch: Any) -> Any:
        return (batch,)

    objective = fkd.Objective(
        terms_from_config(config),
        student=fkd.trainable(
            Adapted(student, output_adaptor), inputs=inputs, unused=["model.unread"]
        ),
        teacher=fkd.frozen(Adapted(teacher, output_adaptor), inputs=inputs),
    )

    def optimizer(params: Any) -> torch.optim.Optimizer:
        groups = fkd.loops.param_groups(
            params, weight_decay=0.01, no_decay=lambda n, _: "bias" in n
        )
        return torch.optim.Adam(groups, lr=1e-3)

    step = fkd.loops.train_step(objective, optimizer, compile=False)
    state = step.init()
    for batch in fields:
        state, _ = step(state, batch)
    for name, p in plain.named_parameters():
        if not name.startswith("unread"):
            assert (state.trainable["student"][f"model.{name}"] - p).abs().max() < 1e-5, name


def test_the_loss_model_on_its_own() -> None:
    teacher, student = pair()
    batch = loader(1)[0]
    given, _ = as_dicts("cpu", batch)
    config = FULL[:7]
    loss_model = MultiLayerBasedDistillationLoss(config, output_adaptor, output_adaptor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = loss_model(teacher(**given), student(**given), given, given)
    plain = copy.deepcopy(student)
    expected = plain_loop(config, [teacher], plain, [batch], adam(plain))[0]
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert student.head.weight.grad is not None  # type: ignore[union-attr]


# What that package takes, and a compiled graph does not.


class Fitted(nn.Module):
    """An output adaptor with a layer of its own."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.fit = layer, nn.Linear(8, 8)

    def forward(self, output: Any) -> Any:
        found = output_adaptor(output)
        return {**found, self.layer: {"hidden": self.fit(found[self.layer]["hidden"])}}


@pytest.mark.compile
@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("closed", [True, False], ids=["closure", "submodule"])
def test_layers_in_an_adaptor_are_trained(side: str, closed: bool) -> None:
    config = [entry("layer2.hidden", "layer4.hidden", "mse")]

    def trained(compile: Any) -> tuple[nn.Module, nn.Module]:
        teacher, student = pair()
        fitted = Fitted("layer4" if side == "teacher" else "layer2")
        adaptor: Any = (lambda output: fitted(output)) if closed else fitted
        adaptors = {"teacher": output_adaptor, "student": output_adaptor, side: adaptor}
        loss_model = MultiLayerBasedDistillationLoss(
            config, adaptors["teacher"], adaptors["student"]
        )
        optimizer = torch.optim.SGD([*student.parameters(), *fitted.parameters()], lr=0.1)
        distill(None, teacher, student, loader(5), loss_model=loss_model,
                optimizer=optimizer, compile=compile)  # fmt: skip
        return student, fitted

    with pytest.warns(UserWarning, match="belong neither to the student nor to the loss model"):
        student, fitted = trained(COMPILE)
    plain, expected = trained(False)
    agree(student, plain)
    agree(fitted, expected)
    assert (fitted.fit.weight - Fitted("x").fit.weight).abs().max() > 1e-3  # type: ignore


@pytest.mark.compile
def test_embeddings_shared_with_the_teacher() -> None:
    def shared(compile: Any) -> nn.Module:
        teacher, student = pair()
        student.embed = teacher.embed
        config = [entry("layer2.hidden", "layer4.hidden", "mse")]
        distill(config, teacher, student, loader(5), compile=compile)
        assert not torch.equal(teacher.embed.weight, pair()[0].embed.weight)  # type: ignore
        return student

    with pytest.warns(UserWarning, match="share the parameter"):
        student = shared(COMPILE)
    agree(student, shared(False))


class Subscripted:
    """Neither a dict nor a list."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __getitem__(self, key: str) -> Any:
        return [self.values[int(key.removeprefix("hidden"))]]


@pytest.mark.compile
@pytest.mark.parametrize("compile", [False, COMPILE], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    ("adaptor", "student", "taught"),
    [
        (lambda out: [[h] for h in out[1]], (2, 0), (4, 0)),
        (lambda out: {"hidden": out[1], "text": "x", "none": None}, ("hidden", 2), ("hidden", -1)),
        (lambda out: {"hidden": torch.stack(out[1])}, ("hidden", 2), ("hidden", 4)),
        (lambda out: Subscripted(out[1]), ("hidden2", 0), ("hidden4", 0)),
    ],
    ids=["lists", "dict of tuples", "one tensor", "a class"],
)
def test_adaptors_may_give_anything_with_subscripts(
    adaptor: Any, student: Any, taught: Any, compile: Any
) -> None:
    item = entry("x.y", "x.y", "mse_with_mask")
    item.update(zip(("student_layer_name", "student_layer_output_name"), student, strict=True))
    item.update(zip(("teacher_layer_name", "teacher_layer_output_name"), taught, strict=True))
    teacher, small = pair()
    plain = copy.deepcopy(small)
    config = [entry("layer2.hidden", "layer4.hidden", "mse_with_mask")]
    plain_loop(config, [teacher], plain, loader(5), adam(plain))
    distill([item], teacher, small, loader(5), outputs=adaptor, compile=compile)
    agree(small, plain)


def test_what_an_adaptor_gives_is_named_when_it_is_no_dict() -> None:
    teacher, student = pair()
    config = [entry("layer2.hidden", "layer4.hidden", "mse")]
    with pytest.raises(ValueError, match=r"layer_name is 'layer2', but what .* gave is a int"):
        distill(config, teacher, student, loader(1), outputs=lambda out: 3)
    with pytest.raises(ValueError, match=r"'layer2': no such name. Available: 0, 1, 2"):
        distill(config, teacher, student, loader(1), outputs=lambda out: list(out[1]))


@pytest.mark.compile
@pytest.mark.parametrize("compile", [False, COMPILE], ids=["eager", "compiled"])
def test_a_loss_model_that_is_a_subclass_keeps_its_own_forward(compile: Any) -> None:
    class More(MultiLayerBasedDistillationLoss):
        def forward(self, *args: Any) -> Tensor:
            return super().forward(*args) + plain_mse(args[0][0], args[1][0])

    config = [entry("layer2.hidden", "layer4.hidden", "mse")]
    teacher, student = pair()
    plain = copy.deepcopy(student)
    both = [*config, entry("head.logits", "head.logits", "mse")]
    plain_loop(both, [teacher], plain, loader(5), adam(plain))
    loss_model = More(config, output_adaptor, output_adaptor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distill(None, teacher, student, loader(5), loss_model=loss_model, compile=compile)
    agree(student, plain)


@pytest.mark.compile
@pytest.mark.parametrize("compile", [False, COMPILE], ids=["eager", "compiled"])
def test_what_an_evaluator_changes_holds_from_the_next_step(compile: Any) -> None:
    """Weights and items of the config, and weights of the student."""
    config = [entry("layer2.hidden", "layer4.hidden", "mse", 1.0)]
    more = entry("head.logits", "head.logits", "mse", 0.5)
    teacher, student = pair()
    plain = copy.deepcopy(student)
    optimizer = adam(plain)
    for i, batch in enumerate(loader(6)):
        weighted = [{**config[0], "weight": 1.0 / (i + 1)}, *([more] if i > 3 else [])]
        plain_loop(weighted, [teacher], plain, [batch], optimizer)
        if i == 2:
            with torch.no_grad():
                plain.head.weight.mul_(0.5)  # type: ignore[union-attr]

    class Changing:
        def evaluate(self, t: Any, s: Any, dev: Any, adaptor: Any, e: int, i: int, loss: Any):
            config[0]["weight"] = 1.0 / (i + 2)
            if i == 2:
                with torch.no_grad():
                    s.head.weight.mul_(0.5)
            if i == 3:
                config.append(more)

    distill(config, teacher, student, loader(6), evaluator=Changing(), compile=compile)
    agree(student, plain)


@pytest.mark.compile
def test_a_loss_in_numpy_and_one_that_counts_its_calls() -> None:
    def in_numpy(t: Tensor, s: Tensor, *_: Any) -> Tensor:
        return ((torch.from_numpy(t.numpy() * 2) - s) ** 2).mean()

    config = [entry("layer2.hidden", "layer4.hidden", in_numpy)]
    teacher, student = pair()
    plain = copy.deepcopy(student)
    plain_loop(config, [teacher], plain, loader(4), adam(plain))
    with pytest.warns(UserWarning, match="runs eagerly"):
        distill(config, teacher, student, loader(4), compile=COMPILE)
    agree(student, plain)

    calls: list[int] = []

    def counted(t: Tensor, s: Tensor, *_: Any) -> Tensor:
        calls.append(len(calls))
        return plain_mse(t, s) * len(calls)

    config = [entry("layer2.hidden", "layer4.hidden", counted)]
    distill(config, *pair(), loader(4), compile=False)
    assert calls == [0, 1, 2, 3]  # once a step, as there


def test_forms_of_the_device_reach_the_adaptor_as_they_are() -> None:
    config = [entry("layer2.hidden", "layer4.hidden", "mse")]
    for device in ("cpu", None, torch.device("cpu", 0)):
        seen: list[Any] = []

        def adaptor(given: Any, batch: Any, seen: list[Any] = seen) -> Any:
            seen.append(given)
            return as_dicts(given, batch) if given is not None else as_dicts("cpu", batch)

        teacher, student = pair()
        KnowledgeDistiller(
            teacher, student, loader(2), None, device,
            MultiLayerBasedDistillationLoss(config, output_adaptor, output_adaptor),
            adam(student), None, 1, adaptor, compile=False,
        ).distillate()  # fmt: skip
        assert seen == [device, device]


def test_labels_of_tokens_with_the_classes_after_the_batch() -> None:
    config = [{
        "type": "hard_distill", "student_layer_name": "tokens", "student_layer_output_name": "y",
        "loss": {"loss_function": "cross_entropy", "args": {}}, "weight": 1.0,
        "batch_data_to_label": lambda batch: batch[0] % 8,
    }]  # fmt: skip

    def outputs(out: Any) -> Any:
        return {"tokens": {"y": out[1][-1].transpose(1, 2)}}

    teacher, student = pair()
    plain = copy.deepcopy(student)
    plain_loop(config, [teacher], plain, loader(4), adam(plain), outputs=outputs)
    distill(config, teacher, student, loader(4), outputs=outputs, compile=False)
    agree(student, plain)


def test_the_named_losses_may_be_given_as_functions() -> None:
    import fkd.interop.knowledge_distillation as kd

    assert issubclass(kd.MultiLayerBasedDistillationEvaluator, kd.IEvaluator)
    config = [entry("layer2.hidden", "layer4.hidden", kd.mse_with_mask)]
    by_name = [entry("layer2.hidden", "layer4.hidden", "mse_with_mask")]
    teacher, student = pair()
    plain = copy.deepcopy(student)
    plain_loop(by_name, [teacher], plain, loader(3), adam(plain))
    distill(config, teacher, student, loader(3), compile=False)
    agree(student, plain)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyError, RuntimeError])
def test_only_what_cannot_be_compiled_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Everything else is seen, and the student stays as it was."""
    from fkd.interop.modules import Bound

    def failing(*_: Any) -> Any:
        raise error("of the machine")

    monkeypatch.setattr(Bound, "backward", failing)
    config = [entry("layer2.hidden", "layer4.hidden", "mse")]
    teacher, student = pair()
    before = copy.deepcopy(student)
    with pytest.raises(error, match="of the machine"):
        distill(config, teacher, student, loader(2), compile=COMPILE)
    agree(student, before, 0.0)


@pytest.mark.compile
def test_a_mistake_is_seen_as_one_and_not_as_something_for_the_eager_step() -> None:
    def wrong(t: Tensor, s: Tensor, *_: Any) -> Tensor:
        return t["no such key"]  # type: ignore[index]

    config = [entry("layer2.hidden", "layer4.hidden", wrong)]
    for compile in (False, COMPILE):
        with warnings.catch_warnings(), pytest.raises((IndexError, TypeError)):
            warnings.simplefilter("error")
            distill(config, *pair(), loader(2), compile=compile)
