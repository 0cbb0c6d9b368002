"""Figures of a study, against slow counts, and by what is drawn in them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.comparison import BEST_FIXED, ORACLE, with_best_fixed, with_oracle
from rlmix.agents.figures import (
    baselines,
    choice_figure,
    compared,
    forest_figure,
    gains,
    learning_figure,
    profile_figure,
    usage_by_epochs,
    usage_by_noise,
    usage_by_progress,
)
from rlmix.agents.report import Report, Run
from rlmix.agents.results import LevelResult, Team
from rlmix.envs.instances import digits_set
from rlmix.errors import InputError, UnknownNameError
from rlmix.monitor.figures import colours, png
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
INSTANCES = digits_set("heldout", 9).instances
MEMBERS = ("learned/0", "learned/1")
HORIZON, REPLICATES = 8, 2


def make_run(instance, agent, replicate, rng, names):
    trace = rng.choice(names, HORIZON) if agent in MEMBERS else [agent] * HORIZON
    accuracy = 0.6 + 0.02 * (agent in MEMBERS) + 0.02 * (agent == MEMBERS[1]) + float(rng.normal(0, 0.02))
    return Run(
        instance=instance.id, agent=agent, replicate=replicate, total_steps=instance.total_steps,
        epochs=instance.total_steps * 32 / instance.train_size, accuracy=accuracy, score=1.1 * accuracy,
        ts_nll=1.0 - accuracy, ece=0.3 - 0.2 * accuracy, actions=tuple(map(str, trace)),
    )  # fmt: skip


def make_level(name="L0", seed=0, names=("none", "mixup-1", "uniform-cheap")) -> LevelResult:
    rng = np.random.default_rng(seed)
    runs = [
        make_run(instance, agent, replicate, rng, names)
        for instance, replicate, agent in itertools.product(INSTANCES, range(REPLICATES), (*CHEAP.names, *MEMBERS))
    ]
    report = Report(instances="toy", digest="d", seed=0, split="test", with_validation=True, runs=tuple(runs))
    report = with_oracle(with_best_fixed(report, report, CHEAP.names), CHEAP.names)
    team = Team(name="learned", members=dict.fromkeys(MEMBERS, FixedAgent("none", CHEAP)), observes=True)
    return LevelResult(name=name, instances=INSTANCES, catalogue=CHEAP, teams=(team,), reports={"steps": report})


@pytest.fixture(scope="module")
def result() -> LevelResult:
    return make_level()


def traces(result):
    return [run for member in MEMBERS for run in result.reports["steps"].of(member)]


def lines(axes, label):
    return [line for line in axes.get_lines() if line.get_label() == label]


def test_usage_by_progress_is_that_of_a_slow_count(result):
    """A share of the wrong axis also sums to one."""
    usage = usage_by_progress(result, "learned")
    assert usage.entries == CHEAP.names
    assert usage.groups == tuple("12345678")
    for place, entry in itertools.product(range(HORIZON), CHEAP.names):
        count = sum(run.actions[place] == entry for run in traces(result))
        assert usage.shares[place, CHEAP.index(entry)] == pytest.approx(count / len(traces(result)))
    assert usage.shares[:, CHEAP.index("uniform-cheap")].min() > 0, "a mixture is an entry of its own"


def test_usage_by_noise_groups_each_instance_by_its_own_noise(result):
    """Runs do not say how noisy their labels are: that is looked up by the instance's name."""
    usage = usage_by_noise(result, "learned")
    noises = {instance.id: instance.noise for instance in INSTANCES}
    ranges = {"0": (-1, 0), "0-10": (0, 0.1), "10-20": (0.1, 0.2), "20-30": (0.2, 0.3), "> 30": (0.3, 1)}
    for group, count, shares in zip(usage.groups, usage.counts, usage.shares, strict=True):
        low, high = ranges[group]
        inside = [run for run in traces(result) if low < noises[run.instance] <= high]
        assert len(inside) == count
        chosen = [action for run in inside for action in run.actions]
        assert shares.tolist() == pytest.approx([chosen.count(entry) / len(chosen) for entry in CHEAP.names])
    assert sum(usage.counts) == len(traces(result))


def test_usage_by_epochs_has_three_equal_parts_from_short_to_long(result):
    usage = usage_by_epochs(result, "learned")
    assert usage.counts == (12, 12, 12)
    epochs = sorted({run.instance: run.epochs for run in traces(result)}.values())
    short = {run.instance for run in traces(result) if run.epochs in epochs[:3]}
    chosen = [action for run in traces(result) if run.instance in short for action in run.actions]
    assert usage.shares[0, CHEAP.index("none")] == pytest.approx(chosen.count("none") / len(chosen))
    assert usage.groups[0].startswith("≤")
    assert usage.groups[2].startswith(">")


def test_actions_that_set_parameters_are_counted_by_their_method():
    """Each would otherwise be an entry of its own, used once."""
    usage = usage_by_progress(make_level(names=("cutmix(alpha=0.3)", "cutmix(alpha=0.4)", "none")), "learned")
    assert usage.entries == (*CHEAP.names, "cutmix")
    assert usage.shares.sum(axis=1) == pytest.approx(1.0)


