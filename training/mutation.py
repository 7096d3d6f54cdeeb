"""Do the checks notice when our own lowering is wrong? Each mutant is the code with one deliberate slip in it.

    python -m training.mutation recurrent freezing --seconds 900 --write

A mutant costs a second or two, since everything is imported, warmed and computed once: a forked child takes the mutated
source into the module's own namespace and runs tests/mutation_checks.py, which holds the nets that it exports against
what torch gave before the slip. Whatever raises, differs or hangs is killed. A survivor is printed with its line, and
with the reason why it changes no number where training/survivors.py knows one.
"""

from __future__ import annotations

import ast
import copy
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from training.command import Parser
from training.publish import ROOT, write_block
from training.survivors import REASONS, WORDS

MODULES = ("recurrent", "graphs", "freezing", "interception", "pipelines", "verification", "reports")
LIMIT = 5  # times what all checks take of right code, after which a mutant is killed: a loop that never ends, too

_SWAPPED: Mapping[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_INVERSES = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # whose swap is what `not` would do
_DROPPED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Assert, ast.Delete)


@dataclass(frozen=True)
class Mutant:
    """One slip: the function and line, the statement's text before and after, and the code of what it changes."""

    module: str
    function: str
    line: int
    before: str
    after: str
    code: CodeType

    @property
    def change(self) -> str:
        """What differs, with a little of what stands around it."""
        a, b = self.before, self.after
        start = len(os.path.commonprefix([a, b]))
        end = min(len(os.path.commonprefix([a[::-1], b[::-1]])), len(a) - start, len(b) - start)
        left, right = max(0, start - 30), max(0, end - 20)
        return f"{a[left : len(a) - right]} → {b[left : len(b) - right]}"


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Every slip in the source of a module, one after the other; functions that only make words are left alone."""
    tree = ast.parse(source)
    silent = _silent(tree)
    for function, block, place in _statements(tree):
        statement = block[place]
        if function in WORDS.get(module, ()) or id(statement) in silent:
            continue
        before = _shown(statement)
        for put in _changes(statement, block, place, silent, block is tree.body):
            undo = put()
            try:
                after = _shown(block[place])
                code = _affected(tree, _top(tree, block[place]))
            finally:
                undo()
            if after == before:  # two arguments that are the same changed places
                continue
            yield Mutant(module, function, statement.lineno, before, after, code)


def _affected(tree: ast.Module, changed: ast.stmt) -> CodeType:
    """The code of a statement of the module, and of those after it that were made of what it defines.

    Not of the whole module, which would register its operators anew, so that programs traced before had others.
    """
    names, kept = _defined(changed), [changed]
    for statement in tree.body[tree.body.index(changed) + 1 :]:
        if names & {node.id for part in _made_of(statement) for node in ast.walk(part) if isinstance(node, ast.Name)}:
            names |= _defined(statement)
            kept.append(statement)
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    whole = ast.Module([future, *kept], [])
    return compile(ast.fix_missing_locations(whole), "<mutated>", "exec")


def _top(tree: ast.Module, statement: ast.stmt) -> ast.stmt:
    return next(top for top in tree.body if any(node is statement for node in ast.walk(top)))


def _defined(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name} - {"_"}
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _made_of(statement: ast.stmt) -> list[ast.expr]:
    """What a statement evaluates when the module is imported."""
    if isinstance(statement, ast.ClassDef):
        return [*statement.bases, *statement.decorator_list]
    if isinstance(statement, ast.FunctionDef):
        return [*statement.decorator_list, *statement.args.defaults]
    value = getattr(statement, "value", None)
    return [value] if isinstance(value, ast.expr) else []


def _silent(tree: ast.AST) -> set[int]:
    """What is no behaviour: annotations, docstrings, imports, and the words of a message."""
    quiet: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            quiet.append(node.returns)
        elif isinstance(node, (ast.arg, ast.AnnAssign)):
            quiet.append(node.annotation)
        elif isinstance(node, ast.Raise):
            quiet.append(node.exc)
        elif (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) or isinstance(
            node, (ast.JoinedStr, ast.Import, ast.ImportFrom)
        ):
            quiet.append(node)
    return {id(part) for node in quiet if node is not None for part in ast.walk(node)}


def _statements(tree: ast.AST, function: str = "") -> Iterator[tuple[str, list[ast.stmt], int]]:
    """Every statement as the list that holds it and its place there, with the name of the function around it."""
    for field in ("body", "orelse", "finalbody", "handlers"):
        block = getattr(tree, field, [])
        if not isinstance(block, list):  # an expression, as in a lambda
            continue
        for place, statement in enumerate(block):
            named = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
            inside = f"{function}.{statement.name}".strip(".") if named else function
            if isinstance(statement, ast.stmt):
                yield inside, block, place
            yield from _statements(statement, inside)


def _shown(statement: ast.stmt) -> str:
    """The statement's own text, without the statements in it."""
    emptied: dict[str, Any] = {name: [] for name in ("orelse", "finalbody", "handlers") if hasattr(statement, name)}
    if hasattr(statement, "body"):
        fields = dict(ast.iter_fields(statement)) | emptied | {"body": [ast.Pass()]}
        if isinstance(statement, ast.Try):
            fields["finalbody"] = [ast.Pass()]
        statement = type(statement)(**fields)
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.copy(statement))).removesuffix("pass").split())


