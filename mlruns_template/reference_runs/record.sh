#!/bin/sh
# record.sh DEVICE MODEL ...   records a reference run of each model beside this file, in a store of its own
#
# REPEATS (3) and EPOCHS (auto: the model's recipe) may be set; FMNIST_DATA_DIR names the official files.
set -eu
device=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
store=$(mktemp -d)
trap 'rm -rf "$store"' EXIT
cd "$here/../.."
unset MLFLOW_EXPERIMENT_ID MLFLOW_RUN_ID
for model in "$@"; do
    MLFLOW_TRACKING_URI="sqlite:///$store/$model.db" MLFLOW_EXPERIMENT_NAME=train
    export MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME
    (cd "$store" && PYTHONPATH="$here/../.." python -m entry_points.train -P model="$model" -P device="$device" \
        -P dataset="${DATASET:-fashion-mnist}" -P repeats="${REPEATS:-3}" -P epochs="${EPOCHS:-auto}")
    python -m entry_points.export -P runs=train -P small=true -P to="${TO:-$here}/$model-$device.zip"
done
