#!/usr/bin/env bash
# Push closures of this machine's Nix store to a binary cache on an S3 server.
#
# THE INVARIANT. At every moment, whatever is killed, each narinfo that a reader sees has its
# NAR in the bucket, whole, and the narinfo of each of its references, except for paths that an
# upstream cache signs. Writes therefore go in one order only:
#   1. NARs, uploaded or renewed;
#   2. narinfos, each after those that it refers to.
# Leases keep to the same order. An object expires a number of whole UTC days after its last
# write, a NAR later than a narinfo, so an object written today needs no new lease. What a push
# leaves in the bucket was all written today, and nothing outlives what it depends on.
#
# HOW. `nix copy` is given a directory that holds, as stubs, everything that a path refers to, so
# it compresses and signs exactly the paths that are missing. Their NARs are deleted as they land
# in the bucket; the narinfos go last.
#
# Bash (5.1), nix (2.8), curl (7.88), awk and coreutils are all it needs. What it reads from the
# cache is input: parsed by awk, never evaluated.

set -u -o pipefail
export LC_ALL=C

readonly NIX32='0123456789abcdfghijklmnpqrsvwxyz'
# Requests at a time. More of them win nothing on a local network and cost the server memory.
readonly TRANSFERS=16
# How often all that is left of some requests may fail, in a row, before the push gives up; the
# pauses between add up to about 80 seconds, longer than a server takes to start again.
readonly ATTEMPTS=15
# S3 copies no larger object in one request.
readonly LARGEST_COPY=5368709120
# Listing a thousand keys costs a server about as much as this many HEAD requests.
readonly PAGE_IN_HEADS=30

usage() {
  cat <<'USAGE'
Usage: push.sh [--config FILE|-] [--dry-run] [STORE_PATH_OR_LINK...]

Pushes the closures of store paths, or of what links point to, to a Nix binary cache on S3:
what the cache lacks is compressed, signed and uploaded; what it has is reused, and its lease
renewed; what an upstream cache signs is skipped. Ends with one line that sums it up.

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
  parallelism              how many paths are compressed at once (one per core)
  staging-limit            bytes that may lie in TMPDIR, or /var/tmp (2147483648); a larger
                           path is staged alone
  part-size                larger NARs are uploaded in parts of this many bytes (1073741824)
  retention-days           days after which the bucket forgets an entry; 0 is never (0)
  path                     a store path or link to push; may repeat

The file holds secrets: make it readable by its owner alone.
USAGE
}

say() { printf 'push: %s\n' "$*" >&2; }

# fail STEP WHAT: end the push, naming what went wrong and, after a semicolon, the remedy.
fail() {
  say "$1: $2"
  exit 1
}

# first_error FILE: what a failed nix wrote, on one line of bounded length.
first_error() {
  awk '
    { gsub(/\033\[[0-9;]*m/, ""); sub(/^ +/, "") }
    /^error:/ { found = 1 }
    found && NF { text = text (text == "" ? "" : " ") $0 }
    NF { last = $0 }
    END { sub(/^error: */, "", text); print substr(text == "" ? last : text, 1, 600) }' "$1"
}

# ---------------------------------------------------------------------------------- settings

declare -A setting=(
  [region]=us-east-1
  [compression]=zstd
  [staging-limit]=2147483648
  [part-size]=1073741824
  [retention-days]=0
)
signing_keys=()
upstream_keys=()
paths=()

# read_settings: take settings from standard input, which bash may still be reading this script
# from: the settings then follow its last line.
read_settings() {
  local line name value
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    name=${line%%=*} value=${line#*=}
    case $name in
      endpoint | region | bucket | access-key-id | secret-access-key | secret-access-key-file | \
        signing-key-file | ca-certificate | ca-certificate-file | compression | \
        compression-level | parallelism | staging-limit | part-size | retention-days)
        [[ $line == *=* ]] || fail settings "$name has no value; write $name=VALUE"
        setting[$name]=$value
        ;;
      signing-key) signing_keys+=("$value") ;;
      upstream-key) upstream_keys+=("${value%%:*}") ;;
      path) paths+=("$value") ;;
      # The line is not shown: it may be a secret whose name was mistyped.
      *) fail settings "unknown setting '${name:0:40}'; see --help" ;;
    esac
  done
}

# require NAME REGEX WHAT: a setting must be there and look right.
require() {
  [[ -n ${setting[$1]-} ]] || fail settings "$1 is missing; set it to $3"
  [[ ${setting[$1]} =~ ^($2)$ ]] || fail settings "$1 '${setting[$1]}' is not valid; set it to $3"
}

# contents_of NAME: the file that a setting names, without its final line breaks.
contents_of() {
  [[ -r ${setting[$1]} ]] ||
    fail settings "$1 '${setting[$1]}' cannot be read; name a readable file"
  printf '%s' "$(<"${setting[$1]}")"
}