def _changes(statement: ast.stmt, block: list[ast.stmt], place: int, silent: set[int], at_top: bool) -> Iterator[Any]:
    """Functions that make one slip in the statement, and give one that undoes it."""
    if isinstance(statement, _DROPPED) and not at_top:  # of a module's own names each is needed, or is a name only
        yield lambda: _put(block, place, ast.Pass())
    pending: list[ast.AST] = [statement]
    while pending:
        holder = pending.pop(0)
        for field, value in ast.iter_fields(holder):
            slots: list[Any] = [(value, at, node) for at, node in enumerate(value)] if isinstance(value, list) else []
            for owner, at, node in slots or [(holder, field, value)]:
                if not isinstance(node, ast.AST) or isinstance(node, (ast.stmt, ast.ExceptHandler)):
                    continue
                if id(node) in silent:
                    continue
                for other in _slips(node, holder, field):
                    yield lambda owner=owner, at=at, other=other: _put(owner, at, other)
                pending.append(node)


def _put(owner: Any, at: Any, node: ast.AST) -> Any:
    if isinstance(owner, list):
        old, owner[at] = owner[at], node
        return lambda: owner.__setitem__(at, old)
    old = getattr(owner, at)
    setattr(owner, at, node)
    return lambda: setattr(owner, at, old)


def _slips(node: ast.AST, holder: ast.AST, field: str) -> Iterator[ast.AST]:
    """What may stand in a node's place by mistake."""
    if type(node) in _SWAPPED:
        yield _SWAPPED[type(node)]()
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _near(node.value))
    elif isinstance(node, ast.Call):
        yield from _arguments_swapped(node)
    elif isinstance(node, ast.Slice):
        yield from _shifted(node)
    if isinstance(node, ast.expr) and field in ("test", "ifs") and not _inverted_by_swap(node):
        yield ast.UnaryOp(ast.Not(), node)
    if isinstance(holder, ast.Return) and not (isinstance(node, ast.Constant) and node.value is None):
        yield ast.Constant(None)


def _inverted_by_swap(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) or (
        isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], _INVERSES)
    )


def _near(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value - 1]
    return []


def _arguments_swapped(call: ast.Call) -> Iterator[ast.Call]:
    for at, (one, next_one) in enumerate(zip(call.args, call.args[1:], strict=False)):
        if not any(isinstance(part, ast.Starred) for part in (one, next_one)):
            yield ast.Call(call.func, [*call.args[:at], next_one, one, *call.args[at + 2 :]], call.keywords)


def _shifted(part: ast.Slice) -> Iterator[ast.Slice]:
    one = ast.Constant(1)
    if part.lower is None:
        yield ast.Slice(one, part.upper, part.step)
    elif not isinstance(part.lower, ast.Constant):
        yield ast.Slice(ast.BinOp(part.lower, ast.Add(), one), part.upper, part.step)
    if part.upper is not None and not isinstance(part.upper, ast.Constant):
        yield ast.Slice(part.lower, ast.BinOp(part.upper, ast.Sub(), one), part.step)


def install(module: ModuleType, code: CodeType) -> None:
    """Run the code as the module, and let those that imported from it have what is new."""
    before = {name: value for name, value in vars(module).items() if not name.startswith("__")}
    exec(code, vars(module))
    for other in list(sys.modules.values()):
        names = getattr(other, "__dict__", None)
        if other is None or other is module or names is None or not _ours(other):
            continue
        for name, value in before.items():
            if names.get(name) is value and hasattr(module, name):
                names[name] = getattr(module, name)


