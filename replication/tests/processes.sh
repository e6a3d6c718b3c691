# How the scripts that run servers on loopback for tests start them, find them again, watch and end them, and what those show
# that speak TLS. Sourced.
#
# Problem: a server outlives the command that has started it, and must not outlive the tests that it is for, not even where
# these are killed; and numbers of processes are used again.
#
# Rule: each server has a directory, which is its working directory, and `pid` in it names the process. That counts only while a
# process of this number works in that directory. Where there is an owner, a small process beside each server kills it
# within a second after the owner has ended.
#
# The script that sources this sets: `run`, the directory that they are all in; `kind`, what they are called there (server I is in
# $run/$kind$I); `owner`, a pid, or nothing: they stay.
# shellcheck shell=bash disable=SC2154

die() { echo "${0##*/}: $*" >&2; exit 1; }
dir() { echo "$run/$kind$1"; }

# The numbers of the servers that have a directory.
all() {
    local d
    for d in "$run/$kind"*; do [[ -d $d ]] && echo "${d##*/"$kind"}"; done | sort -n
}

# One change at a time, until this script ends. Servers do not hold the lock: see `begin`.
lock() { exec 9>"$run/lock"; flock 9; }

# The pid of server I, if it runs.
pid_of() {
    local pid
    pid=$(cat "$(dir "$1")/pid" 2>/dev/null) || return 1
    [[ $(readlink "/proc/$pid/cwd" 2>/dev/null) == "$(readlink -f "$(dir "$1")")" ]] || return 1
    echo "$pid"
}

# Sends signal $1 to server $2.
signal() {
    local pid
    pid=$(pid_of "$2") || die "$kind $2 is not running"
    kill "-$1" "$pid"
}

# Starts server $1, which is the command $2..., without waiting for anything but its process; what it prints is in `out`.
begin() {
    local i=$1 d
    d=$(dir "$i")
    shift
    rm -f "$d/pid"
    # A session of its own: it gets no signal that is meant for the tests. 9>&-: nor has it the lock.
    setsid bash -c 'cd "$1" && echo $$ >pid && shift && exec "$@"' - "$d" "$@" >"$d/out" 2>&1 </dev/null 9>&- &
    until pid_of "$i" >/dev/null; do
        kill -0 $! 2>/dev/null || die "$kind $i did not start: $(tail -5 "$d/out")"
        sleep 0.02
    done
    [[ -z $owner ]] || watch "$(pid_of "$i")"
}

# When process $1 began, in ticks since boot: with it a pid is not taken for a later process of the same number.
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# Kills process $1 when the owner is gone. It may be paused: only KILL ends it then.
watch() {
    setsid bash -c '
        began() { sed "s/.*) //" "/proc/$1/stat" 2>/dev/null | cut -d" " -f20; }
        while [[ $(began "$1") == "$2" ]]; do
            [[ $(began "$3") == "$4" ]] || exit 0
            sleep 0.5
        done
        [[ $(began "$3") != "$4" ]] || kill -KILL "$3"
    ' - "$owner" "$(began "$owner")" "$1" "$(began "$1")" >/dev/null 2>&1 </dev/null 9>&- &
}

# What is said in directory $1 of why a server has ended: what looks like it in its log, and what stands last.
last_words() {
    grep -hE 'ERROR|Exception' "$1/log" "$1/out" 2>/dev/null | tail -5
    tail -qn 3 "$1/log" "$1/out" 2>/dev/null || true
}

# Waits until server $1 passes `"$2"...`, while it lives; for $wait_s_max at most.
await() {
    local i=$1 d deadline=$((SECONDS + wait_s_max))
    d=$(dir "$i")
    shift
    until "$@"; do
        pid_of "$i" >/dev/null || die "$kind $i ended: $(last_words "$d")"
        ((SECONDS < deadline)) || die "$kind $i is not ready after $wait_s_max s: see $d"
        sleep "${wait_s:-0.1}"
    done
}

# SIGKILL, and waits until it is gone.
end() {
    signal KILL "$1"
    while pid_of "$1" >/dev/null; do sleep 0.02; done
}

# Kills all servers, and deletes their directories.
wipe() {
    local i
    for i in $(all); do
        if pid_of "$i" >/dev/null; then end "$i"; fi
        rm -r "$(dir "$i")"
    done
}

# Makes an authority (ca.pem) and a certificate by it (cert.pem, key.pem) in directory $1, for the addresses $2.... Needs openssl.
certify() {
    local d=$1 names
    shift
    names=$(printf ',IP:%s' "$@")
    local new=(openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost)
    mkdir -p "$d"
    "${new[@]}" -x509 -days 2 -keyout "$d/ca.key" -out "$d/ca.pem" 2>/dev/null
    "${new[@]}" -keyout "$d/key.pem" -out "$d/request.pem" 2>/dev/null
    printf 'basicConstraints=CA:FALSE\nsubjectAltName=%s\n' "${names#,}" >"$d/extensions"
    openssl x509 -req -days 2 -in "$d/request.pem" -CA "$d/ca.pem" -CAkey "$d/ca.key" -CAcreateserial \
        -extfile "$d/extensions" -out "$d/cert.pem" 2>/dev/null
}
