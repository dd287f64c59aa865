"""The command `s2q push`."""

from pathlib import Path
from typing import Annotated

import typer

from s2q.cli_options import JsonOption
from s2q.cli_work import write_summary
from s2q.messages import console, size


def push(
    folder: Annotated[Path, typer.Argument(metavar="TRANSFORMER", help="A folder that s2q quantize wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", metavar="HUB_ID", help="The original, for the card, if it was a folder.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="What s2q evaluate or run wrote, for the card. Default: what lies beside it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and say what would be uploaded.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Publish a quantized transformer on the Hugging Face hub, with its model card."""
    from huggingface_hub import HfApi

    from s2q.hub import check_repo_id, prepare_upload
    from s2q.hub import push as publish

    check_repo_id(repo_id)
    upload = prepare_upload(folder, pipeline=pipeline, report=report)
    for name, content in upload.files.items():
        count = len(content) if isinstance(content, bytes) else content.stat().st_size
        console.print(f"  {name}  {size(count)}", markup=False, highlight=False, soft_wrap=True)
    said = f"{len(upload.files)} files, {size(upload.bytes)}, to {repo_id}{', private' if private else ''}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    url = None if dry_run else publish(upload, repo_id, HfApi(), private=private)
    done = "nothing was uploaded: --dry-run" if url is None else f"published: {url}"
    console.print(done, markup=False, highlight=False, soft_wrap=True)
    write_summary(json_file, {"repo_id": repo_id, "files": list(upload.files), "bytes": upload.bytes, "url": url})
