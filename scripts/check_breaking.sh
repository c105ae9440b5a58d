#!/bin/sh
# Refuses a change of the protos that breaks a client already in use: compares them with those of
# the upstream main, or, on main itself, with the previous commit. The breaks in
# scripts/accepted_breaks.txt pass; docs/adr/0005-renames-in-the-contract.md says why.
#
#     scripts/check_breaking.sh BUF
set -eu
cd "$(dirname "$0")/.."
buf=$1

if ! git rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
  echo "    not a git checkout: there is no earlier contract to compare with"
  exit 0
fi
base=$(git rev-parse --verify --quiet 'origin/main^{commit}' || true)
if [ -n "$base" ]; then
  base=$(git merge-base HEAD "$base" || true)
fi
if [ -z "$base" ] || [ "$base" = "$(git rev-parse HEAD)" ]; then
  base=$(git rev-parse --verify --quiet 'HEAD~1^{commit}' || true)
fi
if [ -z "$base" ] || [ -z "$(git ls-tree -r --name-only "$base" -- protos buf.yaml)" ]; then
  echo "    the commit before has no protos: there is no earlier contract to compare with"
  exit 0
fi

earlier=$(mktemp -d)
trap 'rm -rf "$earlier"' EXIT
trap 'exit 130' INT TERM
git archive "$base" protos buf.yaml | tar -x -C "$earlier"
echo "    against $(git rev-parse --short "$base")"
# 100 is buf's status for breaks; any other failure is one of buf itself.
status=0
"$buf" breaking --against "$earlier" --error-format=json >"$earlier/breaks" || status=$?
if [ "$status" -ne 0 ] && [ "$status" -ne 100 ]; then
  cat "$earlier/breaks" >&2
  exit "$status"
fi
"${PYTHON:-python3}" - scripts/accepted_breaks.txt "$earlier/breaks" <<'SCRIPT'
import json
import sys
from pathlib import Path

accepted_file, breaks_file = map(Path, sys.argv[1:])
accepted = set(accepted_file.read_text().splitlines())
breaks = [json.loads(line) for line in breaks_file.read_text().splitlines()]
refused = [each for each in breaks if f"{each['type']} {each['message']}" not in accepted]
for each in refused:
    # A break that is a whole file has no place.
    place = f"{each['path']}:{each['start_line']}: " if "path" in each else ""
    print(f"{place}{each['message']}", file=sys.stderr)
sys.exit(1 if refused else 0)
SCRIPT
