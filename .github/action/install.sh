#!/usr/bin/env bash
# Install detcheck from the action's own checkout, and the embedded model.
set -euo pipefail
python -m pip install -q -c "$GITHUB_ACTION_PATH/constraints.txt" "$GITHUB_ACTION_PATH"
detcheck model fetch
