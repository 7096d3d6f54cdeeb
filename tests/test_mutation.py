"""The mutation run: which slips are made of a source, and that one that matters is told from one that does not."""

import sys
from types import ModuleType

import pytest

from training import mutation
from training.mutation import Mutant, Result, Server, mutants, table

SOURCE = '''
"""Words."""
LIMIT = 3

def few(n: int = 0) -> bool:
    """Words."""
    if n < 0 or not n:
        raise ValueError(f"{n} is below {0}")
    return n < LIMIT

def halves(values):
    return values[: len(values) // 2], max(values, 2)
'''


def changes():
    return [mutant.change for mutant in mutants("few", SOURCE)]


@pytest.mark.parametrize(
    "after",
    [
        "LIMIT = 4",
        "if n < 0 and (not n):",
        "if n <= 0 or not n:",
        "if n < 0 or n:",
        "def few(n: int=1) -> bool:",
        "pass",
        "return None",
        "return (values[:len(values) // 2], max(2, values))",
        "return (values[:len(values) // 3], max(values, 2))",
        "return (values[1:len(values) // 2], max(values, 2))",
        "return (values[:len(values) // 2 - 1], max(values, 2))",
    ],
)
def test_slips_are_made(after):
    assert after in {mutant.after or "pass" for mutant in mutants("few", SOURCE)}


def test_words_and_annotations_are_left_alone():
    assert not any("Words" in change or "below" in change.partition("→")[2] for change in changes())
    assert len(changes()) == len(set(changes()))


def test_a_slip_is_undone_before_the_next():
    codes = {}
    for mutant in mutants("few", SOURCE):
        names = {"LIMIT": 3}
        exec(mutant.code, names)
        codes[mutant.change] = names
    assert sum(names["LIMIT"] != 3 for names in codes.values()) == 2


def test_a_slip_that_matters_is_killed_and_one_that_does_not_survives(monkeypatch):
    module = ModuleType("seqexport.few")
    exec(compile(SOURCE, "few", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "seqexport.few", module)

    def check():
        assert module.few(2) and not module.few(3)

    server = Server({"few": check})
    assert server.killer(None) is None
    killed = {mutant.change: server.killer(mutant) for mutant in mutants("few", SOURCE)}
    assert {name for name in killed.values() if name} == {"few"}
    assert any(name == "few" for change, name in killed.items() if "LIMIT = 4" in change)
    assert all(name is None for change, name in killed.items() if "values" in change)
    assert module.few(2) and not module.few(3)  # the slips were made in children


def test_a_slip_that_never_ends_is_killed(monkeypatch):
    module = ModuleType("seqexport.few")
    monkeypatch.setitem(sys.modules, "seqexport.few", module)
    source = "def count():\n    n = 0\n    while n < 3:\n        n += 1\n    return n\n"
    exec(source, vars(module))
    server = Server({"count": lambda: module.count()})
    server.seconds = 0.5
    (endless,) = (mutant for mutant in mutants("few", source) if "n -= 1" in mutant.after)
    assert server.killer(endless) == "time"


def test_the_table_tells_survivors_with_a_reason_from_those_without():
    one = Mutant("recurrent", "_ints", 3, "a = 1", "a = 2", compile("", "", "exec"))
    text = table([Result("recurrent", 10, 5, ((one, ""), (one, "only speed")))])
    assert "| recurrent.py | 10 | 8 | 1 | 1 | 5 |" in text
    assert "NOT EXPLAINED" in text and "only speed" in text


def test_an_unknown_module_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        mutation.main(["nothing"])
    assert caught.value.code == 2
    assert "there is no module nothing" in capsys.readouterr().err
