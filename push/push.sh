#!/usr/bin/env bash
# Push closures of this machine's Nix store to a binary cache on an S3 server.
#
# THE INVARIANT. At every moment, whatever is killed, each narinfo that a reader sees has its NAR
# in the bucket, whole, and the narinfo of each of its references, except for paths that an
# upstream cache signs. Hence the one order of all writes:
#   1. NARs, uploaded or renewed;
#   2. narinfos, each after those that it refers to.
# Leases follow from it. The bucket forgets an object so many whole UTC days after its last write,
# a NAR later than a narinfo. Whatever was not written today is written again, in the same order:
# then nothing outlives what it depends on, and all of it lives as long as the retention says,
# counted from this push.
#
# HOW. `nix copy` fills a directory that already holds, as stubs, all that a path refers to, so it
# compresses and signs just the paths that the bucket lacks. They are dealt into batches, one
# `nix copy` each, while the NARs of those before go up and are deleted, and their narinfos follow.
#
# It needs bash 5.1, nix 2.8, curl 7.88, awk, coreutils, findutils and grep, nothing newer. What
# it reads from the bucket is input: awk takes it apart, nothing ever evaluates it.
# Pulumi sends it without comments and indentation: no text in it has lines that begin with a #, or
# that mean something by their blanks.

set -u -o pipefail
export LC_ALL=C
# Where Nix lies on machines whose non-interactive shells do not look for it.
PATH=$PATH:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin

readonly NIX32='0123456789abcdfghijklmnpqrsvwxyz'
# Requests at a time: more gain nothing on a local network, and cost the server memory.
readonly TRANSFERS=16
# So often in a row may all that is left of some requests fail. The pauses add up to 80 seconds,
# longer than a server takes to start again.
readonly ATTEMPTS=15
# A listing of a thousand keys costs a server about as much as so many HEAD requests.
readonly PAGE_IN_HEADS=30
# A wave of fewer narinfos is written faster one by one than by a curl of its own.
readonly NARROW_WAVE=12
# Beside uploads, at most so many narinfos are written one by one: that costs least. If more could
# be, they go at the same time.
readonly SEQUENCE=64
# No narinfo and no page of a listing is larger. A larger object in its place would fill memory.
readonly LARGEST_ANSWER=16777216

usage() {
  cat <<'USAGE'
Usage: push.sh [--config FILE|-] [--dry-run] [STORE_PATH_OR_LINK...]

Pushes the closures of store paths, or of what links point to now, to a Nix binary cache on S3.
What the cache lacks is compressed, signed and uploaded; what it has is reused, and its lease
renewed; what an upstream cache signs is skipped. The last line sums it up.

  --config FILE  settings; - reads them from standard input
  --dry-run      only say what would be pushed
  --help         this text

Settings, one name=value a line; a line that starts with # is a comment:
  endpoint                 https://host[:port] of the S3 server
  region                   its region (us-east-1)
  bucket                   the cache's bucket
  access-key-id            who pushes
  secret-access-key        and the secret; or
  secret-access-key-file   a file that holds it
  signing-key              secret key, name:base64; may repeat, the last one signs; or
  signing-key-file         a file of such keys, one a line
  ca-certificate-file      certificates (PEM) to trust in place of the system's; or
  ca-certificate           the same in base64, on one line
  upstream-key             name of a key whose paths are not stored; may repeat
  compression              zstd, xz or none (zstd)
  compression-level        its level (Nix's own default)
  parallelism              how many nix copy run at once, each on all cores (1)
  staging-limit            bytes that may lie in TMPDIR, or else /var/tmp (2147483648); a path
                           that needs more is staged alone
  part-size                larger NARs go up in parts of so many bytes (1073741824)
  retention-days           days after which the bucket forgets an entry, 0 for never (0)
  path                     a store path or link to push; may repeat

The file holds secrets: make it readable by its owner alone.
USAGE
}

say() { printf 'push: %s\n' "$*" >&2; }

# fail STEP WHAT: end the push, naming what went wrong and, after a semicolon, the remedy. What a
# background job fails of is said at the very end, so that no other job's progress follows it.
fail() {
  if ((BASHPID == $$)) || ! { say "$1: $2" 2>>"$run/failure"; } 2>/dev/null; then
    say "$1: $2"
  fi
  exit 1
}

# error_in FILE: what a failed nix wrote, or what it crashed of, on one line of bounded length.
error_in() {
  awk '
    { gsub(/\033\[[0-9;]*m/, ""); sub(/^ +/, "") }
    /^Exception: / { sub(/^.*error: /, ""); crash = $0 }
    /^error:/ { found = 1 }
    found && NF { text = text (text == "" ? "" : " ") $0 }
    NF { last = $0 }
    END {
      if (crash != "") text = crash
      sub(/^error: */, "", text)
      print substr(text == "" ? last : text, 1, 600)
    }' "$1"
}

# human VARIABLE BYTES: assign it something like 12.3 MB.
human() {
  local value=$2 tenths=0 unit
  for unit in B kB MB GB TB; do
    ((value < 1000)) && break
    ((tenths = value % 1000 / 100, value /= 1000))
  done
  if [[ $unit == B ]]; then
    printf -v "$1" '%d B' "$value"
  else
    printf -v "$1" '%d.%d %s' "$value" "$tenths" "$unit"
  fi
}

nix_command() { nix --extra-experimental-features nix-command "$@" </dev/null; }

# ---------------------------------------------------------------------------------- settings

declare -A setting=(
  [endpoint]=''
  [region]=us-east-1
  [bucket]=''
  [access-key-id]=''
  [secret-access-key]=''
  [secret-access-key-file]=''
  [signing-key-file]=''
  [ca-certificate]=''
  [ca-certificate-file]=''
  [compression]=zstd
  [compression-level]=''
  [parallelism]=1
  [staging-limit]=2147483648
  [part-size]=1073741824
  [retention-days]=0
)
signing_keys=()
upstream_keys=()
paths=()

# read_settings: from standard input, where bash may have read this script from too: then the
# settings follow its last line.
read_settings() {
  local line name value
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    # What is not shown may be a secret.
    [[ $line == *=* ]] || fail settings 'a line is not of the form name=value; see --help'
    name=${line%%=*} value=${line#*=}
    case $name in
      signing-key) signing_keys+=("$value") ;;
      upstream-key) upstream_keys+=("${value%%:*}") ;;
      path) paths+=("$value") ;;
      *)
        [[ $name =~ ^[a-z-]+$ && -v setting[$name] ]] ||
          fail settings "unknown setting '${name:0:40}'; see --help"
        setting[$name]=$value
        ;;
    esac
  done
}

# require NAME REGEX WHAT: the setting is there and looks right.
require() {
  [[ -n ${setting[$1]} ]] || fail settings "$1 is missing; set it to $3"
  [[ ${setting[$1]} =~ ^($2)$ ]] || fail settings "$1 '${setting[$1]}' is not valid; set it to $3"
}

# require_file NAME: the setting, where there is one, names a readable file.
require_file() {
  local file=${setting[$1]}
  [[ -z $file || -r $file && ! -d $file ]] ||
    fail settings "$1 '$file' cannot be read; name a readable file"
}

