#!/usr/bin/env bash
# Builds the documentation into site/; any warning is an error.
#
#   bash launch/docs.sh [mkdocs command, such as serve]
set -euo pipefail
source "$(dirname "$0")/help.sh"
EXTRAS=docs
source "$(dirname "$0")/venv.sh"
export NO_MKDOCS_2_WARNING=1  # a notice of mkdocs-material about its successor
case ${1:-build} in
  build) exec python -m mkdocs build --strict --quiet ;;
  *) exec python -m mkdocs "$@" ;;
esac
