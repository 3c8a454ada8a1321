#!/usr/bin/env bash
# Builds the documentation site into site/: bash docs/build.sh [options of mkdocs build]. Open site/index.html.
# Uses the project's environment if mkdocs is in it, else makes .venv-docs with docs/requirements.txt (about 100 MB).
# A broken link or a missing page is an error.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export NO_MKDOCS_2_WARNING=1

works() { "$1" -c 'import material, mkdocs, mkdocstrings_handlers.python' 2>/dev/null; }

python=
for candidate in "${EMOHUBERT_ENV:-.venv}/bin/python" .venv-docs/bin/python python3; do
    if works "$candidate"; then
        python=$candidate
        break
    fi
done
if [[ -z $python ]]; then
    python3 -m venv .venv-docs
    .venv-docs/bin/python -m pip install --quiet -r docs/requirements.txt
    python=.venv-docs/bin/python
fi
exec "$python" -m mkdocs build --strict "$@"