check_settings() {
  local file key
  for file in secret-access-key-file signing-key-file ca-certificate-file; do
    require_file "$file"
  done
  file=${setting[secret-access-key-file]}
  [[ -z $file ]] || setting[secret-access-key]=$(<"$file")
  file=${setting[signing-key-file]}
  [[ -z $file ]] || mapfile -t signing_keys <"$file"
  setting[endpoint]=${setting[endpoint]%/}

  require endpoint 'https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]+)?' 'https://host[:port]'
  require region '[A-Za-z0-9-]+' "the server's region, such as us-east-1"
  require bucket '[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]' "the bucket's name"
  require access-key-id '[^:[:cntrl:]]+' "the builder's user"
  require compression 'zstd|xz|none' 'zstd, xz or none'
  [[ -z ${setting[compression-level]} ]] ||
    require compression-level '-?[0-9]{1,2}' 'a whole number'
  require parallelism '[1-9][0-9]{0,2}' 'a whole number from 1'
  require staging-limit '[1-9][0-9]{0,17}' 'a number of bytes'
  require part-size '[1-9][0-9]{6,9}' 'a number of bytes from 5242880 to 5368709120'
  ((setting[part-size] >= 5242880 && setting[part-size] <= 5368709120)) ||
    fail settings "part-size '${setting[part-size]}' is not from 5242880 to 5368709120 bytes"
  require retention-days '[0-9]{1,5}' 'a whole number of days, 0 for ever'
  [[ ${setting[secret-access-key]} =~ ^[^[:cntrl:]]+$ ]] ||
    fail settings "secret-access-key is missing or malformed; set it to the user's secret"
  ((${#signing_keys[@]})) || fail settings 'signing-key is missing; set it to name:base64'
  for key in "${signing_keys[@]}"; do
    [[ $key =~ ^[A-Za-z0-9._-]+:[A-Za-z0-9+/]{86}==$ ]] ||
      fail settings 'a signing key is not a secret key; set it to name:base64 as nix key makes it'
  done
  ((${#paths[@]})) || fail settings 'nothing to push; give a store path, or a link to one'
}

check_tools() {
  local tool
  for tool in nix nix-store curl awk grep xargs base64 cut mktemp readlink sort stat tail; do
    type -P "$tool" >/dev/null ||
      fail prepare "$tool is missing on this machine; install it, or add it to PATH"
  done
}

# -------------------------------------------------------------------------------- directories

stage=''        # NARs on their way: on disk
export run=''   # tables, narinfos and secrets: in memory where there is a place for it
export today='' # the day by the server's clock, such as 2026-11-23
readonly DIRECTORY_NAME='nixcache-push'

# started PID: print when a process started, in ticks; fail where there is no such process.
started() {
  local stat fields
  read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
  # The second field, a command's name in parentheses, may hold blanks.
  read -r -a fields <<<"${stat##*) }"
  printf '%s' "${fields[19]}"
}

# remove_leftovers BASE NAMESPACE: remove the directories of pushes that were killed. A name says
# which process made it, in which PID namespace: only there can one tell whether it still runs.
remove_leftovers() {
  local directory namespace pid start
  for directory in "$1/$DIRECTORY_NAME".*; do
    [[ -d $directory && ! -L $directory && -O $directory ]] || continue
    IFS=. read -r _ namespace pid start _ <<<"${directory##*/}"
    [[ $namespace == "$2" && $pid =~ ^[0-9]+$ ]] || continue
    [[ $(started "$pid") == "$start" ]] || rm -rf "$directory"
  done
}

make_directories() {
  local base=${TMPDIR:-/var/tmp} namespace template
  namespace=$(readlink /proc/self/ns/pid)
  namespace=${namespace//[^0-9]/}
  template=$DIRECTORY_NAME.$namespace.$$.$(started $$).XXXXXX
  umask 077
  remove_leftovers "$base" "$namespace"
  stage=$(mktemp -d "$base/$template") ||
    fail prepare "$base takes no files; set TMPDIR to a directory with space for staging-limit"
  run=$stage
  for base in "${XDG_RUNTIME_DIR:-}" /run /dev/shm; do
    [[ -n $base && -w $base && $(stat -f -c %T "$base") == tmpfs ]] || continue
    remove_leftovers "$base" "$namespace"
    run=$(mktemp -d "$base/$template") || run=$stage
    break
  done
  mkdir "$run/narinfos" "$run/batches"
  # Until the server tells.
  TZ=UTC printf '%(%F)T\n' >"$run/day"
}

# The way out of every end but SIGKILL. A background job is a process group of its own (set -m),
# and none leaves anything outside the two directories.
cleanup() {
  local group
  # A signal that comes now must not cut this short.
  trap '' HUP INT PIPE TERM
  for group in $(jobs -p); do
    kill -KILL -- "-$group"
  done 2>/dev/null
  wait 2>/dev/null
  [[ -z $run || ! -s $run/failure ]] || head -n 1 "$run/failure" >&2
  [[ -z $stage ]] || rm -rf "$stage" ${run:+"$run"}
}

# Secrets reach Nix and curl in files, never as arguments or in the environment.
write_secrets() {
  local ca=''
  printf '%s' "${signing_keys[-1]}" >"$run/signing-key"
  if [[ -n ${setting[ca-certificate]} ]]; then
    ca=$run/ca.pem
    base64 -d >"$ca" 2>/dev/null <<<"${setting[ca-certificate]}"
    grep -q CERTIFICATE "$ca" ||
      fail settings 'ca-certificate is not PEM in base64; encode the whole file on one line'
  elif [[ -n ${setting[ca-certificate-file]} ]]; then
    ca=$(readlink -f "${setting[ca-certificate-file]}")
  fi
  {
    printf 'user = "%s"\n' \
      "$(curl_quoted "${setting[access-key-id]}:${setting[secret-access-key]}")"
    printf 'aws-sigv4 = "aws:amz:%s:s3"\n' "${setting[region]}"
    # TLS guards the body. Hashing it too would double the work on both sides.
    printf 'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\n'
    [[ -z $ca ]] || printf 'cacert = "%s"\n' "$(curl_quoted "$ca")"
    printf '%s\n' globoff fail-with-body 'connect-timeout = 15' 'speed-limit = 1' \
      'speed-time = 120' "max-filesize = $LARGEST_ANSWER"
    printf 'write-out = "%%{stderr}%%{http_code}\\t%%{exitcode}\\t%%{url}'
    printf '\\t%%header{%s}' date last-modified content-length etag retry-after
    printf '\\t%%{errormsg}\\n"\n'
  } >"$run/curl"
}

# curl_quoted TEXT: as it stands between quotes in curl's configuration.
curl_quoted() {
  local text=${1//\\/\\\\}
  printf '%s' "${text//\"/\\\"}"
}

# ----------------------------------------------------------------------------------- requests

# An HTTP date as a day that sorts as text.
# shellcheck disable=SC2016 # awk's variables, not the shell's
readonly AWK_DAY='
  function day(date,  part) {
    if (split(date, part, " ") < 4) return ""
    return sprintf("%d-%02d-%02d", part[4],
      (index("JanFebMarAprMayJunJulAugSepOctNovDec", part[3]) + 2) / 3, part[2])
  }'

# The text of an XML element that has no children, from the present record.
# shellcheck disable=SC2016 # awk's variables, not the shell's
readonly AWK_ELEMENT='
  function element(name,  start, text) {
    start = index($0, "<" name ">")
    if (!start) return ""
    text = substr($0, start + length(name) + 2)
    return substr(text, 1, index(text, "</" name ">") - 1)
  }'

# curl_configuration: for requests on standard input, METHOD KEY FILE HEADER|HEADER a line.
curl_configuration() {
  base=${setting[endpoint]}/${setting[bucket]}/ awk -F '\t' '
    function quoted(text) { gsub(/["\\]/, "\\\\&", text); return "\"" text "\"" }
    BEGIN { while ((getline line < (ENVIRON["run"] "/curl")) > 0) options = options line "\n" }
    {
      if (NR > 1) print "next"
      printf "%surl = %s\n", options, quoted(ENVIRON["base"] $2)
      if ($1 == "GET") print "output = " quoted($3)
      if ($1 == "HEAD") print "head\noutput = /dev/null"
      if ($1 == "PUT") print "upload-file = " quoted($3)
      if ($1 == "COPY") print "request = PUT\ndata = \"\""
      if ($1 == "POST") print "data-binary = " quoted($3 == "" ? "" : "@" $3)
      if ($1 == "DELETE") print "request = DELETE"
      count = split($4, header, "|")
      for (i = 1; i <= count; i++) print "header = " quoted(header[i])
    }'
}

# judge PENDING REPORT ANSWERS: sort requests by what curl reported. Final answers are appended to
# ANSWERS, as STATUS KEY LAST-MODIFIED LENGTH ETAG; the others go to PENDING.next. Prints, between
# unit separators: how many are final, how many are not, the longest pause the server asks for,
# the day by the server's clock; and of a request that no repetition helps or, if there is none,
# one that failed: whether none helps, status, exit code, method, key, file, date, curl's message.
judge() {
  base=${setting[endpoint]}/${setting[bucket]}/ next=$1.next answers=$3 awk -F '\t' "$AWK_DAY"'
    # Answers that the caller deals with: an object that is not there, a copy that is too large.
    # One too large to be what was asked for (63) is as good as none.
    function final(method) {
      if (code == 63) status = 404
      return status ~ /^2/ && code == 0 || status == 404 && method != "PUT" ||
        status == 400 && method == "COPY"
    }
    function transient() {
      if (code == 22) return status ~ /^(408|429|500|502|503|504)$/
      return code ~ /^(5|6|7|16|18|28|35|52|55|56|65|92)$/
    }
    BEGIN { OFS = FS; US = "\037"; base = length(ENVIRON["base"]) }
    FILENAME == ARGV[1] && NF < 9 { complaint = complaint $0; next }
    FILENAME == ARGV[1] { report[substr($3, base + 1)] = $0; latest = $4; next }
    {
      key = $2
      known = split(report[key], reported, FS)
      status = reported[1]
      # Whatever the server said that is not well, a redirection too, is curl 22.
      code = reported[2] == 0 && status !~ /^2/ ? 22 : reported[2]
      if (known && final($1)) {
        answered++
        print status, key, reported[5], reported[6], reported[7] >> ENVIRON["answers"]
        next
      }
      left++
      print > (ENVIRON["next"])
      # In a sequence, curl does not reach what follows a failure.
      if (!known) next
      if (reported[8] + 0 > pause) pause = reported[8] + 0
      hopeless = !transient()
      if (example == "" || hopeless && !ended) {
        ended = hopeless
        example = status US code US $1 US key US $3 US reported[4] US reported[9]
      }
    }
    END {
      if (example == "") { ended = 1; example = 0 US 2 US US US US US complaint }
      print answered + 0 US left + 0 US pause + 0 US day(latest) US ended + 0 US example
    }' "$2" "$1"
}

# attempt PENDING NAME [sequence]: make requests at the same time or, as a sequence, one after
# the other up to the first that fails. Connections are kept alive.
attempt() {
  local way=(--parallel --parallel-max "$TRANSFERS")
  [[ -z ${3-} ]] || way=(--fail-early)
  curl_configuration <"$1" |
    curl -q --silent --no-progress-meter "${way[@]}" --config - >"$2.bodies" 2>"$2.report"
}

# transfer NAME STEP [sequence]: repeat the requests in $run/NAME.requests until each has a final
# answer, in $run/NAME.answers. What the server refuses ends the push.
transfer() {
  local file=$run/$1 pending=$run/$1.requests tries=0 verdict answered left pause day hopeless
  : >"$file.answers"
  while [[ -s $pending ]]; do
    attempt "$pending" "$file" "${3-}" &
    wait $!
    verdict=$(judge "$pending" "$file.report" "$file.answers")
    IFS=$'\037' read -r answered left pause day hopeless _ <<<"$verdict"
    [[ -z $day ]] || printf '%s\n' "$day" >"$run/day"
    ((left)) || break
    ((tries = answered ? 1 : tries + 1))
    ((!hopeless && tries < ATTEMPTS)) || refused "$2" "$file.bodies" "$verdict"
    mv "$pending.next" "$file.pending"
    pending=$file.pending
    await_recovery "$tries" "$pause" "$2: $left requests failed"
  done
}

# await_recovery TRIES PAUSE WHAT: pause 0.1 s, twice as long after each try, up to 10 s; or for
# as long as the server asks for, up to a minute.
await_recovery() {
  local tenths=$((1 << ($1 < 8 ? $1 - 1 : 7)))
  ((tenths <= 100)) || tenths=100
  (($2 == 0)) || tenths=$(($2 < 60 ? 10 * $2 : 600))
  ((tenths < 10)) || say "$3, trying again in $((tenths / 10)) s"
  sleep "$((tenths / 10)).$((tenths % 10))" &
  wait $!
}

# refused STEP BODIES VERDICT: end the push with what curl or the server said.
refused() {
  local status code method key file date message what text='' s3_code s3_message
  IFS=$'\037' read -r _ _ _ _ _ status code method key file date message <<<"$3"
  if ((code != 22)); then
    what=${message:-"curl failed with exit code $code"}
    case $code in
      2) what+='; curl 7.88 or newer is needed' ;;
      23 | 26) what+="; see that ${stage%/*} and ${run%/*} have space" ;;
      35 | 60 | 77) what+='; set ca-certificate to what signed the certificate of the server' ;;
      *) what+="; see that the server runs and that endpoint ${setting[endpoint]} is right" ;;
    esac
    fail "$1" "$what"
  fi
  [[ $method == GET ]] || file=$2
  [[ ! -r $file ]] || read -r -N 4000 text <"$file"
  s3_code=${text#*<Code>} s3_code=${s3_code%%</Code>*}
  s3_message=${text#*<Message>} s3_message=${s3_message%%</Message>*}
  [[ $s3_code =~ ^[A-Za-z0-9]+$ ]] || s3_code='' s3_message=''
  s3_message=${s3_message//[^[:print:]]/ }
  what="$method ${setting[bucket]}/${key%%\?*}: HTTP $status"
  what+="${s3_code:+ $s3_code}${s3_message:+ (${s3_message:0:200})}"
  case $s3_code in
    InvalidAccessKeyId)
      what+="; the server has no enabled user ${setting[access-key-id]}: create or enable it" ;;
    SignatureDoesNotMatch)
      what+="; set secret-access-key to the secret of user ${setting[access-key-id]}" ;;
    AccessDenied)
      what+="; give user ${setting[access-key-id]} the write policy of the bucket" ;;
    PermanentRedirect | AuthorizationHeaderMalformed) what+="; set region to the server's" ;;
    NoSuchBucket) what+='; create the bucket, or set bucket to the right one' ;;
    RequestTimeTooSkewed) what+="; $(clock_skew "$date")" ;;
    XMinioAdminBucketQuotaExceeded | QuotaExceeded)
      what+="; raise the bucket's quota, or wait until entries expire" ;;
    XMinioStorageFull) what+='; the server needs more disk space' ;;
    *) what+="; see the server's log" ;;
  esac
  fail "$1" "$what"
}

