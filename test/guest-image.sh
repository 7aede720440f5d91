#!/bin/sh
# Makes the image of the guests that tests boot, if the cache has none for the packages that apt knows now. On a fresh
# machine apt may know none, or some that are gone from the mirror: then it is asked to look, as root.
set -eu
cd "$(dirname "$0")/.."
dozo=${DOZO_BIN:-bin/dozo}
"$dozo" lab guest build && exit 0
[ "$(id -u)" = 0 ] || exit 1
apt-get -qq -o DPkg::Lock::Timeout=300 update
exec "$dozo" lab guest build
