#!/bin/sh
# record.sh DEVICE NAME ...   records a reference run of each name beside this file, in a store of its own
#
# A name is a model, or speedrun-TARGET. REPEATS (3; of a speedrun 5), SEED (the first of a speedrun), and of a model
# EPOCHS (auto: its recipe's) and PRECISION (auto) may be set; FMNIST_DATA_DIR names the official files.
set -eu
device=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
cd "$here/../.."
unset MLFLOW_EXPERIMENT_ID MLFLOW_RUN_ID
for name in "$@"; do
    case $name in
    speedrun-*)
        MLFLOW_EXPERIMENT_NAME=speedrun
        set -- -P target="${name#speedrun-}" -P seeds="${REPEATS:-5}" ${SEED:+-P seed="$SEED"}
        ;;
    *)
        MLFLOW_EXPERIMENT_NAME=train
        set -- -P model="$name" -P repeats="${REPEATS:-3}" -P epochs="${EPOCHS:-auto}" \
            -P precision="${PRECISION:-auto}"
        ;;
    esac
    MLFLOW_TRACKING_URI="sqlite:///$store/$name.db"
    export MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME
    (cd "$store" && PYTHONPATH="$here/../.." python -m "entry_points.$MLFLOW_EXPERIMENT_NAME" "$@" \
        -P device="$device" -P dataset="${DATASET:-fashion-mnist}")
    python -m entry_points.export -P runs="$MLFLOW_EXPERIMENT_NAME" -P small=true -P to="${TO:-$here}/$name-$device.zip"
done