# clock_skew DATE: how far this machine's clock is from the server's.
clock_skew() {
  local server
  server=$(date -d "$1" +%s 2>/dev/null) || server=$EPOCHSECONDS
  printf "this machine's clock differs from the server's by %d seconds: set it" \
    $((EPOCHSECONDS - server))
}

# request NAME STEP METHOD KEY FILE HEADERS: make one request; $run/NAME.bodies has its body.
# Prints its answer, as in $run/NAME.answers.
request() {
  printf '%s\t%s\t%s\t%s\n' "${@:3}" >"$run/$1.requests"
  transfer "$1" "$2"
  cat "$run/$1.answers"
}

# -------------------------------------------------------------- what is there, what is missing
#
# Tables in $run, fields between tabs:
#   closure     what nix said, between blanks: PATH SIZE [ultimate] SIGNATURE...
#   own         HASH PATH SIZE: paths of the closure that no upstream key signs
#   found       HASH PATH SIZE NAR NAR_SIZE DAY SIGNED: own paths with a sound narinfo
#   nars        NAR NAR_SIZE DAY: NARs in the bucket, those of table found among them
#   whole       HASH PATH SIZE NAR NAR_DAY DAY SIGNED: own paths whose NAR is in the bucket and
#               whose narinfo is in $run/narinfos
#   missing     HASH PATH SIZE REASON: the other own paths, absent or broken
#   references  HASH REFERENCES: of paths in found and missing, between blanks
# A DAY is when the narinfo or NAR was last written; 0 says that the narinfo in $run/narinfos is
# not in the bucket.

