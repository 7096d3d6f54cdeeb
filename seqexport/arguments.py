"""What the commands take: an argument parser for each, and the overview of all. No command is run here, and nothing is
imported that takes time."""

from __future__ import annotations

import argparse

OVERVIEW = """\
Any PyTorch recurrent net (RNN, LSTM, GRU) to a verified ONNX file.

commands:
  CHECKPOINT              export it: write CHECKPOINT.onnx, and its pipeline's file beside it, verified
  verify CHECKPOINT ONNX  hold a file that was exported before against its checkpoint
  inspect FILE            tell what a checkpoint or an ONNX file holds
  run FILE NAME=VALUE …   run a model once
  quantize ONNX           write the int8 form of a file beside it, held against it
  compare FILE…           hold runtimes against torch, and time those that give what it gives
  deploy ONNX …           write what runs a file elsewhere: a program, a Triton repository, a folder for the Hub
  score MODEL DATA        answer every row of a table, of any size: CSV, JSON lines, Parquet or a text a line
  doctor                  tell what is installed, whether it works, and the fix for what does not

examples:
  python -m seqexport lstm.pt
  python -m seqexport lstm.pt -o net.onnx --head last
  python -m seqexport lstm.pt --precision fp32,int8 --data samples.csv
  python -m seqexport lstm.pt --text
  python -m seqexport lstm.pt --module nets.py:Tagger --init '{"size": 64}' --input 'tokens: int64[batch,time]{0..999}'
  python -m seqexport verify lstm.pt lstm.onnx --thorough --report lstm.html
  python -m seqexport compare lstm.pt --seconds 60 -o comparison
  python -m seqexport deploy lstm.onnx --client javascript
  python -m seqexport COMMAND --help

exit codes: 0 verified and written · 1 verification failed, nothing written · 2 bad input, or it could not be done
"""


def base_parser(usage: str, description: str, example: str) -> argparse.ArgumentParser:
    """With what every command has."""
    parser = argparse.ArgumentParser(
        prog="seqexport",
        usage=f"python -m seqexport {usage}",
        description=description,
        epilog=f"example: python -m seqexport {example}",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    from seqexport.specs import POOLINGS  # not at the top: it takes numpy, which doctor may find missing

    group = parser.add_argument_group("what the weights of a bare state_dict can't tell")
    group.add_argument("--nonlinearity", choices=("tanh", "relu"), help="of an RNN cell (default: tanh)")
    group.add_argument(
        "--time-major", action="store_true", default=None, help="time before batch (default: batch first)"
    )
    group.add_argument("--head", choices=POOLINGS, help="the steps that the head reads (default: every)")


def _add_module_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a class of your own, which is imported and run; CHECKPOINT has its weights")
    group.add_argument("--module", metavar="WHERE", help="package.module:Class or path/file.py:Class")
    group.add_argument("--init", metavar="JSON", help="what its constructor takes, such as '{\"hidden_size\": 128}'")
    group.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="'NAME: SPEC'",
        help="one for each argument of forward without a default, in forward's order: 'x: float32[batch,time,8]', "
        "'tokens: int64[batch,time]{0..999}', 'hidden: (float32[2,batch,16], float32[2,batch,16])'",
    )


_SAMPLES = "samples for the task's own metric: a CSV whose last column is a series, one of text and label, or a text"


def export_parser() -> argparse.ArgumentParser:
    """Of a checkpoint to be exported."""
    parser = base_parser(
        "CHECKPOINT [-o OUT.onnx] [options]", "Export a checkpoint, verify what was written.", "lstm.pt -o net.onnx"
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="seqexport's own format, a state_dict, bare or wrapped by a trainer, safetensors, or TorchScript",
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="the file to write (default: CHECKPOINT with suffix .onnx)"
    )
    parser.add_argument("--opset", type=int, default=20, help="ONNX opset, 18 to 23 (default: 20)")
    parser.add_argument(
        "--state",
        choices=("optional", "explicit", "none"),
        default="optional",
        help="the state as an input that may be left out, one that is required, or none (default: optional)",
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="WORDS",
        help="fp32, int8 or fp32,int8: int8 goes into a file of its own, OUT.int8.onnx (default: fp32)",
    )
    parser.add_argument("--data", metavar="FILE", help=f"{_SAMPLES}, which int8 is then held to")
    parser.add_argument(
        "--text",
        action="store_true",
        help="also write the pipeline with strings in and out: OUT.classify.text.onnx takes texts and gives label and "
        "probabilities, OUT.generate.text.onnx takes prompt, uniforms and settings and gives text",
    )
    _add_network_options(parser)
    _add_module_options(parser)
    parser.add_argument(
        "--state-map",
        action="append",
        default=[],
        metavar="INPUT=OUTPUT",
        help="with --module: the output that a caller feeds back to an input, such as hidden_0=output_1; repeatable",
    )
    return parser


def verify_parser() -> argparse.ArgumentParser:
    """Of `verify`."""
    parser = base_parser(
        "verify CHECKPOINT ONNX [options]", "Hold an ONNX file against its checkpoint.", "verify lstm.pt lstm.onnx"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("onnx", metavar="ONNX", help="a network's file or a pipeline's")
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="also try properties, such as every cut, other padding, 2,000 steps, and ask third opinions (a minute)",
    )
    parser.add_argument("--data", metavar="FILE", help=_SAMPLES)
    parser.add_argument("--report", metavar="PAGE", help="also write the report to PAGE.html, with plots, or PAGE.json")
    _add_network_options(parser)
    _add_module_options(parser)
    return parser


