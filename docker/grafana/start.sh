#!/bin/sh
# start.sh COMMAND...: runs Grafana with the password in the file GRAFANA_PASSWORD_FILE. Without a password nobody can log
# in, and only this machine may look. With a BIND_ADDRESS that others reach, nobody may look without the password.
set -eu
password=$(cat "$GRAFANA_PASSWORD_FILE") || {
  echo "The file with Grafana's password cannot be read by user $(id -u) of the container: docs/docker.md, \"Secrets\"" >&2
  exit 2
}
case $BIND_ADDRESS in
127.* | ::1 | "[::1]") anonymous=true ;;
*) anonymous=false ;;
esac
if [ "$anonymous$password" = false ]; then
  echo "BIND_ADDRESS $BIND_ADDRESS opens Grafana to the network: name a file with a password in GRAFANA_PASSWORD_FILE" >&2
  exit 2
fi
export GF_AUTH_ANONYMOUS_ENABLED=$anonymous GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer
if [ -n "$password" ]; then
  export GF_SECURITY_ADMIN_PASSWORD="$password"
else
  export GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION=true GF_AUTH_BASIC_ENABLED=false GF_AUTH_DISABLE_LOGIN_FORM=true
fi
exec "$@"
