#!/bin/sh
# Refuses a change of the protos that breaks a client already in use: compares them with those of
# the upstream main, or, on main itself, with the previous commit.
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
"$buf" breaking --against "$earlier"