def inspect_parser() -> argparse.ArgumentParser:
    """Of `inspect`."""
    parser = base_parser("inspect FILE", "Tell what a checkpoint or an ONNX file holds.", "inspect lstm.onnx")
    parser.add_argument("file", metavar="FILE")
    return parser


def run_parser() -> argparse.ArgumentParser:
    """Of `run`."""
    parser = base_parser(
        "run FILE NAME=VALUE … [options]",
        "Run a model once. A VALUE is a JSON array, the path of a .npy or .csv file, or zeros[dims], normal[dims] or "
        "uniform[dims]. For a model that reads text, text=TEXT stands for its tokens.",
        "run net.generate.onnx text='A prompt' uniforms=uniform[1,200] temperature=0.8",
    )
    parser.add_argument("file", metavar="FILE", help="an ONNX file, or a checkpoint, which torch then runs")
    parser.add_argument("values", metavar="NAME=VALUE", nargs="*", help="one for each input that is not optional")
    parser.add_argument(
        "--pipeline", help="run FILE's pipeline (forecast, classify or generate) instead of its network"
    )
    parser.add_argument("--seed", type=int, default=0, help="of normal[dims] and uniform[dims] (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument("-o", "--output", metavar="OUT.npz", help="also write the outputs as arrays")
    return parser


def quantize_parser() -> argparse.ArgumentParser:
    """Of `quantize`."""
    parser = base_parser(
        "quantize ONNX [-o OUT.onnx] [options]",
        "Write the int8 form of a float32 file, and of its pipeline's file beside it, and hold it against float32: by "
        "the task's own metric where there are samples, otherwise by cosine and decisions.",
        "quantize net.onnx --data samples.csv",
    )
    parser.add_argument("onnx", metavar="ONNX", help="a network's file, a pipeline's, or another with recurrent nodes")
    parser.add_argument("-o", "--output", metavar="OUT", help="the file to write (default: net.int8.onnx for net.onnx)")
    parser.add_argument("--data", metavar="FILE", help=_SAMPLES)
    return parser


def compare_parser() -> argparse.ArgumentParser:
    """Of `compare`."""
    parser = base_parser(
        "compare FILE… [options]",
        "Time runtimes beside each other: a step, sequences, the pipeline, loading, memory. Answers are held against "
        "torch's first; whoever differs gets no speed. A FILE is a checkpoint, or an ONNX file, which torch can't run.",
        "compare lstm.pt --runtimes torch,onnxruntime --scenarios step,pipeline --seconds 60 -o comparison",
    )
    parser.add_argument("files", metavar="FILE", nargs="+")
    names = ("torch", "torch-compile", "onnxruntime", "onnxruntime-int8", "openvino", "reference")
    parser.add_argument("--runtimes", metavar="A,B", help=f"some of {','.join(names)} (default: all that are there)")
    parser.add_argument(
        "--scenarios", metavar="A,B", help="some of step,sequence,throughput,pipeline,footprint,map (default: all)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each runtime (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=180, help="for the timing of each FILE, at most about (default: 180)"
    )
    parser.add_argument("--data", metavar="FILE", help="a CSV of text and label, of which a classifier reads 1,000")
    parser.add_argument("--map", action="store_true", help="a larger map of batch × length × hidden size")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="also write comparison.md, comparison.json and plots (SVG) into it"
    )
    _add_network_options(parser)
    return parser


def deploy_parser() -> argparse.ArgumentParser:
    """Of `deploy`."""
    parser = base_parser(
        "deploy ONNX --client LANGUAGE | --triton DIR | --hub DIR [options]",
        "Write what runs a file where neither torch nor seqexport is. What is written is read off the file and its "
        "metadata; a graph that is changed for it, as Triton's is, is held against the file first.",
        "deploy net.generate.onnx --client javascript",
    )
    parser.add_argument("onnx", metavar="ONNX", help="a network's file or a pipeline's, in float32 or int8")
    parser.add_argument("--client", choices=("python", "javascript"), help="a program that runs the file, beside it")
    parser.add_argument("-o", "--output", metavar="OUT", help="of --client: the program's path")
    parser.add_argument("--triton", metavar="DIR", help="a folder for the file in the Triton model repository DIR")
    parser.add_argument("--max-batch", type=int, default=32, help="of --triton: rows that it joins (default: 32)")
    parser.add_argument("--instances", type=int, default=1, help="of --triton: copies of the model (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of --triton: threads of each copy (default: 1)")
    parser.add_argument("--hub", metavar="DIR", help="a folder to push to the Hugging Face Hub, with the files beside")
    parser.add_argument("--checkpoint", metavar="FILE", help="of --hub: the weights (default: found beside ONNX)")
    return parser


def score_parser() -> argparse.ArgumentParser:
    """Of `score`."""
    from seqexport.orders import add_options

    parser = base_parser(
        "score MODEL DATA -o OUT [options]",
        "Answer every row of a table. After a stop or a kill the same command goes on where it was. Rows that can't be "
        "scored go to OUT.rejected.jsonl with their number, from 0, and the reason.",
        "score net.onnx reviews.csv -o scored.parquet --column text",
    )
    add_options(parser)
    return parser


def doctor_parser() -> argparse.ArgumentParser:
    """Of `doctor`."""
    return base_parser(
        "doctor [--json]",
        "Tell what is installed, whether it works (a small LSTM runs in every runtime), and the fix for what does not.",
        "doctor",
    )
