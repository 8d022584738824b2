#!/bin/sh
# start.sh NAME COMMAND...: runs the command with the content of the file API_KEY_FILE in the variable NAME,
# unless it is empty.
# So the key is neither in the container's settings (`docker inspect`) nor on a command line.
set -eu
name=$1
shift
key=$(cat "$API_KEY_FILE") || {
  echo "The file with the API key cannot be read by user $(id -u) of the container: docs/docker.md, \"Secrets\"" >&2
  exit 2
}
[ -z "$key" ] || export "$name=$key"
exec "$@"