def _ours(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(str(file)).is_relative_to(ROOT)


class Server:
    """Forks a child for each mutant. checks: name → what raises where something is wrong.

    lowering: told the module and function of the slip, so that what it can't reach need not be done again.
    """

    def __init__(self, checks: Mapping[str, Any], lowering: Any = lambda module, function: None) -> None:
        self.order = list(checks)
        self.lowering = lowering
        self.checks = checks
        self.seconds = 600.0

    def killer(self, mutant: Mutant | None) -> str | None:
        """The check that failed, `time` where none ended, or None where the mutant survives."""
        child = os.fork()
        if child == 0:
            self._run(mutant)
        status = self._wait(child)
        if status is None:
            return "time"
        if status == 0:
            return None
        if status > len(self.order):
            return "import" if status == 255 else "crash"
        name = self.order[status - 1]
        self.order.remove(name)  # what killed one slip is likely to kill the next, beside it
        self.order.insert(0, name)
        return name

    def _run(self, mutant: Mutant | None) -> None:
        code = 255
        try:
            if mutant is not None:
                if mutant.line:  # what a slip leads to is not for reading
                    sink = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(sink, 1)
                    os.dup2(sink, 2)
                install(importlib.import_module(f"seqexport.{mutant.module}"), mutant.code)
                self.lowering(mutant.module, mutant.function.partition(".")[0])
            for place, name in enumerate(self.order):
                code = place + 1
                self.checks[name]()
            code = 0
        except BaseException as error:  # whatever a slip leads to, an exit among them
            if mutant is None or not mutant.line:
                print(f"{self.order[code - 1]}: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)

    def _wait(self, child: int) -> int | None:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status) & 255
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None


@dataclass
class Result:
    """One module's count. survivors: with the reason why each changes no number, or an empty one."""

    module: str
    tried: int = 0
    left: int = 0
    survivors: tuple[tuple[Mutant, str], ...] = ()


def measure(modules: Sequence[str], seconds: float, every: int = 1, only: str = "") -> Iterator[Result]:
    """Try every so manieth mutant of each module, or of some functions, until the time is up."""
    sys.path.insert(0, str(ROOT / "tests"))
    checks = importlib.import_module("mutation_checks")
    end = time.monotonic() + seconds
    for module in modules:
        server = Server(checks.checks(module), checks.slipped)
        result = Result(module)
        source = (ROOT / "seqexport" / f"{module}.py").read_text(encoding="utf-8")
        everything = [mutant for mutant in mutants(module, source) if re.search(only, mutant.function)]
        left = [mutant for place in range(every) for mutant in everything[place::every]]
        nothing = [
            Mutant(module, mutant.function, 0, "", "", compile("", "", "exec")) for mutant in (left[0], left[-1])
        ]
        began = time.monotonic()
        if any(server.killer(control) is not None for control in [None, *nothing]):
            raise SystemExit("error: The checks fail without any slip; mend that first.")
        server.seconds = LIMIT * (time.monotonic() - began)
        for mutant in left:
            if time.monotonic() > end:
                break
            result.tried += 1
            if result.tried % 20 == 0:
                print(f"{module}: {result.tried} of {len(everything)}", file=sys.stderr, flush=True)
            if (killer := server.killer(mutant)) is None:
                reason = reason_of(mutant)
                result.survivors = (*result.survivors, (mutant, reason))
                print(f"{module}.py:{mutant.line} {mutant.function}: {mutant.change}  [{reason}]", flush=True)
            elif killer == "time":
                print(f"{module}.py:{mutant.line} {mutant.function}: {mutant.change}  took too long", flush=True)
        result.left = len(everything) - result.tried
        yield result


def reason_of(mutant: Mutant) -> str:
    """Why a survivor changes no number, where it is known: by function, or by function and a part of the change."""
    for (module, function, part), reason in REASONS.items():
        if (module, function) == (mutant.module, mutant.function) and part in mutant.change:
            return reason
    return ""


def table(results: Sequence[Result]) -> str:
    """Counts by file, and the survivors."""
    lines = [
        "| file | slips | killed | survive, no number changes | survive | not tried |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        known = sum(bool(reason) for _, reason in result.survivors)
        counts = (result.tried, result.tried - len(result.survivors), known, len(result.survivors) - known, result.left)
        lines.append(f"| {result.module}.py | {' | '.join(map(str, counts))} |")
    lines.append("")
    for result in results:
        for mutant, reason in result.survivors:
            place = f"{mutant.module}.py:{mutant.line} {mutant.function}".strip()
            lines.append(f"- {place}: `{mutant.change}`: {reason or 'NOT EXPLAINED'}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Arguments in, exit code out: 1 where a survivor has no reason."""
    parser = Parser(prog="python -m training.mutation", description="Slip into our own code and see whether it shows.")
    parser.add_argument("modules", nargs="*", default=list(MODULES), help=f"of {', '.join(MODULES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="begin with every Nth slip, for a sample")
    parser.add_argument("--only", default="", metavar="PATTERN", help="slips in functions of such names")
    parser.add_argument("--write", action="store_true", help="put the table into DECISIONS.md, between its markers")
    options = parser.parse_args(arguments)
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"there is no module {unknown.pop()}; expected {', '.join(MODULES)}")
    results = list(measure(options.modules, options.seconds, options.every, options.only))
    found = table(results)
    print(found)
    if options.write:
        write_block(ROOT / "DECISIONS.md", "mutation", found)
    return int(any(not reason for result in results for _, reason in result.survivors))


if __name__ == "__main__":
    raise SystemExit(main())
