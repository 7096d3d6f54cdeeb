"""The command line: arguments in, one call, print, exit code out. No numerics live here.

Data goes to stdout, talk to stderr. Exit codes: 0 verified and written, 1 verification failed, 2 could not be done.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqexport.arguments import (
    OVERVIEW,
    compare_parser,
    deploy_parser,
    doctor_parser,
    export_parser,
    inspect_parser,
    quantize_parser,
    run_parser,
    score_parser,
    verify_parser,
)
from seqexport.errors import FileError, InputError, ParityError, SeqExportError
from seqexport.terminal import (
    one_line,
    print_json,
    progress,
    show_comparison,
    show_diagnosis,
    show_inspection,
    show_report,
    show_scoring,
    status,
)

if TYPE_CHECKING:
    from seqexport.inference import Choices
    from seqexport.modules import UserModule


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        return _run_command(arguments)
    except SeqExportError as error:
        if debug:
            raise
        if "--json" in arguments:
            about = {"error": str(error), "kind": type(error).__name__}
            print_json(error.report.to_dict() if isinstance(error, ParityError) else about)
        print(f"seqexport: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough; what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a defect of ours: still one sentence, and not the exit code of a failed verification
        if debug:
            raise
        reason = one_line((str(error).splitlines() or [""])[0])
        print(
            f"seqexport: unexpected {type(error).__name__} ({reason}); please report it with what --debug shows.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("seqexport: stopped; no file is left half written.", file=sys.stderr)
        return 130


def _run_command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m seqexport CHECKPOINT [-o OUT.onnx] [options]\n\n{OVERVIEW}")
        print(export_parser().format_help().partition("\n\n")[2], end="", flush=True)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from seqexport import __version__

        print(f"seqexport {__version__}")
        return 0
    parser, command = _parser(arguments)
    return command(parser.parse_intermixed_args(arguments[1:] if arguments[0] in COMMANDS else arguments))


def _parser(arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, Callable[[argparse.Namespace], int]]:
    if arguments[0] in COMMANDS:
        make, command = COMMANDS[arguments[0]]
        return make(), command
    return export_parser(), _export


def _choices(options: argparse.Namespace) -> Choices:
    from seqexport.inference import Choices

    return Choices(options.nonlinearity, options.time_major, options.head)


def _export(options: argparse.Namespace) -> int:
    if not Path(options.checkpoint).exists():  # said at once, without the seconds that importing torch takes
        raise FileError(f"There is no file {options.checkpoint}: give the path of a checkpoint, or see --help.")
    from seqexport.isolation import open_apart

    open_apart(options.checkpoint)
    module = _module_options(options)
    from seqexport.exporter import export

    how: dict[str, Any] = {"opset": options.opset, "precision": options.precision, "data": options.data}
    how["text"] = options.text
    with status(f"exporting and verifying {options.checkpoint}") as shown:
        how["tell"] = lambda stage: shown.update(str(stage))
        if module is None:
            report = export(options.checkpoint, options.output, state=options.state, choices=_choices(options), **how)
        else:
            user, inputs = module
            output = options.output or str(Path(options.checkpoint).with_suffix(".onnx"))
            report = export(user, output, inputs=inputs, state_map=_pairs(options.state_map, "--state-map"), **how)
    show_report(report, options.json)
    return 0


def _module_options(options: argparse.Namespace) -> tuple[UserModule, dict[str, str]] | None:
    """The user's own module with its weights, and the specs of its inputs; None where it is not asked for."""
    if options.module is None:
        if options.init or options.input or getattr(options, "state_map", None):
            raise InputError("--init, --input and --state-map are for a class of your own: give it with --module.")
        return None
    chosen = [
        flag
        for flag, value in (
            ("--nonlinearity", options.nonlinearity),
            ("--time-major", options.time_major),
            ("--head", options.head),
            ("--state", getattr(options, "state", "optional") != "optional"),
            ("--text", getattr(options, "text", False)),
        )
        if value
    ]
    if chosen:
        raise InputError(f"{chosen[0]} is for a recognised network; with --module the class itself says it.")
    if not options.input:
        raise InputError("--module needs an --input 'NAME: SPEC' for each argument of forward that has no default.")
    inputs = _pairs(options.input, "--input", ":")
    try:
        init = json.loads(options.init or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"--init {options.init!r} is not JSON ({error}); write it like '{{\"size\": 8}}'.") from error
    if not isinstance(init, dict):
        raise InputError(f"--init is a {type(init).__name__}; expected a JSON object of the constructor's arguments.")
    from seqexport.modules import load_module

    return load_module(options.module, init, options.checkpoint), inputs


