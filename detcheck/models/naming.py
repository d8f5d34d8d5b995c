"""From the name of a model to the folder or hub id that is loaded, and errors in one sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from detcheck.errors import ModelError
from detcheck.models.embedded import embedded_folder

ADAPTER_CONFIG = "adapter_config.json"
"""File that makes a folder or repository an adapter of PEFT, with or without a model beside it."""
_HUB_PATIENCE_S = 5


def source(
    name: str | None,
    dtype: str = "auto",
    revision: str | None = None,
    *,
    needs_weights: bool = True,
) -> str:
    """Folder or hub id of the model `name`; None is the embedded model, as safetensors.

    Raises ModelError if a folder is missing or holds no model, or if `revision` is given for a
    model that is not on the hub. Without `needs_weights` a folder may hold a config alone.
    """
    found = str(embedded_folder(dtype)) if name is None else _named(name, needs_weights)
    if revision is not None and (name is None or Path(found).is_dir()):
        what = "the embedded model" if name is None else f"a folder, {name}"
        raise ModelError(
            f"`revision` is for models on the hub, and this is {what}: leave `revision` out."
        )
    return found


def pretrained_options(
    found: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Keyword arguments for every `from_pretrained` of the folder or hub id `found`.

    If the hub does not answer, only files on this machine are used; transformers would ask for
    each of them several times over.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    if not Path(found).is_dir() and not _hub_answers():
        options["local_files_only"] = True
    return options


def hub_commit(found: str, revision: str | None = None) -> str | None:
    """The commit of the files that `from_pretrained` reads for a hub id at `revision`.

    The hub's cache keeps the files of each commit in a folder of its name. None for a folder, and
    for a hub id that is not in the cache.
    """
    if Path(found).expanduser().is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    with suppress(Exception):  # names that the hub does not allow
        config = try_to_load_from_cache(found, "config.json", revision=revision)
        if isinstance(config, str):
            return Path(config).parent.name
    return None


def num_attention_heads(
    found: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> int:
    """Attention heads of a folder or hub id, from its config alone.

    Raises ModelError if the config cannot be read or does not say.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            found,
            **pretrained_options(found, revision=revision, trust_remote_code=trust_remote_code),
        )
        return int(config.get_text_config().num_attention_heads)
    except Exception as error:  # whatever transformers raises for the contents of the files
        raise ModelError(why_not_loaded(found, error)) from error


def _named(name: str, needs_weights: bool) -> str:
    """The folder or hub id that `name` means.

    A folder without a model is refused here, since transformers would take its name for a hub id.
    """
    if not name.strip():
        raise ModelError("MODEL is empty: name one, or leave it out for the embedded model.")
    path = Path(name).expanduser()
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists():
            raise ModelError(f"There is no folder {name}: check the path of the model.")
        return name
    if (path / ADAPTER_CONFIG).is_file():
        raise ModelError(adapter_sentence(name))
    if not (path / "config.json").is_file():
        raise ModelError(f"{name} holds no config.json: it is not a model's folder.")
    has_weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
    if needs_weights and not has_weights:
        raise ModelError(f"{name} holds no weights (*.safetensors): download the whole model.")
    return str(path)


def adapter_sentence(name: str) -> str:
    """Why an adapter is not loaded: its digests would say nothing of its base model's weights."""
    return (
        f"{name} holds an adapter ({ADAPTER_CONFIG}), and detcheck identifies whole models only: "
        "merge it into its base model (PEFT's merge_and_unload) and name the folder of the result."
    )


def _hub_answers() -> bool:
    """True if the hub can be reached. transformers itself would try for a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_PATIENCE_S)
    except Exception:  # of whichever HTTP library it uses, or because HF_HUB_OFFLINE is set
        return False
    return True


def why_not_loaded(name: str, error: Exception) -> str:
    """One sentence for an error of transformers. It never repeats what the hub replied."""
    text = str(error)
    for words, sentence in _SENTENCES:
        if any(word in text for word in words):
            return f"{name} {sentence}"
    if _is_damaged(name):
        return f"{name} has a config.json that is no JSON object: download the model again."
    first = " ".join(text.split())[:200].rstrip(".")
    newer = _newer_transformers(name)
    if newer is not None:
        return (
            f"{name} was saved by transformers {newer}, which is newer than the one here, and "
            f"cannot be loaded ({first}): run `pip install --upgrade transformers`."
        )
    return f"{name} cannot be loaded as a causal language model ({first})."


def _is_damaged(folder: str) -> bool:
    """True if the config.json of a folder is cut off, empty, or holds no object."""
    try:
        text = (Path(folder).expanduser() / "config.json").read_text(encoding="utf-8")
        return not isinstance(json.loads(text), dict)
    except OSError:  # no folder
        return False
    except ValueError:  # no JSON, or no text
        return True


def _newer_transformers(folder: str) -> str | None:
    """The version that saved the model in `folder`, if it is newer than the one installed."""
    import transformers
    from packaging.version import Version

    with suppress(OSError, ValueError, TypeError, AttributeError):  # any contents of the file
        text = (Path(folder).expanduser() / "config.json").read_text(encoding="utf-8")
        version = json.loads(text).get("transformers_version")
        if Version(version) > Version(transformers.__version__):
            return str(version)
    return None


_SENTENCES = (
    (
        ("trust_remote_code",),
        "runs code of its own: read it, then allow it by `trust_remote_code`.",
    ),
    (("gated",), "is gated on the hub: accept its terms there and log in (hf auth login)."),
    (
        ("is not a valid git identifier",),
        "has no such revision on the hub: check `revision`.",
    ),
    (
        ("connect", "offline", "couldn't reach", "resolve", "Max retries", "timed out"),
        "is not on this machine and the hub cannot be reached: check the name and the network, "
        "give a local folder, or leave MODEL out for the embedded model.",
    ),
    (
        ("not a valid model identifier", "does not exist", "404", "Repo id must"),
        "is neither a folder nor on the hub: check its name.",
    ),
    (
        ("does not recognize this architecture",),
        "has an architecture that this transformers does not know: run `pip install --upgrade "
        "transformers`.",
    ),
    (
        ("Unrecognized configuration class",),
        "is no causal language model: name one that AutoModelForCausalLM of transformers loads.",
    ),
    (
        ("No module named 'torchao'", "requires torchao"),
        "has weights that torchao quantised: run `pip install torchao`.",
    ),
    (
        ("backend tokenizer",),
        "holds no tokenizer that can be read: download the whole model.",
    ),
)
"""Words of transformers' errors, and what they mean for the model."""
