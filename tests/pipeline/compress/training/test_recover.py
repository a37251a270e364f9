"""Recovery: repeatable, resumable, never worse than the start, exact zeros."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.compress.training.config import RecoverConfig
from paredown.pipeline.compress.training.features import FeatureTap
from paredown.pipeline.compress.training.loop import learning_rate
from paredown.pipeline.compress.training.recover import Recovered, recover
from paredown.pipeline.compress.training.sparsify import SparsitySchedule, prune_weights
from paredown.pipeline.store.checkpoint import load_checkpoint, save_checkpoint
from paredown.targets.errors import InputError, ParedownError, UsageError

pytestmark = pytest.mark.unit

QUICK = RecoverConfig(method="both", epochs=4, warmup=2, checkpoint_every=1, lr=0.05, ema=0.9, patience=99)
INNER = ("body.3.weight", "body.6.weight")


class Net(nn.Module):
    """Small, with batch norm and dropout: what a step draws must depend on its number alone."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 8, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.body(x).mean((2, 3))))


class Toy:
    """Which corner of the image is bright; a pure function of the step."""

    per_epoch = 3

    def __init__(self, labelled: bool = True, seed: int = 0) -> None:
        self.labelled, self.seed = labelled, seed

    def __call__(self, step: int) -> tuple[Tensor, Tensor | None]:
        chance = torch.Generator().manual_seed(1000 * self.seed + step)
        images = torch.rand(8, 3, 8, 8, generator=chance)
        labels = torch.randint(0, 4, (8,), generator=chance)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 4 * (label // 2) :][:, :4, 4 * (label % 2) :][:, :, :4] += 1
        return images, labels if self.labelled else None


def net(seed: int = 0, width: int = 8) -> Net:
    torch.manual_seed(seed)
    return Net(width).eval()


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")


def agreement(teacher: nn.Module):
    """A metric on inputs that no batch has: how near the outputs are to the teacher's."""
    images = torch.cat([Toy(seed=9)(step)[0] for step in range(3)])
    with torch.no_grad():
        wanted = teacher(images)

    def evaluate(network: nn.Module) -> float:
        with torch.no_grad():
            return -float(kl(network(images), wanted))

    return evaluate


def go(student: nn.Module, config: RecoverConfig = QUICK, batches: Toy | None = None, **options) -> Recovered:
    options = {"label_loss": F.cross_entropy, "distil": kl, **options}
    if "teacher" not in options:
        options["teacher"] = net(7)
    return recover(student, batches or Toy(), config, **options)


def same(one: nn.Module, other: nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def full(target: float = 0.6, **options) -> dict:
    """Everything at once."""
    teacher = net(7)
    return {
        "teacher": teacher,
        "evaluate": agreement(teacher),
        "features": (FeatureTap("body.5"),),
        "sparsity": SparsitySchedule(target, INNER, every=2),
        **options,
    }


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    """A network that knows the corners."""
    config = replace(QUICK, method="labels", epochs=20, lr=0.2)
    return go(net(7), config, evaluate=accuracy).network


@pytest.mark.parametrize("method", ["labels", "distil", "both"])
def test_it_wins_back_what_was_lost_and_leaves_the_given_networks_alone(taught, method):
    teacher, student = taught, copy.deepcopy(taught)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += parameter.std() * torch.randn_like(parameter)
    assert accuracy(teacher) > 0.9
    given, original = copy.deepcopy(student), copy.deepcopy(teacher)
    lines, ticks = [], []
    result = go(
        student, replace(QUICK, method=method, epochs=12), teacher=teacher,
        evaluate=accuracy if method == "labels" else agreement(teacher), report=lines.append,
        tick=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert result.best > result.baseline
    assert accuracy(result.network) > accuracy(student) + 0.2
    assert result.best == max(row["metric"] for row in result.history)
    assert result.best_step == next(r["step"] for r in result.history if r["metric"] == result.best)
    assert same(student, given) and same(teacher, original)
    assert not result.network.training and not student.training
    assert all(p.is_contiguous() for p in result.network.parameters())
    assert ticks == [(step, 36) for step in range(1, 37)]
    assert [row["step"] for row in result.history] == list(range(3, 37, 3))
    assert len(lines) == 12 and "metric" in lines[-1]
    assert (result.steps, result.stopped_early) == (36, False)


def accuracy(network: nn.Module) -> float:
    with torch.no_grad():
        pairs = [Toy(seed=9)(step) for step in range(4)]
        return sum(float((network(x).argmax(1) == y).sum()) for x, y in pairs) / 32


def test_the_best_metric_is_that_of_the_network_that_comes_back():
    options = full()
    result = go(net(1), **options)
    assert options["evaluate"](result.network) == result.best


def test_the_same_run_twice_is_the_same_and_another_seed_is_not():
    one, two = go(net(1), **full()), go(net(1), **full())
    assert same(one.network, two.network) and one.history == two.history
    assert not same(one.network, go(net(1), replace(QUICK, seed=1), **full()).network)  # dropout


def test_it_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    student, teacher = net(1), net(7)
    torch.manual_seed(5)
    go(student, teacher=teacher)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 3, 5, 10])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path, stop, optimizer):
    config = replace(QUICK, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.005)
    straight = go(net(1), config, **full())

    def pull_the_plug(done, total):
        if done == stop + 1:
            raise KeyboardInterrupt  # before this step's checkpoint: the step is done again

    path = tmp_path / "ck"
    with pytest.raises(KeyboardInterrupt):
        go(net(1), config, checkpoint=path, tick=pull_the_plug, **full())
    assert load_checkpoint(path)["step"] == stop
    resumed = go(net(1), config, checkpoint=path, **full())
    assert same(resumed.network, straight.network)
    assert replace(resumed, network=straight.network) == straight
    finished = go(net(1), config, checkpoint=path, tick=pull_the_plug, **full())  # takes no step
    assert same(finished.network, straight.network)


