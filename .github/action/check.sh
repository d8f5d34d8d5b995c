#!/usr/bin/env bash
# Run `detcheck ci` with the action's inputs; its exit code is the step's.
set -uo pipefail

stop() { # exit code, message
  echo "::error title=detcheck::$2"
  exit "$1"
}

name=${DETCHECK_NAME:-}
[[ $name =~ ^([A-Za-z0-9][A-Za-z0-9._-]*)?$ ]] \
  || stop 2 "name must be letters, digits, and . _ or - between them: give another name."
out=results/ci${name:+-$name}
options=(--out "$out" --junit "$out/junit.xml" --sarif "$out/detcheck.sarif" --summary "$out/summary.md")
[ -z "${DETCHECK_CONFIG:-}" ] || options+=(--config "$DETCHECK_CONFIG")
[ -z "${DETCHECK_ENDPOINT:-}" ] || options+=(--endpoint "$DETCHECK_ENDPOINT")
[ -z "${DETCHECK_BASELINE:-}" ] || options+=(--baseline "$DETCHECK_BASELINE")
[ -z "${DETCHECK_BUDGET:-}" ] || options+=(--budget "$DETCHECK_BUDGET")
mkdir -p "$out"
detcheck ci "${options[@]}"
code=$?
case $code in
  0) verdict=pass ;;
  1) verdict=fail ;;
  3) verdict=inconclusive ;;
  *) verdict= ;;
esac
[ -z "${GITHUB_OUTPUT:-}" ] || echo "verdict=$verdict" >> "$GITHUB_OUTPUT"
if [ "$code" = 3 ] && [ "${DETCHECK_FAIL_ON_INCONCLUSIVE:-true}" = false ]; then
  echo "::warning title=detcheck::inconclusive: the job is not failed, since fail-on-inconclusive is false"
  exit 0
fi
case $code in
  1) echo "::error title=detcheck::fail: the job's summary and the artifact detcheck${name:+-$name} show what changed" ;;
  3) echo "::error title=detcheck::inconclusive: the job's summary says what the run lacks" ;;
  *) ;;
esac
exit "$code"
