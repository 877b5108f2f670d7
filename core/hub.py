"""Where a model lies: the embedded default, a folder, or a name on the Hugging Face hub."""
from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, ConfigError, ModelNotFound

TINY = Path(__file__).resolve().parent.parent / "model_zoo" / "tiny" / "checkpoint"
"""The model that comes with the package."""
WANTED = [
    "config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
]
UNWANTED = ["*/*", "consolidated*"]
"""Subfolders hold other formats; `consolidated` the same weights a second time."""


def locate(model: str | Path | None = None, revision: str | None = None) -> Path:
    """The folder of a model (or its .gguf file), downloaded where it has to be. None and "tiny" mean the embedded default.

    Raises `ModelNotFound` where there is no such folder or name, or the hub cannot be reached or refuses;
    `CheckpointError` for a repository without safetensors; `ConfigError` for a revision of a folder.
    """
    name = "tiny" if model is None else str(model)
    if name == "tiny":
        if not (TINY / "config.json").is_file():
            raise ModelNotFound(f"the embedded model is not in {TINY}. Remedy: install the package again, or name another model.")
        return TINY
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigError(f"revision {revision!r} was asked for, and {name} is a folder. Remedy: leave the revision out.")
        return path.resolve()
    if path.suffix == ".gguf" and path.is_file():
        return path.resolve()
    if path.exists():
        raise ModelNotFound(f"{name} is a file. Remedy: give the folder that holds config.json and *.safetensors, or a .gguf file.")
    if name.startswith((".", "~", "/")) or "\\" in name or name.count("/") != 1:
        raise ModelNotFound(f"no folder {name!r}. Remedy: give an existing folder, a hub name such as org/name, or tiny.")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    at = f"{name!r}" + (f" at revision {revision!r}" if revision else "") + f" on {constants.ENDPOINT}"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except hub.GatedRepoError as error:
        raise ModelNotFound(
            f"{at} is gated. "
            "Remedy: accept its terms on its page, then log in (hf auth login, or HF_TOKEN)."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"no model {at}, or it is private. "
            "Remedy: check the spelling; for a private one, log in (hf auth login)."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelNotFound(f"no such revision: {at}. Remedy: name a branch, a tag or a commit that exists.") from error
    except hub.HFValidationError as error:
        raise ModelNotFound(
            f"{name!r} is neither a folder nor a hub name: {error}. "
            "Remedy: give a folder or org/name."
        ) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({error.__cause__})"
        raise ModelNotFound(
            f"{at} is not in the cache, and {why}. "
            "Remedy: go online, or give a folder with the model."
        ) from error
    except (hub.HfHubHTTPError, OSError) as error:
        raise ModelNotFound(f"{at} could not be fetched: {error}. Remedy: try again, or give a folder with the model.") from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{at} has no *.safetensors. Remedy: name a repository that has them; of GGUF, download one file and give its path."
        )
    return folder