def test_a_resumed_run_does_not_repeat_evaluations(tmp_path):
    calls = []
    options = full()
    evaluate = options.pop("evaluate")

    def counted(network):
        calls.append(1)
        return evaluate(network)

    go(net(1), checkpoint=tmp_path / "ck", evaluate=counted, **options)
    first = len(calls)
    go(net(1), checkpoint=tmp_path / "ck", evaluate=counted, **options)
    assert len(calls) == first


def test_it_never_comes_back_worse_than_it_was_given():
    teacher = net(7)
    wild = replace(QUICK, lr=3.0, method="distil")
    result = go(teacher, wild, teacher=teacher, evaluate=agreement(teacher))
    assert result.best_step == 0
    assert result.best == result.baseline == pytest.approx(0, abs=1e-6)
    assert same(result.network, teacher)


def test_with_sparsity_the_start_pruned_at_once_is_a_candidate():
    teacher = net(7)
    plan = SparsitySchedule(0.5, INNER)
    result = go(teacher, replace(QUICK, lr=3.0), teacher=teacher, evaluate=agreement(teacher), sparsity=plan)
    pruned = copy.deepcopy(teacher)
    prune_weights(pruned, 0.5, INNER)
    assert result.best_step == 0
    assert same(result.network, pruned)


@pytest.mark.parametrize(
    "metrics", [[0.5, 0.4, 0.6, 0.5, 0.55, 0.5, 0.9], [0.5, math.nan, 0.6, 0.6, 0.6, 0.6, 0.7]]
)
def test_it_stops_when_patience_runs_out(metrics):
    told = iter(metrics)  # the first is the baseline
    result = go(net(1), replace(QUICK, epochs=10, patience=3), evaluate=lambda network: next(told))
    assert result.stopped_early
    assert result.steps == 5 * 3
    assert (result.baseline, result.best, result.best_step) == (0.5, 0.6, 6)


