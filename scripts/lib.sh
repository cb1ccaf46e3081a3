# What scripts/run, scripts/gsmtpctl and scripts/test share: find the project, set up what is missing.
# Source it; it sets ROOT and changes to it.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1

say() { printf '%s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi
}

# install_packages PACKAGE...: install the Debian packages that are missing.
install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  say "installing Debian packages: ${missing[*]}"
  # A server that is installed is not to be started: the tests start their own, private ones.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null && as_root chmod 755 $policy && made=1
  fi
  as_root apt-get update -qq >/dev/null &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  local code=$?
  [ -z "$made" ] || as_root rm -f $policy
  return $code
}

# build_depends FILE: the packages that a debian/control names in Build-Depends, without versions.
build_depends() {
  sed -n '/^Build-Depends:/,/^[^ ]*:/{/^ /{s/[ ,]//g;s/(.*//;p}}' "$1" | sed 's/debhelper-compat/debhelper/'
}

# find_python: the interpreter to use. Debian's own is preferred: it is built with more
# optimisation than most others (a fifth less CPU per message).
find_python() {
  local python
  for python in "${PYTHON:-}" /usr/bin/python3 python3; do
    [ -n "$python" ] || continue
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$python"
      return 0
    fi
  done
  return 1
}

# make_venv EXTRAS: the virtual environment .venv with gsmtpd (editable) and what it needs.
make_venv() {
  local stamp=.venv/.made"$1" python
  if [ -e "$stamp" ] && [ "$stamp" -nt setup.py ] && .venv/bin/python -c '' 2>/dev/null; then return 0; fi
  python=$(find_python) || { install_packages python3-venv && python=$(find_python); } || {
    say "gsmtpd needs Python 3.11 or newer; install it, or name it: PYTHON=/path/to/python3 $0"
    return 1
  }
  say "setting up .venv with $python"
  if ! "$python" -m venv .venv >/dev/null 2>&1; then
    rm -rf .venv
    install_packages python3-venv && "$python" -m venv .venv || {
      say "cannot make a virtual environment; as root: apt-get install python3-venv"
      return 1
    }
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$1" || return 1
  touch "$stamp"
}
