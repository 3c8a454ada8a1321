#!/usr/bin/env python3
"""Write a checkpoint as an ONNX file: raw audio of any length in, frames and logits out.

CKPT is an emotion model, or an encoder (one of ours, a HuBERT or wav2vec 2.0 of fairseq, or a Hugging Face folder). Inputs: `signal`
(batch, samples) float32 at 16 kHz, zero-padded, and `lengths` (batch) int64, samples of each. Outputs: `hidden_states` (batch, frames, width),
the frames that are pooled, zero in the padding; of an emotion model `logits` (batch, classes), or the dimensions. A batch gives what its
utterances give alone. Waveforms are normalised inside where the model wants that. Everybody is the unknown speaker, or
--speaker-id, and with speaker normalisation the average speaker. The file's metadata names the classes or dimensions.

The packages onnx and onnxruntime are needed: pip install 'emohubert[onnx]'.

  tools/export_onnx.py exp/ser/checkpoint_best.pt exp/ser.onnx
  tools/export_onnx.py ser_small ser_small.onnx --half
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="checkpoint to export")
    parser.add_argument("file", metavar="FILE", help="ONNX file to write")
    parser.add_argument("--half", action="store_true", help="weights in half precision, computed with in float32")
    parser.add_argument("--speaker-id", metavar="ID", help="speaker of the model's table that everybody is taken for")
    args = parser.parse_args(argv)
    from emohubert.export import onnx_file, source

    worst = onnx_file.write(source.read(args.checkpoint, args.speaker_id), args.file, args.half)
    size = Path(args.file).stat().st_size / 1e6
    when = "before rounding " if args.half else ""
    print(f"{args.file}: written, {size:.1f} MB; {when}within {worst:.0e} of the model")


if __name__ == "__main__":
    main()
