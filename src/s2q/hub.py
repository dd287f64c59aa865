"""Publish a quantized transformer on the Hugging Face hub: checked first, with its model card, in one commit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from s2q.card import CARD_NAME, is_hub_id, model_card
from s2q.checkpoint import PROVENANCE_NAME
from s2q.export.source import QuantizedFolder, open_folder
from s2q.models.fetching import HTTP_ERROR, one_line
from s2q.models.folder import PARTS
from s2q.models.lookup import resolve
from s2q.shards import INDEX_NAME
from s2q.storage import read_json

REPORT_NAME = "report.json"


class HubError(ValueError):
    """What cannot be published, or a hub that does not take it, with what to do."""


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    whoami: Callable[..., Any]
    create_repo: Callable[..., Any]
    create_commit: Callable[..., Any]


@dataclass(frozen=True)
class Upload:
    """What is to be published."""

    files: dict[str, Path | bytes]
    """Name in the repository → the file, or its content."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(
            len(content) if isinstance(content, bytes) else content.stat().st_size for content in self.files.values()
        )


def check_repo_id(repo_id: str) -> None:
    """Whether `repo_id` is OWNER/NAME.

    Raises:
        HubError: it is not.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no REPO_ID, which is OWNER/NAME, such as me/video-w4a8: {error}") from None
    if "/" not in repo_id:
        raise HubError(f"{repo_id!r} has no owner: REPO_ID is OWNER/NAME, such as me/{repo_id}")


def prepare_upload(folder: Path, *, pipeline: str | None = None, report: Path | None = None) -> Upload:
    """Check `folder` tensor by tensor and collect what is published of it.

    Only what belongs to a transformer is: weights, `config.json`, provenance and card. Of a path in the provenance only the
    last name is told.

    Args:
        pipeline: the hub id of the original, for the card; default is what the folder was made from, if that is one.
        report: folder that `s2q evaluate` or `s2q run` wrote, whose figures stand in the card; default is the one beside
            `folder`, if it is about it. With neither, a card that was edited is published as it is.

    Raises:
        CheckpointError: not a folder that s2q wrote, or damaged.
        HubError: nothing tells how it was made; no hub id; or no report of this transformer.
    """
    if pipeline is not None and not is_hub_id(pipeline):
        raise HubError(f"--pipeline is the hub id of the original, such as THUDM/CogVideoX-2b; got {pipeline!r}")
    opened, noted = open_folder(folder), read_json(folder / PROVENANCE_NAME)
    if not isinstance(noted, dict) or "storage" not in noted:
        raise HubError(f"{folder} has no {PROVENANCE_NAME} that tells how it was made: nobody could trust it")
    found = _report(folder, noted, report)
    source = pipeline or noted["pipeline"]
    noted = noted | {"pipeline": _public(source)}
    if "reused" in noted:
        noted["reused"] = noted["reused"] | {"pipeline": _public(noted["reused"]["pipeline"])}
    card: Path | bytes = folder / CARD_NAME
    if pipeline is not None or found is not None or not card.is_file():
        card = _card(opened, noted, source, found).encode()
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(set(opened.places.values()))}
    files |= {name: folder / name for name in ("config.json", INDEX_NAME) if (folder / name).is_file()}
    files[PROVENANCE_NAME] = (json.dumps(noted, indent=2, ensure_ascii=False) + "\n").encode()
    return Upload(files | {CARD_NAME: card})


def push(upload: Upload, repo_id: str, hub: Hub, *, private: bool = False) -> str:
    """Make the repository, if it is not there, and publish in one commit; gives the address.

    Raises:
        HubError: not logged in, refused, or not reachable; or `repo_id` is none, see `check_repo_id`.
    """
    check_repo_id(repo_id)
    try:
        hub.whoami()
        url = hub.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        operations = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        hub.create_commit(
            url.repo_id, operations, commit_message="Upload a transformer quantized by s2q", repo_type="model"
        )
    except LocalTokenNotFoundError:
        raise HubError(
            "not logged in to the hub: run `hf auth login`, or set HF_TOKEN to a token that may write"
        ) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        why = "the token is not valid, or may not write there: " if status in (401, 403) else ""
        raise HubError(f"the hub refuses {repo_id}: {why}{one_line(error)}") from error
    except (OfflineModeIsEnabled, ConnectionError, TimeoutError, HTTP_ERROR) as error:
        raise HubError(f"the hub cannot be reached, nothing is published: {one_line(error)}") from error
    return str(url)


def _public(source: str) -> str:
    return source if is_hub_id(source) else Path(source).name


def _report(folder: Path, noted: Mapping[str, Any], given: Path | None) -> dict[str, Any] | None:
    places = [folder.with_name(folder.name + ".evaluation"), folder.parent] if given is None else [given]
    for place in places:
        found = read_json(place / REPORT_NAME)
        same = isinstance(found, dict) and all(
            found.get(key) == value
            for key, value in (
                ("storage", noted["storage"]),
                ("seed", noted["seed"]),
                ("bits", noted["recipe"]["bits"]),
            )
        )
        if same and found["recipe"] == noted["recipe"]["name"]:
            return found
    if given is not None:
        raise HubError(f"{given} has no {REPORT_NAME} about {folder}: give what s2q evaluate or s2q run wrote of it")
    return None


def _card(opened: QuantizedFolder, noted: Mapping[str, Any], source: str, report: dict[str, Any] | None) -> str:
    model_class = opened.config["_class_name"]
    pipeline_class = noted.get("pipeline_class") or resolve(model_class).pipeline
    part = noted.get("part", PARTS[0])
    return model_card(source, model_class, pipeline_class, opened.spec, noted["storage"], report, part)
