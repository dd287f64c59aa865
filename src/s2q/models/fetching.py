"""Where a pipeline is: a folder, the word of a demo, or a hub id, of which configurations can be had without weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import huggingface_hub
from diffusers import DiffusionPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from s2q.models.folder import PipelineError

DEMO = "demo"
DEMOS = {DEMO: "cogvideox", "demo-wan": "wan", "demo-hunyuanvideo": "hunyuanvideo"}
"""The words that stand for a demo pipeline, and the name that `s2q.demo` knows each by."""
CONFIGURATIONS = ("model_index.json", "*/config.json", "*.safetensors.index.json")
"""What planning reads, and what tells whether s2q knows a pipeline; `*` also stands for folders."""
FILES = (".safetensors", ".bin", ".ckpt", ".pt", ".gguf", ".json", ".mp4")
"""How names end that are files here and not repositories."""
HTTP_ERROR = HfHubHTTPError.__bases__[0]
"""The base of all errors of the library that the hub's client speaks HTTP with."""
_TRY_LATER = "give the pipeline's folder, if it is on this machine, or try again: what is fetched already is kept"


def local_folder(source: str) -> Path | None:
    """The folder that `source` names, not looked into; None if it may be a hub id.

    Raises:
        PipelineError: neither.
    """
    if source in DEMOS:
        from s2q.demo import pipeline_dir

        try:
            return pipeline_dir(DEMOS[source])
        except FileNotFoundError as error:
            raise PipelineError(str(error)) from None
    path = Path(source)
    if path.is_dir():
        return path
    # Names on the hub have dots, too: Wan2.1-T2V-1.3B-Diffusers.
    may_be_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~")) and path.suffix not in FILES
    if path.exists() or not may_be_hub_id:
        raise PipelineError(
            f"{source} is not a folder. Give a diffusers pipeline folder, a hub id such as "
            f"THUDM/CogVideoX-2b, or one of the words {', '.join(DEMOS)}."
        )
    return None


def fetch_configurations(repo_id: str) -> Path:
    """The folder, in the hub's cache, of the pipeline `repo_id` with at least all its configurations.

    Raises:
        PipelineError: it cannot be had, and why; or it is no pipeline of diffusers.
    """
    with _quiet(), _without_bars(), _explained(repo_id):
        folder = Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(CONFIGURATIONS)))
    if not (folder / "model_index.json").is_file():
        raise PipelineError(
            f"{repo_id} on the hub has no model_index.json, so it is not a diffusers pipeline: look there for one whose "
            "name ends in -Diffusers or -diffusers"
        )
    return folder


def fetch_whole(repo_id: str) -> Path:
    """The same with its weights, as diffusers chooses them; what was broken off is resumed, what is there is not asked for.

    Raises:
        PipelineError: it cannot be had, and why.
    """
    with _quiet(), _explained(repo_id):
        return Path(DiffusionPipeline.download(repo_id))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without network both libraries say so and look into the cache: needless where that is whole, else it is our error."""
    loggers = logging.getLogger("huggingface_hub"), diffusers.utils.logging.get_logger("diffusers")
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_bars() -> Iterator[None]:
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, HTTP_ERROR) as error:
        raise PipelineError(_explanation(repo_id, error)) from error


def _explanation(repo_id: str, error: BaseException) -> str:
    """One line: why `repo_id` cannot be had, and what to do."""
    causes = list(_causes(error))

    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if first(GatedRepoError):
        return (
            f"{repo_id} is gated: accept its terms on {huggingface_hub.constants.ENDPOINT}/{repo_id}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if first(RepositoryNotFoundError):
        return (
            f"{repo_id} is no folder here and not on the hub: check the spelling; if it is private, log in with "
            "`hf auth login`"
        )
    if first(OfflineModeIsEnabled):
        return (
            f"{repo_id} is not whole in this machine's cache, and HF_HUB_OFFLINE forbids to fetch it: unset that, or give "
            "the pipeline's folder"
        )
    if first(HFValidationError):
        return f"{repo_id} is no hub id, which is OWNER/NAME, such as THUDM/CogVideoX-2b: {one_line(error)}"
    refused = first(HfHubHTTPError)
    status = getattr(getattr(refused, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses {repo_id} to this login (status {status}): log in again with `hf auth login`"
    if status is not None:
        return f"the hub does not give {repo_id} (status {status}): {_TRY_LATER}"
    # Connections that break have classes of their own in each library; without one, the cache alone was asked.
    broken = first(HTTP_ERROR, ConnectionError, TimeoutError) or first(LocalEntryNotFoundError)
    if broken:
        return (
            f"{repo_id} is not whole in this machine's cache, and the hub cannot be reached ({type(broken).__name__}): "
            f"check the network and its proxy; else {_TRY_LATER}"
        )
    return f"{repo_id} cannot be fetched from the hub: {one_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def one_line(error: BaseException) -> str:
    """What an error says; the hub's own have several lines."""
    return " ".join(str(error).split())
