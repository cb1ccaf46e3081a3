# What scripts/run, scripts/gsmtpctl and scripts/test share: find the project, set up what is missing,
# and the settings of a trial.
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

# trial: the settings of the gsmtpd that scripts/run starts, and CONF, its configuration.
trial() {
  mkdir -p var/handlers
  # The shipped configuration, or one of your own, with only what a trial needs laid over it.
  CONF=etc/gsmtpd.conf
  [ ! -e var/gsmtpd.conf ] || CONF=var/gsmtpd.conf
  export GSMTPD_LISTEN_MX_ADDRESS=${GSMTPD_LISTEN_MX_ADDRESS:-127.0.0.1:2525}
  export GSMTPD_DOMAINS_ACCEPT=${GSMTPD_DOMAINS_ACCEPT:-example.com, localhost}
  export GSMTPD_STORE_SQLITE_PATH=${GSMTPD_STORE_SQLITE_PATH:-$ROOT/var/mail.db}
  export GSMTPD_SERVER_PID_FILE=${GSMTPD_SERVER_PID_FILE:-$ROOT/var/gsmtpd.pid}
  export GSMTPD_SERVER_CONTROL_SOCKET=${GSMTPD_SERVER_CONTROL_SOCKET:-$ROOT/var/control}
  # A page, where what serves it is installed.
  if .venv/bin/python -c 'import aiohttp, prometheus_client' 2>/dev/null; then
    export GSMTPD_STATUS_LISTEN=${GSMTPD_STATUS_LISTEN-8025}
  fi
  # Root stays root here: a user of its own could not write to the clone.
  export GSMTPD_SERVER_USER=${GSMTPD_SERVER_USER:-$(id -un)}
  # Replies come back here: write to a handler as somebody@example.com, and see its answer in the list.
  export GSMTPD_HANDLERS_SMARTHOST=${GSMTPD_HANDLERS_SMARTHOST:-${GSMTPD_LISTEN_MX_ADDRESS%%,*}}
  # The handler in var/handlers/NAME.py acts on mail for NAME.
  export GSMTPD_HANDLERS_DIRECTORY=${GSMTPD_HANDLERS_DIRECTORY:-$ROOT/var/handlers}
  local file name variable
  for file in var/handlers/[A-Za-z]*.py; do
    [ -e "$file" ] || continue
    name=$(basename "$file" .py)
    variable=GSMTPD_HANDLERS_$(printf %s "$name" | tr -c 'A-Za-z0-9' _ | tr a-z A-Z)
    export "${variable}_MATCH=$name" "${variable}_CLASS=$name"
  done
}
