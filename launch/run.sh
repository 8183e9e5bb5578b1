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
fail() { echo "$(basename "$0"): $1; its first lines show how" >&2; exit 2; }
given() {  # whether an option, $1, has a value among the arguments after it
  local name=$1 last='' word
  for word in "${@:2}"; do
    case $word in --"$name"=?* | -"$name"=?*) return ;; esac
    case $last in --"$name" | -"$name") return ;; esac
    last=$word
  done
  return 1
}
