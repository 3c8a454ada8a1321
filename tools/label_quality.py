#!/usr/bin/env python3
"""What pseudo-labels say: sizes of clusters, lengths of runs, purity and mutual information with emotion and speaker.

LAB_DIR is one folder of labels (with SPLIT.km and dict.km.txt) or a whole tree of them, such as the OUT_DIR of
tools/make_labels.py: every set in it is measured. Prints a table, and writes to --out (LAB_DIR by default) all measures,
label_quality_{split}.json, and a picture of them, such as layer by layer, label_quality_{split}.png. Columns: K clusters,
those used, perplexity of their sizes (K if all are equal), share of the largest, mean length of a run of one label; for
emotion and speaker: purity (share of frames whose class is the commonest in their cluster; in brackets the share of the
commonest class, which clusters without meaning would have), normalised mutual information (in brackets that of shuffled
values), and mutual information in bits a frame.

  tools/label_quality.py labels manifests/emodb train
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "user_dir"))

from emohubert.core import cli


@cli.command
def main(argv=None):
    parser = cli.Parser(description=__doc__)
    parser.add_argument("lab_dir", metavar="LAB_DIR", help="folder of labels, or a tree of them")
    parser.add_argument("manifest_dir", metavar="MANIFEST_DIR", help="manifest directory the labels were made from")
    parser.add_argument("split", metavar="SPLIT", help="split, such as train")
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: LAB_DIR)")
    args = parser.parse_args(argv)
    from emohubert.core.files import make_folder, write_json
    from emohubert.corpus.manifest import read_split
    from emohubert.pseudo_labels import quality

    split = read_split(args.manifest_dir, args.split)
    results = quality.of_tree(args.lab_dir, split)
    out = make_folder(args.out or args.lab_dir)
    write_json(out / f"label_quality_{split.name}.json", results)
    quality.draw(results, out / f"label_quality_{split.name}.png")
    print(quality.table(results))


if __name__ == "__main__":
    main()
