"""Preference pairs -> the JSONL files that NeMo-Aligner's DPO reads, without the rows on which it would crash.

It writes train.jsonl, validation.jsonl and test.jsonl with {prompt, chosen_response, rejected_response, chosen_reward,
rejected_reward}, and dataset.json, which records what they were made from and which rows were dropped and why. They
appear when all of them are done; a second run with nothing changed does nothing.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    # When this runs as a script, Python puts this folder first in sys.path; the packages are one level above.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep.pairs import output, prompt_formats, sources, summary, tokenizer_files
from data_prep.pairs.build import build, check_tokens, preview, recipe
from data_prep.pairs.forms import BY_NAME, FORMS, KEYS, TARGETS
from data_prep.pairs.hub import HH_NAME, HH_REVISION
from data_prep.pairs.pair_filter import Options
from data_prep.pairs.pair_tokens import PairTokenizer
from data_prep.pairs.splits import Sizes
from data_prep.progress import Progress
from launcher.findings import Finding, Refused

EXAMPLES = """\
examples:
  python data_prep/prepare_data.py sample                          # data/sample: 288 + 32 + 40 pairs, made up
  python data_prep/prepare_data.py sample --tokenizer models/smollm2_135m.nemo
  python data_prep/prepare_data.py hh_rlhf --tokenizer llama3_8b_base.nemo --max-tokens 2048
  python data_prep/prepare_data.py ~/hh-rlhf --out data/hh_rlhf    # a copy of the set, where there is no network
  python data_prep/prepare_data.py HuggingFaceH4/ultrafeedback_binarized --splits train_prefs,test_prefs \\
      --tokenizer llama3_8b_base.nemo --prompt-format llama3 --max-tokens 4096 --too-long cut
  python data_prep/prepare_data.py pairs.jsonl.gz --validation 64 --test 64 --skip-bad-lines
  python data_prep/prepare_data.py pairs.csv --map prompt=question,chosen=good,rejected=bad --preview

Files may be JSON Lines, a JSON array, CSV, TSV, Parquet or Arrow, each also packed with gzip, bzip2, xz or zstd.
The forms of rows, with the keys by which --form auto recognises them:
{forms}
Texts may be messages ({{"role": "user", "content": "..."}}) wherever a form has them. Rewards (chosen_reward and
rejected_reward, score_chosen and score_rejected, ...) are kept. A "system" text, or a message of that role, is kept.

