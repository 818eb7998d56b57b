#!/usr/bin/env bash
# Everything that wants a GPU, in one command of under 8 minutes, without the Hub:
#
#   benchmarks/gpu.sh [FOLDER]     tests -> steps.json -> predictor.json -> summary.json, in FOLDER (runs/gpu)
#
# Where PyTorch sees no CUDA device the same runs on the CPU in tiny sizes, so that this script is right the day there is
# one. Python is $PYTHON, else that of .venv, else a python3 that lacks nothing, else that of a .venv made by make.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

python=${PYTHON:-.venv/bin/python}
if [ -z "${PYTHON:-}" ] && [ ! -x "$python" ]; then
    if python3 benchmarks/lacking.py > "$out/lacking.txt" || ! make .venv/.installed; then python=python3; fi
fi
"$python" benchmarks/lacking.py > "$out/lacking.txt" || { echo "$python lacks:"; cat "$out/lacking.txt"; }
device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")') || { echo "install what is lacking, or set PYTHON"; exit 1; }

if [ "$device" = cuda ]; then
    tests="-m gpu" sizes='"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096'
    steps="--methods full lora-II spafit-4-9-II spafit-8-16-II --rounds 10 --lora-r 64 --up-to 512"
    predictor="--base random-24x384 random-24x1024 --rounds 15"
else
    if command -v nvidia-smi > /dev/null; then echo "there is a GPU that the torch of $python does not see"; fi
    export OMP_NUM_THREADS=1  # two threads wait for each other where others use the cores, too
    tests="-k predictor" sizes='"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64'
    steps="--methods lora-II spafit-8-16-II --rounds 1 --batch 2 --max-tokens 8 --lora-r 2 --up-to 8 --no-memory"
    predictor="--base random-3x64 --rounds 1 --tokens 16"
fi
echo "{\"model_type\": \"bert\", \"vocab_size\": 28996, $sizes}" > "$out/config.json"

failed=0 parts=""
part() { # NAME SECONDS COMMAND...: its output is in NAME.log as well, and its exit status in the summary; 124 is too long
    local name=$1 limit=$2 status start=$SECONDS
    [ "$device" = cuda ] || limit=900  # the sizes are tiny, and others may use the cores
    echo "== $name"
    timeout "$limit" "${@:3}" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || failed=1
    parts="$parts, \"$name\": {\"status\": $status, \"seconds\": $((SECONDS - start))}"
}
# shellcheck disable=SC2086  # several words each
{
    part tests 130 "$python" -m pytest -q -p no:cacheprovider tests/test_gpu.py $tests
    part steps 230 "$python" -m benchmarks.steps --base "$out/config.json" --device "$device" --full-length $steps \
        --json "$out/steps.json"
    part predictor 70 "$python" -m benchmarks.predictor --device "$device" $predictor --json "$out/predictor.json"
}
echo "{\"device\": \"$device\"$parts}" | tee "$out/summary.json"
exit "$failed"
