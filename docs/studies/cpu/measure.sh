#!/bin/sh
# The study's measurement, about 75 minutes on two cores: sh docs/studies/cpu/measure.sh MODELS RUN
# MODELS: the folder that make_model.py wrote; RUN: the run directory to make. `loadgen cpu-env` must have been run.
set -eu
here=$(dirname "$0")
exec loadgen sweep --serve bf16,bnb-nf4,int8,fp8 --model "$1/small" --device cpu --reference bf16 \
    --concurrency 1,2,4,8,16,32 --dataset jsonl --data-file "$here/questions.jsonl" --fixed-length 48 \
    --duration 20 --repeats 3 --seed 1 --out "$2"
