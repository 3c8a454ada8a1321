#!/usr/bin/env python3
"""Write a checkpoint as a folder that transformers reads by itself, with a model card.

An emotion model becomes one of AutoModelForAudioClassification with the same outputs. The format has a weighted sum of layers, the mean over
time and linear layers: model.pooling=mean and model.head=linear. Speakers and speaker normalisation are folded into weights and biases:
everybody is the unknown speaker, or --speaker-id, and the average speaker. What the format cannot express is refused; export_onnx
exports every model, --encoder only the encoder.

An encoder (HuBERT or wav2vec 2.0 of fairseq, or one of ours) becomes one of AutoModel. Prediction heads, and speakers that are added to
its output, are left out and named.

model.init_from=DIR reads the encoder back.

  tools/export_hf.py exp/ser/checkpoint_best.pt exp/ser_hf
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
    parser.add_argument("dir", metavar="DIR", help="folder for config.json, preprocessor_config.json, model.safetensors and README.md")
    parser.add_argument("--half", action="store_true", help="weights in half precision")
    parser.add_argument("--encoder", action="store_true", help="of an emotion model the encoder alone")
    parser.add_argument("--speaker-id", metavar="ID", help="speaker of the model's table that everybody is taken for")
    args = parser.parse_args(argv)
    from emohubert.export import huggingface_folder, source

    left_out = huggingface_folder.write(source.read(args.checkpoint, args.speaker_id, args.encoder), args.dir, args.half)
    print(f"{args.dir}: written" + (f"; left out: {', '.join(left_out)}" if left_out else ""))


if __name__ == "__main__":
    main()
