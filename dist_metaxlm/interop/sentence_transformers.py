"""The files with which sentence-transformers opens an export: the mean of the last layer's states, normalised.

Format: https://sbert.net/docs/sentence_transformer/usage/custom_models.html (modules.json and a folder for each module).
"""

from __future__ import annotations

import json

from dist_metaxlm.recipe.schema import ModelConfig


def sentence_transformers_files(config: ModelConfig) -> dict[str, str]:
    """Path in the folder -> content."""
    module = "sentence_transformers.models"
    contents: dict[str, object] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{module}.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": config.max_positions, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "2_Normalize/config.json": {},
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in contents.items()}
