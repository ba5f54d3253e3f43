#!/usr/bin/env bash
# Fetch push.sh from the cache that it is to push to, check it, and become it.
#
# Usage: fetch_push.sh SHA256 [ARGUMENT...], with push.sh's settings on standard input
#
# Pulumi sends this to a builder, and push.sh, fifteen times as long, to the bucket: the engine
# handles each byte that a command is given dozens of times. Whoever may push may also write what is
# fetched here, so it runs only if it is, by its SHA-256, what the deployment uploaded.
#
# It needs bash 5.1, curl 7.88 and coreutils. Pulumi sends it without comments and indentation.

set -u -o pipefail
export LC_ALL=C
# Where Nix lies on machines whose non-interactive shells do not look for it.
PATH=$PATH:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin

readonly KEY=tools/push.sh
# Seconds between attempts: together longer than a server takes to start again.
readonly PAUSES=(0.1 0.2 0.4 0.8 1.6 3.2 6.4 10 10 10 10 10 10 10)

# fail WHAT: end the push, naming what went wrong and, after a semicolon, the remedy.
fail() {
  printf 'push: fetch: %s\n' "$1" >&2
  exit 1
}

# curl_quoted TEXT: as it stands between quotes in curl's configuration.
curl_quoted() {
  local text=${1//\\/\\\\}
  printf '%s' "${text//\"/\\\"}"
}

# request: curl's configuration, since an argument of curl's is for all to see.
request() {
  printf 'url = "%s/%s/%s"\n' "${setting[endpoint]}" "${setting[bucket]}" "$KEY"
  printf 'user = "%s"\n' \
    "$(curl_quoted "${setting[access-key-id]}:${setting[secret-access-key]}")"
  printf 'aws-sigv4 = "aws:amz:%s:s3"\n' "${setting[region]}"
  printf 'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\n'
  [[ -z ${setting[ca-certificate]-} ]] || printf 'cacert = "/dev/fd/9"\n'
  printf 'write-out = "\\n%%{http_code}\\t%%{exitcode}\\t%%{errormsg}"\n'
}

# fetch: print the answer's body and, on a line of its own, HTTP status, exit code and message.
fetch() {
  curl -q --silent --globoff --connect-timeout 15 --max-time 120 --max-filesize 1048576 \
    --config <(request) 9< <(base64 -d <<<"${setting[ca-certificate]-}")
}

# transient STATUS CODE: another attempt may succeed.
transient() {
  [[ $1 =~ ^(408|429|500|502|503|504)$ || $2 =~ ^(5|6|7|16|18|28|35|52|55|56|65|92)$ ]]
}

for tool in curl base64 cat sha256sum sleep; do
  type -P "$tool" >/dev/null ||
    fail "$tool is missing on this machine; install it, or add it to PATH"
done

sha256=$1
shift
settings=$(cat)
declare -A setting=()
while IFS= read -r line; do
  setting[${line%%=*}]=${line#*=}
done < <(printf '%s\n' "$settings")

where=${setting[bucket]}/$KEY
for pause in "${PAUSES[@]}" ''; do
  answer=$(fetch)
  IFS=$'\t' read -r status code message <<<"${answer##*$'\n'}"
  # A curl that does not know its options writes nothing.
  : "${code:=2}" "${message:=curl failed}"
  [[ -n $pause ]] || break
  transient "$status" "$code" || break
  sleep "$pause"
done
program=${answer%$'\n'*}
if ((code != 0)); then
  case $code in
    2) message+='; curl 7.88 or newer is needed' ;;
    35 | 60 | 77) message+='; set caCertificateFile to what signed the certificate of the server' ;;
    *) message+="; see that this machine reaches the server at ${setting[endpoint]}" ;;
  esac
  fail "$message"
fi
if [[ $status != 200 ]]; then
  [[ $program =~ '<Code>'([A-Za-z0-9]+)'</Code>' ]] && status+=" ${BASH_REMATCH[1]}"
  fail "GET $where: HTTP $status; run pulumi up --refresh, which mends users, policies and objects"
fi
found=$(printf '%s' "$program" | sha256sum)
[[ ${found%% *} == "$sha256" ]] ||
  fail "$where is not what this deployment uploaded; run pulumi up --refresh to put it back"
exec bash <(printf '%s' "$program") "$@" < <(printf '%s\n' "$settings")