A second call with nothing changed does nothing. Exit codes: 0 done, 2 bad input (nothing was written), 130 interrupted.
"""


def examples() -> str:
    """EXAMPLES with the table of forms."""
    lines = [f"  {form.name:<17}{', '.join(form.needs)}" for form in FORMS]
    return EXAMPLES.format(forms="\n".join(lines))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line; argparse would print the whole usage before it."""
        self.exit(2, f"error: {message}; see --help\n")


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog="prepare_data.py",
        description=(__doc__ or "").partition("\n")[0],
        epilog=examples(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("source", metavar="SOURCE", help=f"sample, hh_rlhf, OWNER/NAME of the hub, {sources.KINDS} (or data=SOURCE)")
    add("--out", type=Path, metavar="FOLDER", help="the folder to write; default data/<name of the source>")
    add(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="the trials' .nemo, HF folder, tokenizer.json or .model",
    )
    formats = "the format of prompts: HH-RLHF's, Llama 3's, or the tokenizer's chat template; default %(default)s"
    add("--prompt-format", choices=prompt_formats.NAMES, default="hh", help=formats)
    add("--max-tokens", type=_positive, metavar="N", help="the most tokens a pair may have (needs --tokenizer)")
    what = "drop pairs over --max-tokens, or cut off their oldest exchanges; default %(default)s"
    add("--too-long", choices=("drop", "cut"), default="drop", help=what)
    packs = "also write packs of N tokens, for model.data.data_impl=packed_jsonl (needs --max-tokens of at most N/2)"
    add("--pack", type=_positive, metavar="N", help=packs)
    add("--validation", type=_size, metavar="SIZE", help="share (0.05) or number of rows (64); sample 32, else 0.05")
    add("--test", type=_size, metavar="SIZE", help="the same for the test; sample 40, else 0.05")
    add(
        "--splits",
        default="",
        metavar="NAMES",
        help="splits of a folder or a set of the hub, separated by commas; default all",
    )
    subset = "subsets of HH-RLHF or a folder, separated by commas, or one configuration of another set; default all"
    add("--subset", default="", metavar="NAMES", help=subset)
    revision = f"the revision of a set of the hub; default main, for {HH_NAME} {HH_REVISION:.12}"
    add("--revision", metavar="COMMIT", help=revision)
    forms = "the form of the source's rows, see below; default %(default)s, which recognises it"
    add("--form", choices=("auto", *BY_NAME), default="auto", metavar="NAME", help=forms)
    maps = f"the keys in SOURCE for {', '.join(TARGETS)}, such as prompt=question,chosen=answers.0.text"
    add("--map", type=_mapping, default={}, metavar="NAME=KEY,...", help=maps)
    which = "which of several rejected responses to use (first: if ranked, the best); default %(default)s"
    add("--rejected", choices=("first", "worst", "all"), default="first", help=which)
    chosen = "which response is the chosen one: the one under that key, or the one with the higher reward"
    add("--chosen", choices=("key", "reward"), default="key", help=f"{chosen}; default %(default)s")
    marked = "refuse prompts that already have the markers of a chat format, or keep them unchanged"
    add("--rendered", choices=("refuse", "keep"), default="refuse", help=f"{marked}; default %(default)s")
    add("--encoding", default="utf-8", metavar="NAME", help="encoding of text files, such as latin-1; default UTF-8")
    add("--preview", action="store_true", help="print the form, and the first pair as the model sees it, and exit")
    add("--limit", type=_positive, metavar="N", help="keep at most N pairs of each of the source's own splits")
    add(
        "--skip-bad-lines",
        action="store_true",
        help="skip and count lines that are not pairs, instead of refusing them",
    )
    add("--force", action="store_true", help="make the files again, and overwrite what exists")
    return made


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _mapping(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in text.split(",")]
    for target, _, key in pairs:
        if target not in TARGETS or not key:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=KEY,... with names of {', '.join(TARGETS)}")
    return {target: key for target, _, key in pairs}


def _size(text: str) -> float | int:
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share between 0 and 1 nor a number of rows")
    return share


def options_from(args: argparse.Namespace, source: sources.Source) -> Options:
    """The options that decide what is written. Raises Refused if they contradict each other."""
    default_validation, default_test = source.default_sizes
    validation = default_validation if args.validation is None else args.validation
    test = default_test if args.test is None else args.test
    if isinstance(validation, int) != isinstance(test, int):
        why = f"one is a number of rows, the other a share (--test {test})"
        raise Refused([Finding("--validation", str(validation), why, "give both as numbers or both as shares")])
    if validation + test >= 1 and not isinstance(validation, int):
        raise Refused([Finding("--validation", str(validation), f"leaves nothing to train on with --test {test}", "")])
    if args.max_tokens and not args.tokenizer:
        remedy = "add --tokenizer models/<name>.nemo"
        raise Refused([Finding("--max-tokens", str(args.max_tokens), "needs a tokenizer to count with", remedy)])
    if args.too_long == "cut" and not args.max_tokens:
        raise Refused([Finding("--too-long", "cut", "needs --max-tokens", "add --max-tokens N")])
    if args.pack and not (args.max_tokens and 2 * args.max_tokens <= args.pack):
        why = "must be large enough for both sides of any pair"
        raise Refused([Finding("--pack", str(args.pack), why, f"add --max-tokens {args.pack // 2} or less")])
    sizes = Sizes(validation, test)
    return Options(
        form=args.form,
        sizes=sizes,
        max_tokens=args.max_tokens,
        too_long=args.too_long,
        limit=args.limit,
        skip_bad_lines=args.skip_bad_lines,
        pack=args.pack,
        mapping=args.map,
        rejected=args.rejected,
        keep_rendered=args.rendered == "keep",
        by_reward=args.chosen == "reward",
        encoding=args.encoding,
    )


def prepare(args: argparse.Namespace) -> int:
    """Run with a parsed command line; returns the exit code. Raises Refused; then nothing was written."""
    reading = sources.Reading(KEYS | {key.partition(".")[0] for key in args.map.values()}, args.encoding)
    source = sources.find(args.source, _names(args.subset), args.revision, _names(args.splits), reading)
    folder = args.out or Path("data", source.name)
    options = options_from(args, source)
    files = tokenizer_files.read(args.tokenizer) if args.tokenizer else None
    prompt_format = prompt_formats.choose(args.prompt_format, files)
    tokenizer = PairTokenizer(files) if files else None
    if args.preview:
        return _print_preview(source, options, prompt_format, tokenizer)
    wanted = recipe(source, options, prompt_format, tokenizer)
    made = None if args.force or not source.fixed else output.made_from(folder, wanted)
    if made:
        print(f"{folder} is up to date: {summary.counts(made)}; nothing to do (--force makes it again)")
        return 0
    output.check(folder, source.files, args.force)
    _load(prompt_format, tokenizer)
    with output.Workspace(folder) as work:
        made = build(source, options, prompt_format, tokenizer, work.path, Progress("prepare_data"))
        record = {**wanted, **made}
        work.publish(record)
    print(summary.table(folder, record, args.tokenizer))
    return 0


def _load(prompt_format: prompt_formats.PromptFormat, tokenizer: PairTokenizer | None) -> None:
    if tokenizer:
        tokenizer.load()
        check_tokens(prompt_format, tokenizer)


def _print_preview(
    source: sources.Source,
    options: Options,
    prompt_format: prompt_formats.PromptFormat,
    tokenizer: PairTokenizer | None,
) -> int:
    """Print the first pair, with its texts quoted so that blanks and line ends are visible."""
    _load(prompt_format, tokenizer)
    form, pair = preview(source, options, prompt_format, tokenizer)
    if pair is None:
        raise Refused(
            [Finding("SOURCE", source.name, "none of its first rows gives a pair", "leave --preview out to see why")]
        )
    print(f"{source.name}: rows of the form {form}; the first pair, as the model would see it:")
    for key, value in pair.row().items():
        print(f"  {key:<16} {value!r}")
    if pair.rewards is None:
        print("  (the source has no rewards: 1 and 0 are NeMo-Aligner's defaults)")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(argv: list[str] | None = None) -> int:
    words = [word.removeprefix("data=") for word in (sys.argv[1:] if argv is None else argv)]
    args = parser().parse_args(words)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    try:
        return prepare(args)
    except Refused as refused:
        for finding in refused.findings:
            print(f"error: {finding}", file=sys.stderr)
        return refused.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
