"""The configurations of training.coverage: all of them are slow, the default run has every two options together."""

import itertools
import math
import re

import numpy as np
import pytest
import torch

import seqexport
from training import configurations, coverage
from training.configurations import Configuration, grid, singles
from training.coverage import ROOT, Outcome, Worker, check, kinds, sampled, table
from training.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

AXES = ("cell", "layers", "bidirectional", "batch_first", "bias", "state", "dropout")


def options(configuration):
    """Axis of the grid → what is chosen there; how packed rows are padded again is one axis with their packing."""
    chosen = {axis: getattr(configuration, axis) for axis in AXES}
    return chosen | {"packing": (configuration.packed, configuration.padded)}


def pairs(configuration):
    return list(itertools.combinations(options(configuration).items(), 2))


def pairwise(configurations):
    """A few configurations in which every two options meet that do so anywhere: in turn the one with the most new."""
    found = [pairs(configuration) for configuration in configurations]
    bits = {pair: 1 << place for place, pair in enumerate(dict.fromkeys(itertools.chain(*found)))}
    masks = {one: sum(bits[pair] for pair in pairs) for one, pairs in zip(configurations, found, strict=True)}
    left, picked = sum(bits.values()), []
    while left:
        picked.append(max(configurations, key=lambda one: (masks[one] & left).bit_count()))
        left &= ~masks[picked[-1]]
    return picked


def grouped(configurations):
    """Some thirty configurations a group, under a name that tells what they have in common."""
    groups = {}
    for one in configurations:
        order = "batch first" if one.batch_first else "time first"
        directions = "both directions" if one.bidirectional else "one direction"
        name = f"{one.cell}, {one.layers} layers, {directions}, {order}, {'bias' if one.bias else 'no bias'}"
        groups.setdefault(name, []).append(one)
    return groups


SELECTION = pairwise(grid())
GROUPS = grouped(grid())


def thinned(name, group):
    """A group with a mark: every fourth is slow, which CI runs; all of them take half an hour and more."""
    slow = list(GROUPS).index(name) % 4 == 0
    return pytest.param(group, id=name, marks=[pytest.mark.slow if slow else pytest.mark.whole])


def test_the_grid_is_every_combination_once():
    configurations = grid()
    assert len(set(configurations)) == len({str(one) for one in configurations}) == len(configurations)
    sizes = [len(set(axis)) for axis in zip(*(options(one).values() for one in configurations), strict=True)]
    assert sizes == [5, 3, 2, 2, 2, 2, 2, 9]
    without_dropout = [one for one in configurations if not one.dropout]
    assert len(without_dropout) == 5 * 3 * 2 * 2 * 2 * 2 * 9
    assert len(configurations) == len(without_dropout) * 5 // 3  # two and three layers again with dropout


def test_every_two_options_meet_in_the_selection():
    assert set(itertools.chain(*map(pairs, SELECTION))) == set(itertools.chain(*map(pairs, grid())))
    assert len(SELECTION) <= 60


@pytest.mark.parametrize("configuration", [*SELECTION, *singles()], ids=str)
def test_every_two_options_together_are_right(configuration):
    outcome = check(configuration, "seqexport")
    assert outcome.right, outcome.note


@pytest.mark.parametrize("configurations", [thinned(name, group) for name, group in GROUPS.items()])
def test_every_configuration_is_right(configurations):
    outcomes = {one: check(one, "seqexport") for one in configurations}
    assert [f"{one}: {outcome.note}" for one, outcome in outcomes.items() if not outcome.right] == []


def test_packed_rows_differ_and_once_all_end_before_the_input_does():
    for packed in ("sorted", "unsorted"):
        configuration = Configuration("GRU", packed=packed, padded="longest")
        for batch, steps in coverage.SHAPES:
            whole, short = (
                configurations.feeds(configuration, batch, steps, short, seed=0)["lengths"] for short in (False, True)
            )
            assert whole.max() == steps and short.max() == max(1, steps - 1)
            assert min(whole.min(), short.min()) >= 1
            descending = all(np.array_equal(lengths, -np.sort(-lengths)) for lengths in (whole, short))
            assert descending == (packed == "sorted" or batch == 1 or steps == 1)


