"""Write a trained phase as a Hugging Face folder, read one, or average checkpoints.

examples:
  metaxlm convert export --run_dir runs/quickstart --phase cross --output exported --fill_mask en de fr
  metaxlm convert import --input path/to/xlm-roberta-base --output imported
  metaxlm convert extend --input imported --tokenizer data/mine/tokenizer.model --output extended
  metaxlm convert average --run_dir runs/quickstart --phase meta --last 2 --name meta-average
  metaxlm convert export --run_dir runs/quickstart --phase meta --output exported-meta --dtype bfloat16 --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dist_metaxlm.command_line import Parser
from dist_metaxlm.errors import UserError, run_command
from dist_metaxlm.invocation import program
from dist_metaxlm.text import pluralize


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__, prog=program("convert"))
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="a phase's newest checkpoint and its tokenizer -> Hugging Face folder")
    export.add_argument("--run_dir", required=True, help="folder of the run, such as runs/quickstart")
    export.add_argument(
        "--phase",
        required=True,
        metavar="PHASE",
        help="phase to export, such as cross; meta@best: its checkpoint with the best held-out loss, meta@400: that "
        "of step 400",
    )
    export.add_argument(
        "--data_directory",
        metavar="FOLDER",
        help="prepared data of the run, if they have moved (default: data.directory of its recipe)",
    )
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in --output")
    export.add_argument(
        "--fill_mask",
        nargs="+",
        metavar="LANGUAGE",
        default=[],
        help="open the export with transformers and fill a masked word of a held-out string in each language",
    )
    reading = actions.add_parser(
        "import",
        help="Hugging Face folder (safetensors) -> weights by logical names, shape, "
        "and tokenizer.model from XLM-R's SentencePiece file",
    )
    reading.add_argument("--input", required=True, help="folder that save_pretrained wrote")
    reading.add_argument(
        "--fresh_head",
        action="store_true",
        help="draw a new head of masked language modelling for an encoder that was saved without one",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the exported weights; checkpoints hold float32",
    )
    export.add_argument(
        "--sentence_transformers", action="store_true", help="also write the files of sentence-transformers (mean of states)"
    )
    export.add_argument("--push_to_hub", metavar="OWNER/NAME", help="upload the folder to the Hugging Face hub as well")
    export.add_argument(
        "--public", action="store_true", help="a repository that the upload creates is public (else private)"
    )
    extend = actions.add_parser("extend", help="an imported model, with the pieces of a further tokenizer")
    extend.add_argument("--input", required=True, help="folder that `convert import` wrote")
    extend.add_argument("--tokenizer", required=True, help="SentencePiece unigram model that has the new pieces")
    for action in (export, reading, extend):
        action.add_argument("--max_shard_size", default="5GB", metavar="SIZE", help="largest weights file, such as 500MB")
        action.add_argument("--output", required=True, help="folder to write; must be empty or not exist")
        action.add_argument("--json", action="store_true", help="print one JSON object instead of a sentence")
    _add_average(actions.add_parser("average", help="the mean of checkpoints of a run, as another phase of it"))
    return parser.parse_args(words)


def _add_average(averaging: argparse.ArgumentParser) -> None:
    averaging.add_argument("--run_dir", required=True, help="folder of the run, such as runs/quickstart")
    averaging.add_argument("--phase", metavar="PHASE", help="phase whose newest checkpoints are averaged, with --last")
    averaging.add_argument("--last", type=int, metavar="K", help="how many of them")
    averaging.add_argument(
        "--checkpoints",
        nargs="+",
        default=[],
        metavar="PHASE@STEP",
        help="instead: the checkpoints to average, such as meta@400 meta@600",
    )
    averaging.add_argument("--name", required=True, metavar="NAME", help="name of the new phase of the run")
    averaging.add_argument("--overwrite", action="store_true", help="replace an earlier average of this name")
    averaging.add_argument("--json", action="store_true", help="print one JSON object instead of a sentence")


def export_phase(arguments: argparse.Namespace) -> dict[str, Any]:
    from dist_metaxlm.api import export

    done = export(
        arguments.run_dir,
        arguments.phase,
        arguments.output,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        data_directory=arguments.data_directory,
        overwrite=arguments.overwrite,
        fill_mask=arguments.fill_mask,
        sentence_transformers=arguments.sentence_transformers,
        push_to_hub=arguments.push_to_hub,
        private=not arguments.public,
    )
    return {**done}


def extend_model(arguments: argparse.Namespace) -> dict[str, Any]:
    from dist_metaxlm.interop.extension import extend_import
    from dist_metaxlm.interop.folders import LOGICAL_TOKENIZER
    from dist_metaxlm.planning.parameters import count_parameters

    done = extend_import(arguments.input, arguments.tokenizer, arguments.output, arguments.max_shard_size)
    return {
        "output": arguments.output,
        "model": done.model.model_dump(mode="json"),
        "parameters": count_parameters(done.model).total,
        "tokenizer": str(Path(arguments.output) / LOGICAL_TOKENIZER),
        "added": done.added,
        "shared": done.shared,
        "unreachable": done.unreachable,
        "from_unknown": done.from_unknown,
    }


def import_folder(arguments: argparse.Namespace) -> dict[str, Any]:
    from dist_metaxlm.interop.folders import LOGICAL_TOKENIZER, import_run
    from dist_metaxlm.interop.original import read_original
    from dist_metaxlm.planning.parameters import count_parameters

    config = import_run(arguments.input, arguments.output, arguments.max_shard_size, arguments.fresh_head)
    tokenizer, original = Path(arguments.output) / LOGICAL_TOKENIZER, read_original(arguments.output)
    return {
        "rows_without_id": original.rows - original.ids if original else 0,
        "output": arguments.output,
        "model": config.model_dump(mode="json"),
        "parameters": count_parameters(config).total,
        "tokenizer": str(tokenizer) if tokenizer.is_file() else None,
    }


def average_checkpoints(arguments: argparse.Namespace) -> None:
    from dist_metaxlm.training.checkpointing.averaging import average, last_checkpoints

    by_count = arguments.phase is not None and arguments.last is not None
    if by_count == bool(arguments.checkpoints) or (arguments.phase is None) != (arguments.last is None):
        raise UserError("give either --phase and --last, or --checkpoints")
    run_dir = Path(arguments.run_dir)
    names = last_checkpoints(run_dir, arguments.phase, arguments.last) if by_count else arguments.checkpoints
    done = average(run_dir, names, arguments.name, arguments.overwrite)
    if arguments.json:
        print(json.dumps(done))
        return
    print(
        f"wrote {done['folder']}: the mean of {', '.join(done['checkpoints'])}; evaluate or export it with "
        f"--run_dir {done['run_dir']} --phase {done['phase']}"
    )


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(words)
    if arguments.action == "average":
        average_checkpoints(arguments)
        return
    done = {"export": export_phase, "import": import_folder, "extend": extend_model}[arguments.action](arguments)
    if arguments.json:
        print(json.dumps(done))
        return
    print(f"wrote {done['output']}: {done['model']['family']} encoder, {done['parameters']:,} parameters")
    if arguments.action == "import" and done["tokenizer"] is None:
        print(
            "weights only: the folder has no SentencePiece tokenizer (RoBERTa and ModernBERT have byte-level BPE), so the "
            "rows of the embedding are meaningless for another tokenizer until they are trained again"
        )
    elif arguments.action in ("import", "extend"):
        print(
            f"for a recipe: `model: {{from_imported: {done['output']}}}`, which also takes its tokenizer "
            f"({done['tokenizer']}, {done['model']['vocab_size']:,} ids)"
        )
    if arguments.action == "extend":
        print(
            f"{done['added']:,} new pieces start as means of their old pieces' rows; {done['shared']:,} were known, "
            f"{done['unreachable']:,} are no text after the model's normalisation and are left out; "
            f"{done['from_unknown']:,} have characters that were <unk>"
        )
    if "commit" in done:
        print(f"uploaded: {done['commit']}")
    if done.get("rows_without_id"):
        rows = pluralize(done["rows_without_id"], "row")
        print(f"not trained, but kept for an export: {rows} of the embedding without a token id")
    for row in done.get("fill_mask", []):
        guesses = ", ".join(f"{p['token'].strip() or '(space)'} {p['score']:.2f}" for p in row["predictions"])
        print(f"  {row['language']}: {row['text']}  ->  {guesses}  (hidden: {row['expected']})")


if __name__ == "__main__":
    run_command(main)
