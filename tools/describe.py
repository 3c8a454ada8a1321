#!/usr/bin/env python3
"""Describe a corpus: tables and figures of what is in a manifest directory, with or without folds.

Writes to OUT_DIR:
    utterances.tsv      a line per utterance: length, splits, speaker, class, dimensions, all metadata
    speakers.tsv        a line per speaker: utterances, seconds, utterances of each class, mean of dimensions, metadata
    speaker_mfcc.npz    the mean MFCCs, as tools/calibrate.py and others keep vectors of speakers
    summary.json        counts of the whole
    figures/*.png       lengths, classes, demographics, and maps of the speakers' voices: principal components of their mean MFCCs,
                        coloured by each property of speakers that has few values

A property of speakers is a column of .meta.tsv in which no speaker has two values.

  tools/describe.py manifests/crema_d exp/description
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("manifest_dir", type=Path, metavar="MANIFEST_DIR", help="manifest directory, or corpus folder with fold*/")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="output folder")
    parser.add_argument("--workers", type=cli.whole_number, default=0, help="threads that read audio; 0: one a core")
    parser.add_overwrite()
    args = parser.parse_args(argv)
    from emohubert.report import corpus_description  # slow to import

    written = corpus_description.write(args.manifest_dir, args.out_dir, args.workers or None, args.overwrite)
    if written is None:
        print(f"{args.out_dir}: already there, made from the same manifests (--overwrite makes it again)")
        return
    content, paths = written
    print(f"{content['title']}: {content['utterances']} utterances, {content['hours']:.2f} hours, {content['speakers']} speakers")
    print(f"written to {args.out_dir}: {', '.join(str(p.relative_to(args.out_dir)) for p in paths)}")


if __name__ == "__main__":
    main()