def _pairs(texts: Sequence[str], flag: str, sign: str = "=") -> dict[str, str]:
    """["NAME=VALUE", …] → {NAME: VALUE}. Raises InputError for what has no sign, or a name twice."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, found, value = (part.strip() for part in text.partition(sign))
        if not found or not name or not value:
            raise InputError(f"{flag} {text!r} is not of the form NAME{sign} VALUE: write it so.")
        if name in pairs:
            raise InputError(f"{flag} gives {name!r} twice: give each name once.")
        pairs[name] = value
    return pairs


def _verify(options: argparse.Namespace) -> int:
    from seqexport.isolation import open_apart

    open_apart(options.checkpoint, options.onnx)
    from seqexport.exporter import verify_files
    from seqexport.pages import check_page, write_report
    from seqexport.reports import require

    if options.report:
        check_page(options.report)
    module, how = _module_options(options), {"thorough": options.thorough, "data": options.data}
    with status(f"verifying {options.onnx}"):
        if module is None:
            report = verify_files(options.checkpoint, options.onnx, _choices(options), **how)
        else:
            report = verify_files(module[0], options.onnx, inputs=module[1], **how)
    if options.report:
        write_report(options.report, report)
    show_report(report, options.json)
    if not report.passed and not options.json:
        require(report, options.onnx)
    return 0 if report.passed else 1


def _quantize(options: argparse.Namespace) -> int:
    from seqexport.quantization import quantize

    with status(f"making {options.onnx} int8"):
        report = quantize(options.onnx, options.output, data=options.data, isolated=True)
    show_report(report, options.json)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from seqexport.inspection import inspect
    from seqexport.isolation import open_apart

    open_apart(options.file, kind="parse")
    found = inspect(options.file)
    if options.json:
        print_json(found)
        return 0
    show_inspection(found)
    return 0


def _run(options: argparse.Namespace) -> int:
    import numpy as np

    from seqexport.runtimes import load
    from seqexport.text import text_answer, text_feeds

    runtime = load(options.file, pipeline=options.pipeline, threads=options.threads, isolated=True)
    names, preprocessing = [spec.name for spec in runtime.inputs], runtime.metadata.get("preprocessing", {})
    rng = np.random.default_rng(options.seed)
    feeds: dict[str, Any] = {}
    for value in options.values:
        if value.startswith("text=") and "text" not in names:
            read, notes = text_feeds(runtime.inputs, preprocessing, value.removeprefix("text="))
            feeds |= read
            for note in notes:
                print(f"seqexport: {note}", file=sys.stderr)
        else:
            feeds |= [_parse_value(value, rng)]
    outputs = runtime.run(feeds)
    said = text_answer(preprocessing, outputs)
    if options.output:
        from seqexport.files import replace_file

        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **outputs)
        replace_file(Path(options.output), content.getvalue())
    if options.json:
        answer = {"text": said} if said else {}
        print_json({name: array.tolist() for name, array in outputs.items()} | answer)
        return 0
    for name, array in outputs.items():
        shown = np.array2string(array, precision=4, threshold=60, edgeitems=3, suppress_small=True)
        dtype = "string" if array.dtype == object else array.dtype
        print(f"{name} {dtype}{list(array.shape)}\n{shown}")
    for line in said:
        print(f"text: {line}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    for file in options.files:
        if not Path(file).exists():  # said at once, without the seconds that importing torch takes
            raise FileError(f"There is no file {file}: give the path of a checkpoint or an ONNX file.")
    from seqexport.isolation import open_apart

    open_apart(*options.files)
    from seqexport.comparison import SCENARIOS, compare
    from seqexport.peers import RUNTIMES
    from seqexport.tables import check_folder, write_comparison

    if options.output:
        check_folder(options.output)
    with status("comparing") as shown:
        comparison = compare(
            options.files,
            runtimes=_names(options.runtimes, RUNTIMES),
            scenarios=_names(options.scenarios, SCENARIOS),
            threads=options.threads,
            seconds=options.seconds,
            data=options.data,
            large_map=options.map,
            choices=_choices(options),
            say=shown.update,
        )
    written = write_comparison(options.output, comparison) if options.output else []
    if options.json:
        print_json(comparison.to_dict())
    else:
        show_comparison(comparison)
    for path in written:
        print(f"seqexport: wrote {path}", file=sys.stderr)
    return 0


def _deploy(options: argparse.Namespace) -> int:
    from seqexport.delivery import deliver

    asked = {name: value for name, value in vars(options).items() if name not in ("onnx", "json", "debug")}
    with status(f"deploying {options.onnx}"):
        written = [str(path) for path in deliver(options.onnx, **asked)]
    if options.json:
        print_json({"written": written})
    else:
        print("\n".join(f"wrote    {path}" for path in written))
    return 0


def _score(options: argparse.Namespace) -> int:
    from seqexport.engines import score
    from seqexport.orders import order_of

    asked = {**vars(order_of(options)), "engine": options.engine, "workers": options.workers}
    with progress(hidden=options.json) as say:
        found = score(**asked, address=options.address, restart=options.restart, isolated=True, say=say)
    print_json(found) if options.json else show_scoring(found)
    return 0


def _names(text: str | None, default: Sequence[str]) -> Sequence[str]:
    return default if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _doctor(options: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from seqexport.diagnosis import diagnose

    if options.json or not find_spec("rich"):  # which too may be what is missing
        diagnosis = diagnose()
        print_json(diagnosis.to_dict())
    else:
        with status("trying every runtime"):
            diagnosis = diagnose()
        show_diagnosis(diagnosis)
    return 0 if diagnosis.passed else 2


def _parse_value(text: str, rng: Any) -> tuple[str, Any]:
    """NAME=VALUE → the name and an array. Raises InputError or FileError for what can't be read."""
    import numpy as np

    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"The value {text!r} has no name; expected NAME=VALUE, such as x='[[1, 2]]'.")
    made = re.fullmatch(r"(zeros|normal|uniform)\[(\d+(?:,\d+)*)\]", value.replace(" ", ""))
    if made:
        shape = [int(size) for size in made[2].split(",")]
        if math.prod(shape) > 100_000_000:
            raise InputError(f"The value of {name!r} would have {math.prod(shape):,} numbers; expected at most 10^8.")
        make = {"zeros": np.zeros, "normal": rng.standard_normal, "uniform": rng.random}[made[1]]
        return name, make(shape).astype(np.float32)
    try:
        if value.endswith(".npy"):
            return name, np.load(value, allow_pickle=False)
        if value.endswith(".csv"):
            return name, np.loadtxt(value, delimiter=",", dtype=np.float64, ndmin=2)
        read = json.loads(value)
        texts = isinstance(read, list) and bool(read) and all(isinstance(text, str) for text in read)
        return name, read if texts else np.array(read)  # numpy's own strings lose NUL characters at their end
    except OSError as error:
        raise FileError(f"{value} could not be read ({error.strerror}).") from error
    except (ValueError, EOFError, RecursionError) as error:
        raise InputError(
            f"The value of {name!r} could not be read ({error}); expected a JSON array of numbers, a .npy or .csv "
            "file, zeros[dims], normal[dims] or uniform[dims]."
        ) from error


COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], int]]] = {
    "verify": (verify_parser, _verify),
    "inspect": (inspect_parser, _inspect),
    "run": (run_parser, _run),
    "quantize": (quantize_parser, _quantize),
    "compare": (compare_parser, _compare),
    "deploy": (deploy_parser, _deploy),
    "score": (score_parser, _score),
    "doctor": (doctor_parser, _doctor),
}