check_settings() {
  local key
  if [[ -n ${setting[secret-access-key-file]-} ]]; then
    setting[secret-access-key]=$(contents_of secret-access-key-file) || exit 1
  fi
  if [[ -n ${setting[signing-key-file]-} ]]; then
    key=$(contents_of signing-key-file) || exit 1
    mapfile -t signing_keys <<<"$key"
  fi
  setting[endpoint]=${setting[endpoint]-}
  setting[endpoint]=${setting[endpoint]%/}
  require endpoint 'https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]+)?' 'https://host[:port]'
  require bucket '[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]' "the bucket's name"
  require region '[A-Za-z0-9-]+' "the server's region, such as us-east-1"
  require compression 'zstd|xz|none' 'zstd, xz or none'
  require staging-limit '[1-9][0-9]{0,17}' 'a number of bytes'
  require part-size '[1-9][0-9]{6,9}' 'a number of bytes from 5242880 to 5368709120'
  ((setting[part-size] >= 5242880 && setting[part-size] <= LARGEST_COPY)) ||
    fail settings "part-size ${setting[part-size]} is not from 5242880 to 5368709120"
  require retention-days '[0-9]{1,5}' 'a whole number of days, 0 for ever'
  setting[parallelism]=${setting[parallelism]:-$(nproc)}
  require parallelism '[1-9][0-9]{0,2}' 'a whole number from 1'
  [[ ${setting[compression-level]-} =~ ^-?[0-9]{0,2}$ ]] ||
    fail settings "compression-level '${setting[compression-level]}' is not valid; set a number"
  [[ ${setting[access-key-id]-} =~ ^[^:[:cntrl:]]+$ ]] ||
    fail settings "access-key-id is missing or malformed; set the builder's user name"
  [[ ${setting[secret-access-key]-} =~ ^[^[:cntrl:]]+$ ]] ||
    fail settings "secret-access-key is missing or malformed; set the user's secret"
  ((${#signing_keys[@]})) || fail settings "signing-key is missing; set it to name:base64"
  for key in "${signing_keys[@]}"; do
    [[ $key =~ ^[A-Za-z0-9._-]+:[A-Za-z0-9+/]{86}==$ ]] ||
      fail settings "a signing key is not a secret key of the form name:base64; see nix key"
  done
  ((${#paths[@]})) || fail settings "nothing to push; give a store path, or a link to one"
}

# -------------------------------------------------------------------------------- directories

stage=''       # NARs on their way: on disk
export run=''   # tables, fetched narinfos and secrets: in memory where there is a place for it
export today='' # the day by the server's clock, 2026-11-23
readonly DIRECTORY_NAME='nixcache-push'

# process_start PID: print when a process started, in ticks; fail where there is none.
process_start() {
  local stat
  read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
  # The second field, a command's name in parentheses, may hold blanks.
  stat=${stat##*) }
  # shellcheck disable=SC2086 # split on purpose
  set -- $stat
  printf '%s' "${20}"
}

# remove_leftovers BASE NAMESPACE: remove directories of pushes of ours that were killed. A
# directory's name says which process made it, in which PID namespace: only there can one tell
# whether it is alive.
remove_leftovers() {
  local directory name namespace pid start
  for directory in "$1/$DIRECTORY_NAME".*; do
    [[ -d $directory && ! -L $directory && -O $directory ]] || continue
    name=${directory##*/}
    IFS=. read -r _ namespace pid start _ <<<"$name"
    [[ $namespace == "$2" && $pid =~ ^[0-9]+$ ]] || continue
    [[ $(process_start "$pid") == "$start" ]] || rm -rf "$directory"
  done
}

# Called on every way out. Each background job is a process group of its own (set -m), and none
# of them leaves anything outside the two directories.
cleanup() {
  local group
  for group in $(jobs -p); do
    kill -KILL -- "-$group" 2>/dev/null
  done
  wait
  rm -rf ${stage:+"$stage"} ${run:+"$run"}
}

make_directories() {
  local base namespace template
  namespace=$(readlink /proc/self/ns/pid)
  namespace=${namespace//[^0-9]/}
  template=$DIRECTORY_NAME.$namespace.$$.$(process_start $$).XXXXXX
  base=${TMPDIR:-/var/tmp}
  remove_leftovers "$base" "$namespace"
  stage=$(mktemp -d "$base/$template") ||
    fail prepare "$base takes no temporary files; set TMPDIR to a writable directory with space"
  run=$stage
  for base in "${XDG_RUNTIME_DIR:-}" /run /dev/shm; do
    [[ -n $base && -d $base && -w $base && $(stat -f -c %T "$base") == tmpfs ]] || continue
    remove_leftovers "$base" "$namespace"
    run=$(mktemp -d "$base/$template") || run=$stage
    break
  done
  mkdir "$run/fetched" "$run/batches"
}

# Files that hold secrets, so that no secret is ever an argument or in the environment.
write_secrets() {
  local secret=${setting[secret-access-key]} ca=''
  umask 077
  printf '%s' "${signing_keys[-1]}" >"$run/signing-key"
  if [[ -n ${setting[ca-certificate]-} ]]; then
    ca=$run/ca.pem
    base64 -d >"$ca" 2>/dev/null <<<"${setting[ca-certificate]}"
    grep -q CERTIFICATE "$ca" ||
      fail settings 'ca-certificate is not a PEM certificate in base64; encode the whole file'
  elif [[ -n ${setting[ca-certificate-file]-} ]]; then
    ca=$(realpath "${setting[ca-certificate-file]}") && [[ -r $ca ]] ||
      fail settings "ca-certificate-file '${setting[ca-certificate-file]}' cannot be read"
  fi
  secret=${secret//\\/\\\\}
  {
    printf 'user = "%s:%s"\n' "${setting[access-key-id]//[\"\\]/\\&}" "${secret//\"/\\\"}"
    printf 'aws-sigv4 = "aws:amz:%s:s3"\n' "${setting[region]}"
    # TLS guards the body; hashing it as well would double the work on both sides.
    printf 'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\n'
    [[ -z $ca ]] || printf 'cacert = "%s"\n' "${ca//[\"\\]/\\&}"
    printf '%s\n' globoff 'connect-timeout = 15' 'speed-limit = 1' 'speed-time = 120'
    printf 'write-out = "%s"\n' '%{stderr}%{http_code}\t%{exitcode}\t%{url}\t%header{date}\t%header{last-modified}\t%header{content-length}\t%header{etag}\t%header{retry-after}\t%{errormsg}\n'
  } >"$run/curl"
}

# ----------------------------------------------------------------------------------- requests

# curl_config: turn requests, METHOD KEY FILE HEADER|HEADER a line, into curl's configuration.
curl_config() {
  base_url=${setting[endpoint]}/${setting[bucket]}/ options=$run/curl awk -F '\t' '
    function quoted(text) { gsub(/["\\]/, "\\\\&", text); return "\"" text "\"" }
    BEGIN { while ((getline line < ENVIRON["options"]) > 0) options = options line "\n" }
    {
      if (NR > 1) print "next"
      printf "%s", options
      print "url = " quoted(ENVIRON["base_url"] $2)
      if ($1 == "GET") print "output = " quoted($3)
      if ($1 == "HEAD") print "head\noutput = /dev/null"
      if ($1 == "PUT") print "upload-file = " quoted($3)
      if ($1 == "COPY") print "request = PUT\ndata = \"\""
      if ($1 == "POST") print "request = POST\ndata-binary = " quoted($3 == "" ? "" : "@" $3)
      if ($1 == "DELETE") print "request = DELETE"
      headers = split($4, header, "|")
      for (i = 1; i <= headers; i++) print "header = " quoted(header[i])
    }'
}

# judge PENDING ROUND ANSWERS: sort what curl reported. Final answers are appended to ANSWERS as
# STATUS KEY DATE LAST-MODIFIED LENGTH ETAG; requests worth another attempt go to PENDING.next.
# Prints, between unit separators: how many were answered; how many are left; the longest Retry-After; and of one request
# that is hopeless or, failing that, failed: its status, exit code, method, key, file, the
# server's date, curl's message.
judge() {
  prefix=${setting[endpoint]}/${setting[bucket]}/ next=$1.next answers=$3 awk -F '\t' '
    function transient(status, code) {
      if (code != 0) return code ~ /^(5|6|7|16|18|28|35|52|55|56|65|92)$/
      return status ~ /^(408|429|500|502|503|504)$/
    }
    function final(method, status, code) {
      if (code != 0) return 0
      return status ~ /^2/ || (status == 404 && method != "PUT")
    }
    BEGIN { OFS = FS; US = "\037"; prefix = ENVIRON["prefix"] }
    FILENAME == ARGV[1] && NF < 9 { if (message == "") message = $0; next }
    FILENAME == ARGV[1] {
      key = substr($3, length(prefix) + 1)
      status[key] = $1; code[key] = $2; date[key] = $4; error[key] = $9
      rest[key] = $5 OFS $6 OFS $7; wait[key] = $8
      next
    }
    {
      if (!($2 in status)) { status[$2] = 0; code[$2] = 2; error[$2] = message }
      if (final($1, status[$2], code[$2])) {
        answered++
        print status[$2], $2, date[$2], rest[$2] >> ENVIRON["answers"]
        next
      }
      left++
      print > (ENVIRON["next"])
      if (wait[$2] + 0 > longest) longest = wait[$2] + 0
      hopeless = !transient(status[$2], code[$2])
      if (example == "" || hopeless && !ended) {
        example = status[$2] US code[$2] US $1 US $2 US $3 US date[$2] US error[$2]
        ended = hopeless
      }
    }
    END { print answered + 0 US left + 0 US longest + 0 US ended + 0 US example }' "$2" "$1"
}

request_round() {
  curl_config <"$1" | curl -q --silent --no-progress-meter --config - --parallel --parallel-max "$TRANSFERS" \
    >"$2.bodies" 2>"$2.round"
}

# transfer NAME STEP: make the requests in $run/NAME.requests until each is answered for good;
# $run/NAME.answers then says how. What is refused ends the push.
transfer() {
  local name=$1 step=$2 pending=$run/$1.requests attempt=0 verdict answered left pause hopeless
  : >"$run/$name.answers"
  while [[ -s $pending ]]; do
    request_round "$pending" "$run/$name" &
    wait $!
    verdict=$(judge "$pending" "$run/$name.round" "$run/$name.answers")
    IFS=$'\037' read -r answered left pause hopeless _ <<<"$verdict"
    ((left)) || break
    ((hopeless)) && refused "$step" "$run/$name.bodies" "$verdict"
    ((attempt = answered ? 1 : attempt + 1))
    ((attempt < ATTEMPTS)) || refused "$step" "$run/$name.bodies" "$verdict"
    mv "$pending.next" "$run/$name.pending"
    pending=$run/$name.pending
    # 0.1 s, doubled each time up to 10 s, or what the server asks for, up to a minute.
    ((attempt > 7)) && ((pause < 10)) && pause=10
    ((pause)) && ((pause > 60)) && pause=60
    ((pause)) || printf -v pause '%d.%d' $(((1 << attempt - 1) / 10)) $(((1 << attempt - 1) % 10))
    ((attempt < 3)) || say "$step: $left requests failed, trying again in $pause s"
    sleep "$pause" &
    wait $!
  done
}

# refused STEP BODIES VERDICT: end the push, saying what the server or curl said.
refused() {
  local status code method key file date error text s3_code s3_message what
  IFS=$'\037' read -r _ _ _ _ status code method key file date error <<<"$3"
  if ((code)); then
    what="${error:-curl failed with exit code $code}"
    case $code in
      6 | 7) what+="; see that the server runs and that endpoint ${setting[endpoint]} is right" ;;
      60 | 77) what+="; set ca-certificate to the authority that signed the server's certificate" ;;
      2) what+='; curl 7.88 or newer is needed' ;;
      23) what+="; see that ${stage%/*} and ${run%/*} have space" ;;
    esac
    fail "$1" "$what"
  fi
  [[ $method == GET ]] || file=$2
  text=''
  [[ -r $file ]] && read -r -N 4000 text <"$file"
  s3_code=${text#*<Code>} s3_code=${s3_code%%</Code>*}
  s3_message=${text#*<Message>} s3_message=${s3_message%%</Message>*}
  [[ $s3_code =~ ^[A-Za-z0-9]+$ ]] || s3_code='' s3_message=''
  s3_message=${s3_message//[^[:print:]]/ }
  what="$method ${key%%\?*} in bucket ${setting[bucket]}: HTTP $status"
  what+="${s3_code:+ $s3_code}${s3_message:+ (${s3_message:0:200})}"
  case $s3_code in
    InvalidAccessKeyId)
      what+="; the server has no enabled user ${setting[access-key-id]}: set access-key-id" ;;
    SignatureDoesNotMatch) what+="; set secret-access-key to the user's secret" ;;
    AccessDenied | AllAccessDisabled)
      what+="; give user ${setting[access-key-id]} the bucket's write policy, or enable it" ;;
    RequestTimeTooSkewed) what+="; $(clock_skew "$date")" ;;
    NoSuchBucket) what+='; create the bucket, or set bucket to the right one' ;;
    XMinioAdminBucketQuotaExceeded | QuotaExceeded)
      what+="; raise the bucket's quota or let entries expire" ;;
    XMinioStorageFull) what+='; the server needs more disk space' ;;
    *) what+='; see the server'\''s log' ;;
  esac
  fail "$1" "$what"
}

clock_skew() {
  local server
  server=$(date -d "$1" +%s 2>/dev/null) || server=$EPOCHSECONDS
  printf "this machine's clock is %d seconds from the server's: set it, by NTP" \
    $((EPOCHSECONDS - server))
}

# -------------------------------------------------------------- what is there, what is missing
#
# Tables in $run, fields separated by tabs:
#   closure   what nix said: PATH SIZE [ultimate] SIGNATURE...
#   own       HASH PATH SIZE, of paths that no upstream key signs
#   found     HASH PATH SIZE NAR NAR_SIZE DAY SIGNED, of own paths with a sound narinfo
#   nars      NAR SIZE DAY, of NARs in the bucket
#   whole     HASH PATH SIZE NAR NAR_DAY DAY SIGNED, of own paths whose NAR is in the bucket, and
#             whose narinfo is $run/fetched/HASH.narinfo
#   missing   HASH PATH SIZE REASON, of the other own paths: absent or broken
#
# DAY and NAR_DAY are the UTC days on which narinfo and NAR were last written, 0 where the bucket
# still lacks the narinfo as it is in $run/fetched.

# An HTTP date as a day that sorts as text, 2026-11-23.
# shellcheck disable=SC2016 # awk's variables, not ours
readonly AWK_DAY='
  function day(date,  part) {
    split(date, part, " ")
    return sprintf("%d-%02d-%02d", part[4],
      (index("JanFebMarAprMayJunJulAugSepOctNovDec", part[3]) + 2) / 3, part[2])
  }'

nix_command() { nix --extra-experimental-features nix-command "$@"; }

# store_paths: resolve links, now, and cut what lies deeper down to its store path.
store_paths() {
  local path target
  for path in "${paths[@]}"; do
    target=$(readlink -f -- "$path") || target=$path
    [[ $target =~ ^(/nix/store/[$NIX32]{32}-[0-9A-Za-z+._?=-]+)(/.*)?$ ]] ||
      fail list "'$path' is neither a store path nor a link to one; build it, or correct the path"
    printf '%s\n' "${BASH_REMATCH[1]}"
  done
}

# list_closure: tables closure and own, and requests for the narinfos of our own paths.
list_closure() {
  local targets
  targets=$(store_paths) || exit 1
  mapfile -t targets <<<"$targets"
  # Without its option, nix would ask substituters for a path that this machine does not have.
  nix_command path-info --recursive --size --sigs --option substitute false "${targets[@]}" \
    >"$run/closure" 2>"$run/errors" </dev/null &
  wait $! ||
    fail list "$(first_error "$run/errors"); build or copy the path to this machine first"
  keys="${upstream_keys[*]-}" awk '
    BEGIN {
      OFS = "\t"
      names = split(ENVIRON["keys"], name, " ")
      for (i = 1; i <= names; i++) upstream[name[i]] = 1
      fetched = ENVIRON["run"] "/fetched/"
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
      print "GET", hash ".narinfo", fetched hash ".narinfo" > requests
    }
    END { print skipped + 0, bytes + 0 }' "$run/closure" >"$run/skipped"
  [[ -e $run/own ]] || : >"$run/own"
  read -r skipped_paths skipped_bytes <"$run/skipped"
}

# read_narinfos: tables found and missing. A narinfo that is not for its path, points to a NAR
# outside nar/, or refers to what is not in our closure is as good as none: the last would
# outlive what it refers to, which no push of ours renews.
read_narinfos() {
  : >"$run/found"
  : >"$run/missing"
  key=${signing_keys[-1]%%:*} awk "$AWK_DAY"'
    function sound(file, path,  line, name, value, gap, count, i, reference, fits) {
      nar = nar_size = signed = nar_hash = ""
      fits = 1
      while ((getline line < file) > 0) {
        gap = index(line, ": ")
        name = substr(line, 1, gap - 1)
        value = substr(line, gap + 2)
        if (name == "StorePath" && value != path) fits = 0
        if (name == "URL") nar = value
        if (name == "FileSize") nar_size = value
        if (name == "NarHash") nar_hash = value
        if (name == "Sig" && index(value, ENVIRON["key"] ":") == 1) signed = 1
        if (name == "References") {
          count = split(value, reference, " ")
          for (i = 1; i <= count; i++) if (!(reference[i] in closure)) fits = 0
        }
      }
      close(file)
      return fits && nar_hash != "" && nar ~ /^nar\/[0-9A-Za-z._-]+$/ && nar_size ~ /^[0-9]*$/
    }
    BEGIN { FS = OFS = "\t" }
    FILENAME == ARGV[1] { split($0, field, " "); closure[substr(field[1], 12)] = 1; next }
    FILENAME == ARGV[2] {
      if ($1 ~ /^2/) modified[$2] = day($4)
      if (day($3) > today) today = day($3)
      next
    }
    !($1 ".narinfo" in modified) { print $1, $2, $3, "absent" > (ENVIRON["run"] "/missing"); next }
    {
      if (sound(ENVIRON["run"] "/fetched/" $1 ".narinfo", $2))
        print $1, $2, $3, nar, nar_size, modified[$1 ".narinfo"], signed + 0 > (ENVIRON["run"] "/found")
      else print $1, $2, $3, "broken" > (ENVIRON["run"] "/missing")
    }
    END { print today }' "$run/closure" "$run/look.answers" "$run/own" >"$run/today"
  read -r today <"$run/today"
}

# read_page FILE: print the keys of a listing as NAR SIZE DAY.
read_page() {
  awk '
    function field(name,  start, text) {
      start = index($0, "<" name ">")
      if (!start) return ""
      text = substr($0, start + length(name) + 2)
      return substr(text, 1, index(text, "</" name ">") - 1)
    }
    BEGIN { RS = "<Contents>"; OFS = "\t" }
    field("Key") != "" { print field("Key"), field("Size"), substr(field("LastModified"), 1, 10) }
  ' "$1"
}

# plan_listing: print requests for the rest of the listing of nar/, in even parts of the key
# space, where that is cheaper than a HEAD for each NAR wanted. The first page, whose keys are
# hashes and so spread evenly, tells how many there are.
plan_listing() {
  wanted=$(wc -l <"$run/found") cost=$PAGE_IN_HEADS nix32=$NIX32 awk -F '\t' '
    function position(key,  i, value, weight) {
      weight = 1
      for (i = 5; i < 9; i++) {
        weight /= 32
        value += weight * (index(ENVIRON["nix32"], substr(key, i, 1)) - 1)
      }
      return value
    }
    function key(position,  i, digit, text) {
      for (i = 0; i < 4; i++) {
        position *= 32
        digit = int(position)
        position -= digit
        text = text substr(ENVIRON["nix32"], digit + 1, 1)
      }
      return text
    }
    { last = $1 }
    END {
      seen = position(last)
      if (seen <= 0 || seen >= 1) exit
      # 800 a page leaves room for chance; what falls off a page gets a HEAD.
      pages = int(NR * (1 - seen) / seen / 800) + 1
      if (pages * ENVIRON["cost"] > ENVIRON["wanted"]) exit
      OFS = "\t"
      for (i = 0; i < pages; i++)
        print "GET", "?list-type=2&max-keys=1000&prefix=nar%2F&start-after=nar%2F" \
          key(seen + (1 - seen) * i / pages), ENVIRON["run"] "/page." i + 1
    }' "$run/nars"
}

# locate_nars: table nars, with every NAR of table found that the bucket holds.
locate_nars() {
  local page
  read_page "$run/page.0" >"$run/nars"
  [[ -s $run/found ]] || return 0
  if [[ $(head -c 2000 "$run/page.0") == *'<IsTruncated>true<'* ]]; then
    plan_listing >"$run/pages.requests"
    transfer pages list
    for page in "$run"/page.*; do
      [[ $page == */page.0 ]] || read_page "$page" >>"$run/nars"
    done
    awk -F '\t' -v OFS='\t' '
      NR == FNR { there[$1] = 1; next }
      !($4 in there) { there[$4] = 1; print "HEAD", $4 }
    ' "$run/nars" "$run/found" >"$run/heads.requests"
    transfer heads list
    awk "$AWK_DAY"'
      BEGIN { FS = OFS = "\t" }
      $1 ~ /^2/ { print $2, $5, day($4) }
    ' "$run/heads.answers" >>"$run/nars"
  fi
}

# compare_nars: table whole, and those paths in table missing whose NAR is gone or cut short.
compare_nars() {
  awk '
    BEGIN { FS = OFS = "\t" }
    FILENAME == ARGV[1] { size[$1] = $2; day[$1] = $3; next }
    $4 in size && ($5 == "" || $5 == size[$4]) { print $1, $2, $3, $4, day[$4], $6, $7; next }
    { print $1, $2, $3, "broken" > (ENVIRON["run"] "/broken") }
  ' "$run/nars" "$run/found" >"$run/whole"
  [[ ! -e $run/broken ]] || cat "$run/broken" >>"$run/missing"
}

# look: tables of what the bucket holds of the closure.
look() {
  transfer look list
  [[ $(awk -F '\t' '$2 ~ /^\?/ { print $1 }' "$run/look.answers") == 200 ]] ||
    fail list "bucket ${setting[bucket]} does not exist at ${setting[endpoint]}; create it, or set bucket"
  read_narinfos
  locate_nars
  compare_nars
}

# --------------------------------------------------------------------------------- signatures

# sign_found: add our signature to narinfos in the cache that lack it. A signature vouches for a
# path's content, so it is given only where the narinfo says what this machine's own store says;
# where it does not, the path counts as broken, and ours takes its place.
sign_found() {
  awk -F '\t' '!$7' "$run/whole" >"$run/unsigned"
  [[ -s $run/unsigned ]] || return 0
  {
    cut -f 2 "$run/unsigned" | xargs nix-store --query --hash >"$run/hashes" &&
      cut -f 2 "$run/unsigned" | xargs nix-store --dump-db >"$run/facts"
  } 2>"$run/errors" || fail sign "$(first_error "$run/errors"); push again"
  awk '
    # nix-store --dump-db: path, hash, size, deriver, number of references, references.
    function sorted(list, count,  i, j, swap, text) {
      for (i = 2; i <= count; i++)
        for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
          swap = list[j]; list[j] = list[j - 1]; list[j - 1] = swap
        }
      for (i = 1; i <= count; i++) text = text " " list[i]
      return text
    }
    BEGIN { FS = "\t" }
    FILENAME == ARGV[1] {
      path = $0; getline; getline; size = $0; getline; getline; count = $0
      for (i = 1; i <= count; i++) { getline; reference[i] = substr($0, 12) }
      references[path] = sorted(reference, count)
      sizes[path] = size
      next
    }
    FILENAME == ARGV[2] { hash[++hashes] = $0; next }
    {
      file = ENVIRON["run"] "/fetched/" $1 ".narinfo"
      nar_hash = nar_size = its = ""
      while ((getline line < file) > 0) {
        if (line ~ /^NarHash: /) nar_hash = substr(line, 10)
        if (line ~ /^NarSize: /) nar_size = substr(line, 10)
        if (line ~ /^References: /) { count = split(substr(line, 13), reference, " "); its = sorted(reference, count) }
      }
      close(file)
      same = nar_hash == hash[FNR] && nar_size == sizes[$2] && its == references[$2]
      print $2 > (ENVIRON["run"] (same ? "/ours" : "/others"))
    }' "$run/facts" "$run/hashes" "$run/unsigned"
  if [[ -e $run/ours ]]; then
    xargs nix --extra-experimental-features nix-command store sign \
      --store "file://$run/fetched" --key-file "$run/signing-key" <"$run/ours" 2>"$run/errors" ||
      fail sign "$(first_error "$run/errors")"
    awk -F '\t' -v OFS='\t' 'NR == FNR { ours[$1] = 1; next } $2 in ours { $6 = 0 } { print }' \
      "$run/ours" "$run/whole" >"$run/signed"
    mv "$run/signed" "$run/whole"
    say "sign: added ${signing_keys[-1]%%:*} to $(wc -l <"$run/ours") paths"
  fi
  [[ ! -e $run/others ]] || give_up 2 "$run/others"
}

# give_up FIELD VALUES: paths in table whole with one of the values in a field are missing.
give_up() {
  field=$1 awk '
    BEGIN { FS = OFS = "\t"; field = ENVIRON["field"] + 0 }
    NR == FNR { given_up[$1] = 1; next }
    $field in given_up { print $1, $2, $3, "broken" >> (ENVIRON["run"] "/missing"); next }
    { print }
  ' "$2" "$run/whole" >"$run/kept"
  mv "$run/kept" "$run/whole"
}

# ------------------------------------------------------------------------------------ staging

# plan_batches: split table missing into batches, $run/batches/N, of PATH SIZE REFERENCE... a
# line. Each takes a fixed share of what is left, so that the first are large (few processes)
# and the last small (little to wait for at the end); large paths go first, for the same reason.
plan_batches() {
  cut -f 2 "$run/missing" | xargs nix-store --dump-db >"$run/facts" 2>"$run/errors" ||
    fail stage "$(first_error "$run/errors"); keep the closure alive by a link, and push again"
  rm -f "$run/batches"/*
  awk '{
    path = $0
    getline; getline size; getline; getline count
    line = path " " size
    for (i = 1; i <= count; i++) { getline reference; line = line " " reference }
    print line
  }' "$run/facts" | sort -k 2,2nr >"$run/plan"
  limit=$((setting[staging-limit] / (4 * setting[parallelism]))) workers=${setting[parallelism]} \
    directory=$run/batches awk '
    # Even a small path costs about as much as this many bytes.
    function cost(size) { return size + 100000 }
    NR == FNR { left += cost($2); next }
    !number || spent >= share || paths == 500 || bytes && bytes + $2 > ENVIRON["limit"] + 0 {
      if (number) close(file)
      file = ENVIRON["directory"] "/" ++number
      share = left / (3 * ENVIRON["workers"])
      if (share < 4000000) share = 4000000
      bytes = spent = paths = 0
    }
    { print > file; bytes += $2; spent += cost($2); left -= cost($2); paths++ }
    END { print number + 0 }' "$run/plan" "$run/plan" >"$run/batch_count"
  read -r batch_count <"$run/batch_count"
}

# compress_batch N: have Nix compress and sign a batch; print the bytes of its NARs. Leaves the
# uploads that it needs in $run/batches/N.uploads, and its lines of table whole in N.whole.
compress_batch() {
  local batch=$1 directory=$stage/$1 target targets path narinfos=()
  mkdir -p "$directory/tmp"
  # What the batch refers to stands there as a stub: then Nix neither misses nor copies it.
  directory=$directory awk '
    NR == FNR { batch[$1] = 1; next }
    {
      for (i = 3; i <= NF; i++) if (!($i in batch)) {
        batch[$i] = 1
        file = ENVIRON["directory"] "/" substr($i, 12, 32) ".narinfo"
        printf "StorePath: %s\nURL: nar/stub\nCompression: none\nNarHash: sha256:%052d\nNarSize: 1\nReferences: \n", $i, 0 > file
        close(file)
      }
    }' "$run/batches/$batch" "$run/batches/$batch"
  mapfile -t targets < <(cut -d ' ' -f 1 "$run/batches/$batch")
  for path in "${targets[@]}"; do narinfos+=("$directory/${path:11:32}.narinfo"); done
  target="file://$directory?compression=${setting[compression]}&secret-key=$run/signing-key"
  target+=${setting[compression-level]:+"&compression-level=${setting[compression-level]}"}
  TMPDIR=$directory/tmp XDG_CACHE_HOME=$directory/tmp NIX_CACHE_HOME=$directory/tmp \
    nix_command copy --no-recursive --to "$target" "${targets[@]}" \
    2>"$run/batches/$batch.errors" >&2 || compression_failed "$run/batches/$batch.errors"
  key=${signing_keys[-1]%%:*} directory=$directory table=$run/batches/$batch awk '
    BEGIN { OFS = "\t"; table = ENVIRON["table"] }
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
      if (nar == "" || !signed) { print $1 > (table ".unsigned"); next }
      # An interrupted push may have brought the NAR already.
      there = size[nar] == nar_size
      print hash, $1, $2, nar, there ? day[nar] : ENVIRON["today"], 0, 1 > (table ".whole")
      if (there) next
      size[nar] = nar_size
      print "PUT", nar, ENVIRON["directory"] "/" nar, "Content-Type: application/x-nix-nar", nar_size > (table ".uploads")
    }' "$run/nars" "$run/batches/$batch"
  [[ ! -e $run/batches/$batch.unsigned ]] ||
    fail stage "Nix did not sign $(head -n 1 "$run/batches/$batch.unsigned"); check the signing key"
  mv -t "$run/fetched" "${narinfos[@]}"
}

compression_failed() {
  local text
  text=$(first_error "$1")
  case $text in
    *'No space left'*)
      text+="; free space in ${stage%/*}, set TMPDIR to a larger disk, or lower staging-limit" ;;
    *'is not valid'* | *'No such file'*)
      text+='; the path went away during the push: keep it alive by a link, and push again' ;;
    *) text+="; see that ${stage%/*} has space, and push again" ;;
  esac
  fail stage "$text"
}

# ------------------------------------------------------------------------------------ uploads

# request NAME STEP METHOD KEY FILE HEADERS: one request; its status is printed, its body is left
# in $run/NAME.bodies.
request() {
  printf '%s\t%s\t%s\t%s\n' "$3" "$4" "$5" "$6" >"$run/$1.requests"
  transfer "$1" "$2"
  cut -f 1 "$run/$1.answers"
}

# begin_parts NAME STEP KEY: begin an upload in parts; print its id as part of a URL.
begin_parts() {
  local body id
  request "$1" "$2" POST "$3?uploads=" '' 'Content-Type: application/x-nix-nar' >/dev/null
  body=$(<"$run/$1.bodies")
  id=${body#*<UploadId>} id=${id%%</UploadId>*}
  [[ $id =~ ^[A-Za-z0-9._~=+/-]+$ ]] || fail "$2" "the server began no upload of $3; push again"
  id=${id//=/%3D} id=${id//+/%2B}
  printf '%s' "${id//\//%2F}"
}

# end_parts NAME STEP KEY ID SIZE: make one object of the parts in $run/NAME.parts, NUMBER ETAG.
end_parts() {
  local status
  awk -F '\t' '
    BEGIN { printf "<CompleteMultipartUpload>" }
    { printf "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", $1, $2 }
    END { printf "</CompleteMultipartUpload>" }' "$run/$1.parts" >"$run/$1.xml"
  status=$(request "$1" "$2" POST "$3?uploadId=$4" "$run/$1.xml" 'Content-Type: text/xml') || exit 1
  grep -q CompleteMultipartUploadResult "$run/$1.bodies" && return
  # The answer to an attempt that succeeded may have been lost: then the object is there.
  request "$1" "$2" HEAD "$3" '' '' >/dev/null
  [[ $(cut -f 5 "$run/$1.answers") == "$5" ]] ||
    fail "$2" "the server did not put the parts of $3 together (HTTP $status); push again"
}

# upload_in_parts KEY FILE SIZE: upload a NAR as parts that are cut off its end, so that the disk
# holds no part twice.
upload_in_parts() {
  local key=$1 file=$2 bytes=$3 part=${setting[part-size]} number id
  id=$(begin_parts parts upload "$key") || exit 1
  for ((number = (bytes + part - 1) / part; number > 1; number--)); do
    { tail -c "+$(((number - 1) * part + 1))" "$file" >"$file.$number" &&
      truncate -s $(((number - 1) * part)) "$file"; } ||
      fail upload "the disk of ${stage%/*} is full; free space, or set TMPDIR to a larger disk"
  done
  mv "$file" "$file.1"
  awk -v key="$key" -v id="$id" -v file="$file" -v count=$(((bytes + part - 1) / part)) '
    BEGIN { for (i = 1; i <= count; i++)
      printf "PUT\t%s?partNumber=%d&uploadId=%s\t%s.%d\n", key, i, id, file, i }' \
    >"$run/parts.requests"
  transfer parts upload
  sed 's/^[^?]*?partNumber=\([0-9]*\)&[^\t]*\(\t.*\)$/\1\2/' <(cut -f 2- "$run/parts.answers") |
    cut -f 1,5 | sort -n >"$run/parts.parts"
  end_parts parts upload "$key" "$id" "$bytes"
}

# upload_batches N...: upload the NARs of compressed batches, and free their space.
upload_batches() {
  local batch method key file size uploads=()
  for batch; do
    [[ ! -e $run/batches/$batch.uploads ]] || uploads+=("$run/batches/$batch.uploads")
  done
  if ((${#uploads[@]})); then
    awk -F '\t' -v limit="${setting[part-size]}" '$5 <= limit' "${uploads[@]}" >"$run/upload.requests"
    transfer upload upload
    awk -F '\t' -v limit="${setting[part-size]}" '$5 > limit' "${uploads[@]}" >"$run/large"
    while IFS=$'\t' read -r method key file _ size; do
      upload_in_parts "$key" "$file" "$size"
    done <"$run/large"
  fi
  for batch; do rm -rf "${stage:?}/$batch"; done
}

# push_missing: compress and upload the NARs of table missing, and move its paths to table whole.
# Compression of batches runs beside the upload of those before. What is staged, counted at twice
# its size while Nix works on it, stays within the limit, unless a batch runs alone.
push_missing() {
  local next=1 held=0 compressing=0 uploading='' ready=() batch pid bytes
  local total total_bytes landed=0 landed_bytes=0
  local -A of size
  plan_batches
  total=$(wc -l <"$run/missing")
  total_bytes=$(awk -F '\t' '{ bytes += $3 } END { print bytes + 0 }' "$run/missing")
  while ((next <= batch_count || compressing || ${#ready[@]})) || [[ -n $uploading ]]; do
    while ((next <= batch_count && compressing < setting[parallelism])); do
      bytes=$(awk '{ bytes += $2 } END { print 2 * bytes }' "$run/batches/$next")
      ((held == 0 || held + bytes <= setting[staging-limit])) || break
      compress_batch "$next" &
      of[$!]=$next size[$next]=$bytes
      ((held += bytes, compressing++, next++))
    done
    if [[ -z $uploading && ${#ready[@]} -gt 0 ]]; then
      upload_batches "${ready[@]}" &
      uploading=$! of[$!]="${ready[*]}" ready=()
    fi
    wait -n -p pid || exit 1
    if [[ $pid == "$uploading" ]]; then
      uploading=''
      for batch in ${of[$pid]}; do
        ((held -= size[$batch], landed += $(wc -l <"$run/batches/$batch")))
        landed_bytes=$(awk -v sum="$landed_bytes" '{ sum += $2 } END { print sum }' "$run/batches/$batch")
      done
      say "upload: $landed of $total paths, $(human "$landed_bytes") of $(human "$total_bytes")"
    else
      ((compressing--))
      ready+=("${of[$pid]}")
    fi
    unset "of[$pid]"
  done
  cat "$run"/batches/*.whole >>"$run/whole"
  : >"$run/missing"
}

# human BYTES: 12.3 MB.
human() {
  local unit=B value=$1 tenth=0
  for unit in B kB MB GB TB; do
    ((value < 1000)) && break
    tenth=$((value % 1000 / 100)) value=$((value / 1000))
  done
  [[ $unit == B ]] && printf '%d B' "$value" || printf '%d.%d %s' "$value" "$tenth" "$unit"
}

# ------------------------------------------------------------------------- leases and narinfos

# renew_nars: new leases for NARs of table whole that were not written today. A NAR that has gone
# makes its paths missing.
renew_nars() {
  ((setting[retention-days])) || return 0
  source="x-amz-copy-source: /${setting[bucket]}/" awk -F '\t' -v OFS='\t' '
    $5 < ENVIRON["today"] && !($4 in seen) {
      seen[$4] = 1
      print "COPY", $4, "", ENVIRON["source"] $4 "|x-amz-metadata-directive: REPLACE|Content-Type: application/x-nix-nar"
    }' "$run/whole" >"$run/renew.requests"
  transfer renew renew
  awk -F '\t' '$1 == 404 { print $2 }' "$run/renew.answers" >"$run/gone"
  if [[ -s $run/gone ]]; then
    give_up 4 "$run/gone"
    awk -F '\t' 'NR == FNR { gone[$1] = 1; next } !($1 in gone)' "$run/gone" "$run/nars" >"$run/kept"
    mv "$run/kept" "$run/nars"
  fi
}

# publish: write the narinfos of table whole that the bucket lacks or, with a retention, that were
# not written today, in waves: none before those it refers to.
publish() {
  local wave
  rm -f "$run"/wave.*
  retention=${setting[retention-days]} awk '
    BEGIN { FS = OFS = "\t" }
    FILENAME == ARGV[1] {
      known[$1] = 1
      if ($6 == 0 || ENVIRON["retention"] && $6 < ENVIRON["today"]) { due[$1] = 1; count++ }
      next
    }
    !count { exit }
    {
      order[++paths] = $1
      file = ENVIRON["run"] "/fetched/" $1 ".narinfo"
      while ((getline line < file) > 0) if (line ~ /^References: /) references[$1] = substr(line, 13)
      close(file)
    }
    END {
      # Nix lists references first, so that one pass is enough; more would do no harm.
      for (placed = 0; placed < paths; placed += progress) {
        progress = 0
        for (i = 1; i <= paths; i++) {
          hash = order[i]
          if (hash in level) continue
          deepest = 0
          n = split(references[hash], reference, " ")
          for (j = 1; j <= n; j++) {
            it = substr(reference[j], 1, 32)
            if (it == hash || !(it in known)) continue
            if (!(it in level)) { deepest = -1; break }
            if (level[it] > deepest) deepest = level[it]
          }
          if (deepest < 0) continue
          level[hash] = deepest + (hash in due)
          progress++
          if (hash in due)
            print "PUT", hash ".narinfo", ENVIRON["run"] "/fetched/" hash ".narinfo", "Content-Type: text/x-nix-narinfo" > (ENVIRON["run"] "/wave." level[hash] ".requests")
        }
        if (!progress) exit 1
      }
    }' "$run/whole" "$run/own" || fail publish 'narinfos refer to one another in a circle'
  for ((wave = 1; ; wave++)); do
    [[ -e $run/wave.$wave.requests ]] || break
    transfer "wave.$wave" publish
  done
}

# --------------------------------------------------------------------------------------- main

main() {
  local config='' dry_run='' started=${EPOCHREALTIME/./}
  local skipped_paths=0 skipped_bytes=0 batch_count=0
  local own=0 pushed=0 pushed_bytes=0 repaired=0 renewed=0
  while (($#)); do
    case $1 in
      --help) usage; exit 0 ;;
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
      [[ -r $config && ! -d $config ]] || fail settings "file '$config' cannot be read"
      read_settings <"$config"
      ;;
  esac
  check_settings
  set -m
  make_directories
  write_secrets
  list_closure
  look
  own=$(wc -l <"$run/own")
  if [[ -n $dry_run ]]; then
    count_missing
    count_expiring
    awk -F '\t' '{ print "would push " $2 " (" $3 " bytes)" }' "$run/missing" >&2
    summary 'would push'
    return
  fi
  sign_found
  count_expiring
  until [[ ! -s $run/missing ]] && renew_nars && [[ ! -s $run/missing ]]; do
    count_missing
    push_missing
  done
  publish
  summary pushed
}

count_missing() {
  local paths bytes broken
  read -r paths bytes broken < <(awk -F '\t' '
    { bytes += $3; broken += $4 == "broken" }
    END { print NR, bytes + 0, broken + 0 }' "$run/missing")
  ((pushed += paths, pushed_bytes += bytes, repaired += broken))
}

count_expiring() {
  ((setting[retention-days])) || return 0
  renewed=$(awk -F '\t' '$5 < ENVIRON["today"] || $6 != 0 && $6 < ENVIRON["today"]' "$run/whole" | wc -l)
}

# summary PUSHED: the one line on standard output.
summary() {
  local tenths=$(((${EPOCHREALTIME/./} - started) / 100000))
  printf '%s %d paths (%s), reused %d, skipped %d upstream (%s), renewed %d, repaired %d, in %d.%d s\n' \
    "$1" "$pushed" "$(human "$pushed_bytes")" $((own - pushed)) \
    "$skipped_paths" "$(human "$skipped_bytes")" "$renewed" "$repaired" \
    $((tenths / 10)) $((tenths % 10))
}

# Commands that take long run in the background, so that a signal is acted on at once.
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

main "$@" || exit 1