def test_what_is_almost_right_is_wrong(monkeypatch):
    def slightly_off(configuration, module, path):
        with torch.no_grad():
            module.net.weight_hh_l0[2, 3] += 1e-3
            error = seqexport.export(module, path, inputs=configuration.inputs()).max_abs_error
            module.net.weight_hh_l0[2, 3] -= 1e-3
        return error

    monkeypatch.setitem(coverage.EXPORTS, "slightly off", slightly_off)
    outcome = check(Configuration("LSTM", state=True), "slightly off")
    assert not outcome.right
    assert re.fullmatch(r"output 0 at 1×1: differs by .+e-0[345]", outcome.note)


def test_the_old_exporter_is_judged_like_ours():
    assert check(Configuration("GRU", 2, bidirectional=True, state=True), "dynamo=False").right
    refused = check(Configuration("LSTM with proj_size"), "dynamo=False")
    assert not refused.right and "LSTMs with projections" in refused.note


@pytest.mark.slow
def test_a_process_that_ends_makes_one_export_wrong():
    worker, configuration = Worker(), Configuration("GRU")
    try:
        assert worker.check(configuration, "dynamo=False").right
        worker._process.kill()
        outcome = worker.check(configuration, "dynamo=False")
        assert not outcome.right and outcome.note == "the process ended with -9"
        assert worker.check(configuration, "dynamo=False").right
    finally:
        worker.close()


def rows(text):
    """The table's rows: name → the number of configurations, and (right, measured) for each exporter."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {
        name: [int(count.replace(",", "")), *(tuple(map(int, cell.replace(",", "").split(" of "))) for cell in cells)]
        for name, count, *cells in lines[1:]
    }


def test_the_table_counts():
    configurations = [*grid(), *singles()]
    compared = sampled(configurations, 7)
    results = {(one, "seqexport"): Outcome(one.layers < 3, 0.0, "", 0.1) for one in configurations}
    results |= {(one, "torch.onnx, dynamo=True"): Outcome(False, 0.0, "", 0.1) for one in compared}
    results |= {(one, "torch.onnx, dynamo=False"): Outcome(True, 0.0, "", 0.1) for one in compared}
    found = rows(table(configurations, results))
    shallow = sum(one.layers < 3 for one in compared if one.kind == "GRU, padded")
    assert found["GRU, padded"] == [80, (48, 80), (0, 12), (12, 12), (shallow, 12)]
    assert found["unbatched input"] == [10, (10, 10), (0, 8), (8, 8), (8, 8)]
    assert found["**all**"][:3] == [3618, (3600 * 3 // 5 + 18, 3618), (0, len(compared))]


def test_readme_counts_the_grid_and_all_that_was_measured_is_right():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- measured: coverage -->\n(.*?)<!-- end -->", text, re.DOTALL)
    found = rows(block[1])
    totals = {kind: len(group) for kind, group in kinds([*grid(), *singles()]).items()}
    totals["**all**"] = sum(totals.values())
    assert {kind: count for kind, (count, *_) in found.items()} == totals
    for count, ours, dynamo, old, shared in found.values():
        assert ours[0] == ours[1] >= min(count, coverage.LEAST)
        assert shared[0] == shared[1] == dynamo[1] == old[1] >= min(count, coverage.LEAST)
        assert ours[1] >= shared[1]


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_from_its_journal(tmp_path):
    file, tasks = tmp_path / "journal", [(one, "seqexport") for one in grid()[:2]]
    first = coverage.measure(tasks[:1], 1, math.inf, Journal(file))
    with file.open("a") as journal:
        journal.write('{"name": "half a li')
    again = Journal(file)
    assert len(again.known) == 1
    results = coverage.measure(tasks, 1, math.inf, again)
    assert list(results) == tasks
    assert results[tasks[0]] == first[tasks[0]]  # its seconds too: it was not done again
    assert len(Journal(file).known) == 2