# store_paths: print the store paths to push. Links are followed now, and what lies inside a
# store path stands for it.
store_paths() {
  local path target
  for path in "${paths[@]}"; do
    target=$(readlink -f -- "$path") || target=$path
    [[ $target =~ ^(/nix/store/[$NIX32]{32}-[0-9A-Za-z+._?=-]+)(/.*)?$ ]] ||
      fail list "'$path' is neither a store path nor a link to one; build it, or correct the path"
    printf '%s\n' "${BASH_REMATCH[1]}"
  done
}

# list_closure: tables closure and own, and the requests for all that look reads first.
list_closure() {
  local targets
  targets=$(store_paths) || exit 1
  mapfile -t targets <<<"$targets"
  # Without the option, nix would ask substituters for a path that this machine does not have.
  nix_command path-info --recursive --size --sigs --option substitute false "${targets[@]}" \
    >"$run/closure" 2>"$run/errors" &
  wait $! ||
    fail list "$(error_in "$run/errors"); build it, or copy it to this machine, and push again"
  keys="${upstream_keys[*]-}" awk '
    BEGIN {
      OFS = "\t"
      count = split(ENVIRON["keys"], key, " ")
      for (i = 1; i <= count; i++) upstream[key[i]] = 1
      requests = ENVIRON["run"] "/look.requests"
      print "GET", "?list-type=2&max-keys=1000&prefix=nar%2F", ENVIRON["run"] "/page.0" > requests
    }
    {
      for (i = 3; i <= NF; i++) {
        split($i, signature, ":")
        if (signature[1] in upstream) { skipped++; bytes += $2; next }
      }
      hash = substr($1, 12, 32)
      print hash, $1, $2 > (ENVIRON["run"] "/own")
      print "GET", hash ".narinfo", ENVIRON["run"] "/narinfos/" hash ".narinfo" > requests
    }
    END { printf "%d %d\n", skipped, bytes }' "$run/closure" >"$run/skipped"
  touch "$run/own"
  read -r skipped skipped_bytes <"$run/skipped"
}

# look: tables whole and missing, of what the bucket holds.
look() {
  touch "$run/found" "$run/missing" "$run/references"
  transfer look list
  [[ $(awk -F '\t' '$2 ~ /^[?]/ { print $1 }' "$run/look.answers") == 200 ]] ||
    fail list "${setting[endpoint]} has no bucket ${setting[bucket]}; create it, or set bucket"
  read -r today <"$run/day"
  read_narinfos
  locate_nars
  compare_nars
}

# read_narinfos: tables found and missing. A narinfo that is not for its path, whose NAR is not in
# nar/, or that refers to what is not in the closure is broken: the last would outlive what it
# refers to, whose lease this push does not renew.
read_narinfos() {
  key=${signing_keys[-1]%%:*} awk "$AWK_DAY"'
    function sound(path,  file, line, name, value, gap, count, i, reference, fits) {
      file = ENVIRON["run"] "/narinfos/" substr(path, 12, 32) ".narinfo"
      nar = nar_size = hash = references = ""
      signed = 0
      fits = 1
      while ((getline line < file) > 0) {
        gap = index(line, ": ")
        name = substr(line, 1, gap - 1)
        value = substr(line, gap + 2)
        if (name == "StorePath" && value != path) fits = 0
        if (name == "URL") nar = value
        if (name == "FileSize") nar_size = value
        if (name == "NarHash") hash = value
        if (name == "Sig" && index(value, ENVIRON["key"] ":") == 1) signed = 1
        if (name == "References") {
          references = value
          count = split(value, reference, " ")
          for (i = 1; i <= count; i++) if (!(reference[i] in closure)) fits = 0
        }
      }
      close(file)
      return fits && hash != "" && nar ~ /^nar\/[0-9A-Za-z][0-9A-Za-z._-]*$/ &&
        nar_size ~ /^[0-9]+$/
    }
    BEGIN { FS = OFS = "\t" }
    FILENAME == ARGV[1] { split($0, field, " "); closure[substr(field[1], 12)] = 1; next }
    FILENAME == ARGV[2] { if ($1 ~ /^2/) written[$2] = day($3); next }
    $1 ".narinfo" in written && sound($2) {
      print $1, $2, $3, nar, nar_size, written[$1 ".narinfo"], signed > (ENVIRON["run"] "/found")
      print $1, references > (ENVIRON["run"] "/references")
      next
    }
    {
      reason = $1 ".narinfo" in written ? "broken" : "absent"
      print $1, $2, $3, reason > (ENVIRON["run"] "/missing")
    }
  ' "$run/closure" "$run/look.answers" "$run/own"
}

# read_page FILE: print what a page of a listing holds, as lines of table nars.
read_page() {
  awk "$AWK_ELEMENT"'
    BEGIN { RS = "<Contents>"; OFS = "\t" }
    element("Key") != "" {
      print element("Key"), element("Size"), substr(element("LastModified"), 1, 10)
    }
  ' "$1"
}

