"""The comparison of the cells: sizes, costs, the memory problem, and that what is said follows from the figures."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seqexport.networks import Network
from seqexport.specs import CELLS, NetworkSpec
from training import cell_costs, cell_findings, compare_cells, memory
from training.command import Options
from training.loop import Training

# --- sizes and costs


def spec(cell, hidden):
    return NetworkSpec(cell, 5, hidden, 2, vocabulary=30, outputs=30)


def test_variants_have_the_hidden_size_or_the_parameters_of_the_lstm():
    found = compare_cells.variants(spec, 40)
    assert [(v.cell, v.hidden) for v in found if v.equal == "hidden size"] == [(cell, 40) for cell in CELLS]
    target = compare_cells.parameters(spec("lstm", 40))
    for variant in found:
        if variant.equal == "parameters":
            apart = [abs(compare_cells.parameters(spec(variant.cell, variant.hidden + n)) - target) for n in (-1, 0, 1)]
            assert min(apart) == apart[1] and variant.hidden > 40
    assert compare_cells.parameters(spec("gru", 7)) == sum(p.numel() for p in Network(spec("gru", 7)).parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_multiply_adds_are_those_that_torch_counts(cell):
    of = NetworkSpec(cell, 6, 10, 2, outputs=4)
    network = Network(of)
    cells = [
        {"rnn": torch.nn.RNNCell, "gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell}[cell](size, 10)
        for size in (6, 10)
    ]
    with FlopCounterMode(display=False) as counter:
        x, h = torch.zeros(1, 6), torch.zeros(1, 10)
        for part in cells:
            out = part(x, (h, h) if cell == "lstm" else h)
            x = out[0] if cell == "lstm" else out
        network.head(x)
    assert cell_costs.multiply_adds(of) == counter.get_total_flops() / 2


def test_the_gradient_of_a_net_that_forgets_ends_where_it_forgets():
    torch.manual_seed(0)
    network = Network(NetworkSpec("rnn", 4, 8, vocabulary=9, outputs=9))
    with torch.no_grad():
        network.rnn.weight_hh_l0.zero_()
    windows = torch.randint(0, 9, (6, 20))
    norms = cell_costs._norms(network, windows)
    assert norms[0] > 0 and norms[1:] == [0.0] * 18
    with torch.no_grad():
        network.rnn.weight_hh_l0.copy_(0.5 * torch.eye(8))
        network.rnn.weight_ih_l0.mul_(0.01)
        network.rnn.bias_ih_l0.zero_()
        network.rnn.bias_hh_l0.zero_()
    norms = cell_costs._norms(network, windows)  # tanh is the identity near zero: each step halves it
    assert [b / a for a, b in zip(norms[:8], norms[1:9], strict=True)] == pytest.approx([0.5] * 8, rel=0.02)


@pytest.mark.slow
def test_costs_of_small_nets_are_all_there():
    rows = cell_costs.costs([("rnn", 8, "hidden size"), ("lstm", 8, "hidden size")], 8, 1.0)
    json.dumps(rows, allow_nan=False)
    one, other = rows
    assert one["parameters"] < other["parameters"] and one["file_bytes"] < other["file_bytes"]
    assert 2 * one["state_bytes"] == other["state_bytes"] == 64
    assert all(seconds > 0 for row in rows for call in row["inference"].values() for seconds in call.values())
    assert all(row["training_memory"]["1000"] > row["training_memory"]["100"] > 0 for row in rows)


# --- the memory problem


def test_sequences_have_one_mark_in_each_half_and_their_sum():
    x, sums = memory.sequences(50, 11, np.random.default_rng(0))
    assert x.shape == (50, 11, 2) and (x[:, :5, 1].sum(1) == 1).all() and (x[:, 5:, 1].sum(1) == 1).all()
    assert torch.allclose((x[:, :, 0] * x[:, :, 1]).sum(1), sums)
    many = memory.sequences(20_000, 4, np.random.default_rng(1))[1]
    assert float(((many - 1) ** 2).mean()) == pytest.approx(memory.UNINFORMED, rel=0.03)


def test_a_length_that_is_not_solved_ends_the_lengths(tmp_path, monkeypatch):
    learnt = []

    def learn(objective, options, plan, length):
        learnt.append(length)
        about = {"seconds": 1.0, "curve": [[5, 0.0, 0.0]]}
        return type("Done", (), {"metrics": about, "stopped_file": tmp_path / str(length)})

    monkeypatch.setattr(memory, "_learn", learn)
    errors = {10: 0.001, 30: 0.5, 100: 0.001}
    monkeypatch.setattr(memory, "error", lambda objective, x, sums: errors[x.shape[1]])
    metrics = memory.train(options_of(tmp_path), memory.Recipe(lengths=(10, 30, 100), hidden_size=4))
    assert learnt == [10, 30]
    assert metrics["test"]["mse"] == {"10": 0.001, "30": 0.5, "100": 0.001}
    assert metrics["validation"]["mse"] == pytest.approx((0.001 + 1 / 6 + 0.001) / 3)
    assert (metrics["seconds"], metrics["steps"]) == (2.0, 10)


def test_a_gru_learns_to_add(tmp_path):
    plan = memory.Recipe(lengths=(4,), hidden_size=16, steps=400)
    metrics = memory.train(options_of(tmp_path), plan)
    assert metrics["test"]["mse"]["4"] < memory.SOLVED < memory.UNINFORMED
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_goes_on_in_the_length_where_it_was(tmp_path, monkeypatch):
    plan = memory.Recipe(lengths=(4, 6), hidden_size=16, steps=400)
    whole = memory.train(options_of(tmp_path), plan)
    assert whole["test"]["mse"]["6"] < memory.SOLVED and list(tmp_path.iterdir()) == []
    judge, looks = Training.judge, []

    def stopped(self, found):
        looks.append(self.stopped_file.name)
        if looks.count("net.pt.6.stopped") == 3:
            raise KeyboardInterrupt
        judge(self, found)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Training, "judge", stopped)
        memory.train(options_of(tmp_path), plan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt.4.stopped", "net.pt.6.stopped"]
    taken = []
    descend = Training.descend
    monkeypatch.setattr(
        Training, "descend", lambda self, loss: (taken.append(self.stopped_file.name), descend(self, loss))
    )
    again = memory.train(options_of(tmp_path), plan)
    assert again["test"] == whole["test"] and list(tmp_path.iterdir()) == []
    assert set(taken) == {"net.pt.6.stopped"}


def options_of(folder):
    return Options(cell="gru", data="sine", out=folder / "net.pt", threads=1)


# --- trainings that go on


def test_a_result_that_is_known_is_not_trained_again(tmp_path, monkeypatch):
    task = compare_cells.Task("adding", "t", "mse", memory.Recipe(), memory.train, memory.network_spec)
    run = compare_cells.Run("adding", compare_cells.Variant("gru", 4, "hidden size"), 0.01, 0)
    first = compare_cells.Trainings({"adding": task}, tmp_path, 1)
    first._journal.add(first.key(run), {"test": 1.0})
    again = compare_cells.Trainings({"adding": task}, tmp_path, 1)
    assert again.results([run]) == {run: {"test": 1.0}}
    longer = compare_cells.Task("adding", "t", "mse", memory.Recipe(steps=7), memory.train, memory.network_spec)
    assert compare_cells.Trainings({"adding": longer}, tmp_path, 1).key(run) != again.key(run)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--jobs", "0"], "--jobs is 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--write", "--task", "adding"], "leave one of them out"),
    ],
)
def test_what_can_not_be_compared_is_refused_before_anything_is_made(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        compare_cells.main([*arguments, "--work", str(tmp_path / "work")])
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


# --- what is said


def row(cell, equal, test, task="characters", more_is_better=False, hidden=8):
    return {
        "task": task,
        "title": task,
        "more_is_better": more_is_better,
        "cell": cell,
        "hidden": hidden,
        "equal": equal,
        "test": test,
    }


def cost(cell, place, **changes):
    return {
        "cell": cell,
        "hidden": 8,
        "equal": "hidden size",
        "beside": 8,
        "parameters": 100 * place,
        "multiply_adds": 90 * place,
        "file_bytes": 5000 * place,
        "state_bytes": 64 if cell == "lstm" else 32,
        "memory": {"onnxruntime": 1000 * place},
        "training_memory": {"100": 2e6 * place, "1000": 2e7 * place},
        "training_step": 0.01 * place,
        "inference": {"a step": {"onnxruntime": 1e-5 * place}, "a batch": {"onnxruntime": 1e-3 * place}},
        **changes,
    }


def results(**tests):
    """One task and the adding problem; rnn, gru and lstm cost 1, 2 and 3."""
    good = {"lstm": [2.0, 2.01, 2.02], "gru": [2.1, 2.11, 2.12], "rnn": [2.5, 2.51, 2.52]} | tests
    adding = {"lstm": {"10": 0.001, "100": 0.002}, "gru": {"10": 0.001, "100": 0.002}, "rnn": {"10": 0.001, "100": 0.2}}
    rows = []
    for cell, equal in cell_findings.COLUMNS:
        rows.append(row(cell, equal, good[cell]))
        rows.append(row(cell, equal, [adding[cell]] * 3, "adding"))
    norms = [{"cell": cell, "hidden": 8, "trained": True, "norms": [1.0, 0.1, 0.0]} for cell in CELLS]
    costs = [cost(cell, place) for place, cell in enumerate(("rnn", "gru", "lstm"), 1)]
    return {"quality": rows, "costs": costs, "gradients": norms, "machine": "a machine"}


def verdicts(found):
    return {said.partition(":")[0]: holds for said, _, holds in cell_findings.claims(found)}


def test_verdicts_follow_from_the_figures():
    found = verdicts(results())
    assert found["Parameters"] == found["Computation"] == found["Memory"] == "yes"
    assert found["Long sequences"] == "yes" and found["Complex tasks"] == "yes"
    assert found["Speed of training"] == "partly"  # GRU before LSTM, but the RNN's step is the shortest here
    assert found["The same, of the state that a stream keeps"] == "partly"  # an RNN's is a GRU's
    assert found["Real time and few resources"] == "yes"
    assert found["Simple tasks"] == "–"  # none is in these results


def test_claims_go_into_the_file_as_words_and_figures():
    rows = cell_findings.claim_rows(results())
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0] == {
        "said": "Parameters: RNN fewest, GRU between, LSTM most",
        "found": [{"text": "RNN {rnn}, GRU {gru}, LSTM {lstm}", "values": {"rnn": "100", "gru": "200", "lstm": "300"}}],
        "holds": "yes",
    }
    table = cell_findings.claims_table(results())
    for row in rows:
        said = "; ".join(part["text"].format(**part["values"]) for part in row["found"])
        assert f"| {row['said']} | {said} | {row['holds']} |" in table


def test_what_is_published_is_the_page_the_pictures_and_the_file_with_its_claims(tmp_path, monkeypatch):
    page, file = tmp_path / "cells.md", tmp_path / "cells.json"
    blocks = cell_findings.blocks(results())
    page.write_text("".join(f"<!-- measured: {name} -->\n<!-- end -->\n" for name in blocks))
    for name, value in {"PAGE": page, "RESULTS": file, "tasks": dict, "describe_machine": lambda: "a machine"}.items():
        monkeypatch.setattr(compare_cells, name, value)
    made = results()
    monkeypatch.setattr(compare_cells, "compared", lambda *_: made["quality"])
    monkeypatch.setattr(compare_cells, "gradients", lambda *_: made["gradients"])
    monkeypatch.setattr(compare_cells, "_costs", lambda _: iter(made["costs"]))
    assert compare_cells.main(["--work", str(tmp_path / "work"), "--write"]) == 0
    written = json.loads(file.read_text())
    assert written["claims"] == cell_findings.claim_rows(made) and written["quality"] == made["quality"]
    assert written["adding"] == {"task": "adding", "solved": memory.SOLVED, "uninformed": memory.UNINFORMED}
    assert all(text in page.read_text() for text in blocks.values())
    assert (tmp_path / "cells-times.svg").read_text().startswith("<svg")


def test_a_difference_within_the_seeds_is_none():
    near = verdicts(results(gru=[2.0, 2.02, 2.01]))
    assert near["Complex tasks"] == "no"
    worse = verdicts(results(gru=[1.5, 1.51, 1.52]))
    assert worse["Complex tasks"] == "no" and worse["What parameters are worth"] != "no"


def test_a_training_that_failed_is_said_and_loses():
    found = results(rnn=[2.5, None, 2.5])
    assert "1 of 3 failed" in cell_findings.quality_table(found["quality"])
    one, other = (next(r for r in found["quality"] if r["cell"] == cell) for cell in ("lstm", "rnn"))
    assert cell_findings._ahead(one, other) == 1 and cell_findings._ahead(other, one) == -1


def test_accuracy_is_better_where_it_is_more():
    one = row("lstm", "hidden size", [0.9, 0.91, 0.92], more_is_better=True)
    other = row("gru", "hidden size", [0.8, 0.81, 0.82], more_is_better=True)
    assert cell_findings._ahead(one, other) == 1
    assert cell_findings._figures(one) == "91.0 ± 1.0 %"


def test_tables_have_a_row_a_task_a_length_and_a_network():
    found = cell_findings.blocks(results())
    assert found["cells-quality"].count("\n") == 2 and "2.01 ± 0.01" in found["cells-quality"]
    assert "| 100 | 0.002, 3 of 3 (8) |" in found["cells-memory"] and "0.2, 0 of 3" in found["cells-memory"]
    assert found["cells-costs"].count("\n") == 4
    reach = [{"cell": "gru", "hidden": 8, "trained": True, "norms": [4.0, 1.0, 0.003, 0.003]}]
    assert cell_findings.gradients_table(reach).endswith("| GRU 8 | – | – | 2 steps | beyond 3 |")
    for text in found.values():
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.count(" | ") for line in lines if "---" not in line}) <= 1


def test_pictures_are_drawn_of_every_kind():
    found = cell_findings.pictures(results())
    assert set(found) == {"cells-quality.svg", "cells-memory.svg", "cells-gradients.svg", "cells-times.svg"}
    assert all(text.startswith("<svg") and "LSTM" in text and "mathdefault" not in text for text in found.values())
