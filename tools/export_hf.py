#!/usr/bin/env python3
"""Write the encoder of a checkpoint as a folder that transformers reads: AutoModel.from_pretrained(DIR) gives its layers.

CKPT is a HuBERT or wav2vec 2.0 of fairseq, or one of ours. Prediction heads, an emotion model's pooling and head, and speakers that are
added to the encoder's output are left out and named; a model whose encoder sees speakers is refused. model.init_from=DIR reads it back.

  tools/export_hf.py exp/small/iteration2/checkpoint_best.pt exp/small/hf --half
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint to export")
    parser.add_argument("dir", metavar="DIR", help="folder to write config.json, preprocessor_config.json and model.safetensors into")
    parser.add_argument("--half", action="store_true", help="weights in half precision")
    args = parser.parse_args(argv)
    from emohubert.pretrained.huggingface import write_folder
    from emohubert.pretrained.load import read_pretrained

    left_out = write_folder(read_pretrained(args.checkpoint), args.dir, args.half)
    print(f"{args.dir}: written" + (f"; left out: {', '.join(left_out)}" if left_out else ""))


if __name__ == "__main__":
    main()