def test_an_entry_has_one_colour_wherever_it_is_drawn(result):
    """Entries that one figure leaves out must not shift the colours of the others."""
    expected = dict(zip(CHEAP.names, colours(CHEAP.names), strict=True))
    figure = choice_figure(result, "learned")
    progress, *bars = figure.axes
    areas = {area.get_label(): to_hex(area.get_facecolor()[0]) for area in progress.collections
             if isinstance(area, PolyCollection)}  # fmt: skip
    assert set(areas) == {"none", "mixup-1", "uniform-cheap"}, "entries that are never chosen are not drawn"
    for entry, colour in areas.items():
        assert colour == to_hex(expected[entry])
    for axes in bars:
        drawn = {bar.get_label(): to_hex(bar.patches[0].get_facecolor()) for bar in axes.containers}
        assert drawn == areas


def test_learning_curves_are_one_thin_line_a_seed_and_their_mean():
    curves = {"seed 0": [(10, 0.01), (20, 0.03)], "seed 1": [(10, 0.03), (20, -0.01)]}
    (axes,) = learning_figure(curves).axes
    seeds, (mean,) = lines(axes, "each agent seed"), lines(axes, "mean")
    assert [line.get_ydata().tolist() for line in seeds] == [pytest.approx([1, 3]), pytest.approx([3, -1])]
    assert mean.get_ydata().tolist() == pytest.approx([2, 1])
    assert mean.get_linewidth() > 2 * seeds[0].get_linewidth()


def test_mean_curve_stands_only_where_every_seed_was_measured():
    """Beyond its end, a curve would be drawn on as if nothing changed."""
    (axes,) = learning_figure({"a": [(10, 0.0), (30, 0.02)], "b": [(20, 0.03), (40, 0.05)]}).axes
    (mean,) = lines(axes, "mean")
    assert mean.get_xdata().tolist() == [20, 30]
    assert mean.get_ydata().tolist() == pytest.approx([2, 3])


def test_a_single_seed_has_no_mean_and_no_curve_is_an_error():
    (axes,) = learning_figure({"a": [(10, 0.0)]}).axes
    assert not lines(axes, "mean")
    for curves in ({}, {"a": []}):
        with pytest.raises(InputError, match="`curves` must be one or more, each with a point"):
            learning_figure(curves)


def test_profile_is_the_share_of_instances_above_each_threshold(result):
    figure = profile_figure([result, make_level("L1", 1), make_level("L2", 2)], "learned")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left")[:2] for axes in shown] == ["L0", "L1", "L2"]
    (line,), (oracle,) = lines(shown[0], "learned"), lines(shown[0], "unbiased oracle")
    own = 100 * gains(result, MEMBERS, "uniform-cheap")
    assert own.shape == (9, 2), "an instance counts once for each member"
    threshold, share = line.get_xdata()[80], line.get_ydata()[80]
    assert share == pytest.approx(float((own > threshold).mean()))
    best = 100 * gains(result, [ORACLE], "uniform-cheap")
    assert oracle.get_ydata()[80] == pytest.approx(float((best > oracle.get_xdata()[80]).mean()))


def test_forest_shows_estimates_intervals_and_each_member(result):
    """What is drawn must be what the tables say."""
    (axes,) = forest_figure([result], "learned").axes
    rows = compared(result, "learned")
    assert list(rows) == list(baselines(result))
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    for bar, row in zip(drawn, rows.values(), strict=False):
        assert bar.get_xdata().tolist() == pytest.approx([100 * row.mean.low, 100 * row.mean.high])
    marks = lines(axes, "each agent seed")
    for mark, (name, row) in zip(marks, rows.items(), strict=True):
        means = [np.mean([run.accuracy for run in result.reports["steps"].of(one)]) for one in (*MEMBERS, name)]
        assert mark.get_xdata().tolist() == pytest.approx([100 * (own - means[2]) for own in means[:2]])
        assert np.mean(mark.get_xdata()) == pytest.approx(100 * row.mean.estimate)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(baselines(result).values())


@pytest.mark.parametrize("draw", [choice_figure, compared])
def test_unknown_team_is_an_error(result, draw):
    with pytest.raises(UnknownNameError, match="No team `learnt` was evaluated"):
        draw(result, "learnt")


def test_figures_stay_small_files(result):
    """A page with a dozen of them must load at once."""
    for figure in (choice_figure(result, "learned"), profile_figure([result] * 4, "learned")):
        assert len(png(figure)) < 300_000


def test_gains_are_paired_means_over_replicates(result):
    report = result.reports["steps"]
    (best,) = gains(result, ["learned/0"], BEST_FIXED)[0].tolist()
    own, other = (
        [run.accuracy for run in report.of(name) if run.instance == INSTANCES[0].id]
        for name in ("learned/0", BEST_FIXED)
    )
    assert best == pytest.approx(sum(own) / 2 - sum(other) / 2)
