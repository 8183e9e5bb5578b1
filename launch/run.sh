# Sourced by the launch scripts for clusters: runs commands, or prints them as the shell reads them.
#    DRY    not empty: only print
exec 3>&1  # so that also a command whose output is read can be printed

quoted() {  # its arguments as one line for a shell
  local word space=''
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    printf '%s%s' "$space" "$word"
    space=' '
  done
}
run() { if [ -n "$DRY" ]; then echo "$(quoted "$@")" >&3; else "$@"; fi; }
ask() { run "${@:2}" && if [ -n "$DRY" ]; then echo "$1"; fi; }  # $1: the answer of a dry run
look() {  # sets ANSWER to what `ask` prints, or to ABSENT when gcloud says that there is no such thing.
  # Any other failure ends the script: the first look's at once, later ones after LOOKS in a row.
  local errors
  errors=$(mktemp)
  until ANSWER=$(ask "$@" 2> "$errors"); do
    if grep -q NOT_FOUND "$errors"; then ANSWER=ABSENT; break; fi
    cat "$errors" >&2
    ((LOOKS-- > 0)) || { rm "$errors"; exit 2; }
    sleep 60
  done
  rm "$errors"
  LOOKS=10
}
LOOKS=0
fail() { echo "$(basename "$0"): $1; its first lines show how" >&2; exit 2; }
whole() {  # ends the script unless the variables named hold whole numbers above 0
  local name
  for name; do
    [[ ${!name} =~ ^[1-9][0-9]{0,5}$ ]] || fail "$name=${!name} is no whole number above 0"
  done
}
given() {  # whether an option, $1, has a value among the arguments after it
  local name=$1 last='' word
  for word in "${@:2}"; do
    case $word in --"$name"=?* | -"$name"=?*) return ;; esac
    case $last in --"$name" | -"$name") return ;; esac
    last=$word
  done
  return 1
}
