# Sourced by the other scripts: where --help is asked for, prints what they say of themselves at
# their start and ends, before anything is installed.
usage() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$0"; }
for argument in "$@"; do
  case $argument in
    --) break ;;  # what follows is another program's
    --help | -h) usage; exit 0 ;;
  esac
done