@pytest.mark.parametrize("stop", [4, 7, 10])
def test_patience_goes_on_counting_where_a_killed_run_stopped(tmp_path, stop):
    """The metric only falls: three evaluations after the start it is over, however often it is resumed."""
    config = replace(QUICK, epochs=10, patience=3)

    def falling():
        told = iter(range(100))
        return lambda network: -next(told)

    def pull_the_plug(done, total):
        if done == stop:
            raise KeyboardInterrupt

    straight = go(net(1), config, evaluate=falling())
    assert straight.stopped_early and straight.steps == 3 * 3
    told, path = falling(), tmp_path / "ck"
    if stop <= straight.steps:
        with pytest.raises(KeyboardInterrupt):
            go(net(1), config, evaluate=told, checkpoint=path, tick=pull_the_plug)
    resumed = go(net(1), config, evaluate=told, checkpoint=path)
    again = go(net(1), config, evaluate=told, checkpoint=path)  # it is over, and stays over
    for result in (resumed, again):
        assert (result.stopped_early, result.steps, result.history) == (True, 9, straight.history)


def test_evaluations_come_every_so_many_steps_and_at_the_end():
    result = go(net(1), replace(QUICK, evaluate_every=5), evaluate=accuracy)
    assert [row["step"] for row in result.history] == [5, 10, 12]


def test_without_an_evaluation_the_last_average_comes_back():
    result = go(net(1))
    assert (result.best, result.baseline, result.best_step) == (None, None, 0)
    assert "metric" not in result.history[-1]
    assert not same(result.network, net(1))


def test_the_average_is_the_mean_it_says():
    """One step: the young average's decay is min(0.9, 1 / 10)."""

    class One(Toy):
        per_epoch = 1

    live = go(net(1), replace(QUICK, epochs=1, ema=0.0), One()).network.state_dict()
    average = go(net(1), replace(QUICK, epochs=1, ema=0.9), One()).network.state_dict()
    start = net(1).state_dict()
    for name, tensor in average.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.1 * start[name] + 0.9 * live[name], atol=1e-6, rtol=1e-5)
    assert average["body.1.num_batches_tracked"] == 1


def test_a_step_is_that_of_torchs_own_nesterov_sgd():
    config = replace(QUICK, epochs=1, ema=0.0, method="labels", weight_decay=0.01, clip=1e9, warmup=0)
    got = go(net(1), config).network
    plain = net(1).train()
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    others = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    for step in range(3):
        images, labels = Toy()(step)
        torch.manual_seed(step)  # of the dropout
        loss = F.cross_entropy(plain(images), labels)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, 3)
        optimizer.step()
    for name, tensor in got.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], atol=1e-5, rtol=1e-4)


# -- zeros ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.998])
@pytest.mark.parametrize("end", [0.3, 1.0])
@pytest.mark.parametrize("evaluated", [False, True])
def test_the_share_of_zeros_is_exact_in_what_comes_back(ema, end, evaluated):
    plan = SparsitySchedule(0.61, INNER, end=end, every=1)
    evaluate = agreement(net(7)) if evaluated else None
    result = go(net(1), replace(QUICK, ema=ema), sparsity=plan, evaluate=evaluate)
    counts = [result.network.get_parameter(name).numel() for name in INNER]
    zeros = [int((result.network.get_parameter(name) == 0).sum()) for name in INNER]
    assert sum(zeros) == round(0.61 * sum(counts))
    assert [(s.name, s.zeros, s.count) for s in result.sparsity] == list(
        zip(INNER, zeros, counts, strict=True)
    )
    for name in INNER:
        weight = result.network.get_parameter(name).detach()
        assert not torch.signbit(weight[weight == 0]).any()
        assert ((weight != 0).flatten(1).sum(1) >= 1).all()
    assert all(
        (p != 0).all() for n, p in result.network.named_parameters() if n in ("body.0.weight", "last.weight")
    )


def test_live_weights_and_average_have_the_same_zeros(tmp_path):
    go(net(1), sparsity=SparsitySchedule(0.7, INNER), checkpoint=tmp_path / "ck")
    state = load_checkpoint(tmp_path / "ck")
    for name in INNER:
        gone = ~state["masks"][name]
        assert torch.equal(state["network"][name] == 0, gone)
        assert torch.equal(state["average"][name] == 0, gone)
        momentum = [s["momentum_buffer"] for s in state["optimizer"]["state"].values()]
        assert any(buffer.shape == gone.shape for buffer in momentum)