# plan_listing: print requests for the rest of the listing of nar/, in even parts of the space of
# keys, if that is cheaper than a HEAD for each NAR of table found. Keys are hashes, spread
# evenly, so the first page tells how many there are. A hash has 256 bits in digits of 5, and so
# its first digit is 0 or 1.
plan_listing() {
  limit=$(($(wc -l <"$run/found") / PAGE_IN_HEADS)) alphabet=$NIX32 awk -F '\t' -v OFS='\t' '
    function position(key,  i, value, weight) {
      for (i = weight = 1; i <= 4; i++) {
        value += weight * (index(ENVIRON["alphabet"], substr(key, 4 + i, 1)) - 1)
        weight /= 32
      }
      return value / 2
    }
    function key(position,  i, text) {
      position *= 2
      for (i = 1; i <= 4; i++) {
        text = text substr(ENVIRON["alphabet"], int(position) + 1, 1)
        position = (position - int(position)) * 32
      }
      return text
    }
    { last = $1 }
    END {
      seen = position(last)
      if (seen <= 0 || seen >= 1) exit
      # 800 keys a page leave room for chance.
      pages = int(NR * (1 - seen) / seen / 800) + 1
      if (pages > ENVIRON["limit"]) exit
      for (i = 0; i < pages; i++)
        print "GET", "?list-type=2&max-keys=1000&prefix=nar%2F&start-after=nar%2F" \
          key(seen + (1 - seen) * i / pages), ENVIRON["run"] "/page." i + 1
    }' "$run/nars"
}

# locate_nars: table nars.
locate_nars() {
  local page
  read_page "$run/page.0" >"$run/nars"
  [[ -s $run/found && $(head -c 2000 "$run/page.0") == *'<IsTruncated>true<'* ]] || return 0
  plan_listing >"$run/pages.requests"
  transfer pages list
  for page in "$run"/page.[1-9]*; do
    [[ ! -e $page ]] || read_page "$page"
  done >>"$run/nars"
  awk -F '\t' -v OFS='\t' '
    FILENAME == ARGV[1] { listed[$1] = 1; next }
    !($4 in listed) { listed[$4] = 1; print "HEAD", $4 }' "$run/nars" "$run/found" \
    >"$run/heads.requests"
  transfer heads list
  awk "$AWK_DAY"' BEGIN { FS = OFS = "\t" } $1 ~ /^2/ { print $2, $4, day($3) }' \
    "$run/heads.answers" >>"$run/nars"
}

# compare_nars: table whole; paths whose NAR has gone or has another size join table missing.
compare_nars() {
  awk '
    BEGIN { FS = OFS = "\t" }
    FILENAME == ARGV[1] { size[$1] = $2; day[$1] = $3; next }
    $4 in size && $5 == size[$4] { print $1, $2, $3, $4, day[$4], $6, $7; next }
    { print $1, $2, $3, "broken" >> (ENVIRON["run"] "/missing") }
  ' "$run/nars" "$run/found" >"$run/whole"
}

# give_up FIELD VALUES: paths of table whole with one of the values in the field are broken.
give_up() {
  field=$1 awk '
    BEGIN { FS = OFS = "\t"; field = ENVIRON["field"] + 0 }
    FILENAME == ARGV[1] { given_up[$1] = 1; next }
    $field in given_up { print $1, $2, $3, "broken" >> (ENVIRON["run"] "/missing"); next }
    { print }' "$2" "$run/whole" >"$run/kept"
  mv "$run/kept" "$run/whole"
}

# --------------------------------------------------------------------------------- signatures

# sign_whole: add our signature to narinfos of table whole that lack it. A signature vouches for
# content, so it goes only to a narinfo that says what this machine's own store says. A path of
# which another builder made something else is broken: what we vouch for takes its place.
sign_whole() {
  awk -F '\t' '!$7 { print $2 }' "$run/whole" >"$run/unsigned"
  [[ -s $run/unsigned ]] || return 0
  {
    xargs nix-store --query --hash <"$run/unsigned" >"$run/hashes" &&
      xargs nix-store --dump-db <"$run/unsigned" >"$run/facts"
  } 2>"$run/errors" || fail sign "$(error_in "$run/errors"); push again"
  touch "$run/ours" "$run/others"
  awk "$AWK_FACTS"'
    FILENAME == ARGV[1] { hash[FNR] = $0; next }
    {
      read_facts()
      facts = "NarHash: " hash[++paths] "\nNarSize: " size "\nReferences:" references
      file = ENVIRON["run"] "/narinfos/" substr(path, 12, 32) ".narinfo"
      text = ""
      while ((getline line < file) > 0) if (line ~ /^(NarHash|NarSize|References): /) {
        sub(/ +$/, "", line)
        text = text (text == "" ? "" : "\n") line
      }
      close(file)
      print path > (ENVIRON["run"] (text == facts ? "/ours" : "/others"))
    }' "$run/hashes" "$run/facts"
  if [[ -s $run/ours ]]; then
    xargs nix --extra-experimental-features nix-command store sign --store "file://$run/narinfos" \
      --key-file "$run/signing-key" <"$run/ours" 2>"$run/errors" ||
      fail sign "$(error_in "$run/errors"); check the signing key"
    awk '
      BEGIN { FS = OFS = "\t" }
      FILENAME == ARGV[1] { signed[$1] = 1; next }
      $2 in signed { $6 = 0 }
      { print }' "$run/ours" "$run/whole" >"$run/kept"
    mv "$run/kept" "$run/whole"
    say "sign: added ${signing_keys[-1]%%:*} to $(wc -l <"$run/ours") paths"
  fi
  give_up 2 "$run/others"
}

# What nix-store --dump-db says of one path, a line each: path, hash, size, deriver, number of
# references, references. Nix sorts them, here and in narinfos.
# shellcheck disable=SC2016 # awk's variables, not the shell's
readonly AWK_FACTS='
  function read_facts(  count) {
    path = $0
    getline; getline size; getline; getline count
    for (references = ""; count > 0; count--) {
      getline
      references = references " " substr($0, 12)
    }
  }'

# ------------------------------------------------------------------------------------ staging

