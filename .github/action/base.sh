#!/usr/bin/env bash
# Measure the base commit's experiment on this machine, before the head's. The step's output `run` is
# the run directory that the head's answers are compared with; it is empty if there is nothing to compare.
set -uo pipefail

stop() { # exit code, message
  echo "::error title=detcheck::$2"
  exit "$1"
}

of_event() { # the commit that the event compares with
  python - <<'PY'
import json, os
event = json.load(open(os.environ["GITHUB_EVENT_PATH"], encoding="utf-8"))
pull, queue = event.get("pull_request", {}), event.get("merge_group", {})
print(pull.get("base", {}).get("sha") or queue.get("base_sha") or event.get("before") or "")
PY
}

commit_of() { # the commit of a ref; fetched if the checkout lacks it
  git rev-parse -q --verify --end-of-options "$1^{commit}" && return
  depth=()
  [ "$(git rev-parse --is-shallow-repository)" = false ] || depth=(--depth=1)
  git fetch -q "${depth[@]}" --no-tags -- origin "$1" >&2 && git rev-parse -q --verify FETCH_HEAD
}

name=${DETCHECK_NAME:-}
[[ $name =~ ^([A-Za-z0-9][A-Za-z0-9._-]*)?$ ]] \
  || stop 2 "name must be letters, digits, and . _ or - between them: give another name."
[ -z "${DETCHECK_BASELINE:-}" ] || stop 2 "base and baseline are both given: choose one."
ref=$DETCHECK_BASE
[ "$ref" != auto ] || ref=$(of_event)
[ -n "$ref" ] || stop 2 "This event names no base commit: give base a branch or a commit, instead of auto."
[[ $ref =~ ^[A-Za-z0-9][A-Za-z0-9._/~^-]*$ ]] || stop 2 "base is no branch, tag or commit: give one, or auto."
commit=$(commit_of "$ref") \
  || stop 2 "The base commit $ref is not in the checkout: give actions/checkout fetch-depth: 0, or mend base."

out=$PWD/results/ci${name:+-$name}/base
prefix=$(git rev-parse --show-prefix)
folder=$(mktemp -d)
trap 'git worktree remove --force "$folder/base"; rm -rf "$folder"' EXIT
git worktree add -q --detach "$folder/base" "$commit" || stop 2 "The base commit $ref could not be checked out."
cd "$folder/base/$prefix" 2> /dev/null || cd "$folder/base" || exit 2

options=(--out "$out")
endpoint=${DETCHECK_BASE_ENDPOINT:-${DETCHECK_ENDPOINT:-}}
[ -z "${DETCHECK_CONFIG:-}" ] || options+=(--config "$DETCHECK_CONFIG")
[ -z "$endpoint" ] || options+=(--endpoint "$endpoint")
[ -z "${DETCHECK_BUDGET:-}" ] || options+=(--budget "$DETCHECK_BUDGET")
echo "Base commit $commit:"
env -u GITHUB_STEP_SUMMARY detcheck ci "${options[@]}"
code=$?
if [ -e "$out/run/run.json" ]; then
  [ -z "${GITHUB_OUTPUT:-}" ] || echo "run=$out/run" >> "$GITHUB_OUTPUT"
elif [ "$code" = 2 ]; then
  echo "::warning title=detcheck::The base commit has no experiment that can be measured: the head is judged alone."
else
  stop 3 "The base commit could not be measured, so there is nothing to compare with."
fi
