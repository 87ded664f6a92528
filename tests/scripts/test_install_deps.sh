#!/usr/bin/env bash
# scripts/install-deps: quick and silent when all is there; a clear sentence when it can neither install nor ask for it.
# The system's commands are replaced by small ones in a folder of the test's own; nothing is installed.
set -u
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
script=$STQUANT_SOURCE/scripts/install-deps
failed=0

fake() { # name, body
    printf '#!/bin/sh\n%s\n' "$2" >"$tools/$1"
    chmod +x "$tools/$1"
}
for program in sh env cat tail mktemp rm; do ln -s "$(command -v $program)" "$tools/$program"; done

run() { output=$(PATH=$tools sh "$script" "$@" 2>&1); status=$?; }

report() { # name, condition's exit status
    if [ "$2" = 0 ]; then echo "ok - $1"; else echo "not ok - $1: status $status, $output"; failed=1; fi
}

fake id 'echo 1000'
fake apt-get 'echo "$@" >>"'"$tools"'/log"; exit 0'
fake dpkg-query 'echo installed'
run
[ "$status" = 0 ] && [ -z "$output" ] && [ ! -e "$tools/log" ]
report "all there: silent, nothing called" $?

fake dpkg-query 'case "$*" in *cmake*) exit 1 ;; *) echo installed ;; esac'
run
[ "$status" = 1 ] && [[ "$output" == *"not root"*"sudo"*"apt-get install cmake" ]]
report "neither root nor sudo: one sentence with the command" $?

fake sudo 'echo sudo >>"'"$tools"'/log"; exec "$@"'
run
[ "$status" = 0 ] && grep -q sudo "$tools/log" && grep -q 'install .*cmake' "$tools/log" && ! grep -q gcc "$tools/log"
report "a user with sudo: installs what is missing and no more" $?

: >"$tools/log"
fake id 'echo 0'
run
[ "$status" = 0 ] && ! grep -q sudo "$tools/log" && grep -q 'install .*cmake' "$tools/log"
report "root: no sudo" $?

: >"$tools/log"
fake apt-get 'echo "$@" >>"'"$tools"'/log"; [ "$1" = update ] || grep -q update "'"$tools"'/log"'
ln -s "$(command -v grep)" "$tools/grep"
run
[ "$status" = 0 ] && [ "$(grep -c install "$tools/log")" = 2 ]
report "no package lists yet: updates them and tries again" $?

fake apt-get 'echo "no network"; exit 100'
run
[ "$status" = 1 ] && [[ "$output" == *"could not install cmake"* ]]
report "no network: says so" $?

run --nonsense
[ "$status" = 2 ]
report "unknown option: usage" $?

rm "$tools/dpkg-query"
run
[ "$status" = 0 ] && [[ "$output" == *"no apt"* ]]
report "another system: names the packages and lets the build decide" $?
exit $failed
