# Sourced by the other scripts: takes --dry-run out of their arguments and sets DRY, which they put
# before what they run, to `echo` if it was there.
DRY='' REST=()
for argument in "$@"; do
  if [ "$argument" = --dry-run ]; then DRY=echo; else REST+=("$argument"); fi
done
set -- ${REST[@]+"${REST[@]}"}
