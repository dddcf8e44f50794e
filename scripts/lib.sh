# Functions for the scripts in this folder, which source this file.

# With another locale, EPOCHREALTIME could have a comma as its decimal sign.
export LC_ALL=C.UTF-8

export PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=${NANOAGENT_STATE:-$root/.nanoagent} # a folder for logs
mkdir -p "$state"

# say STEP WORDS...: print one line of progress.
say() {
  printf '[setup] %-20s %s\n' "$1" "${*:2}"
}

# die STEP WORDS...: print one line to standard error, and exit.
die() {
  printf '[setup] %-20s FAILED: %s\n' "$1" "${*:2}" >&2
  exit 1
}

now_ms() {
  local now=$EPOCHREALTIME
  echo $((${now/[.,]/} / 1000))
}

# since START_MS: print the time passed, in seconds ("3.4 s").
since() {
  local ms=$(($(now_ms) - $1))
  printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# logged STEP LOG COMMAND...: run the command with its output in LOG. If it fails, show the end of LOG and
# exit.
logged() {
  local step=$1 log=$2
  shift 2
  "$@" >"$log" 2>&1 </dev/null && return
  {
    echo "[setup] the last lines of $log:"
    tail -n 30 "$log"
  } >&2
  die "$step" "$1 failed; the whole output is in $log"
}

have() {
  command -v "$1" >/dev/null 2>&1
}

# apt_install STEP PACKAGE...: install Debian packages, or exit with the reason why that is not possible. A
# package with a question mark after its name is optional: it is left out if the distribution does not have
# it.
apt_install() {
  local step=$1 started package wanted=()
  shift
  have apt-get || die "$step" "this is not Debian or Ubuntu (no apt-get); install the equivalent of these packages: $*"
  [ "$(id -u)" = 0 ] || die "$step" "needs root; run this script once as root, or run: apt-get install $*"
  started=$(now_ms)
  # A lock, because apt waits for another apt's packages, but not for its lists. Services that a package
  # starts must not inherit this lock, nor those of scripts/setup (descriptors 8 and 9).
  exec 7>/run/lock/nanoagent-apt.lock
  flock 7
  say "$step" "installing ${*/%\?/}"
  # Another apt may hold the lock for a while: unattended upgrades after a boot.
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
  logged "$step" "$state/apt-update.log" "${apt[@]}" update 7>&- 8>&- 9>&-
  for package in "$@"; do
    if [ "${package%\?}" = "$package" ] || apt_knows "${package%\?}"; then
      wanted+=("${package%\?}")
    fi
  done
  logged "$step" "$state/apt-install.log" "${apt[@]}" install -y --no-install-recommends "${wanted[@]}" 7>&- 8>&- 9>&-
  exec 7>&-
  say "$step" "installed ($(since "$started"))"
}

# apt_knows PACKAGE: succeed if the distribution has a package of that name.
apt_knows() {
  [ -n "$(apt-cache --no-all-versions show "$1" 2>/dev/null)" ]
}

docker_answers() {
  have docker && timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}