# plan_batches: deal table missing into batches, $run/batches/N, lines of PATH SIZE REFERENCE...,
# and print N PATHS BYTES for each. Large paths go first, then the rest in Nix's order,
# references first, so that narinfos need not wait for later batches. Each batch takes a share of
# what is left: the first are large, as every nix copy costs its start, the last small, as little
# runs beside them.
plan_batches() {
  cut -f 2 "$run/missing" | xargs nix-store --dump-db >"$run/facts" 2>"$run/errors" ||
    fail stage "$(error_in "$run/errors"); keep the closure alive by a link, and push again"
  rm -f "$run/batches"/*
  awk "$AWK_FACTS"'
    {
      read_facts()
      print path " " size references
      print substr(path, 12, 32) "\t" substr(references, 2) >> (ENVIRON["run"] "/references")
    }' "$run/facts" >"$run/plan"
  limit=$((setting[staging-limit] / (4 * setting[parallelism]))) awk '
    # Even a small path costs as much as so many bytes.
    function cost(size) { return size + 100000 }
    function end_batch(it) {
      if (paths[it]) print it, paths[it], bytes[it]
      close(ENVIRON["run"] "/batches/" it)
    }
    # Neighbours often refer to one another, and of such Nix compresses only one at a time. So two
    # batches are dealt at once, each path to the one that has less.
    function deal(  it) {
      it = first + (spent[first + 1] < spent[first])
      if (spent[it] >= share || paths[it] == 500 ||
          paths[it] && bytes[it] + $2 > ENVIRON["limit"] + 0) {
        end_batch(first)
        end_batch(first + 1)
        it = first += 2
        share = left / 3 > 64000000 ? left / 3 : 64000000
      }
      print > (ENVIRON["run"] "/batches/" it)
      paths[it]++
      bytes[it] += $2
      spent[it] += cost($2)
      left -= cost($2)
    }
    BEGIN { first = -1 }
    FNR == 1 && ++pass == 2 { large = left / 8 }
    pass == 1 { left += cost($2) }
    pass == 2 && cost($2) > large || pass == 3 && cost($2) <= large { deal() }
    END { end_batch(first); end_batch(first + 1) }' "$run/plan" "$run/plan" "$run/plan"
}

# compress_batch N: have Nix compress and sign a batch. Its narinfos go to $run/narinfos, its
# lines of table whole to $run/batches/N.whole, and the uploads it needs, as requests with the
# NAR's size for a fifth field, to N.uploads.
compress_batch() {
  local plan=$run/batches/$1 directory=$stage/$1 target targets path narinfos=()
  mapfile -t targets <"$plan"
  targets=("${targets[@]%% *}")
  mkdir -p "$directory/tmp"
  # Stubs for what the batch refers to: Nix insists that it be there, and copies what is not.
  directory=$directory awk '
    NR == FNR { known[substr($1, 12)] = 1; next }
    {
      for (i = 3; i <= NF; i++) {
        if ($i in known) continue
        known[$i] = 1
        file = ENVIRON["directory"] "/" substr($i, 1, 32) ".narinfo"
        printf "StorePath: /nix/store/%s\nURL: nar/stub\nCompression: none\n", $i > file
        printf "NarHash: sha256:%052d\nNarSize: 1\nReferences: \n", 0 > file
        close(file)
      }
    }' "$plan" "$plan"
  target="file://$directory?compression=${setting[compression]}&secret-key=$run/signing-key"
  target+=${setting[compression-level]:+"&compression-level=${setting[compression-level]}"}
  TMPDIR=$directory/tmp XDG_CACHE_HOME=$directory/tmp NIX_CACHE_HOME=$directory/tmp \
    nix_command copy --no-recursive --to "$target" "${targets[@]}" >"$plan.errors" 2>&1 ||
    compression_failed "$plan.errors"
  key=${signing_keys[-1]%%:*} directory=$directory batch=$plan awk '
    BEGIN { OFS = "\t"; batch = ENVIRON["batch"]; printf "" > (batch ".uploads") }
    FILENAME == ARGV[1] { size[$1] = $2; day[$1] = $3; next }
    {
      hash = substr($1, 12, 32)
      file = ENVIRON["directory"] "/" hash ".narinfo"
      nar = nar_size = signed = ""
      while ((getline line < file) > 0) {
        if (line ~ /^URL: nar\//) nar = substr(line, 6)
        if (line ~ /^FileSize: /) nar_size = substr(line, 11)
        if (index(line, "Sig: " ENVIRON["key"] ":") == 1) signed = 1
      }
      close(file)
      if (!signed) { print $1 > (batch ".unsigned"); exit }
      # A push that was interrupted may have brought the NAR today.
      print hash, $1, $2, nar, ENVIRON["today"], 0, 1 > (batch ".whole")
      if (size[nar] == nar_size && day[nar] >= ENVIRON["today"]) next
      size[nar] = nar_size
      day[nar] = ENVIRON["today"]
      print "PUT", nar, ENVIRON["directory"] "/" nar, "Content-Type: application/x-nix-nar",
        nar_size > (batch ".uploads")
    }' "$run/nars" "$plan"
  [[ ! -e $plan.unsigned ]] ||
    fail stage "Nix did not sign $(<"$plan.unsigned"); check the signing key"
  for path in "${targets[@]}"; do narinfos+=("$directory/${path:11:32}.narinfo"); done
  mv -t "$run/narinfos" "${narinfos[@]}"
}

# compression_failed ERRORS
compression_failed() {
  local text
  text=$(error_in "$1")
  case $text in
    *'No space left'* | *'Disk quota'*)
      text+="; free space in ${stage%/*}, or set TMPDIR to a larger disk" ;;
    *'is not valid'* | *'No such file'*)
      text+='; the path went away during the push: keep it alive by a link, and push again' ;;
    *) text+='; see that the store is sound, and push again' ;;
  esac
  fail stage "$text"
}

# push_missing: push table missing, and move its paths to table whole. All at the same time,
# batches are compressed, NARs of earlier batches go up, and narinfos that depend on nothing to
# come are published.
push_missing() {
  # Jobs: ids of the background processes, and what each is doing.
  local compressing=0 uploading='' publishing='' ticking='' pid
  local -A job=()
  # Batches: those to come, those that are compressed, and what they take on disk.
  local number batches=() ready=() held=0
  local -a counts=() sizes=() on_disk=()
  # Progress, and whether there may be narinfos to publish.
  local count size total=0 total_bytes=0 all landed=0 landed_bytes=0 fresh=''
  plan_batches >"$run/sizes"
  while read -r number count size; do
    batches+=("$number")
    ((counts[number] = count, sizes[number] = size, total += count, total_bytes += size))
  done <"$run/sizes"
  human all "$total_bytes"
  while ((landed < total)) || [[ -n $publishing ]]; do
    start_jobs
    wait -n -p pid || exit 1
    case $pid in
      "$ticking") ticking='' && say_progress ;;
      "$publishing") publishing='' && mark_published ;;
      "$uploading") uploading='' && count_landed "${job[$pid]}" && say_progress ;;
      *) count_compressed "${job[$pid]}" ;;
    esac
  done
  [[ -z $ticking ]] || { kill -KILL "$ticking" && wait "$ticking"; } 2>/dev/null
  : >"$run/missing"
}

# start_jobs: start what can be, for push_missing. What batches may take on disk, twice their size
# while Nix works at them, stays within the limit unless one runs alone.
start_jobs() {
  local number
  while ((${#batches[@]} && compressing < setting[parallelism])); do
    number=${batches[0]}
    ((held == 0 || held + 2 * sizes[number] <= setting[staging-limit])) || break
    ((compressing++, on_disk[number] = 2 * sizes[number], held += on_disk[number]))
    compress_batch "$number" &
    job[$!]=$number batches=("${batches[@]:1}")
  done
  if [[ -z $uploading && -n ${ready[*]} ]]; then
    upload_batches "${ready[@]}" &
    uploading=$! job[$!]=${ready[*]} ready=()
  fi
  if [[ -z $publishing && -n $fresh ]]; then
    plan_waves some >/dev/null
    fresh=''
    if [[ -s $run/waves ]]; then
      write_waves &
      publishing=$! fresh=1
    fi
  fi
  if [[ -z $ticking ]]; then
    # When it ends, a line of progress is due: a large batch may take long to land.
    sleep 30 &
    ticking=$!
  fi
}

# count_compressed N: a batch waits for its upload, and takes what its NARs take.
count_compressed() {
  local bytes
  bytes=$(sum_of 5 "$run/batches/$1.uploads")
  ((compressing--, held += bytes - on_disk[$1], on_disk[$1] = bytes))
  ready+=("$1")
}

# count_landed BATCHES: batches are in the bucket, and off the disk.
count_landed() {
  local number
  for number in $1; do
    ((held -= on_disk[number], landed += counts[number], landed_bytes += sizes[number]))
    cat "$run/batches/$number.whole"
  done >>"$run/whole"
  fresh=1
}

say_progress() {
  local so_far
  human so_far "$landed_bytes"
  say "upload: $landed of $total paths, $so_far of $all"
}

# sum_of FIELD TABLE
sum_of() { awk -F '\t' -v field="$1" '{ sum += $field } END { printf "%d", sum }' "$2"; }

# ------------------------------------------------------------------------------------ uploads

# upload_batches N...: upload the NARs of batches, and delete them.
upload_batches() {
  local batch key file bytes uploads=()
  for batch; do uploads+=("$run/batches/$batch.uploads"); done
  awk -F '\t' -v limit="${setting[part-size]}" '$5 <= limit' "${uploads[@]}" >"$run/upload.requests"
  transfer upload upload
  awk -F '\t' -v limit="${setting[part-size]}" '$5 > limit' "${uploads[@]}" >"$run/large"
  while IFS=$'\t' read -r _ key file _ bytes; do
    write_in_parts upload "$key" "$bytes" "$file"
  done <"$run/large"
  for batch; do rm -rf "${stage:?}/$batch"; done
}

# write_in_parts STEP KEY BYTES [FILE]: write an object in parts: of the file, which is used up;
# or, without one, of the object itself, whose lease thereby begins anew. Runs in a subshell.
write_in_parts() {
  local step=$1 key=$2 bytes=$3 file=${4-} part=${setting[part-size]} parts id
  parts=$(((bytes + part - 1) / part))
  drop_old_parts
  request parts "$step" POST "$key?uploads=" '' 'Content-Type: application/x-nix-nar' >"$run/begun"
  id=$(upload_ids '' <"$run/parts.bodies")
  [[ -n $id ]] || fail "$step" "the server began no upload of $key in parts; push again"
  # What was begun is taken back if this fails.
  printf 'DELETE\t%s\n' "$key?uploadId=$id" >"$run/undo.requests"
  trap 'transfer undo upload 2>"$run/errors"' EXIT
  if [[ -n $file ]]; then upload_parts; else copy_parts; fi
  awk -F '\t' '
    BEGIN { printf "<CompleteMultipartUpload>" }
    { printf "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", $1, $2 }
    END { printf "</CompleteMultipartUpload>" }' "$run/parts" >"$run/parts.xml"
  request parts "$step" POST "$key?uploadId=$id" "$run/parts.xml" 'Content-Type: text/xml' \
    >"$run/ended"
  # The answer to an attempt that succeeded may have been lost: then the object is there.
  grep -q CompleteMultipartUploadResult "$run/parts.bodies" ||
    [[ $(request parts "$step" HEAD "$key" '' '' | cut -f 4) == "$bytes" ]] ||
    fail "$step" "the server did not join the parts of $key; push again"
  trap - EXIT
}

# drop_old_parts: end uploads of $key that pushes which were killed began before today. Readers
# never see them, but they take space.
drop_old_parts() {
  request parts "$step" GET "?prefix=${key//\//%2F}&uploads=" "$run/uploads.xml" '' >"$run/begun"
  upload_ids "$today" <"$run/uploads.xml" | while read -r id; do
    request parts "$step" DELETE "$key?uploadId=$id" '' '' >"$run/ended"
  done
}

# upload_ids DAY: print the ids of uploads in XML, for use in a URL; those begun before the day.
upload_ids() {
  day=$1 awk "$AWK_ELEMENT"'
    BEGIN { RS = "<Upload>|<InitiateMultipartUploadResult" }
    {
      id = element("UploadId")
      if (id !~ /^[A-Za-z0-9._~=+\/-]+$/) next
      if (ENVIRON["day"] != "" && substr(element("Initiated"), 1, 10) >= ENVIRON["day"]) next
      gsub("=", "%3D", id); gsub(/\+/, "%2B", id); gsub("/", "%2F", id)
      print id
    }'
}

# upload_parts: cut parts off the end of $file, so that the disk holds nothing twice, and upload
# them. Table parts: NUMBER ETAG.
upload_parts() {
  local number start
  for ((number = parts; number > 0; number--)); do
    start=$(((number - 1) * part))
    { tail -c "+$((start + 1))" "$file" >"$file.$number" && truncate -s "$start" "$file"; } ||
      fail "$step" "${stage%/*} is full; free space there, or set TMPDIR to a larger disk"
    printf 'PUT\t%s?partNumber=%d&uploadId=%s\t%s\n' "$key" "$number" "$id" "$file.$number"
  done >"$run/parts.requests"
  transfer parts "$step"
  awk -F '[=&\t]' -v OFS='\t' '{ print $3, $NF }' "$run/parts.answers" | sort -n >"$run/parts"
}

# copy_parts: have the server copy the parts of $key from itself. Table parts: NUMBER ETAG.
copy_parts() {
  local number start end from="x-amz-copy-source: /${setting[bucket]}/$key"
  for ((number = 1; number <= parts; number++)); do
    ((start = (number - 1) * part, end = start + part, end = end < bytes ? end : bytes))
    request parts "$step" COPY "$key?partNumber=$number&uploadId=$id" '' \
      "$from|x-amz-copy-source-range: bytes=$start-$((end - 1))" >"$run/ended"
    awk -v number="$number" "$AWK_ELEMENT"'
      element("ETag") != "" { print number "\t" element("ETag") }' "$run/parts.bodies"
  done >"$run/parts"
}

# ------------------------------------------------------------------------- leases and narinfos

# renew_nars: have the server write NARs of table whole again that were not written today. Where
# one has gone, its paths are broken.
renew_nars() {
  local key bytes
  ((setting[retention-days])) || return 0
  from="x-amz-copy-source: /${setting[bucket]}/" awk -F '\t' -v OFS='\t' '
    $5 < ENVIRON["today"] && !($4 in seen) {
      seen[$4] = 1
      print "COPY", $4, "", ENVIRON["from"] $4 \
        "|x-amz-metadata-directive: REPLACE|Content-Type: application/x-nix-nar"
    }' "$run/whole" >"$run/renew.requests"
  transfer renew renew
  # S3 copies no more than 5 GiB in one request.
  awk -F '\t' '
    FILENAME == ARGV[1] { if ($1 == 400) large[$2] = 1; next }
    $1 in large { print $1 "\t" $2 }' "$run/renew.answers" "$run/nars" >"$run/large"
  while IFS=$'\t' read -r key bytes; do
    write_in_parts renew "$key" "$bytes" &
    wait $! || exit 1
  done <"$run/large"
  awk -F '\t' '$1 == 404 { print $2 }' "$run/renew.answers" >"$run/gone"
  [[ -s $run/gone ]] || return 0
  give_up 4 "$run/gone"
  awk -F '\t' 'FILENAME == ARGV[1] { gone[$1] = 1; next } !($1 in gone)' \
    "$run/gone" "$run/nars" >"$run/kept"
  mv "$run/kept" "$run/nars"
}

# plan_waves [SOME]: table waves, WAVE WAY, of narinfos of table whole that the bucket lacks or,
# with a retention, that were not written today. None comes before one that it refers to, and
# those that depend on a missing path are left; prints how many are. Or only some, as one wave.
plan_waves() {
  retention=${setting[retention-days]} narrow=$NARROW_WAVE sequence=$SEQUENCE some=${1-} awk '
    # A level is that of the wave at which a path, with all it refers to, is published.
    function place(it,  i, count, reference, other, highest) {
      count = split(references[it], reference, " ")
      for (i = 1; i <= count; i++) {
        other = substr(reference[i], 1, 32)
        if (other == it || !(other in own)) continue
        if (!(other in level)) return 0
        if (level[other] > highest) highest = level[other]
      }
      if (it in due) {
        highest++
        order[++placed] = it
        width[highest]++
        members[highest] = members[highest] " " it
      }
      level[it] = highest
      return 1
    }
    function put(it) {
      print "PUT", it ".narinfo", ENVIRON["run"] "/narinfos/" it ".narinfo",
        "Content-Type: text/x-nix-narinfo" > file
      print it > (ENVIRON["run"] "/published")
    }
    function end_wave() {
      print wave, way > (ENVIRON["run"] "/waves")
      close(file)
    }
    BEGIN {
      FS = OFS = "\t"
      printf "" > (ENVIRON["run"] "/waves")
      printf "" > (ENVIRON["run"] "/published")
    }
    FILENAME == ARGV[1] {
      whole[$1] = 1
      if ($6 == 0 || ENVIRON["retention"] > 0 && $6 < ENVIRON["today"]) { due[$1] = 1; count++ }
      next
    }
    !count { exit }
    FILENAME == ARGV[2] { references[$1] = $2; next }
    { own[$1] = 1; if ($1 in whole) hash[++paths] = $1 }
    END {
      if (!count) exit
      # Nix lists references first, so that the first of these passes does nearly all.
      do {
        progress = 0
        for (i = 1; i <= paths; i++)
          if (!(hash[i] in level) && place(hash[i])) progress++
      } while (progress)
      print count - placed
      wave = 1
      file = ENVIRON["run"] "/wave1.requests"
      if (ENVIRON["some"] != "") {
        way = width[1] > ENVIRON["sequence"] + 0 ? "" : "sequence"
        count = way == "" ? split(members[1], order, " ") : ENVIRON["sequence"] + 0
        for (i = 1; i <= placed && i <= count; i++) put(order[i])
        if (placed) end_wave()
        exit
      }
      for (i = 1; i in width; i++) {
        before = way
        way = width[i] < ENVIRON["narrow"] ? "sequence" : ""
        # Narrow waves that follow one another become one sequence.
        if (i > 1 && (way == "" || before == "")) {
          swap = way; way = before; end_wave(); way = swap
          file = ENVIRON["run"] "/wave" ++wave ".requests"
        }
        count = split(members[i], member, " ")
        for (j = 1; j <= count; j++) put(member[j])
      }
      if (placed) end_wave()
    }' "$run/whole" "$run/references" "$run/own"
}

write_waves() {
  local wave way
  while IFS=$'\t' read -r wave way; do
    transfer "wave$wave" publish "$way"
  done <"$run/waves"
}

# mark_published: note in table whole what write_waves wrote.
mark_published() {
  awk '
    BEGIN { FS = OFS = "\t" }
    FILENAME == ARGV[1] { published[$1] = 1; next }
    $1 in published { $6 = ENVIRON["today"] }
    { print }' "$run/published" "$run/whole" >"$run/kept"
  mv "$run/kept" "$run/whole"
}

# publish: write all narinfos that are due.
publish() {
  local left
  left=$(plan_waves)
  ((${left:-0} == 0)) || fail publish "$left narinfos in the bucket refer in a circle; delete them"
  [[ -s $run/waves ]] || return 0
  write_waves
  mark_published
}

# --------------------------------------------------------------------------------------- main

# count_missing: add table missing to what the summary says.
count_missing() {
  ((pushed += $(wc -l <"$run/missing"), pushed_bytes += $(sum_of 3 "$run/missing")))
  ((repaired += $(grep -c 'broken$' "$run/missing")))
}

# count_renewals: paths of table whole whose lease begins anew.
count_renewals() {
  ((setting[retention-days])) || return 0
  renewed=$(awk -F '\t' '
    $5 < ENVIRON["today"] || $6 != 0 && $6 < ENVIRON["today"] { count++ }
    END { print count + 0 }' "$run/whole")
}

# summary VERB: the one line on standard output.
summary() {
  local tenths=$(((${EPOCHREALTIME/./} - began) / 100000)) pushed_size skipped_size
  human pushed_size "$pushed_bytes"
  human skipped_size "$skipped_bytes"
  printf '%s %d paths (%s), reused %d, skipped %d upstream (%s), ' \
    "$1" "$pushed" "$pushed_size" $(($(wc -l <"$run/own") - pushed)) \
    "$skipped" "$skipped_size"
  printf 'renewed %d, repaired %d, in %d.%d s\n' \
    "$renewed" "$repaired" $((tenths / 10)) $((tenths % 10))
}

main() {
  local config='' dry_run='' began=${EPOCHREALTIME/./} day
  local skipped skipped_bytes pushed=0 pushed_bytes=0 repaired=0 renewed=0
  while (($#)); do
    case $1 in
      --help)
        usage
        exit 0
        ;;
      --dry-run) dry_run=1 ;;
      --config)
        (($# > 1)) || fail settings '--config needs a file, or -'
        config=$2
        shift
        ;;
      -*) fail settings "unknown option '$1'; see --help" ;;
      *) paths+=("$1") ;;
    esac
    shift
  done
  case $config in
    '') fail settings 'no settings; give --config FILE' ;;
    -) read_settings ;;
    *)
      [[ -r $config && ! -d $config ]] ||
        fail settings "--config '$config' cannot be read; name a readable file"
      read_settings <"$config"
      ;;
  esac
  check_tools
  check_settings
  make_directories
  write_secrets
  list_closure
  look
  if [[ -n $dry_run ]]; then
    count_missing
    count_renewals
    awk -F '\t' '{ print "would push " $2 ", " $3 " bytes, " $4 }' "$run/missing" >&2
    summary 'would push'
    return
  fi
  sign_whole
  count_renewals
  while :; do
    renew_nars
    count_missing
    [[ ! -s $run/missing ]] || push_missing
    publish
    # A push that sees midnight go by leaves some of what it wrote a day older than the rest.
    read -r day <"$run/day"
    ((setting[retention-days])) && [[ $day > $today ]] || break
    today=$day
  done
  summary pushed
}

# What takes long runs in the background, and is waited for, so that signals act at once.
set -m
trap cleanup EXIT
trap 'cleanup; exit 129' HUP
trap 'cleanup; exit 130' INT
trap 'cleanup; exit 141' PIPE
trap 'cleanup; exit 143' TERM

main "$@" || exit 1
