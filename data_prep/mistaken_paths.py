"""Recognises paths given by mistake in place of a data set or a checkpoint, and suggests a remedy. Stdlib only."""

from __future__ import annotations

from pathlib import Path

_LFS = b"version https://git-lfs"
_CACHED = ("models--", "datasets--")


def describe(path: Path) -> tuple[str, str] | None:
    """(what the file or folder is, what to do); None if it is not one of the known mistakes."""
    if path.is_file():
        return _describe_file(path)
    if (path / "snapshots").is_dir() and path.name.startswith(_CACHED):
        owner_name = path.name.partition("--")[2].replace("--", "/")
        states = sorted((path / "snapshots").iterdir(), key=lambda state: state.stat().st_mtime)
        remedy = f"give its newest state, {states[-1]}" if states else f"download {owner_name} again"
        return f"is the hub's cache of {owner_name}", remedy
    cached = sorted(folder for folder in path.glob("*--*") if folder.name.startswith(_CACHED))
    if cached:
        remedy = f"give a folder below one of its snapshots, such as {cached[0]}/snapshots/*"
        return "is a cache of the hub, with several sets or models", remedy
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if "params.json" in names and any(name.startswith("consolidated.") for name in names):
        remedy = "convert it with transformers' convert_llama_weights_to_hf.py, or download the -hf repository"
        return "is a checkpoint in Meta's own format", remedy
    if "adapter_config.json" in names and "config.json" not in names:
        remedy = "merge it into its base model (peft: merge_and_unload, then save_pretrained) and give that folder"
        return "is a PEFT adapter without its base model", remedy
    if any(name.endswith(".gguf") for name in names) and "config.json" not in names:
        return "contains GGUF files", "give the Hugging Face folder that they were made from"
    return None


def _describe_file(path: Path) -> tuple[str, str] | None:
    if is_lfs_pointer(path):
        return "is a git-lfs pointer, not the file itself", "run `git lfs pull` in its folder"
    if path.suffix == ".gguf":
        return "is a GGUF file", "give the Hugging Face folder that it was made from"
    if path.suffix == ".nemo":
        return "is a .nemo file", "use --to hf to convert it to a folder"
    return None


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is the few lines that git-lfs keeps in place of a large file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False