def test_zeros_grow_along_the_schedule_and_nothing_is_evaluated_before_its_end():
    plan = SparsitySchedule(0.6, INNER, begin=0.25, end=0.75, every=1)
    result = go(net(1), replace(QUICK, evaluate_every=1), sparsity=plan, evaluate=agreement(net(7)))
    assert [row["sparsity"] for row in result.history] == pytest.approx(
        [0.0] * 3 + [0.6 * (1 - (1 - k / 6) ** 3) for k in range(1, 7)] + [0.6] * 3
    )
    assert ["metric" in row for row in result.history] == [False] * 8 + [True] * 4


def test_a_sparsity_that_no_layer_can_have_is_refused_before_any_step(tmp_path):
    with pytest.raises(UsageError, match=r"0\.999.*at most 0\.9"):
        go(net(1), sparsity=SparsitySchedule(0.999, INNER), checkpoint=tmp_path / "ck")
    assert not (tmp_path / "ck").exists()


# -- features ------------------------------------------------------------------------------------------------


def heard(network: nn.Module, path: str, images: Tensor) -> Tensor:
    found = []
    handle = network.get_submodule(path).register_forward_hook(lambda m, i, o: found.append(o.detach()))
    network(images)
    handle.remove()
    return found[0]


def test_features_pull_a_thinner_student_to_the_teachers_kept_channels():
    teacher, kept = net(7), (0, 2, 3, 7)
    images = Toy(seed=9)(0)[0]
    config = replace(QUICK, method="distil", epochs=15, ema=0.5, distil_weight=0.0, feature_weight=5.0)
    wanted = heard(teacher, "body.5", images)[:, kept]
    distances = []
    for student in (
        net(1, width=4),
        go(net(1, 4), config, teacher=teacher, features=[FeatureTap("body.5", kept)]).network,
    ):
        distances.append(float((heard(student, "body.5", images) - wanted).square().mean()))
    assert distances[1] < 0.5 * distances[0]


def test_a_student_that_is_the_teacher_has_no_feature_loss():
    teacher = net(7)
    teacher.drop.p = 0.0

    class Frozen(nn.Module):  # batch norm in evaluation mode: student and teacher compute the same
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(teacher)

        def train(self, mode: bool = True) -> nn.Module:
            return super().train(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    config = replace(QUICK, method="distil", epochs=1, lr=1e-12, weight_decay=0)
    result = go(Frozen(), config, teacher=Frozen(), features=[FeatureTap("inner.body.5")])
    assert result.history[0]["loss"] == pytest.approx(0, abs=1e-6)


def test_no_hook_stays_behind():
    teacher, student = net(7), net(1)
    result = go(student, teacher=teacher, features=[FeatureTap("body.5")])
    for network in (teacher, student, result.network):
        assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("student", "tap", "words"),
    [
        (
            net(1, 4),
            FeatureTap("body.5"),
            r"features, body.5: the student's \(8, 4, 4, 4\) is not .*channels",
        ),
        (net(1, 4), FeatureTap("body.5", (0, 1, 2)), r"\(8, 3, 4, 4\)"),
        (net(1), FeatureTap("body.99"), "no module 'body.99'"),
    ],
)
def test_features_that_do_not_fit_are_named(student, tap, words):
    with pytest.raises(InputError, match=words):
        go(student, features=[tap])


# -- what cannot work ----------------------------------------------------------------------------------------


