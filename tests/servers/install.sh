#!/usr/bin/env bash
# Installs the real servers of the tests, each into a virtual environment of its own, Ray into vLLM's:
#   tests/servers/install.sh [vllm] [ray] [transformers] [llama]      (default: all)
# Does nothing where a server is installed as its pins say. Every step has a time-out.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON="${PYTHON:-python3}"
LIMIT_S="${LIMIT_S:-2400}"
HOME_OF_ALL=.venv-servers

pip_install() { # ENVIRONMENT ARGUMENT…
  local bin="$1"; shift
  timeout "$LIMIT_S" nice -n 5 \
    "$bin/python" -m pip --disable-pip-version-check install -q "$@"
}

install() { # NAME
  local name="$1" pins="tests/servers/$1.txt" folder="$HOME_OF_ALL/$1"
  local stamp="$folder/.installed"
  if [ -x "$folder/bin/python" ] && cmp -s "$pins" "$stamp"; then
    echo "$name: installed already"
    return
  fi
  local started=$SECONDS
  echo "$name: installing"
  mkdir -p "$HOME_OF_ALL"
  timeout 300 "$PYTHON" -m venv --clear "$folder"
  if grep -q '^torch==' "$pins"; then # with what it needs itself: a CPU build needs little
    pip_install "$folder/bin" "$(grep '^torch==' "$pins")"
  fi
  pip_install "$folder/bin" --no-deps -r "$pins"
  if [ "$name" = vllm ]; then # the offline engine runs inside this environment
    pip_install "$folder/bin" --no-deps -e .
  fi
  cp "$pins" "$stamp"
  echo "$name: installed in $((SECONDS - started)) s"
}

add_ray() {
  local stamp="$HOME_OF_ALL/vllm/.installed-ray"
  cmp -s tests/servers/ray.txt "$stamp" && return
  [ -x "$HOME_OF_ALL/vllm/bin/python" ] || { echo "ray needs vllm: name it first" >&2; exit 2; }
  pip_install "$HOME_OF_ALL/vllm/bin" --no-deps -r tests/servers/ray.txt
  cp tests/servers/ray.txt "$stamp"
  echo "ray: installed"
}

for name in "${@:-vllm ray transformers llama}"; do
  for each in $name; do
    [ -f "tests/servers/$each.txt" ] || { echo "no such server: $each" >&2; exit 2; }
    if [ "$each" = ray ]; then add_ray; else install "$each"; fi
  done
done
