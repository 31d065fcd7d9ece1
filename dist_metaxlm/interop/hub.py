"""Upload of an export to the Hugging Face hub: huggingface_hub's client with its own settings (HF_TOKEN, HF_ENDPOINT)."""

from __future__ import annotations

import re
from pathlib import Path

from dist_metaxlm.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_push(repository: str) -> None:
    """Refuse an upload that cannot succeed, before anything is written.

    Raises:
        UserError: for a name that is not OWNER/NAME, or without a token.
    """
    from huggingface_hub import get_token

    if not _NAME.fullmatch(repository):
        raise UserError(
            f"--push_to_hub {repository!r} is not a name on the hub; give OWNER/NAME, such as my-lab/ten-languages"
        )
    if get_token() is None:
        raise UserError(
            f"--push_to_hub {repository} needs a token; log in with `hf auth login`, or set HF_TOKEN to a token with write "
            "permission"
        )


def push_folder(folder: str | Path, repository: str, private: bool) -> str:
    """Upload all files of `folder` as one commit; creates the repository if it does not exist. Returns the commit's address.

    Raises:
        UserError: if the hub refuses or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    client = HfApi()
    try:
        client.create_repo(repository, private=private, exist_ok=True)
        commit = client.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of dist_metaxlm")
    except Exception as error:  # HTTP, network and offline errors of the client, whose classes differ between versions
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder} is written, but the hub did not accept it as {repository} ({reason}); correct that and upload it "
            f"with `hf upload {repository} {folder}`"
        ) from error
    return str(commit.commit_url)