def test_unlabelled_images_need_a_teacher():
    with pytest.raises(InputError, match="without labels.*'distil'"):
        go(net(1), replace(QUICK, method="labels"), Toy(labelled=False), teacher=None)
    with pytest.raises(UsageError, match="'distil' needs the original network as teacher"):
        go(net(1), replace(QUICK, method="distil"), Toy(labelled=False), teacher=None)
    with pytest.raises(UsageError, match="'labels' needs a loss"):
        go(net(1), replace(QUICK, method="labels"), label_loss=None)
    without = go(net(1), QUICK, Toy(labelled=False))  # "both" takes labels where there are some
    assert same(without.network, go(net(1), replace(QUICK, method="distil"), Toy()).network)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "ck"
    with pytest.raises(
        UsageError, match=r"the loss is (nan|inf) at step \d+ of 27; lower lr \(it was 1e\+30\); .*ck"
    ):
        go(net(1), replace(QUICK, lr=1e30, epochs=9, warmup=0), checkpoint=path)
    state = load_checkpoint(path)
    assert state["step"] >= 1
    for part in ("network", "average"):
        assert all(torch.isfinite(tensor).all() for tensor in state[part].values())
    with pytest.raises(UsageError, match="no checkpoint was kept"):
        go(net(1), label_loss=lambda outputs, labels: outputs.sum() * math.nan)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "ck"
    go(net(1), checkpoint=path, identity="a", **full())
    for student, config, batches, options in (
        (net(2), QUICK, Toy(), full()),
        (net(1), replace(QUICK, lr=0.06), Toy(), full()),
        (net(1), QUICK, Toy(seed=1), full()),
        (net(1), QUICK, Toy(), full(target=0.5)),
        (net(1), QUICK, Toy(), full(teacher=net(8))),
        (net(1), QUICK, Toy(), full(features=())),
        (net(1), QUICK, Toy(), full(identity="b")),
    ):
        with pytest.raises(InputError, match="ck: belongs to another run"):
            go(student, config, batches, **{"checkpoint": path, "identity": "a", **options})


class Reducer:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps(Reducer())])
def test_a_broken_or_hostile_checkpoint_is_an_input_error(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("ck").write_bytes(content)
    with pytest.raises(InputError, match="ck: is no checkpoint.*delete it to start anew"):
        go(net(1), checkpoint=Path("ck"))
    assert not Path("ran").exists()


def test_a_truncated_checkpoint_is_an_input_error(tmp_path):
    path = tmp_path / "ck"
    go(net(1), checkpoint=path, **full())
    whole = path.read_bytes()
    for size in (1, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="ck: is no checkpoint"):
            go(net(1), checkpoint=path, **full())


@pytest.mark.parametrize("part", ["optimizer", "masks", "best_state", "average", "history"])
def test_a_checkpoint_that_lost_a_part_is_an_input_error(tmp_path, part):
    path = tmp_path / "ck"
    go(net(1), checkpoint=path, **full())
    state = load_checkpoint(path)
    del state[part]
    save_checkpoint(path, state)
    with pytest.raises(InputError, match=r"ck: is damaged"):
        go(net(1), checkpoint=path, **full())


def test_a_full_disk_or_a_wrong_place_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        go(net(1), checkpoint=tmp_path / "file" / "ck")


def test_frozen_statistics_stay_while_weights_are_trained():
    """Batch norm computes with the network's own statistics; its gamma and beta are trained like the rest."""
    before = net(1)
    live, frozen = (go(net(1), replace(QUICK, norm=norm)).network.state_dict() for norm in ("live", "frozen"))
    for name, value in before.state_dict().items():
        if "running_" in name or "num_batches" in name:
            assert torch.equal(frozen[name], value)
            assert not torch.equal(live[name], value)
        else:
            assert not torch.equal(frozen[name], value)


@pytest.mark.parametrize(
    "wrong",
    [{"method": "magic"}, {"optimizer": "lion"}, {"norm": "thawed"}, {"epochs": 0}, {"lr": 0.0},
     {"clip": math.nan}, {"ema": 1.0}, {"momentum": -1}, {"patience": 0}, {"distil_weight": math.inf},
     {"seed": -9}, {"device": "nowhere"}],
)  # fmt: skip
def test_wrong_settings_are_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ParedownError, match=f"{name}.*{value}"):
        RecoverConfig(**wrong)
