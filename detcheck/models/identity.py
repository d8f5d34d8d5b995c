"""The identity of a model: the hub's commit, and digests of its files.

A digest is `sha256:` and 64 hex digits. A single file's is its SHA-256, as `sha256sum` prints it.
Several files' is the SHA-256 of one line a file, `<SHA-256 of the file>  <its name>`, sorted by
name. The SHA-256 of a file is remembered in the user's cache by path, size and times of change, so
that an unchanged file is read only once.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

from detcheck.evidence import ModelIdentity
from detcheck.models.embedded import EMBEDDED_NAME, EMBEDDED_REVISION, cache_folder

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
HUB_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Of a hub model only these: the other files in the cache depend on who has downloaded it."""
CONFIGS = ("config.json", "generation_config.json")
OWN_CODE = "*.py"
"""Code that a model brings along; of a hub model its commit is enough."""
FAST_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""All that is read of a tokenizer if its first file is there."""
SLOW_TOKENIZER = (
    *("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("*.model", "*.tiktoken", "*.spm"),
)
_MOST_REMEMBERED = 2000

Stamp = tuple[int, int, int]
"""Size in bytes, and the times of the last change of contents and of the entry, in ns."""


def identify(name: str, source: str | None, commit: str | None = None) -> ModelIdentity:
    """Identity of the model `name` by the files of `source`, a folder or hub id.

    `commit` is that of a hub model. A folder is named without its path. With `source` None (a
    model made in memory) only the name is known. Files that cannot be read leave their digest
    None.
    """
    folder = None if source is None else _folder(source, commit)
    if name == EMBEDDED_NAME:
        identity = ModelIdentity(name=name, revision=EMBEDDED_REVISION)
    elif folder is not None and commit is None:
        identity = ModelIdentity(name=folder.resolve().name)
    else:
        identity = ModelIdentity(name=name, revision=commit)
    if folder is None:
        return identity
    fast = (folder / FAST_TOKENIZER[0]).is_file()
    return replace(
        identity,
        weights_digest=_digest(folder, WEIGHTS if commit is None else HUB_WEIGHTS),
        config_digest=_digest(folder, (*CONFIGS, OWN_CODE) if commit is None else CONFIGS),
        tokenizer_digest=_digest(folder, FAST_TOKENIZER if fast else SLOW_TOKENIZER),
    )


def digest_of_template(template: str | Mapping[str, str] | None) -> str | None:
    """Tagged SHA-256 of a chat template, or of several by name; None if there is none."""
    if not template:
        return None
    if isinstance(template, str):
        return digest_of_text(template)
    return digest_of_text(msgspec.json.encode(dict(sorted(template.items()))).decode())


def digest_of_text(text: str) -> str:
    """Tagged SHA-256 of UTF-8 text."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest_of_files(files: Iterable[Path]) -> str | None:
    """Tagged SHA-256 of files, see the module; None if there are none or one cannot be read."""
    listed = sorted(files, key=lambda file: file.name)
    if not listed:
        return None
    try:
        hashes = _remembered(listed)
    except OSError:
        return None
    if len(listed) == 1:
        return f"sha256:{hashes[0]}"
    return digest_of_text(
        "".join(f"{each}  {file.name}\n" for each, file in zip(hashes, listed, strict=True))
    )


def _folder(source: str, commit: str | None) -> Path | None:
    """The folder that holds the files; of a hub model that is in the hub's cache."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    with suppress(Exception):  # names that the hub does not allow
        config = try_to_load_from_cache(source, "config.json", revision=commit)
        if isinstance(config, str):
            return Path(config).parent
    return None


def _digest(folder: Path, patterns: Iterable[str]) -> str | None:
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return digest_of_files(files)


def _remembered(files: list[Path]) -> list[str]:
    """SHA-256 of each file, read only if it is not remembered as it is now."""
    store = cache_folder() / "digests.json"
    known = _read(store)
    hashes, changed = [], False
    for file in files:
        stored_by_hub = _hash_in_name(file)
        if stored_by_hub is not None:
            hashes.append(stored_by_hub)
            continue
        path, stamp = str(file.resolve()), _stamp(file)
        if path not in known or known[path][0] != stamp:
            known[path] = (stamp, _sha256(file))
            changed = True
        hashes.append(known[path][1])
    if changed:
        _write(store, known)
    return hashes


def _hash_in_name(file: Path) -> str | None:
    """The hub's cache names each large file by its SHA-256."""
    blob = file.resolve()
    named_by_hash = blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name)
    return blob.name if named_by_hash else None


def _stamp(file: Path) -> Stamp:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(store: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        return msgspec.json.decode(store.read_bytes(), type=dict[str, tuple[Stamp, str]])
    except (OSError, msgspec.MsgspecError):
        return {}


def _write(store: Path, known: dict[str, tuple[Stamp, str]]) -> None:
    """Replace the store whole; without it the files are read again next time."""
    newest = dict(list(known.items())[-_MOST_REMEMBERED:])
    with suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=store.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(msgspec.json.encode(newest))
        Path(temporary).replace(store)
